"""A task group whose tasks cannot be interrupted before they begin."""

from __future__ import annotations

import sys
from asyncio import events as _events
from typing import TYPE_CHECKING, Any, Self

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class TaskGroup:
    """An anyio task group. On trio it starts tasks in the nursery itself.

    A task that anyio starts on trio begins with code of anyio, where Ctrl-C raises. The function of the task would then
    never begin, and no code would notice.

    Attributes:
        cancel_scope: cancels all tasks.
        start_soon: starts `function(*args)` as a task, with a `name`.
    """

    cancel_scope: anyio.CancelScope
    start_soon: Callable[..., Any]

    def __init__(self) -> None:
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        group = await self._group.__aenter__()
        self.cancel_scope = group.cancel_scope
        if _events._get_running_loop() is not None:
            self.start_soon = group.start_soon
        else:
            task = sys.modules["trio"].lowlevel.current_task()
            self.start_soon = task.child_nurseries[-1].start_soon
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._group.__aexit__(kind, error, trace)
