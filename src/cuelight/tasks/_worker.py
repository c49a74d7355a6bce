"""`TaskWorker`: runs the tasks of a queue, isolated from each other and from the worker."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors import Actor, Crashed, ShutDown, child
from cuelight.actors._reply import handling
from cuelight.errors import PoolClosed, TaskFailed, WorkerDied
from cuelight.pools import TaskResult
from cuelight.tasks._arguments import check_task
from cuelight.tasks._blocking import BlockingFace
from cuelight.tasks._codec import decode
from cuelight.tasks._context import running_task
from cuelight.tasks._handling import Given
from cuelight.tasks._options import Tally, WorkerStats, options_of
from cuelight.tasks._queue_base import QueueBase
from cuelight.tasks._shift import FLUSH, Shift

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from cuelight.actors import Exit, Ref
    from cuelight.pools._attempts import Kind
    from cuelight.supervision import Backoff
    from cuelight.tasks._handling import Handlers
    from cuelight.tasks._options import Heartbeat
    from cuelight.tasks._queue import TaskQueue
    from cuelight.tasks._task import Task

__all__ = ["TaskWorker"]

log = get_log("cuelight.tasks")


class TaskWorker:
    """Runs the tasks of a queue: `async with TaskWorker(queue, [function]) as worker:`, or `await worker.run()`.

    A task is leased for some seconds, and the lease is renewed from a thread as long as it runs: if this process dies,
    others have its tasks when their leases are over, and a blocked event loop costs nothing. A lease that was lost all
    the same cancels the handler at once, and what it finishes is refused.

    The worker is an actor in the queue's system. However the block is left, or `run` cancelled, nothing new is begun,
    what runs has `shutdown_timeout` seconds to end, and the rest is cancelled and given back, which costs no attempt.
    An exception that leaves the block gives all back at once. If the actor is killed, or given up by its supervisor,
    the block is cancelled, and `WorkerDied` leaves it.

    Async functions run in the event loop; plain ones in threads, or in processes. What a task raises ends up in its
    history: `Rejected` gives it up, `RateLimited` has it come back later, and neither that nor `SystemExit` ends the
    worker. Only `KeyboardInterrupt` does. Each task finds the context variables with which the worker was started.
    """

    def __init__(
        self,
        queue: TaskQueue | None = None,
        handlers: Handlers = (),
        *,
        worker_id: str | None = None,
        handler: Callable[..., Any] | None = None,
        concurrency: int = 100,
        threads: int | None = None,
        lease: float = 15.0,
        timeout: float | None = None,
        kind: Kind | None = None,
        backoff: Backoff | None = None,
        shutdown_timeout: float = 10.0,
        heartbeat: Heartbeat = "thread",
    ) -> None:
        """Set up a worker; nothing runs before it is entered.

        Args:
            queue: whose tasks it runs; without one, only `process_one(task)` works.
            handlers: task functions, or functions of the payload by task type.
            worker_id: its name in histories; unique among all workers. By default of host, process and chance.
            handler: runs the tasks of all other types; it is given the `Task`.
            concurrency: tasks that run at once. As many as `threads` if all functions are plain.
            threads: threads, or processes, for plain functions; by default 32 threads, a process for each core.
            lease: seconds after which others take over from this process when it has died.
            timeout: seconds that one attempt may run, for tasks that do not say; None for as long as it takes.
            kind: where plain functions run: None or "thread", or "process", where a time-out can kill them.
            backoff: delays before failed tasks are tried again; by default 1, 2, 4 ... 300 seconds and up to 20 % more.
            shutdown_timeout: seconds that what runs is given to end.
            heartbeat: what renews leases: a "thread", or the "loop", for tests in virtual time.

        Raises:
            ValueError: a value makes no sense; the message names it and what to give.
            TypeError: something that cannot run tasks was given.
        """
        given: Any = queue
        if isinstance(given, BlockingFace):
            raise TypeError(
                f"queue={safe_repr(queue)}: a worker needs an async TaskQueue, `async with TaskQueue(store) as "
                "queue:`, and runs in its loop; a blocking program starts workers as programs of their own"
            )
        if given is not None and not isinstance(given, QueueBase):
            raise TypeError(f"TaskWorker(queue={safe_repr(given)}): give a TaskQueue, and then the handlers")
        self._queue = queue
        self._options = options_of(
            handlers,
            handler,
            worker_id=worker_id,
            concurrency=concurrency,
            threads=threads,
            lease=lease,
            timeout=timeout,
            kind=kind,
            backoff=backoff,
            shutdown_timeout=shutdown_timeout,
            heartbeat=heartbeat,
        )
        self._tally = Tally()
        self._shift: Shift | None = None
        self._ref: Ref[Any] | None = None
        self._entered = self._leaving = False
        self._scope: anyio.CancelScope | None = None  # of the block
        self._died: WorkerDied | None = None
        self._context = copy_context()

    @property
    def worker_id(self) -> str:
        """Its name in the history of tasks."""
        return self._options.worker_id

    async def __aenter__(self) -> Self:
        queue = self._must_have_queue()
        if self._entered:
            raise RuntimeError(f"the worker {self.worker_id!r} works already: make another, or leave its block first")
        self._entered, self._leaving, self._died = True, False, None
        self._context = copy_context()
        spec = child(_WorkerActor, self).with_options(shutdown=self._options.shutdown_timeout + FLUSH + 1.0)
        try:
            await queue.ready()
            self._ref = ref = await queue.system.spawn(spec)
        except BaseException:
            self._entered = False
            raise
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        if ref.alive:
            ref._cell.bonds_made().call_when_ended(self._ended)
        elif ref._cell.exit is not None:
            self._ended(ref._cell.exit)
        return self

    def _ended(self, exit_: Exit) -> None:
        """The actor has ended for good. If nobody asked for that, the block must not go on as if it worked."""
        system = self._must_have_queue().system
        if self._leaving or isinstance(exit_, ShutDown) or system._closing or system._failure is not None:
            return
        self._died = WorkerDied(f"the worker {self.worker_id!r} has ended, {exit_.describe()}: it takes no more tasks")
        if isinstance(exit_, Crashed):
            self._died.__cause__ = exit_.error
        if self._scope is not None:
            self._scope.cancel()
        log.error("%s", self._died, extra={"worker_id": self.worker_id, "queue": self._must_have_queue().name})

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ref, self._ref = self._ref, None
        scope, self._scope = self._scope, None
        if ref is None or scope is None:
            return
        self._leaving = True
        swallowed: bool | None = False
        try:
            with anyio.CancelScope(shield=True):
                if isinstance(error, Exception):
                    await ref.kill("the block of the worker was left by an exception")
                else:
                    await ref.stop()
        finally:
            self._entered = False
            swallowed = scope.__exit__(kind, error, trace)
        if self._died is not None and (swallowed or error is None):
            raise self._died

    async def run(self) -> None:
        """Work until this is cancelled, or the queue's system ends. A checkpoint.

        Raises:
            WorkerDied: the actor of the worker was killed, or given up by its supervisor.
        """
        async with self:
            if self._ref is not None:
                await self._ref.ended()

    async def process_one(self, task: Task | None = None) -> TaskResult[Any] | None:
        """Run one task and say what came of it. A checkpoint.

        Nothing that the task raises is propagated, but `KeyboardInterrupt`. When this is cancelled the task is too, and
        goes back to the queue.

        Args:
            task: what to run; whoever dequeued it still has to `ack` or `nack` it. None claims one, and settles it.

        Returns:
            The result, with the error if it failed; None if no task was there to be claimed.

        Raises:
            TypeError: it is no task.
            PoolClosed: there is no queue to claim from.
            StoreUnavailable: the store did not answer the claim for as long as a lease lasts.
        """
        if task is not None:
            check_task("process_one", task)
        given = None if task is None else Given.of(task)
        if task is None:
            await self._must_have_queue().ready()
        store: Any = self._must_have_queue().store if task is None else _Nowhere()
        name = "" if self._queue is None else self._queue.name
        shift = Shift(store, msgspec.structs.replace(self._options, slots=1), self._tally, name)
        with _unwrapped_interrupt():
            settled = await shift.once(given)
        if task is not None and given is not None and given.checkpoint is not None:
            task.checkpoint = decode(given.checkpoint)
        return None if settled is None else self._result(settled)

    def _result(self, settled: Any) -> TaskResult[Any]:
        lease, finish, elapsed, value, error = settled
        done = finish is not None and finish.kind == "done"
        return TaskResult(
            task_id=lease.record.id,
            success=done,
            result=value if done else None,
            error=None if done else TaskFailed("it did not succeed") if error is None else error,
            elapsed_ms=elapsed * 1000,
            task_name=lease.record.type,
            worker_id=self.worker_id,
        )

    def stats(self) -> WorkerStats:
        """A copy of the totals, as they are now. From any thread."""
        shift, tally = self._shift, self._tally
        now = WorkerStats(**{name: getattr(tally, name) for name in WorkerStats.__dataclass_fields__})
        if shift is not None:
            now.running, now.waiting, now.unsent = shift.busy, len(shift.waiting), shift.claimer.unsent
            now.abandoned, now.replaced = shift.executors.abandoned, shift.executors.replaced
        return now

    def __repr__(self) -> str:
        return f"<TaskWorker {self.worker_id}: {'working' if self._shift is not None else 'off'}>"

    def _must_have_queue(self) -> TaskQueue:
        if self._queue is None:
            raise PoolClosed(
                f"the worker {self.worker_id!r} has no queue: TaskWorker(queue, [function]), or process_one(task)"
            )
        return self._queue

    async def _work(self, actor: _WorkerActor) -> None:
        """One shift, in the actor."""
        shift = self._shift = Shift(
            self._must_have_queue().store, self._options, self._tally, self._must_have_queue().name
        )
        try:
            with _unwrapped_interrupt():
                await shift.run(actor.told_to_stop)
        finally:
            self._shift = None


@contextmanager
def _unwrapped_interrupt() -> Generator[None]:
    """A `KeyboardInterrupt` comes out of task groups in a group; whoever runs the program looks for itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        interrupt, _ = group.split(KeyboardInterrupt)
        if interrupt is None:
            raise
        raise KeyboardInterrupt from interrupt


class _Nowhere:
    """In the place of a store, for tasks that come from none."""

    now = staticmethod(time.time)


class _WorkerActor(Actor[Any]):
    """The life of a worker. It takes no messages; its mailbox only says when to stop."""

    def __init__(self, worker: TaskWorker) -> None:
        self._worker = worker

    async def run(self) -> None:
        # Tasks find the context in which the worker was started, also after a restart.
        for variable, value in self._worker._context.items():
            variable.set(value)
        # They are not messages of this actor: what they ask for does not wait on its behalf.
        handling.set(None)
        running_task.set(None)
        await self._worker._work(self)

    async def told_to_stop(self) -> None:
        """Wait until it is to stop."""
        async for _ in self.inbox:
            pass
