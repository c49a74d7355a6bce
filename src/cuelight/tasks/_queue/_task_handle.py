"""`TaskHandle`: the result and the progress of one task, and its cancellation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio

from cuelight._checks import check_seconds
from cuelight.errors import TaskCancelled, TaskExpired, TaskFailed, TaskNotFound, TaskQuarantined, TaskTimedOut
from cuelight.pools import TaskStatus
from cuelight.tasks._codec import task_of
from cuelight.tasks._functions._values import decode
from cuelight.tasks._queue._task_waits import is_nested, waiting_for_task

if TYPE_CHECKING:
    from cuelight.tasks._queue._session import ResultWaiters
    from cuelight.tasks._stores._protocol import Snapshot, Store
    from cuelight.tasks._task import Task

R_co = TypeVar("R_co", covariant=True)

OVER: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.CANCELLED, TaskStatus.DEAD_LETTER})

_FAILURES: Final[dict[str, tuple[type[TaskFailed], str]]] = {
    "errors": (TaskFailed, "failed the maximum number of times"),
    "timeouts": (TaskTimedOut, "timed out the maximum number of times"),
    "quarantined": (TaskQuarantined, "was running when its worker died, the maximum number of times"),
    "expired": (TaskExpired, "was not started before its deadline"),
    "rejected": (TaskFailed, "was rejected"),
    "shed": (TaskFailed, "gave way to a more urgent task in a full queue"),
}


class HandleQueue(Protocol):
    """The queue of a handle, as far as the handle uses it."""

    @property
    def store(self) -> Store: ...

    @property
    def result_waiters(self) -> ResultWaiters: ...

    async def snapshot(self, task_id: str) -> Snapshot | None: ...

    async def cancel(self, task_id: str) -> str: ...


class TaskHandle(Generic[R_co]):
    """A task in a queue: `handle = await greet.send("Ada")`, then `await handle.result()`.

    It owns no resources. `TaskQueue.handle` recreates it from the task's identifier, in any process.

    Attributes:
        task_id: the identifier of the task.
        is_new: whether the `send` that returned this handle added the task. False if a task with the same identifier or
            unique key existed; the handle is then for that task.
    """

    __slots__ = ("_queue", "_read", "is_new", "task_id")

    def __init__(
        self, queue: HandleQueue, task_id: str, read: Callable[[bytes | None], R_co], *, is_new: bool = False
    ) -> None:
        self._queue, self._read = queue, read
        self.task_id, self.is_new = task_id, is_new

    async def result(self, timeout: float | None = None) -> R_co:
        """Wait until the task has ended, and return its result. A checkpoint.

        A worker's task that waits here for another task uses no slot of its worker in the meantime. *A function that
        runs in a process cannot give up its slot.*

        Args:
            timeout: seconds to wait; None for no limit. The task continues after that.

        Raises:
            TaskFailed: the task was given up. Subclasses name the reason: `TaskTimedOut`, `TaskCancelled`,
                `TaskExpired`, `TaskQuarantined`. The message contains the last error, a note its traceback.
            TaskNotFound: the task does not exist: it was never in the queue, was purged, or its `result_ttl` is over.
            TimeoutError: the task did not end within `timeout`.
            TypeError: the result does not fit the annotation.
            ValueError: the stored bytes are not the result of a task.
            DeadlockError: the running task or handler would wait for itself, directly or through others.
            PoolClosed: the queue was closed.
            StoreUnavailable: the store was unavailable for too long.
        """
        snapshot = await self._until(_is_over, timeout)
        if snapshot.state == TaskStatus.COMPLETED:
            return self._read(snapshot.result)
        raise failure_of(snapshot)

    async def status(self) -> TaskStatus:
        """Return the current state of the task. A checkpoint.

        Raises:
            TaskNotFound: the task does not exist, or was removed.
        """
        return TaskStatus((await self._snapshot()).state)

    async def task(self) -> Task:
        """Return the task in its current state. A checkpoint.

        Raises:
            TaskNotFound: the task does not exist, or was removed.
        """
        return task_of(await self._snapshot())

    async def cancel(self) -> str:
        """Cancel the task; see `TaskQueue.cancel` for the return values. A checkpoint."""
        return await self._queue.cancel(self.task_id)

    async def progress(self) -> Any:
        """Return the last progress that the task has reported; None before that. A checkpoint.

        Raises:
            TaskNotFound: the task does not exist, or was removed.
        """
        progress = (await self._snapshot()).progress
        return None if progress is None else decode(progress)

    def updates(self) -> AsyncIterator[Any]:
        """Return an async iterator over the progress reports, from the current one until the task ends.

        If reports come faster than they are read, only the latest one is returned. The loop over the iterator can be
        left at any time. It raises `TaskNotFound` if the task does not exist.
        """
        return _Updates(self)

    async def _until(self, wanted: Callable[[Snapshot | None], bool], timeout: float | None = None) -> Snapshot:
        if timeout is not None and check_seconds("result(timeout)", timeout) <= 0:
            now = await self._snapshot()
            if wanted(now):
                return now
        else:
            with anyio.move_on_after(inf if timeout is None else timeout):
                found = await (
                    self._wait(wanted) if is_nested() else self._queue.result_waiters.until(self.task_id, wanted)
                )
                if found is None:
                    raise self._missing()
                return found
        raise TimeoutError(f"the task {self.task_id} has not ended after {timeout} s; it continues")

    async def _wait(self, wanted: Callable[[Snapshot | None], bool]) -> Snapshot | None:
        """Wait inside a task or a handler, for which others may wait."""
        now = await self._snapshot()
        if wanted(now):
            return now
        with waiting_for_task(self._queue.store, self.task_id, now.record.type):
            return await self._queue.result_waiters.until(self.task_id, wanted)

    async def _snapshot(self) -> Snapshot:
        found = await self._queue.snapshot(self.task_id)
        if found is None:
            raise self._missing()
        return found

    def _missing(self) -> TaskNotFound:
        return TaskNotFound(
            f"there is no task {self.task_id!r}: it was never in this queue, was purged, or its result_ttl is over"
        )

    def __repr__(self) -> str:
        return f"<task handle {self.task_id}>"


class _Updates:
    """Not an async generator, so that no cleanup is necessary when a loop is left early."""

    def __init__(self, handle: TaskHandle[Any]) -> None:
        self._handle = handle
        self._seen: bytes | None = None
        self._over = False

    def __aiter__(self) -> _Updates:
        return self

    async def __anext__(self) -> Any:
        while not self._over:
            snapshot = await self._handle._until(self._is_news)
            self._over = _is_over(snapshot)
            before, self._seen = self._seen, snapshot.progress
            if self._seen is not None and self._seen != before:
                return decode(self._seen)
        raise StopAsyncIteration

    def _is_news(self, now: Snapshot | None) -> bool:
        return now is None or now.progress != self._seen or _is_over(now)


def _is_over(snapshot: Snapshot | None) -> bool:
    return snapshot is None or snapshot.state in OVER


def failure_of(snapshot: Snapshot) -> TaskFailed:
    """The exception for a task that did not complete."""
    record, history = snapshot.record, snapshot.history
    name = f"{record.type or 'the task'} ({record.id})"
    if snapshot.state == TaskStatus.CANCELLED:
        return TaskCancelled(f"{name} was cancelled")
    kind, how = _FAILURES.get(snapshot.reason, (TaskFailed, f"was given up: {snapshot.reason}"))
    last = history[-1] if history else None
    if last is None or not last.error:
        return kind(f"{name} {how}")
    failure = kind(f"{name} {how}; the last error: {last.error}")
    if last.traceback:
        failure.add_note(f"In the worker {last.worker}:\n{last.traceback}")
    return failure
