"""A runner: an asyncio task or trio task that runs one lease after the other.

Invariants:

1. A lease that was started is settled once: with a finish, or without one if it was lost.
2. No exception of a task leaves the runner, except for `KeyboardInterrupt`, which ends the worker, and the cancellation
   of the runner itself.
3. A handler that is interrupted is cancelled at once, and its attempt is counted by the reason: lost, cancelled, timed
   out or released. If it completes nevertheless, it counts as done, unless its lease was lost.
4. One cancel scope is used for many leases and only replaced after a cancellation, so that a task that is not cancelled
   needs no scope of its own.
5. A task does not get the context variables of the previous task: a runner whose context was changed is replaced.
"""

from __future__ import annotations

import random
from contextvars import copy_context
from math import inf
from operator import is_
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight._dead_letters._attempt import error_text
from cuelight._log import get_log
from cuelight._text import type_name
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
from cuelight.mailbox import run_interruptible
from cuelight.mailbox import running_task as running_task_of_loop
from cuelight.tasks._context import TaskContext, running_task
from cuelight.tasks._functions._parameters import ArgumentMismatch
from cuelight.tasks._stores._protocol import Finish
from cuelight.tasks._worker._failure import MISMATCH, QUIET, Failure, Released, failed_finish, kind_of
from cuelight.tasks._worker._handlers import DirectTask, Handler
from cuelight.tasks._worker._lease_slots import CANCELLED, LOST, SHUT_DOWN, LeaseSlots
from cuelight.tasks._worker._mismatch import Mismatch, mismatch_outcome

if TYPE_CHECKING:
    from cuelight.tasks._stores._protocol import Lease


log = get_log("cuelight.tasks")

BUDGET: Final = 64
"""The number of leases after which a runner yields to other tasks, in case no lease suspends."""


class Runner:
    """Runs leases, one at a time.

    Attributes:
        lease: the current lease.
        context: the context of the current attempt.
        stop_reason: why the current attempt was interrupted; empty if it was not.
    """

    __slots__ = (
        "_initial_context",
        "_scope",
        "_slots",
        "_task",
        "context",
        "handler",
        "lease",
        "stop_reason",
        "timeout",
    )

    lease: Lease
    context: TaskContext
    handler: Handler

    def __init__(self, slots: LeaseSlots) -> None:
        self._slots = slots
        self._scope = anyio.CancelScope()
        self._initial_context = tuple(copy_context().values())
        self._task = slots.backend.current_task()
        self.stop_reason = ""
        self.timeout: float | None = None

    async def run(self) -> None:
        """Run leases until the worker ends."""
        try:
            while self._context_unchanged() and not self._slots.has_too_many_runners:
                with anyio.CancelScope() as self._scope:
                    await self._run_leases()
        except BaseException as error:
            self._report_interrupt(error)
        finally:
            self._slots.runner_ended()

    def _report_interrupt(self, error: BaseException) -> None:
        """End the worker with an interrupt. Raised here, it would end asyncio's event loop at once."""
        if _split(error, (KeyboardInterrupt,))[0] is None:
            raise error
        self._slots.interrupt(error)

    async def _run_leases(self) -> None:
        """Run leases until the scope was cancelled or the context of the runner was changed."""
        slots, scope, budget = self._slots, self._scope, BUDGET
        while True:
            lease = slots.next_lease()
            if lease is None:
                self._release_references()
                if slots.has_too_many_runners:
                    return
                await slots.wait_for_lease()
                budget = BUDGET
                continue
            await self.attempt(lease)
            if scope.cancel_called or not self._context_unchanged():
                return
            budget -= 1
            if not budget:
                budget = BUDGET
                await slots.backend.checkpoint()

    def _release_references(self) -> None:
        """Release the references to the last task while there is no other."""
        if hasattr(self, "lease"):
            del self.lease, self.context, self.handler

    def _is_lost(self) -> bool:
        return self.stop_reason is LOST

    def _context_unchanged(self) -> bool:
        # Values are compared by identity: `==` would call user code, and equal values may belong to another request.
        now = copy_context()
        return len(now) == len(self._initial_context) and all(map(is_, now.values(), self._initial_context))

    def stop_attempt(self, why: str) -> None:
        """Cancel the current attempt. The first reason counts, except that a lost lease takes precedence."""
        if not self.stop_reason or why is LOST:
            self.stop_reason = why
            self.context.cancelled = True
            if why is LOST:
                self.context.end(cancelled=True)
            self._scope.cancel()

    async def run_one(self, lease: Lease) -> None:
        """Run one lease only."""
        try:
            with anyio.CancelScope() as self._scope:
                await self.attempt(lease)
        except BaseException as error:
            self._report_interrupt(error)

    async def attempt(self, lease: Lease) -> None:
        """Run one lease and settle it."""
        slots, record = self._slots, lease.record
        handler = slots.handler_of(lease)
        if handler is None:
            return
        timeout = record.timeout if record.timeout is not None else slots.options.timeout
        deadline = None if timeout is None else slots.store.now() + timeout
        self.lease, self.handler, self.timeout, self.stop_reason = lease, handler, timeout, ""
        self.context = context = TaskContext(lease, slots, deadline, self._task)
        if record.id in slots.running:  # the previous attempt lost its lease and has not ended
            slots.outdated.append(slots.running[record.id])
        slots.running[record.id] = self
        token = running_task.set(context)
        value: Any = None
        data, error = b"", None
        began = slots.backend.time()
        try:
            value = await self._call(lease, handler, context, timeout)
            if not isinstance(lease, DirectTask):
                data = handler.encode(value)
        except BaseException as raised:  # handled below
            error = raised
        if timeout is not None:
            self._scope.deadline = inf
        running_task.reset(token)
        context.end(cancelled=error is not None)  # an abandoned thread may check it
        if slots.running.get(record.id) is self:
            del slots.running[record.id]
        else:
            slots.outdated.remove(self)
        if slots.suspended:
            slots.attempt_ended(self)
        elapsed = slots.backend.time() - began
        if error is None:
            finish = None if self._is_lost() else Finish(record.id, lease.epoch, "done", data)
            slots.settle(lease, finish, elapsed, value, LeaseLost(LOST) if finish is None else None)
            return
        try:
            self._failed(error, elapsed)
        finally:
            del error, value  # its traceback refers to this frame

    async def _call(self, lease: Lease, handler: Handler, context: TaskContext, timeout: float | None) -> Any:
        try:
            args, kwargs = handler.arguments(lease)
        except ArgumentMismatch as error:
            if isinstance(lease, DirectTask):
                raise
            raise await mismatch_outcome(self._slots.store, lease, error) from error
        except Exception as error:
            raise Rejected(f"{handler.name} cannot be called with this payload: {error_text(error)}") from error
        if not handler.in_loop:
            call = self._slots.executors.call
            return await call(handler, context, args, kwargs, scope=self._scope, timeout=timeout)
        if timeout is not None:
            self._scope.deadline = anyio.current_time() + timeout
        call = handler.function(*args, **kwargs)
        return await run_interruptible(call) if self._slots.backend.name == "trio" else await call

    def _failed(self, error: BaseException, elapsed: float) -> None:
        """Settle an attempt that raised. Re-raise interrupts, and cancellations of the runner."""
        stopped_by_us = bool(self.stop_reason) or self._scope.cancel_called
        propagated, rest = _split(error, (self._slots.backend.cancelled, KeyboardInterrupt))
        if propagated is not None and not stopped_by_us and not _must_propagate(propagated):
            propagated = None  # the task awaited something that was cancelled elsewhere
            _undo_cancellation()
        kind, cause = self._kind_and_cause(error, stopped_by_us=stopped_by_us, propagated=propagated)
        finish = None
        if self.stop_reason is not LOST:
            where = error if rest is None else rest
            try:
                finish = self._finish(kind, cause, elapsed, where)
            except KeyboardInterrupt as interrupt:  # for example, raised by a back-off
                kind, cause, propagated = "released", Released(SHUT_DOWN), interrupt
                finish = self._finish(kind, cause, elapsed, where)
            self._record_failure(kind, cause)
        self._slots.settle(self.lease, finish, elapsed, None, cause)
        if propagated is not None:
            raise propagated

    def _finish(self, kind: str, cause: Exception, elapsed: float, where: BaseException) -> Finish:
        return failed_finish(
            self.lease,
            kind,
            cause,
            worker=self._slots.options.worker_id,
            at=self._slots.store.now(),
            elapsed=elapsed,
            backoff=self._slots.options.backoff,
            jitter=random.random(),  # noqa: S311 - no secret
            delay=cause.delay if isinstance(cause, Mismatch) else 0.0,
            where=where,
        )

    def _record_failure(self, kind: str, cause: Exception) -> None:
        """Log the failure. If the task is in a store, it is logged once the store has answered with the new state."""
        slots, lease = self._slots, self.lease
        failed = Failure.of(lease, self.handler.name)
        if not isinstance(lease, DirectTask):
            slots.failures[lease.record.id, lease.epoch] = failed
        elif kind not in QUIET:
            worker = slots.options.worker_id
            failed.report(log, worker=worker, queue=slots.queue, kind=kind, state="with its caller", error=cause)

    def _kind_and_cause(
        self, error: BaseException, *, stopped_by_us: bool, propagated: BaseException | None
    ) -> tuple[str, Exception]:
        """The kind of the attempt's end and its cause, as one exception."""
        cause: Exception
        if self.stop_reason is LOST:
            kind, cause = "lost", LeaseLost(LOST)
        elif self.stop_reason is CANCELLED:
            kind, cause = "cancelled", TaskCancelled(CANCELLED)
        elif self.stop_reason is SHUT_DOWN or (propagated is not None and not stopped_by_us):
            kind, cause = "released", Released(SHUT_DOWN)
        elif stopped_by_us:
            kind, cause = "timeout", TaskTimedOut(f"it ran longer than {self.timeout:g} s{self._what_still_runs()}")
        elif isinstance(error, Exception):
            return self._kind_of(error)
        elif isinstance(error, self._slots.backend.cancelled):
            raised = type_name(error)
            text = f"{self.handler.name} awaited something that was cancelled elsewhere ({raised})"
            kind, cause = "error", UnexpectedCancellation(text)
        else:
            kind, cause = "error", TaskFailed(f"the task raised {error_text(error)}, which does not end the worker")
        cause.__cause__ = error if isinstance(error, Exception) or propagated is None else None
        return kind, cause

    def _kind_of(self, error: Exception) -> tuple[str, Exception]:
        """The kind of an attempt that raised this. `WorkerDied` is only a crash if the function ran in a process."""
        if isinstance(error, Mismatch):
            return MISMATCH, error
        if isinstance(error, WorkerDied) and not self.handler.in_loop and self._slots.executors.kind == "process":
            return "crash", error
        return kind_of(error)

    def _what_still_runs(self) -> str:
        if self.handler.in_loop:
            return ""
        process = self._slots.executors.kind == "process"
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
    propagated, rest = (BaseExceptionGroup("in a task", part) if part else None for part in parts)
    return propagated, rest


def _must_propagate(error: BaseException) -> bool:
    """Whether the exception ends this runner: an interrupt, or the cancellation of an enclosing scope."""
    if _split(error, (KeyboardInterrupt,))[0] is not None:
        return True
    return anyio.current_effective_deadline() == -inf


def _undo_cancellation() -> None:
    """Undo calls of `Task.cancel` on the asyncio task of this runner, which continues."""
    task: Any = running_task_of_loop()
    if hasattr(task, "uncancel"):  # trio has no such cancellations
        while task.cancelling():
            task.uncancel()
