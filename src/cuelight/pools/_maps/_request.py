"""The arguments of a map, and small parts of one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._text import type_name
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._results import Progress

if TYPE_CHECKING:
    from cuelight.pools._pool_worker import PoolWorker


class MapRequest(msgspec.Struct, frozen=True):
    """The checked arguments of `AsyncWorkerPool.map`."""

    function: Callable[[Any], Any]
    items: Any
    task_id: str
    in_loop: bool
    ordered: bool
    chunk_size: int | None
    buffer: int | None
    timeout: float | None
    priority: int
    progress: Progress | bool | None
    context: Context


class ServedItems:
    """The place of the items of a map that one worker runs."""

    __slots__ = ("worker",)

    def __init__(self, worker: PoolWorker) -> None:
        self.worker: PoolWorker | None = worker


def map_failure(name: str, error: BaseException) -> Exception:
    """The error of a map whose source or progress callback raised `error`.

    `StopAsyncIteration` would look like the end of the results, and an error that is not an `Exception` would end more
    than the map. So both are replaced.
    """
    if is_a(error, StopIteration, StopAsyncIteration):
        failure = RuntimeError(f"the source of the map of {name}, or its progress callback, raised {type_name(error)}")
        failure.__cause__ = error
        return failure
    return as_failure(f"the source of the map of {name}, or its progress callback,", error)
