"""Time as a case of `select`. A timer is a value: the loop is asked to wake a task only while a select sleeps
on it.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from cuelight.mailbox._backend import loop_time
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, NotNow

__all__ = ["Alarm", "Ticker", "Timer", "after", "every"]


class Alarm:
    """What `Timer` and `Ticker` share: a next time, and who sleeps until then."""

    __slots__ = ("_deadline", "_waiters")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._waiters: OrderedDict[CaseWaiter, None] = OrderedDict()

    @property
    def deadline(self) -> float:
        """When it is ready next, in the loop's time; `math.inf` when never."""
        return self._deadline

    def cancel(self) -> None:
        """Never be ready again: selects go on without it."""
        self._deadline = math.inf
        waiting = [*self._waiters]
        self._waiters.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(CLOSED)

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Remember who sleeps, for `cancel`. The select itself looks at `deadline` and wakes then."""
        self._waiters[waiter] = None

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """See `Case`."""
        self._waiters.pop(waiter, None)

    def case_put_back(self, item: object, /) -> bool:
        """See `Case`. Never called, as a timer takes effect only when it is polled."""
        return True


class Timer(Alarm):
    """Ready once, made by `after`. Its item is None. After that, or when cancelled, selects go on without
    it.
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


class Ticker(Alarm):
    """Ready once in each period, made by `every`. Its item says how many periods have ended since the last
    one.

    A select that comes late gets one tick for all that it missed, and the next tick is on time again.
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
        # From the start, not from the last tick: rounding must not add up. And one at least, whatever the
        # rounding.
        count = max(self._count + 1, math.floor((now - self._start) / self._period))
        ticks = count - self._count
        self._count = count
        self._deadline = self._start + (count + 1) * self._period
        return ticks


def after(seconds: float) -> Timer:
    """A case of `select` that is ready once, `seconds` from now in the loop's time. Call it in the event
    loop.

    Raises:
        ValueError: `seconds` is negative or no finite number.
        RuntimeError: no event loop runs in this thread.
    """
    if not 0 <= seconds < math.inf:
        message = f"after({seconds!r}): give a number of seconds from 0 up; leave the case out to wait forever"
        raise ValueError(message)
    return Timer(loop_time() + seconds)


def every(seconds: float) -> Ticker:
    """A case of `select` that is ready every `seconds`, counted from now in the loop's time. Call it in the
    event loop.

    Raises:
        ValueError: `seconds` is not above 0, or no finite number.
        RuntimeError: no event loop runs in this thread.
    """
    if not 0 < seconds < math.inf:
        message = f"every({seconds!r}): give a number of seconds above 0"
        raise ValueError(message)
    return Ticker(seconds)
