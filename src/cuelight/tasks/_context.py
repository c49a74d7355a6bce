"""`current_task()`: the data that a running task can read, and the progress and the checkpoint that it can store.

Invariants:

1. Only the attempt that holds the lease can store progress or a checkpoint. An attempt that has ended or lost its lease
   gets `LeaseLost`. A cancelled attempt may still save while it cleans up.
2. Once `save` has returned, the next attempt gets the checkpoint, in any process.
3. No task gets the context of another task: the context is set before a task starts and reset when it ends.
"""

from __future__ import annotations

import random
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import msgspec

from cuelight.errors import LeaseLost, StoreUnavailable
from cuelight.tasks._functions._values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight._dead_letters._attempt import Counts
    from cuelight.tasks._stores._protocol import Lease
    from cuelight.tasks._worker._thread_calls import ThreadCalls


class AttemptHost(Protocol):
    """The worker, as far as a context uses it."""

    calls: ThreadCalls | None

    def suspend(self, context: TaskContext) -> bool:
        """Free the slot of a task that begins to wait for another task. May be called from any thread.

        Returns:
            Whether the task held a slot.

        Raises:
            DeadlockError: too many tasks of the worker wait already.
        """
        ...

    def resume(self, context: TaskContext) -> None:
        """Continue a task that has waited. May be called from any thread."""
        ...

    async def save(self, lease: Lease, progress: bytes | None, checkpoint: bytes | None) -> bool:
        """Store the progress or the checkpoint of an attempt. Return False if the attempt has lost its lease."""
        ...


class TaskContext:
    """The running task, as its function sees it. Get it with `current_task()`.

    Attributes:
        deadline: when the time-out ends this attempt, in seconds since the epoch; None for never.
        cancelled: whether this attempt was cancelled, because of its time-out, a lost lease, `cancel`, or the end of
            the worker. An async function is then cancelled. A thread cannot be cancelled, so a long-running plain
            function should check this attribute.
        node: the async task or the thread that runs it, as a node in the graph of waits.
    """

    __slots__ = ("_ended", "_host", "_lease", "cancelled", "deadline", "node")

    def __init__(self, lease: Lease, host: AttemptHost | None, deadline: float | None = None, node: Any = None) -> None:
        self._lease, self._host, self.deadline, self.node = lease, host, deadline, node
        self.cancelled = self._ended = False

    def end(self, *, cancelled: bool) -> None:
        """Mark the attempt as ended, or its lease as lost. Called by the worker."""
        self._ended = True
        self.cancelled = self.cancelled or cancelled

    def suspend(self) -> bool:
        """Give up the task's slot before a wait. Return False if the task has no slot or has ended.

        Raises:
            DeadlockError: too many tasks of its worker wait already.
        """
        return self._host is not None and not self._ended and self._host.suspend(self)

    def resume(self) -> None:
        """Take a slot again after a wait."""
        if self._host is not None:
            self._host.resume(self)

    def is_of(self, store: object) -> bool:
        """Whether the task belongs to this store."""
        return self._host is not None and getattr(self._host, "store", None) is store

    @property
    def task_id(self) -> str:
        """The identifier of the task, the same in all attempts."""
        return self._lease.record.id

    @property
    def task_type(self) -> str:
        """The type of the task, which is the name of its function."""
        return self._lease.record.type

    @property
    def epoch(self) -> int:
        """The fencing token of this attempt, which grows with each claim.

        A system that stores it can reject writes of older attempts.
        """
        return self._lease.epoch

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. Attempts that were rate-limited or given back do not count."""
        counts = self._lease.counts
        return 1 + counts.errors + counts.timeouts + counts.crashes

    @property
    def counts(self) -> Counts:
        """The previous attempts, by how they ended."""
        return self._lease.counts

    @property
    def checkpoint(self) -> Any:
        """The value that this or an earlier attempt saved last, as plain values; None if there is none."""
        stored = self._lease.checkpoint
        return None if stored is None else decode(stored)

    def key(self, step: str) -> str:
        """Return an idempotency key for a call of another service. It is the same in every attempt of this task.

        Args:
            step: a name for the call, to distinguish several calls of the task.
        """
        return f"{self.task_id}:{step}"

    async def progress(self, value: Any) -> None:
        """Store how far the task is, for the users of its handle. A checkpoint.

        While the store is unavailable, this method retries, at most until the lease expires.

        Args:
            value: any value that can be stored: 0.5, or {"page": 3}.

        Raises:
            TypeError: the value cannot be stored.
            LeaseLost: the attempt has ended or lost its lease, so another attempt may run.
        """
        await self._store_value("progress", encode(value, "progress"), None)

    async def save(self, checkpoint: Any) -> None:
        """Store the state from which the next attempt can continue if this one fails. A checkpoint.

        While the store is unavailable, this method retries, at most until the lease expires.

        Args:
            checkpoint: any value that can be stored; it replaces the previous one.

        Raises:
            TypeError: the value cannot be stored.
            LeaseLost: the attempt has ended or lost its lease, so another attempt may run.
        """
        data = encode(checkpoint, "checkpoint")
        await self._store_value("checkpoint", None, data)
        self._lease.checkpoint = data

    def progress_blocking(self, value: Any) -> None:
        """Blocking version of `progress`, for a task that runs in a thread."""
        self._from_thread(self.progress, "progress", value)

    def save_blocking(self, checkpoint: Any) -> None:
        """Blocking version of `save`, for a task that runs in a thread."""
        self._from_thread(self.save, "checkpoint", checkpoint)

    async def _store_value(self, what: str, progress: bytes | None, checkpoint: bytes | None) -> None:
        if self._host is None:
            raise RuntimeError(
                f"the {what} of {self.task_id} cannot be stored here: in a process, the context is read-only"
            )
        delay = 0.05
        while not self._ended:
            try:
                stored = await self._host.save(self._lease, progress, checkpoint)
            except StoreUnavailable:
                delay = min(1.0, 2 * delay)
                await anyio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                continue
            if stored:
                return
            break
        raise self._too_late(what)

    def _too_late(self, what: str) -> LeaseLost:
        return LeaseLost(f"the {what} of {self.task_id} was rejected: this attempt has ended, or lost its lease")

    def _from_thread(self, method: Callable[[Any], Awaitable[None]], what: str, value: Any) -> None:
        calls = None if self._host is None else self._host.calls
        if self._ended:
            raise self._too_late(what)
        if calls is None:
            raise RuntimeError(f"{self.task_id} does not run in a thread of a worker: await `progress` or `save`")
        try:
            calls.call(method, value)
        except CancelledError:  # the worker has ended in the meantime
            raise self._too_late(what) from None

    def __getstate__(self) -> tuple[Lease, float | None]:
        # The arguments are sent to the process separately.
        record = msgspec.structs.replace(self._lease.record, payload=b"")
        return msgspec.structs.replace(self._lease, record=record), self.deadline

    def __setstate__(self, state: tuple[Lease, float | None]) -> None:
        self.__init__(state[0], None, state[1])  # type: ignore[misc]  # a worker process cannot save

    def __repr__(self) -> str:
        return f"<attempt {self.attempt} of {self.task_type or 'task'} {self.task_id}>"


running_task: ContextVar[TaskContext | None] = ContextVar("cuelight_task", default=None)
"""The context of the running task."""


def current_task() -> TaskContext:
    """Return the context of the running task.

    It works in the worker's event loop, threads and processes. In a process, the context is read-only: `progress` and
    `save` raise `RuntimeError`.

    Raises:
        RuntimeError: the caller is not part of a task of a worker.
    """
    context = running_task.get()
    if context is None:
        raise RuntimeError("no task runs here: current_task() is for functions that a TaskWorker calls")
    return context
