"""What a running task knows of itself, and what it can keep while it runs: `current_task()`.

Invariants:

1. Only the attempt that holds the lease can keep progress or a checkpoint; one that has lost it, or has ended, raises
   `LeaseLost`. One that was cut off may still save while it cleans up.
2. What `save` returned from is there for the next attempt, wherever that runs.
3. Nobody finds the context of another task: it is set before a task begins and taken back when it has ended.
"""

from __future__ import annotations

import random
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import msgspec

from cuelight.errors import LeaseLost, StoreUnavailable
from cuelight.tasks._codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.tasks._store import Lease
    from cuelight.tasks._task import Counts
    from cuelight.tasks._thread_calls import ThreadCalls

__all__ = ["Desk", "TaskContext", "current_task", "running_task"]


class Desk(Protocol):
    """Where a context keeps things: the worker."""

    calls: ThreadCalls | None

    def rest(self, context: TaskContext) -> bool:
        """A task begins to wait for another one: it holds no slot meanwhile. From any thread.

        Returns:
            Whether it held one.

        Raises:
            DeadlockError: very many tasks wait already.
        """
        ...

    def resume(self, context: TaskContext) -> None:
        """It goes on. From any thread."""
        ...

    async def save(self, lease: Lease, progress: bytes | None, checkpoint: bytes | None) -> bool:
        """Keep what a running attempt has. False if it is stale."""
        ...


class TaskContext:
    """The running task, seen from inside. Get it with `current_task()`.

    Attributes:
        deadline: when this attempt is cut off by its time-out, in seconds since the epoch; None for never.
        cancelled: whether it was cut off: its time-out or its lease is over, it was cancelled, or the worker is being
            shut down. An async function is cancelled then; a thread cannot be, so long work in one should look.
        node: for the graph of waits: the task or the thread that runs it.
    """

    __slots__ = ("_desk", "_lease", "_over", "cancelled", "deadline", "node")

    def __init__(self, lease: Lease, desk: Desk | None, deadline: float | None = None, node: Any = None) -> None:
        self._lease, self._desk, self.deadline, self.node = lease, desk, deadline, node
        self.cancelled = self._over = False

    def end(self, *, cancelled: bool) -> None:
        """For the worker: the attempt has ended, or its lease is lost."""
        self._over = True
        self.cancelled = self.cancelled or cancelled

    def rest(self) -> bool:
        """For waits inside the task: it gives up its slot. False if it has none, or has ended.

        Raises:
            DeadlockError: very many tasks of its worker wait already.
        """
        return self._desk is not None and not self._over and self._desk.rest(self)

    def resume(self) -> None:
        """For waits inside the task: it goes on."""
        if self._desk is not None:
            self._desk.resume(self)

    def is_of(self, store: object) -> bool:
        """Whether it is a task of this store."""
        return self._desk is not None and getattr(self._desk, "store", None) is store

    @property
    def task_id(self) -> str:
        """Its identity, the same in all attempts."""
        return self._lease.record.id

    @property
    def task_type(self) -> str:
        """Its type: the name of the function."""
        return self._lease.record.type

    @property
    def epoch(self) -> int:
        """The fencing token of this attempt: it grows with each claim, so whatever keeps it can refuse an older one."""
        return self._lease.epoch

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1. Attempts that were told to come back later, or given back, do not count."""
        counts = self._lease.counts
        return 1 + counts.errors + counts.timeouts + counts.crashes

    @property
    def counts(self) -> Counts:
        """The attempts before this, by how they ended."""
        return self._lease.counts

    @property
    def checkpoint(self) -> Any:
        """What was saved last, by this attempt or one before it, as plain values; None if nothing was."""
        kept = self._lease.checkpoint
        return None if kept is None else decode(kept)

    def key(self, step: str) -> str:
        """A key that is the same in every attempt of this task, to give to services that take an idempotency key.

        Args:
            step: which of the calls that the task makes.
        """
        return f"{self.task_id}:{step}"

    async def progress(self, value: Any) -> None:
        """Show how far the task is, to whoever asks its handle. A checkpoint.

        While the store is away this waits for it, at most as long as the lease lasts.

        Args:
            value: any value that can be stored: 0.5, or {"page": 3}.

        Raises:
            TypeError: the value cannot be stored.
            LeaseLost: the attempt has ended or lost its lease, and another may be under way.
        """
        await self._keep("progress", encode(value, "progress"), None)

    async def save(self, checkpoint: Any) -> None:
        """Keep what the next attempt is to go on from, should this one fail. A checkpoint.

        While the store is away this waits for it, at most as long as the lease lasts.

        Args:
            checkpoint: any value that can be stored; it replaces what was saved before.

        Raises:
            TypeError: the value cannot be stored.
            LeaseLost: the attempt has ended or lost its lease, and another may be under way.
        """
        data = encode(checkpoint, "checkpoint")
        await self._keep("checkpoint", None, data)
        self._lease.checkpoint = data

    def progress_blocking(self, value: Any) -> None:
        """`progress`, for a task that runs in a thread."""
        self._from_thread(self.progress, "progress", value)

    def save_blocking(self, checkpoint: Any) -> None:
        """`save`, for a task that runs in a thread."""
        self._from_thread(self.save, "checkpoint", checkpoint)

    async def _keep(self, what: str, progress: bytes | None, checkpoint: bytes | None) -> None:
        if self._desk is None:
            raise RuntimeError(f"the {what} of {self.task_id} cannot be kept here: a task in a process only reads")
        pause = 0.05
        while not self._over:
            try:
                kept = await self._desk.save(self._lease, progress, checkpoint)
            except StoreUnavailable:
                pause = min(1.0, 2 * pause)
                await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                continue
            if kept:
                return
            break
        raise self._too_late(what)

    def _too_late(self, what: str) -> LeaseLost:
        return LeaseLost(f"the {what} of {self.task_id} was refused: this attempt has ended, or lost its lease")

    def _from_thread(self, method: Callable[[Any], Awaitable[None]], what: str, value: Any) -> None:
        calls = None if self._desk is None else self._desk.calls
        if self._over:
            raise self._too_late(what)
        if calls is None:
            raise RuntimeError(f"{self.task_id} does not run in a thread of a worker: await `progress` or `save`")
        try:
            calls.call(method, value)
        except CancelledError:  # the worker has ended meanwhile
            raise self._too_late(what) from None

    def __getstate__(self) -> tuple[Lease, float | None]:
        # The arguments go their own way: no need to send them twice.
        record = msgspec.structs.replace(self._lease.record, payload=b"")
        return msgspec.structs.replace(self._lease, record=record), self.deadline

    def __setstate__(self, state: tuple[Lease, float | None]) -> None:
        self.__init__(state[0], None, state[1])  # type: ignore[misc]  # in a process there is no desk

    def __repr__(self) -> str:
        return f"<attempt {self.attempt} of {self.task_type or 'task'} {self.task_id}>"


running_task: ContextVar[TaskContext | None] = ContextVar("cuelight_task", default=None)
"""The task that the running code belongs to."""


def current_task() -> TaskContext:
    """The context of the task that runs here: in the loop, in the worker's thread or in its process.

    In a process it can be read, and `progress` and `save` raise `RuntimeError`.

    Raises:
        RuntimeError: no task of a worker runs here.
    """
    context = running_task.get()
    if context is None:
        raise RuntimeError("no task runs here: current_task() is for functions that a TaskWorker calls")
    return context
