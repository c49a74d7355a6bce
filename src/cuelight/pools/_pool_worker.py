"""A worker of a pool: an actor that, when called, pulls work until there is none.

Invariants:
1. A worker runs one attempt at a time: one task, or one chunk of a map.
2. An attempt ends once. If it is stopped, it has ended, or its thread was abandoned, before its result is made.
3. If a worker dies, only its attempt is lost: the task is tried again, or quarantined.

The worker keeps one cancel scope until it was cancelled, and one timer until it fires. So the ability to stop a task
costs nothing for each task.
"""

# Arguments and results of users' functions are Any here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.actors import Actor, Message
from cuelight.errors import (
    ChannelClosed,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WorkerDied,
    ends_the_program,
)
from cuelight.mailbox import running_task
from cuelight.pools._contexts import Abandoned, ContextCalls
from cuelight.pools._failures import as_failure, forget_cancellation, is_a, is_cancelled, split_cancellation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from cuelight.actors import ActorRuntime, Cell
    from cuelight.pools._options import PoolOptions
    from cuelight.pools._results import PoolMetrics
    from cuelight.pools._threads._executor import Executor

TOLERANCE = 1e-6
"""Seconds by which a timer may fire early, because event loops round."""

_CLOSE: Final = 15.0
"""Seconds that an executor may take to close. The executors of this package need less."""

log = get_log("cuelight.pools")


class WorkAvailable(Message):
    """Tells a worker that there is work."""


WORK_AVAILABLE = WorkAvailable()


class StopReason(Enum):
    """The reason for which an attempt was stopped."""

    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


class Work(Protocol):
    """One task, or a map, which waits for workers."""

    priority: int
    serial: int
    listed: bool
    """Whether it is in the heap."""
    is_counted: bool
    """Whether a drain waits for it."""

    @property
    def group(self) -> WorkProvider:
        """The group that it belongs to."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a worker could take a task or an item now."""
        ...

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        ...

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        ...

    def running_nodes(self) -> list[Any] | None:
        """The nodes of the graph of waits that run it; None if it waits for a worker."""
        ...

    def busy_nodes(self) -> list[Any]:
        """The nodes that keep all places, one of which must end before it can begin; empty if a place is free."""
        ...

    async def serve(self, worker: PoolWorker) -> None:
        """Have a worker run one task, or run items until more urgent work is ready."""
        ...

    def cancel(self) -> object:
        """End it as cancelled, and stop its running parts."""
        ...

    def drop(self, why: str) -> bool:
        """Cancel it if it is a waiting task. Returns whether it was one."""
        ...


class ExtraWorkSource(Protocol):
    """What a worker uses of the extra workers of its group, and of the waits that call for them."""

    awaited: dict[Work, list[PoolWorker]]

    def park(self, worker: PoolWorker) -> None: ...

    def unpark(self, worker: PoolWorker) -> None: ...

    def next(self, group: Any) -> Work | None: ...

    def stays(self) -> bool: ...


class WorkProvider(Protocol):
    """What a worker uses of its group."""

    heap: list[tuple[int, int, Work]]
    workers: dict[Cell, PoolWorker | None]
    options: PoolOptions
    metrics: PoolMetrics
    runtime: ActorRuntime

    @property
    def extra_workers(self) -> ExtraWorkSource: ...

    def top(self) -> Work | None: ...

    def wake_worker(self) -> None: ...

    def became_idle(self, cell: Cell) -> None: ...

    def arrived(self, cell: Cell) -> None: ...

    def became_unavailable(self, cell: Cell) -> None: ...


class PoolWorker(Actor[WorkAvailable]):
    """A worker of a group.

    Attributes:
        is_extra: whether it is an extra worker, which does only awaited work and leaves when there is none.
        waits: number of current waits of its work for other work of pools.
        task: the task that runs this actor.
    """

    def __init__(self, group: WorkProvider, is_extra: bool = False) -> None:
        self.group, self.is_extra = group, is_extra
        self.waits = 0
        self.task: Any = None
        self.cell: Cell = self._cell
        self.label = self._cell.name
        self.stop_reason: StopReason | None = None
        self.busy = False
        self._cancellation: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._executor: Executor | None = None
        self._calls: ContextCalls | None = None
        self._due = math.inf
        self._timer: Any = None
        self._timer_due = math.inf

    async def run(self) -> None:
        group, cell = self.group, self.cell
        group.workers[cell] = self
        self.task = running_task()
        woken = self.is_extra
        try:
            while True:
                self.stop_reason = self._cancellation = None
                with anyio.CancelScope() as self._scope:
                    await self._serve(woken)
                if self.is_extra and self.stop_reason is None:
                    return
                woken = True  # the scope was cancelled; there may be more work
        except ChannelClosed:
            pass  # the worker was told to stop
        except GeneratorExit:
            self._executor = None  # the event loop has ended, so the end of the executor cannot be awaited
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._calls is not None:
                self._calls.close()
            group.became_unavailable(cell)
            await self._close_executor()

    async def _serve(self, woken: bool) -> None:
        """Wait for calls and do all work, until the scope was cancelled, or an extra worker has no work."""
        group, cell, inbox = self.group, self.cell, self.inbox
        while True:
            if not woken:
                group.became_idle(cell)
                await inbox.receive()
                inbox.reply(None)  # finish the call message, so that it does not count as being handled
                group.arrived(cell)
            woken = False
            self.busy = True
            try:
                while self.may_continue:
                    work = self._next()
                    if work is None:
                        break
                    await work.serve(self)
                if self._cancellation is not None:
                    raise self._cancellation
            finally:
                self.busy = False
                self._due = math.inf
            if self.stop_reason is not None or self.is_extra:
                return

    def _next(self) -> Work | None:
        group = self.group
        if not self.is_extra:
            return group.top()
        return group.extra_workers.next(group) if group.extra_workers.stays() else None

    def is_first(self, work: Work) -> bool:
        """Whether the worker may continue with this work: it is still the most urgent."""
        if self.is_extra:
            return self._next() is work
        return self.group.heap[0][2] is work

    def nodes(self) -> list[Any]:
        """Its nodes in the graph of waits: its task, and then its thread if the thread runs a call."""
        lock_owner = getattr(self._executor, "lock_owner", None)
        return [self.task] if lock_owner is None else [self.task, lock_owner]

    async def _close_executor(self) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        try:
            with anyio.move_on_after(_CLOSE, shield=True) as scope:
                await executor.aclose()
            if scope.cancelled_caught:
                log.error("%s: its executor took longer than %g s to close and was cut off", self.label, _CLOSE)
        except BaseException as error:  # a user's executor may raise anything
            log.exception("%s: its executor could not be closed", self.label)
            if ends_the_program(error):
                raise
        finally:
            self.group.metrics.executor_closed(executor)

    @property
    def may_continue(self) -> bool:
        """Whether it may take more work: the attempt was not stopped, and the worker was not told to stop."""
        return self.stop_reason is None and not self.cell.attention

    # Stopping attempts.

    def stop_task(self, why: StopReason) -> None:
        """Stop the running attempt. Its result states the reason."""
        if self.stop_reason is None and self._scope is not None:
            self.stop_reason = why
            self._scope.cancel()

    def start_clock(self, timeout: float) -> None:
        """Stop the attempt that begins now after `timeout` seconds, unless `stop_clock` is called first."""
        runtime = self.group.runtime
        self._due = due = runtime.backend.time() + timeout
        if self._timer is None or self._timer_due > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = runtime.call_later(timeout, self._timer_fired)

    def stop_clock(self) -> None:
        """End the time limit of the attempt. The timer stays, because the next task probably needs a call_later one."""
        self._due = math.inf

    def _timer_fired(self) -> None:
        self._timer = None
        left = self._due - self.group.runtime.backend.time()
        if left <= TOLERANCE:
            self.stop_task(StopReason.TIMED_OUT)
        elif left < math.inf:
            self._timer_due = self._due
            self._timer = self.group.runtime.call_later(left, self._timer_fired)

    # Attempts.

    @property
    def executor(self) -> Executor:
        """Its executor, which is made on first use."""
        if self._executor is None:
            self._executor = self.group.options.make_executor(self.label)
            self.group.metrics.executor_started(self._executor)
        return self._executor

    async def attempt(
        self, name: str, work: Awaitable[Any], timeout: float | None
    ) -> tuple[Any, Exception | None, BaseException | None]:
        """Await `work` once, for at most `timeout` seconds.

        Returns:
            The value, the error, and a fatal exception, each of them None if there is none. The caller raises the
            fatal exception once it has recorded the result.
        """
        value, error, fatal = None, None, None
        if timeout is not None:
            self.start_clock(timeout)
        try:
            value = await work
        except BaseException as raised:
            error, fatal = self.classify_error(name, raised)
        if timeout is not None:
            self.stop_clock()
        if self.stop_reason is not None:
            error = self.stopped_error(error, timeout)
        return value, error, fatal

    async def attempt_in_context(
        self,
        name: str,
        context: Context,
        function: Callable[[PoolWorker], Any],
        timeout: float | None,
    ) -> tuple[Any, Exception | None, BaseException | None]:
        """Await `function(self)` once, in a context, for at most `timeout` seconds. Returns the same as `attempt`."""
        calls = self._calls
        if calls is None:
            calls = self._calls = ContextCalls(function)
        if timeout is not None:
            self.start_clock(timeout)
        await calls.perform(context, function, self)
        if timeout is not None:
            self.stop_clock()
        value, raised, calls.value, calls.error = calls.value, calls.error, None, None
        if raised is None and self.stop_reason is None:
            return value, None, None
        error, fatal = (None, None) if raised is None else self.classify_error(name, raised)
        if self.stop_reason is not None:
            error = self.stopped_error(error, timeout)
        return value, error, fatal

    def classify_error(self, name: str, raised: BaseException) -> tuple[Exception, BaseException | None]:
        """Classify an exception of an attempt: a failure, a stop, the end of this worker, or the end of the program.

        Returns:
            The error of the task, and the exception that ends this worker, if any.
        """
        if is_a(raised, Exception):
            return as_failure(name, raised), None
        if ends_the_program(raised):
            failed = TaskFailed(f"{name} raised {describe_error(raised)}, which ends the whole system")
            failed.__cause__ = raised
            return failed, raised
        cancellation, rest = split_cancellation(raised, self.group.runtime.backend.cancelled)
        if self.stop_reason is not None:
            self._cancellation = cancellation
            return TaskCancelled("it was stopped") if rest is None else as_failure(name, rest), None
        if is_a(raised, Abandoned) or (cancellation is not None and is_cancelled()):
            return WorkerDied(f"{self.label} was ended while it ran this task"), raised
        if cancellation is not None:
            forget_cancellation()
        return as_failure(name, raised), None

    def may_retry(self, error: Exception, fatal: BaseException | None) -> bool:
        """Whether the task may be tried again: it was not cancelled, and it did not end the system."""
        return self.stop_reason is not StopReason.CANCELLED and (fatal is None or is_a(error, WorkerDied))

    def stopped_error(self, error: Exception | None, timeout: float | None) -> Exception:
        """The error of a task that was stopped. An exception that it raised meanwhile becomes the cause."""
        short: Exception
        if self.stop_reason is StopReason.TIMED_OUT:
            short = TaskTimedOut(f"it took longer than its time-out, {timeout:g} s, and was stopped")
        else:
            short = TaskCancelled("it was cancelled while it ran")
        if error is not None and not is_a(error, TaskCancelled):
            short.__cause__ = error
        return short
