"""A runner: an asyncio task or trio task that runs one lease after the other.

Invariants:

1. A lease that was started is settled once: with a finish, or without one if it was lost.
2. No exception of a task leaves the runner, except for `KeyboardInterrupt`, which ends the shift, and the cancellation
   of the runner itself.
3. A handler that is interrupted is cancelled at once, and its attempt is counted by the reason: lost, cancelled, timed
   out or released. If it completes nevertheless, it counts as done, unless its lease was lost.
4. One cancel scope is used for many leases and only replaced after a cancellation, so that a task that is not cancelled
   needs no scope of its own.
5. A task does not get the context variables of the previous task: a runner whose context was changed is replaced.
"""

from __future__ import annotations

import inspect
import random
from contextvars import copy_context
from math import inf
from operator import is_
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight._log import get_log
from cuelight._text import type_name
from cuelight.coordination._owner import this_thread
from cuelight.errors import (
    LeaseLost,
    Rejected,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    UnexpectedCancellation,
    WorkerDied,
    _leaves,
)
from cuelight.mailbox import TaskGroup, run_interruptible
from cuelight.mailbox import running_task as running_task_of_loop
from cuelight.pools import ProcessExecutor, ThreadExecutor
from cuelight.pools._functions import name_of
from cuelight.tasks._context import TaskContext, running_task
from cuelight.tasks._functions._parameters import ArgumentMismatch
from cuelight.tasks._stores._protocol import Finish
from cuelight.tasks._worker._failure import MISMATCH, QUIET, Failure, Released, failure, kind_of, said
from cuelight.tasks._worker._handlers import Given, Handler, call_in_process
from cuelight.tasks._worker._mismatch import Mismatch, verdict_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools import Executor
    from cuelight.pools._functions import Kind
    from cuelight.tasks._stores._protocol import Lease
    from cuelight.tasks._worker._loop import Shift


log = get_log("cuelight.tasks")

LOST: Final = "its lease was lost"
CANCELLED: Final = "the task was cancelled"
SHUT_DOWN: Final = "the worker was shut down"

BUDGET: Final = 64
"""The number of leases after which a runner yields to other tasks, in case no lease suspends."""


class Runner:
    """Runs leases, one at a time.

    Attributes:
        lease: the current lease.
        context: the context of the current attempt.
        cut: why the current attempt was interrupted; empty if it was not.
    """

    __slots__ = ("_clean", "_scope", "_shift", "_task", "context", "cut", "handler", "lease", "timeout")

    lease: Lease
    context: TaskContext
    handler: Handler

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._scope = anyio.CancelScope()
        self._clean = tuple(copy_context().values())
        self._task = shift.backend.current_task()
        self.cut = ""
        self.timeout: float | None = None

    async def run(self) -> None:
        """Run leases of the shift until the shift ends."""
        try:
            while self._is_clean() and not self._shift.has_too_many_runners:
                with anyio.CancelScope() as self._scope:
                    await self._serve()
        except BaseException as error:
            self._hand_over(error)
        finally:
            self._shift.runner_ended()

    def _hand_over(self, error: BaseException) -> None:
        """Let the shift end with an interrupt. Raised here, it would end asyncio's event loop at once."""
        if _split(error, (KeyboardInterrupt,))[0] is None:
            raise error
        self._shift.interrupt(error)

    async def _serve(self) -> None:
        """Run leases until the scope was cancelled or the context of the runner was changed."""
        shift, scope, budget = self._shift, self._scope, BUDGET
        while True:
            lease = shift.take()
            if lease is None:
                self._forget()
                if shift.has_too_many_runners:
                    return
                await shift.park()
                budget = BUDGET
                continue
            await self.attempt(lease)
            if scope.cancel_called or not self._is_clean():
                return
            budget -= 1
            if not budget:
                budget = BUDGET
                await shift.backend.checkpoint()

    def _forget(self) -> None:
        """Release the references to the last task while there is no other."""
        if hasattr(self, "lease"):
            del self.lease, self.context, self.handler

    def _is_lost(self) -> bool:
        return self.cut is LOST

    def _is_clean(self) -> bool:
        # Values are compared by identity: `==` would call user code, and equal values may belong to another request.
        now = copy_context()
        return len(now) == len(self._clean) and all(map(is_, now.values(), self._clean))

    def cut_off(self, why: str) -> None:
        """Cancel the current attempt. The first reason counts, except that a lost lease takes precedence."""
        if not self.cut or why is LOST:
            self.cut = why
            self.context.cancelled = True
            if why is LOST:
                self.context.end(cancelled=True)
            self._scope.cancel()

    async def once(self, lease: Lease) -> None:
        """Run one lease only."""
        try:
            with anyio.CancelScope() as self._scope:
                await self.attempt(lease)
        except BaseException as error:
            self._hand_over(error)

    async def attempt(self, lease: Lease) -> None:
        """Run one lease and settle it."""
        shift, record = self._shift, lease.record
        handler = shift.handler_of(lease)
        if handler is None:
            return
        timeout = record.timeout if record.timeout is not None else shift.options.timeout
        deadline = None if timeout is None else shift.store.now() + timeout
        self.lease, self.handler, self.timeout, self.cut = lease, handler, timeout, ""
        self.context = context = TaskContext(lease, shift, deadline, self._task)
        if record.id in shift.running:  # the previous attempt lost its lease and has not ended
            shift.outdated.append(shift.running[record.id])
        shift.running[record.id] = self
        token = running_task.set(context)
        value: Any = None
        data, error = b"", None
        began = shift.backend.time()
        try:
            value = await self._call(lease, handler, context, timeout)
            if not isinstance(lease, Given):
                data = handler.encode(value)
        except BaseException as raised:  # handled below
            error = raised
        if timeout is not None:
            self._scope.deadline = inf
        running_task.reset(token)
        context.end(cancelled=error is not None)  # an abandoned thread may check it
        if shift.running.get(record.id) is self:
            del shift.running[record.id]
        else:
            shift.outdated.remove(self)
        if shift.resting:
            shift.attempt_over(self)
        elapsed = shift.backend.time() - began
        if error is None:
            finish = None if self._is_lost() else Finish(record.id, lease.epoch, "done", data)
            shift.settle(lease, finish, elapsed, value, LeaseLost(LOST) if finish is None else None)
            return
        try:
            self._failed(error, elapsed)
        finally:
            del error, value  # its traceback refers to this frame

    async def _call(self, lease: Lease, handler: Handler, context: TaskContext, timeout: float | None) -> Any:
        try:
            args, kwargs = handler.arguments(lease)
        except ArgumentMismatch as error:
            if isinstance(lease, Given):
                raise
            raise await verdict_on(self._shift.store, lease, error) from error
        except Exception as error:
            raise Rejected(f"{handler.name} cannot be called with this payload: {said(error)}") from error
        if not handler.in_loop:
            call = self._shift.executors.call
            return await call(handler, context, args, kwargs, scope=self._scope, timeout=timeout)
        if timeout is not None:
            self._scope.deadline = anyio.current_time() + timeout
        call = handler.function(*args, **kwargs)
        return await run_interruptible(call) if self._shift.backend.name == "trio" else await call

    def _failed(self, error: BaseException, elapsed: float) -> None:
        """Settle an attempt that raised. Re-raise interrupts, and cancellations of the runner."""
        ours = bool(self.cut) or self._scope.cancel_called
        onwards, rest = _split(error, (self._shift.backend.cancelled, KeyboardInterrupt))
        if onwards is not None and not ours and not _must_go_on(onwards):
            onwards = None  # the task awaited something that was cancelled elsewhere
            _take_back_cancellation()
        kind, cause = self._cause(error, ours=ours, onwards=onwards)
        finish = None
        if self.cut is not LOST:
            where = error if rest is None else rest
            try:
                finish = self._finish(kind, cause, elapsed, where)
            except KeyboardInterrupt as interrupt:  # for example, raised by a back-off
                kind, cause, onwards = "released", Released(SHUT_DOWN), interrupt
                finish = self._finish(kind, cause, elapsed, where)
            self._note(kind, cause)
        self._shift.settle(self.lease, finish, elapsed, None, cause)
        if onwards is not None:
            raise onwards

    def _finish(self, kind: str, cause: Exception, elapsed: float, where: BaseException) -> Finish:
        return failure(
            self.lease,
            kind,
            cause,
            worker=self._shift.options.worker_id,
            at=self._shift.store.now(),
            elapsed=elapsed,
            backoff=self._shift.options.backoff,
            jitter=random.random(),  # noqa: S311 - no secret
            delay=cause.delay if isinstance(cause, Mismatch) else 0.0,
            where=where,
        )

    def _note(self, kind: str, cause: Exception) -> None:
        """Log the failure. If the task is in a store, it is logged once the store has answered with the new state."""
        shift, lease = self._shift, self.lease
        failed = Failure.of(lease, self.handler.name)
        if not isinstance(lease, Given):
            shift.failures[lease.record.id, lease.epoch] = failed
        elif kind not in QUIET:
            worker = shift.options.worker_id
            failed.report(log, worker=worker, queue=shift.queue, kind=kind, state="with its caller", error=cause)

    def _cause(self, error: BaseException, *, ours: bool, onwards: BaseException | None) -> tuple[str, Exception]:
        """The kind of the attempt's end and its cause, as one exception."""
        cause: Exception
        if self.cut is LOST:
            kind, cause = "lost", LeaseLost(LOST)
        elif self.cut is CANCELLED:
            kind, cause = "cancelled", TaskCancelled(CANCELLED)
        elif self.cut is SHUT_DOWN or (onwards is not None and not ours):
            kind, cause = "released", Released(SHUT_DOWN)
        elif ours:
            kind, cause = "timeout", TaskTimedOut(f"it ran longer than {self.timeout:g} s{self._left_behind()}")
        elif isinstance(error, Exception):
            return self._kind_of(error)
        elif isinstance(error, self._shift.backend.cancelled):
            raised = type_name(error)
            text = f"{self.handler.name} awaited something that was cancelled elsewhere ({raised})"
            kind, cause = "error", UnexpectedCancellation(text)
        else:
            kind, cause = "error", TaskFailed(f"the task raised {said(error)}, which does not end the worker")
        cause.__cause__ = error if isinstance(error, Exception) or onwards is None else None
        return kind, cause

    def _kind_of(self, error: Exception) -> tuple[str, Exception]:
        """The kind of an attempt that raised this. `WorkerDied` is only a crash if the function ran in a process."""
        if isinstance(error, Mismatch):
            return MISMATCH, error
        if isinstance(error, WorkerDied) and not self.handler.in_loop and self._shift.executors.kind == "process":
            return "crash", error
        return kind_of(error)

    def _left_behind(self) -> str:
        if self.handler.in_loop:
            return ""
        process = self._shift.executors.kind == "process"
        return "; its process was killed" if process else "; its thread was abandoned and may still run"


def _split(
    error: BaseException, kinds: tuple[type[BaseException], ...]
) -> tuple[BaseException | None, BaseException | None]:
    """Split an exception into the part of these kinds and the rest.

    No method of a group, at any depth, is called, because a group may be of a user's class.
    """
    if not isinstance(error, BaseExceptionGroup):
        return (error, None) if isinstance(error, kinds) else (None, error)
    parts: tuple[list[BaseException], list[BaseException]] = [], []
    for leaf in _leaves(error):  # pyright: ignore[reportUnknownArgumentType]
        parts[not isinstance(leaf, kinds)].append(leaf)
    if not parts[0]:
        return None, error  # pyright: ignore[reportUnknownVariableType]
    onwards, rest = (BaseExceptionGroup("in a task", part) if part else None for part in parts)
    return onwards, rest


def _must_go_on(error: BaseException) -> bool:
    """Whether the exception ends this runner: an interrupt, or the cancellation of an enclosing scope."""
    if _split(error, (KeyboardInterrupt,))[0] is not None:
        return True
    return anyio.current_effective_deadline() == -inf


def _take_back_cancellation() -> None:
    """Undo calls of `Task.cancel` on the asyncio task of this runner, which continues."""
    task: Any = running_task_of_loop()
    if hasattr(task, "uncancel"):  # trio has no such cancellations
        while task.cancelling():
            task.uncancel()


# The threads or processes of one worker, which are started on demand up to a maximum.


class _InThread:
    """A function that records its thread in the context. It has the name of the original function, for people."""

    def __init__(self, context: TaskContext, function: Callable[..., Any]) -> None:
        self._context, self._function = context, function
        self.__qualname__ = name_of(function)
        self.__module__ = getattr(function, "__module__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._context.node = this_thread.owner
        return self._function(*args, **kwargs)


class Executors:
    """Runs plain functions. Cancelling a call kills its process, or abandons its thread."""

    def __init__(self, kind: Kind, most: int, name: str) -> None:
        """Set up the executors without starting any.

        Args:
            kind: "thread" or "process".
            most: the maximum number of concurrent calls.
            name: the name of the worker.
        """
        self.kind, self._name = kind, name
        self._permits = anyio.Semaphore(most)
        self._owed = 0  # lent permits that were taken back while none was free
        self._free: list[Executor] = []
        self._all: list[Executor] = []

    @property
    def abandoned(self) -> int:
        """The number of abandoned threads that still run."""
        return sum(executor.abandoned for executor in self._all)

    @property
    def replaced(self) -> int:
        """The number of threads and processes that were replaced."""
        return sum(executor.replaced for executor in self._all)

    async def call(
        self,
        handler: Handler,
        context: TaskContext,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        scope: anyio.CancelScope,
        timeout: float | None,
    ) -> Any:
        """Call a plain function once a thread or process is free. A checkpoint.

        Args:
            handler: the handler with the function.
            context: the context of the task.
            args: the positional arguments.
            kwargs: the keyword arguments.
            scope: the scope whose deadline is set. The time-out starts with the call, not with the wait for a thread or
                process.
            timeout: the maximum duration of the call in seconds.

        Raises:
            WorkerDied: its process died.
            Exception: any exception that the function raised.
        """
        await self._permits.acquire()
        try:
            executor = self._free.pop() if self._free else self._new()
            if timeout is not None:
                scope.deadline = anyio.current_time() + timeout
            try:
                if self.kind == "process":
                    return await executor.run(call_in_process, (context, handler.function, args, kwargs), {})
                value = await executor.run(_InThread(context, handler.function), args, kwargs)
            finally:
                self._free.append(executor)
        finally:
            self._give_back()
        # A plain function may return a coroutine: `lambda task: handle(task)`.
        return await run_interruptible(value) if inspect.isawaitable(value) else value

    def lend(self) -> None:
        """Allow one more call, because a running call waits for another task."""
        self._permits.release()

    def take_back(self) -> None:
        """Undo `lend`, because the call continues or has ended."""
        try:
            self._permits.acquire_nowait()
        except anyio.WouldBlock:
            self._owed += 1  # settled when the next call ends

    def _give_back(self) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._permits.release()

    def _new(self) -> Executor:
        make = ProcessExecutor if self.kind == "process" else ThreadExecutor
        executor = make(f"{self._name} {self.kind} {len(self._all) + 1}")
        self._all.append(executor)
        return executor

    async def aclose(self) -> None:
        """End idle threads and processes, and kill the others. A checkpoint."""
        async with TaskGroup() as group:
            for executor in self._all:
                group.start_soon(executor.aclose)
