"""A worker of a pool: an actor that, when called, pulls work until there is none.

Invariants:
1. A worker runs one attempt at a time: one task, or one chunk of a map.
2. An attempt ends once. What `cut` stops has ended (or, in a thread, was abandoned) before its result is made.
3. A worker that dies costs only its attempt: the task is tried again, or quarantined.

One cancel scope serves until it was used, and one timer until it rings, so that the power to stop any task costs
nothing for each.
"""

# What users' functions take and return is Any here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

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
from cuelight.pools._contexts import Abandoned, Calls
from cuelight.pools._failures import as_failure, forget_cancellation, is_a, split_cancellation, told_to_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from cuelight.actors import Cell
    from cuelight.pools._crew import Crew, Work
    from cuelight.pools._executor import Executor

__all__ = ["CALL", "Cut", "PoolWorker"]

TOLERANCE = 1e-6
"""Seconds by which an alarm may be early: loops round."""

_CLOSE: Final = 15.0
"""Seconds that an executor may take to close; our own need less."""

log = get_log("cuelight.pools")


class Call(Message):
    """There is work."""


CALL = Call()


class Cut(Enum):
    """Why what runs was stopped."""

    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


class PoolWorker(Actor[Call]):
    """One of the crew.

    Attributes:
        helps: it does only what work of pools waits for, and leaves when there is nothing of that.
        waits: how often its work waits for other work of pools now.
        task: its task.
    """

    def __init__(self, crew: Crew, helps: bool = False) -> None:
        self.crew, self.helps = crew, helps
        self.waits = 0
        self.task: Any = None
        self.cell: Cell = self._cell
        self.label = self._cell.name
        self.cut: Cut | None = None
        self.busy = False
        self._caught: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._executor: Executor | None = None
        self._calls: Calls | None = None
        self._due = math.inf
        self._alarm: Any = None
        self._alarm_due = math.inf

    async def run(self) -> None:
        crew, cell = self.crew, self.cell
        crew.workers[cell] = self
        self.task = running_task()
        called = self.helps
        try:
            while True:
                self.cut = self._caught = None
                with anyio.CancelScope() as self._scope:
                    await self._serve(called)
                if self.helps and self.cut is None:
                    return
                called = True  # the scope was used: there may be more to do
        except ChannelClosed:
            pass  # it is to stop
        except GeneratorExit:
            self._executor = None  # the event loop has ended, so its end cannot be awaited
            raise
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            if self._calls is not None:
                self._calls.close()
            crew.unavailable(cell)
            await self._let_go()

    async def _serve(self, called: bool) -> None:
        """Wait for calls and do what there is, until the scope was used, or there is nothing for a helper."""
        crew, cell, inbox = self.crew, self.cell, self.inbox
        while True:
            if not called:
                crew.rest(cell)
                await inbox.receive()
                inbox.reply(None)  # the call is not what it works on
                crew.answered(cell)
            called = False
            self.busy = True
            try:
                while self.goes_on:
                    work = self._next()
                    if work is None:
                        break
                    await work.serve(self)
                if self._caught is not None:
                    raise self._caught
            finally:
                self.busy = False
                self._due = math.inf
            if self.cut is not None or self.helps:
                return

    def _next(self) -> Work | None:
        crew = self.crew
        if not self.helps:
            return crew.top()
        return crew.helpers.next(crew) if crew.helpers.stays() else None

    def goes_on_with(self, work: Work) -> bool:
        """Whether it may do more of this, now that it has done some."""
        if self.helps:
            return self._next() is work
        return self.crew.heap[0][2] is work

    def nodes(self) -> list[Any]:
        """Who it is in the graph of waits: its task, and then its thread if that runs something."""
        party = getattr(self._executor, "party", None)
        return [self.task] if party is None else [self.task, party]

    async def _let_go(self) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        try:
            with anyio.move_on_after(_CLOSE, shield=True) as scope:
                await executor.aclose()
            if scope.cancelled_caught:
                log.error("%s: its executor took longer than %g s to close and was cut off", self.label, _CLOSE)
        except BaseException as error:  # an executor of a user may raise anything
            log.exception("%s: its executor could not be closed", self.label)
            if ends_the_program(error):
                raise
        finally:
            self.crew.ledger.retired(executor)

    @property
    def goes_on(self) -> bool:
        """Whether it may take more: nothing was cut, and it is not told to stop."""
        return self.cut is None and not self.cell.attention

    # Stopping what runs.

    def stop_task(self, why: Cut) -> None:
        """Stop what runs now. Its result says why."""
        if self.cut is None and self._scope is not None:
            self.cut = why
            self._scope.cancel()

    def start_clock(self, timeout: float) -> None:
        """Stop what runs from now on when so many seconds are over, unless `stop_clock` comes first."""
        runtime = self.crew.runtime
        self._due = due = runtime.backend.time() + timeout
        if self._alarm is None or self._alarm_due > due:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_due = due
            self._alarm = runtime.later(timeout, self._ring)

    def stop_clock(self) -> None:
        """What ran is over. The alarm stays: the next task most likely needs it later."""
        self._due = math.inf

    def _ring(self) -> None:
        self._alarm = None
        left = self._due - self.crew.runtime.backend.time()
        if left <= TOLERANCE:
            self.stop_task(Cut.TIMED_OUT)
        elif left < math.inf:
            self._alarm_due = self._due
            self._alarm = self.crew.runtime.later(left, self._ring)

    # Attempts.

    @property
    def executor(self) -> Executor:
        """Its thread or process."""
        if self._executor is None:
            self._executor = self.crew.options.make_executor(self.label)
            self.crew.ledger.hired(self._executor)
        return self._executor

    async def attempt(
        self, name: str, work: Awaitable[Any], timeout: float | None
    ) -> tuple[Any, Exception | None, BaseException | None]:
        """Await something once, for at most so many seconds.

        Returns:
            What it returned, or its error; and an exception that must not vanish, to be raised once the books are
            in order.
        """
        value, error, fatal = None, None, None
        if timeout is not None:
            self.start_clock(timeout)
        try:
            value = await work
        except BaseException as raised:
            error, fatal = self.sort_out(name, raised)
        if timeout is not None:
            self.stop_clock()
        if self.cut is not None:
            error = self.cut_short(error, timeout)
        return value, error, fatal

    async def attempt_in(
        self,
        name: str,
        context: Context,
        function: Callable[[PoolWorker], Any],
        timeout: float | None,
    ) -> tuple[Any, Exception | None, BaseException | None]:
        """Await `function(self)` once, in a context, for at most so many seconds. Returns what `attempt` does."""
        calls = self._calls
        if calls is None:
            calls = self._calls = Calls(function)
        if timeout is not None:
            self.start_clock(timeout)
        await calls.perform(context, function, self)
        if timeout is not None:
            self.stop_clock()
        value, raised, calls.value, calls.error = calls.value, calls.error, None, None
        if raised is None and self.cut is None:
            return value, None, None
        error, fatal = (None, None) if raised is None else self.sort_out(name, raised)
        if self.cut is not None:
            error = self.cut_short(error, timeout)
        return value, error, fatal

    def sort_out(self, name: str, raised: BaseException) -> tuple[Exception, BaseException | None]:
        """What an attempt raised: a failure, its being stopped, the end of this worker, or the end of the program.

        Returns:
            The error of the task, and what ends this worker, if anything does.
        """
        if is_a(raised, Exception):
            return as_failure(name, raised), None
        if ends_the_program(raised):
            failed = TaskFailed(f"{name} raised {describe_error(raised)}, which ends the whole system")
            failed.__cause__ = raised
            return failed, raised
        cancellation, rest = split_cancellation(raised, self.crew.runtime.backend.cancelled)
        if self.cut is not None:
            self._caught = cancellation
            return TaskCancelled("it was stopped") if rest is None else as_failure(name, rest), None
        if is_a(raised, Abandoned) or (cancellation is not None and told_to_end()):
            return WorkerDied(f"{self.label} was ended while it ran this task"), raised
        if cancellation is not None:
            forget_cancellation()
        return as_failure(name, raised), None

    def may_retry(self, error: Exception, fatal: BaseException | None) -> bool:
        """Whether another attempt at the task makes sense: nobody cancelled it, and it did not end the system."""
        return self.cut is not Cut.CANCELLED and (fatal is None or is_a(error, WorkerDied))

    def cut_short(self, error: Exception | None, timeout: float | None) -> Exception:
        """The error of a task that was stopped; what it raised meanwhile is the cause."""
        short: Exception
        if self.cut is Cut.TIMED_OUT:
            short = TaskTimedOut(f"it took longer than its time-out, {timeout:g} s, and was stopped")
        else:
            short = TaskCancelled("it was cancelled while it ran")
        if error is not None and not is_a(error, TaskCancelled):
            short.__cause__ = error
        return short
