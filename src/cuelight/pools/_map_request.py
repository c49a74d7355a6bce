"""What a map was asked for, and the small things that belong to one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._text import type_name
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._progress import Progress

if TYPE_CHECKING:
    from cuelight.pools._pool_worker import PoolWorker

__all__ = ["MapPlace", "MapRequest", "map_failure"]


class MapRequest(msgspec.Struct, frozen=True):
    """What `AsyncWorkerPool.map` was asked for."""

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


class MapPlace:
    """What items of the map that one worker does belong to."""

    __slots__ = ("worker",)

    def __init__(self, worker: PoolWorker) -> None:
        self.worker: PoolWorker | None = worker


def map_failure(name: str, error: BaseException) -> Exception:
    """What awaiting a map raises when its source or its callback has raised this.

    `StopAsyncIteration` would look like the end of the results, and what is no `Exception` would end more than the map.
    """
    if is_a(error, StopIteration, StopAsyncIteration):
        failure = RuntimeError(f"the source of the map of {name}, or its progress callback, raised {type_name(error)}")
        failure.__cause__ = error
        return failure
    return as_failure(f"the source of the map of {name}, or its progress callback,", error)
