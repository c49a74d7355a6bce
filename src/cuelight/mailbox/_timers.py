"""Time as a case of `select`. A timer is only a value: the loop has a wake-up only while a select sleeps on it."""

from __future__ import annotations

import math
from collections import OrderedDict

from cuelight.mailbox._backend import loop_time
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, NotNow


class TimerCase:
    """The common base of `Timer` and `Ticker`: the next deadline, and the selects that wait for it."""

    __slots__ = ("_deadline", "_waiters")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._waiters: OrderedDict[CaseWaiter, None] = OrderedDict()

    @property
    def deadline(self) -> float:
        """The loop's time at which it is ready next, or `math.inf` if it never is."""
        return self._deadline

    def cancel(self) -> None:
        """Make it never ready again. Selects continue without it."""
        self._deadline = math.inf
        waiting = [*self._waiters]
        self._waiters.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(CLOSED)

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Store the waiter for `cancel`. The select itself wakes at `deadline`."""
        self._waiters[waiter] = None

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """See `Case`."""
        self._waiters.pop(waiter, None)

    def case_put_back(self, item: object, /) -> bool:
        """See `Case`. Never called, because a timer takes effect only when it is polled."""
        return True


class Timer(TimerCase):
    """A case that is ready once, made by `after`. Its item is None.

    After it was ready or was cancelled, selects continue without it.
    """

    __slots__ = ()

    def case_poll(self) -> NotNow | None:
        """See `Case`."""
        if self._deadline == math.inf:
            return CLOSED
        if loop_time() < self._deadline:
            return NOT_READY
        self.cancel()
        return None


class Ticker(TimerCase):
    """A case that is ready once per period, made by `every`. Its item is the number of periods since the last tick.

    A select that is late gets one tick for all missed periods. The next tick is on time again.
    """

    __slots__ = ("_count", "_period", "_start")

    def __init__(self, period: float) -> None:
        self._start = loop_time()
        self._period = period
        self._count = 0
        super().__init__(self._start + period)

    def case_poll(self) -> int | NotNow:
        """See `Case`."""
        if self._deadline == math.inf:
            return CLOSED
        now = loop_time()
        if now < self._deadline:
            return NOT_READY
        # Count from the start, not from the last tick, so that rounding errors do not add up. Despite rounding, at
        # least one period has ended.
        count = max(self._count + 1, math.floor((now - self._start) / self._period))
        ticks = count - self._count
        self._count = count
        self._deadline = self._start + (count + 1) * self._period
        return ticks


def after(seconds: float) -> Timer:
    """Return a case of `select` that is ready once, `seconds` from now in the loop's time. Call it in the event loop.

    Raises:
        ValueError: `seconds` is negative or not a finite number.
        RuntimeError: no event loop runs in this thread.
    """
    if not 0 <= seconds < math.inf:
        message = f"after({seconds!r}): give a number of seconds from 0 up; leave the case out to wait forever"
        raise ValueError(message)
    return Timer(loop_time() + seconds)


def every(seconds: float) -> Ticker:
    """Return a case of `select` that is ready every `seconds` of the loop's time. Call it in the event loop.

    The first period begins now.

    Raises:
        ValueError: `seconds` is not above 0, or not a finite number.
        RuntimeError: no event loop runs in this thread.
    """
    if not 0 < seconds < math.inf:
        message = f"every({seconds!r}): give a number of seconds above 0"
        raise ValueError(message)
    return Ticker(seconds)
