"""Work beside the messages: a coroutine of an actor's own whose result comes back as a message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.actors._reply import handling
from cuelight.errors import SystemClosed

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell

__all__ = ["Background"]


class Background:
    """A task bound to an incarnation: cancelled and awaited when that ends."""

    __slots__ = ("_cell", "_scope", "_work", "cancelled")

    def __init__(self, cell: Cell, work: Awaitable[Any], done: Callable[[Any, Exception | None], None]) -> None:
        try:
            cell.must_live("background tasks")
        except SystemClosed:
            if isinstance(work, Coroutine):
                work.close()
            raise
        self._cell = cell
        self._work = work
        self._scope: anyio.CancelScope | None = None
        self.cancelled = False
        cell.bonds_made().background[self] = None
        context = copy_context()
        context.run(handling.set, None)  # it keeps nobody from the mail, and inherits no deadline
        cell.runtime.awake += 1
        cell.runtime.backend.spawn(self._run, done, context=context, name=f"{cell.path} background")

    def cancel(self) -> None:
        """Cancel the work; nothing comes of it."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self, done: Callable[[Any, Exception | None], None]) -> None:
        cell = self._cell
        result, error = None, None
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:
                    self._scope.cancel()
                result = await self._work
        except Exception as raised:
            error = raised
        except cell.runtime.backend.cancelled:
            self.cancelled = True
        except BaseException as raised:
            self.cancelled = True
            cell.abort_if_fatal(raised)
            cell.fail_with(raised)
        cell.bonds_made().background.pop(self, None)
        if not self.cancelled:
            done(result, error)
        cell.runtime.dozed()
        cell.part_ended()
