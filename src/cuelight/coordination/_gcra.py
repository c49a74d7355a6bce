"""The arithmetic of a token bucket, in whole numbers: the generic cell rate algorithm (GCRA).

The state is one number: `tat`, the time at which all admitted requests are paid off. Each unit of cost takes one
`interval` to pay off, and `tat` may be at most `burst` intervals ahead of now. There are no clocks and no tasks here;
the caller passes the time. Times are whole numbers of any unit, so nothing is rounded and nothing drifts.

Invariants:

1. In any span of time t, both ends included, the admitted requests cost at most `burst + t / interval`.
2. `wait` is exact: the same request is admitted at `now + wait`, and not a moment earlier.
3. A refused request changes nothing.
4. A refund covers only the part of the cost that is not paid off yet. So no request is admitted after a refund that
   would have been refused if the real cost had been charged at the start.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

from cuelight.coordination._limit_meter import EVER, RateLimitConfig, Ticket


def gcra(tat: int, now: int, interval: int, burst: int, cost: int) -> tuple[bool, int, int]:
    """Decide whether a request is admitted now: one step of the generic cell rate algorithm.

    For fractional costs, count time in ticks: pass `interval=1`, and give the burst and the cost in ticks.

    Args:
        tat: the state that the last step returned; any value up to `now` means an unused bucket.
        now: the time.
        interval: the time in which a cost of 1 is paid off.
        burst: the greatest cost that is admitted at once. A request that costs more waits until nothing is owed.
        cost: the cost of this request.

    Returns:
        Whether the request is admitted, the new state, and the time to wait if it is not admitted.
    """
    charge = cost * interval
    spare = burst * interval - charge
    start = tat if tat > now else now  # noqa: FURB136 - max() is slow
    wait = start - spare - now if spare > 0 else start - now
    if wait > 0:
        return False, tat, wait
    return True, start + charge, 0


class Pace(NamedTuple):
    """The speed at which a bucket fills, without rounding: time is counted in ticks of 1/scale nanoseconds.

    Attributes:
        scale: ticks in a nanosecond.
        interval: ticks in which a cost of 1 is paid off.
        burst: the greatest cost that is admitted at once.
    """

    scale: int
    interval: int
    burst: int


@lru_cache(maxsize=1024)
def _pace(config: RateLimitConfig) -> Pace:
    # In most limits, such as 100 in 60 s, each unit takes a whole number of nanoseconds, so that the scale is 1.
    window = config.window_nanoseconds
    common = gcd(window, config.max_requests)
    return Pace(config.max_requests // common, window // common, config.burst)


class Bucket:
    """A token bucket: `max_requests` in a window on average, and `burst_size` at once. See `Meter`."""

    __slots__ = ("_pace", "_tat", "most")

    def __init__(self, config: RateLimitConfig) -> None:
        self._pace = _pace(config)
        self._tat = -EVER
        self.most = self._pace.burst

    def take(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        # The same as `gcra`, inlined: this is the most frequent operation.
        scale, interval, burst = self._pace
        now *= scale
        tat = self._tat
        end = (tat if tat > now else now) + cost * interval  # noqa: FURB136 - max() is slow
        if end - now > burst * interval:
            return False
        self._tat = end
        return True

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`."""
        scale, interval, burst = self._pace
        tat = max(self._tat, now * scale) + ahead * interval if ahead else self._tat
        return -((max(0, burst - cost) * interval - tat) // scale)

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """See `Meter`."""
        scale, interval, _ = self._pace
        self._tat = max(self._tat, slot * scale) + cost * interval
        return self._pace, self._tat

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """See `Meter`. A booking made at another pace is not refunded, because its paid-off part is not known."""
        pace, end = ticket
        change = (cost - was) * self._pace.interval
        if change < 0:
            owed = max(0, end - now * pace.scale) if pace is self._pace else 0
            change = -min(-change, owed)
        self._tat += change
        return pace, end + change

    def left(self, now: int) -> int:
        """See `Meter`."""
        scale, interval, burst = self._pace
        return max(0, burst - -(-max(0, self._tat - now * scale) // interval))

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        return -(-self._tat // self._pace.scale)

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. The debt stays the same in units of cost, and is paid off at the new pace."""
        old, new = self._pace, _pace(config)
        owed = max(0, self._tat - now * old.scale)
        self._tat = now * new.scale - (-owed * new.interval // old.interval)
        self._pace, self.most = new, new.burst
