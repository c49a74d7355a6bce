"""`TaskWorker`: runs the tasks of a queue, isolated from each other and from the worker."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec

from cuelight._blocking_proxy import BlockingProxy
from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors import Actor, Crashed, ShutDown, child
from cuelight.actors._reply import current_cell
from cuelight.errors import PoolClosed, TaskFailed, WorkerDied
from cuelight.pools import TaskResult
from cuelight.tasks._arguments import check_task
from cuelight.tasks._context import running_task
from cuelight.tasks._functions._values import decode
from cuelight.tasks._queue._base import QueueBase
from cuelight.tasks._worker._handlers import DirectTask
from cuelight.tasks._worker._loop import FLUSH, WorkerLoop
from cuelight.tasks._worker._options import WorkerCounters, WorkerStats, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from cuelight.actors import Exit, Ref
    from cuelight.pools._functions import Kind
    from cuelight.supervision import Backoff
    from cuelight.tasks._queue._queue import TaskQueue
    from cuelight.tasks._task import Task
    from cuelight.tasks._worker._handlers import Handlers
    from cuelight.tasks._worker._lease_keeper import Heartbeat

log = get_log("cuelight.tasks")


class TaskWorker:
    """Runs the tasks of a queue: `async with TaskWorker(queue, [function]) as worker:`, or `await worker.run()`.

    A task is leased for some seconds, and a thread renews the lease while the task runs. If this process dies, other
    workers get its tasks when their leases expire. A blocked event loop loses no lease. If a lease is lost
    nevertheless, the handler is cancelled at once and its result is rejected.

    The worker is an actor in the queue's system. When the block is left or `run` is cancelled, no new tasks are
    started, running ones have `shutdown_timeout` seconds to end, and the remaining ones are cancelled and given back,
    which costs no attempt. If an exception leaves the block, all tasks are given back at once. If the actor is killed,
    or its supervisor gives it up, the block is cancelled and raises `WorkerDied`.

    Async functions run in the event loop; plain functions run in threads or processes. Exceptions of a task are
    recorded in its history: `Rejected` gives up the task, `RateLimited` delays it. No exception of a task ends the
    worker, not even `SystemExit`, except for `KeyboardInterrupt`. Each task gets the context variables with which the
    worker was started.
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
        """Set up a worker, which starts when its block is entered.

        Args:
            queue: the queue whose tasks it runs; without one, only `process_one(task)` works.
            handlers: task functions, or functions of the payload by task type.
            worker_id: its name in histories, unique among all workers; by default, the host, the process and a random
                part.
            handler: runs the tasks of all other types; it gets the `Task`.
            concurrency: the maximum number of concurrent tasks; at most `threads` if all functions are plain.
            threads: the maximum number of threads or processes for plain functions; by default 32 threads, or one
                process per core.
            lease: seconds after which other workers get the tasks of this process if it has died.
            timeout: the maximum duration of one attempt in seconds, for tasks without a `timeout`; None for no limit.
            kind: where plain functions run: None or "thread", or "process", in which a time-out can kill them.
            backoff: the delays before failed tasks are tried again; by default 1, 2, 4 ... 300 seconds plus up to 20 %.
            shutdown_timeout: seconds that running tasks have to end at the end of the worker.
            heartbeat: where leases are renewed: in a "thread", or in the "loop", for tests with a virtual clock.

        Raises:
            ValueError: a value is invalid; the message names it and the accepted values.
            TypeError: a handler cannot run tasks, or `queue` is not a `TaskQueue`.
        """
        given: Any = queue
        if isinstance(given, BlockingProxy):
            raise TypeError(
                f"queue={safe_repr(queue)}: a worker needs an async TaskQueue, `async with TaskQueue(store) as "
                "queue:`, and runs in its loop; a blocking program runs workers as separate programs"
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
        self._counters = WorkerCounters()
        self._worker_loop: WorkerLoop | None = None
        self._ref: Ref[Any] | None = None
        self._entered = self._leaving = False
        self._scope: anyio.CancelScope | None = None  # the scope of the block
        self._died: WorkerDied | None = None
        self._context = copy_context()

    @property
    def worker_id(self) -> str:
        """The name of the worker in the history of tasks."""
        return self._options.worker_id

    async def __aenter__(self) -> Self:
        queue = self._require_queue()
        if self._entered:
            raise RuntimeError(
                f"the worker {self.worker_id!r} is already running: make another, or leave its block first"
            )
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
            ref._cell.ensure_extras().call_when_ended(self._ended)
        elif ref._cell.exit is not None:
            self._ended(ref._cell.exit)
        return self

    def _ended(self, exit_: Exit) -> None:
        """Called when the actor has ended permanently. After an unexpected end, the block must not continue."""
        system = self._require_queue().system
        if self._leaving or isinstance(exit_, ShutDown) or system._closing or system._failure is not None:
            return
        self._died = WorkerDied(f"the worker {self.worker_id!r} has ended, {exit_.describe()}: it takes no more tasks")
        if isinstance(exit_, Crashed):
            self._died.__cause__ = exit_.error
        if self._scope is not None:
            self._scope.cancel()
        log.error("%s", self._died, extra={"worker_id": self.worker_id, "queue": self._require_queue().name})

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
        """Work until this call is cancelled or the queue's system ends. A checkpoint.

        Raises:
            WorkerDied: the worker's actor was killed, or its supervisor gave it up.
        """
        async with self:
            if self._ref is not None:
                await self._ref.ended()

    async def process_one(self, task: Task | None = None) -> TaskResult[Any] | None:
        """Run one task and return the outcome. A checkpoint.

        Exceptions of the task are not raised, except for `KeyboardInterrupt`. If this call is cancelled, the task is
        cancelled, too, and given back to the queue.

        Args:
            task: the task to run; its consumer must still call `ack` or `nack`. None to claim a task, which is also
                settled.

        Returns:
            The result, with the error if the task failed; None if there was no task to claim.

        Raises:
            TypeError: `task` is not a task.
            PoolClosed: there is no queue to claim from.
            StoreUnavailable: the store did not answer the claim for the length of a lease.
        """
        if task is not None:
            check_task("process_one", task)
        given = None if task is None else DirectTask.of(task)
        if task is None:
            await self._require_queue().ready()
        store: Any = self._require_queue().store if task is None else _NullStore()
        name = "" if self._queue is None else self._queue.name
        loop = WorkerLoop(store, msgspec.structs.replace(self._options, slots=1), self._counters, name)
        with _unwrapped_interrupt():
            settled = await loop.once(given)
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
        """Return a copy of the current totals. May be called from any thread."""
        loop, counters = self._worker_loop, self._counters
        now = WorkerStats(**{name: getattr(counters, name) for name in WorkerStats.__dataclass_fields__})
        if loop is not None:
            slots = loop.slots
            now.running, now.waiting, now.unsent = slots.busy, len(slots.waiting), loop.fetcher.unsent
            now.abandoned, now.replaced = slots.executors.abandoned, slots.executors.replaced
        return now

    def __repr__(self) -> str:
        return f"<TaskWorker {self.worker_id}: {'working' if self._worker_loop is not None else 'off'}>"

    def _require_queue(self) -> TaskQueue:
        if self._queue is None:
            raise PoolClosed(
                f"the worker {self.worker_id!r} has no queue: TaskWorker(queue, [function]), or process_one(task)"
            )
        return self._queue

    async def _work(self, actor: _WorkerActor) -> None:
        """Run the loop of the worker in the actor."""
        loop = self._worker_loop = WorkerLoop(
            self._require_queue().store, self._options, self._counters, self._require_queue().name
        )
        try:
            with _unwrapped_interrupt():
                await loop.run(actor.until_stopped)
        finally:
            self._worker_loop = None


@contextmanager
def _unwrapped_interrupt() -> Generator[None]:
    """Raise a `KeyboardInterrupt` of a task group directly: callers do not expect it in an exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        interrupt, _ = group.split(KeyboardInterrupt)
        if interrupt is None:
            raise
        raise KeyboardInterrupt from interrupt


class _NullStore:
    """Replaces the store for tasks that are in none."""

    now = staticmethod(time.time)


class _WorkerActor(Actor[Any]):
    """The actor of a worker. It handles no messages; the end of its mailbox tells it to stop."""

    def __init__(self, worker: TaskWorker) -> None:
        self._worker = worker

    async def run(self) -> None:
        # Tasks get the context in which the worker was started, also after a restart of the actor.
        for variable, value in self._worker._context.items():
            variable.set(value)
        # Tasks are not messages of this actor, so their asks do not wait on its behalf.
        current_cell.set(None)
        running_task.set(None)
        await self._worker._work(self)

    async def until_stopped(self) -> None:
        """Wait until the actor must stop."""
        async for _ in self.inbox:
            pass
