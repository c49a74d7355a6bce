"""The meters of limiters, which count admitted requests and have no clock: a token bucket, a log and two counters.

The caller passes the time to each method. Times are whole numbers, so nothing is rounded and nothing drifts.

A token bucket (the generic cell rate algorithm, GCRA) has one number as its state: `tat`, the time at which all
admitted requests are paid off. Each unit of cost takes one `interval` to pay off, and `tat` may be at most `burst`
intervals ahead of now.

1. In any span of time t, both ends included, the admitted requests cost at most `burst + t / interval`.
2. `wait` is exact: the same request is admitted at `now + wait`, and not a moment earlier.
3. A refused request changes nothing.
4. A refund covers only the part of the cost that is not paid off yet. So no request is admitted after a refund that
   would have been refused if the real cost had been charged at the start.

The log of a sliding window:

5. In any window, its beginning excluded, the admitted requests cost at most the limit. A request admitted at time t no
   longer counts at t + window. The time at which a request is due is exact.
6. After an adjustment the log is as if the real cost had been charged at the start.

The two counters of a sliding window, whose windows begin at multiples of their length:

7. In each of these windows the admitted requests cost at most the limit, and in any other span of the same length at
   most twice the limit. The counters treat the requests of the last window as spread evenly over it. The time at which
   a request is due is exact.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, Final, NamedTuple, Protocol

from cuelight._text import safe_repr

NEVER: Final = 1 << 62
"""Nanoseconds, 146 years: stands for a time that never comes."""

SECOND: Final = 1_000_000_000
"""Nanoseconds."""

MeterCharge = Any
"""The record of a booking that a meter needs to amend it."""


@dataclass(frozen=True)
class RateLimitConfig:
    """A limit: at most `max_requests` in each window of `window_seconds`.

    Attributes:
        max_requests: units in a window, a whole number. The caller decides how many units a request costs.
        window_seconds: the window in seconds, more than 0; counted in whole nanoseconds.
        burst_size: units that a token bucket admits at once after an idle time; None means `max_requests`. In one
            window a token bucket can therefore admit `burst_size` more than `max_requests`; with 1 it spaces requests
            evenly.
    """

    max_requests: int
    window_seconds: float
    burst_size: int | None = None

    def __post_init__(self) -> None:
        check_whole("RateLimitConfig(max_requests)", self.max_requests, 1)
        check_positive("RateLimitConfig(window_seconds)", self.window_seconds, 1e-9)
        if self.burst_size is not None:
            check_whole("RateLimitConfig(burst_size)", self.burst_size, 1)

    @property
    def burst(self) -> int:
        """The number of units that a token bucket admits at once."""
        return self.max_requests if self.burst_size is None else self.burst_size

    @property
    def window_nanoseconds(self) -> int:
        """The window in nanoseconds."""
        return round(self.window_seconds * SECOND)


def from_rate(rate: float, capacity: int | None) -> RateLimitConfig:
    """Return the limit of `rate` a second on average, and `capacity` at once.

    Args:
        rate: units per second, more than 0; read as a fraction with a denominator of up to a million.
        capacity: None means the units of one second, and at least 1.

    Raises:
        TypeError: one of them is not a number, or the capacity is not a whole number.
        ValueError: one of them is not more than 0.
    """
    from fractions import Fraction  # noqa: PLC0415 - used only here

    check_positive("rate", rate)
    # A rate below one in eleven days needs a denominator of more than a million.
    share = Fraction(rate).limit_denominator(1_000_000) or 1 / Fraction(round(1 / rate))
    burst = max(1, int(rate)) if capacity is None else capacity
    return RateLimitConfig(share.numerator, float(share.denominator), burst)


class Decision(NamedTuple):
    """The answer of `try_acquire`.

    Attributes:
        allowed: whether the request was admitted; it is charged in that case.
        retry_after: seconds until the same request would be admitted; 0.0 if it was admitted. Exact, unless other
            requests come first or leave. If others wait in a sliding window, it may be too short.
        remaining: units that could still be admitted at once.
        reset_after: seconds until the limiter is as if unused.
    """

    allowed: bool
    retry_after: float
    remaining: int
    reset_after: float


class LimiterStatistics(NamedTuple):
    """Statistics of a limiter.

    Attributes:
        admitted: requests admitted, whatever they cost.
        refused: requests refused: by `try_acquire`, or because of their timeout.
        waited: admitted requests that had to wait.
        waiting: requests that wait now.
        total_wait: seconds that the admitted requests waited, in total.
    """

    admitted: int
    refused: int
    waited: int
    waiting: int
    total_wait: float


class Meter(Protocol):
    """Counts admitted requests. It has no clock: callers pass the time, in nanoseconds that never go back."""

    @property
    def max_cost(self) -> int:
        """The greatest cost that is admitted at once."""
        ...

    def try_charge(self, now: int, cost: int) -> bool:
        """Admit a request and charge it, or refuse it and change nothing."""
        ...

    def available_at(self, now: int, cost: int, ahead: int = 0) -> int:
        """Return when a request can be admitted, after others that cost `ahead`; the time may be in the past.

        It is exact when `ahead` is 0, and never too late. `cost` and `ahead` together are 1 or more.
        """
        ...

    def charge(self, now: int, slot: int, cost: int) -> MeterCharge:
        """Charge a request that is admitted now and was due at `slot`, even if the limit does not allow it."""
        ...

    def adjust(self, charge: MeterCharge, was: int, cost: int, now: int) -> MeterCharge:
        """Change the cost of a booking from `was` to `cost`."""
        ...

    def remaining(self, now: int) -> int:
        """Return the number of units that could be admitted at once."""
        ...

    def unused_at(self, now: int) -> int:
        """Return the time from which the meter is as if unused; it may be in the past."""
        ...

    def update(self, config: Any, now: int) -> None:
        """Change the limit; requests that were admitted still count."""
        ...


class Permits:
    """A meter for requests under way: a request charges its cost, and refunds it when it ends."""

    __slots__ = ("_used", "max_cost")

    def __init__(self, size: int) -> None:
        self.max_cost = size
        self._used = 0

    def try_charge(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        if self._used + cost > self.max_cost:
            return False
        self._used += cost
        return True

    def available_at(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. No passing of time makes room: another request has to end."""
        return now if not self._used or self._used + ahead + cost <= self.max_cost else NEVER

    def charge(self, now: int, slot: int, cost: int) -> MeterCharge:
        """See `Meter`."""
        self._used += cost
        return None

    def adjust(self, charge: MeterCharge, was: int, cost: int, now: int) -> MeterCharge:
        """See `Meter`."""
        self._used += cost - was
        return None

    def remaining(self, now: int) -> int:
        """See `Meter`."""
        return max(0, self.max_cost - self._used)

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        return NEVER if self._used else now

    def update(self, config: int, now: int) -> None:
        """See `Meter`."""
        self.max_cost = config


def check_whole(name: str, value: object, least: int = 0) -> int:
    """Return the value, if it is a whole number of `least` or more.

    Raises:
        TypeError: it is not an `int`.
        ValueError: it is less than `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={safe_repr(value)}: give a whole number; for parts of one, count in a smaller unit")
    if value < least:
        raise ValueError(f"{name}={safe_repr(value)}: give {least} or more")
    return value


def check_positive(name: str, value: object, least: float = 0.0) -> None:
    """Raise an error unless the value is a finite number of more than 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not more than 0, less than `least`, or infinite.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}={safe_repr(value)}: give a number")
    if not 0 < value < math.inf or value < least:
        raise ValueError(f"{name}={safe_repr(value)}: give more than {least:g}, and less than infinity")


def check_timeout(timeout: float | None) -> None:
    """Raise an error unless this is a timeout.

    Raises:
        ValueError: it is negative or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None to wait as long as it takes")


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


class BucketRate(NamedTuple):
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
def _rate(config: RateLimitConfig) -> BucketRate:
    # In most limits, such as 100 in 60 s, each unit takes a whole number of nanoseconds, so that the scale is 1.
    window = config.window_nanoseconds
    common = gcd(window, config.max_requests)
    return BucketRate(config.max_requests // common, window // common, config.burst)


class Bucket:
    """A token bucket: `max_requests` in a window on average, and `burst_size` at once. See `Meter`."""

    __slots__ = ("_rate", "_tat", "max_cost")

    def __init__(self, config: RateLimitConfig) -> None:
        self._rate = _rate(config)
        self._tat = -NEVER
        self.max_cost = self._rate.burst

    def try_charge(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        # The same as `gcra`, inlined: this is the most frequent operation.
        scale, interval, burst = self._rate
        now *= scale
        tat = self._tat
        end = (tat if tat > now else now) + cost * interval  # noqa: FURB136 - max() is slow
        if end - now > burst * interval:
            return False
        self._tat = end
        return True

    def available_at(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`."""
        scale, interval, burst = self._rate
        tat = max(self._tat, now * scale) + ahead * interval if ahead else self._tat
        return -((max(0, burst - cost) * interval - tat) // scale)

    def charge(self, now: int, slot: int, cost: int) -> MeterCharge:
        """See `Meter`."""
        scale, interval, _ = self._rate
        self._tat = max(self._tat, slot * scale) + cost * interval
        return self._rate, self._tat

    def adjust(self, charge: MeterCharge, was: int, cost: int, now: int) -> MeterCharge:
        """See `Meter`. A booking made at another pace is not refunded, because its paid-off part is not known."""
        rate, end = charge
        change = (cost - was) * self._rate.interval
        if change < 0:
            owed = max(0, end - now * rate.scale) if rate is self._rate else 0
            change = -min(-change, owed)
        self._tat += change
        return rate, end + change

    def remaining(self, now: int) -> int:
        """See `Meter`."""
        scale, interval, burst = self._rate
        return max(0, burst - -(-max(0, self._tat - now * scale) // interval))

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        return -(-self._tat // self._rate.scale)

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. The debt stays the same in units of cost, and is paid off at the new pace."""
        old, new = self._rate, _rate(config)
        owed = max(0, self._tat - now * old.scale)
        self._tat = now * new.scale - (-owed * new.interval // old.interval)
        self._rate, self.max_cost = new, new.burst


class WindowLog:
    """An exact log of the times and costs of admitted requests, up to `max_requests` entries. See `Meter`."""

    __slots__ = ("_entries", "_used", "_window", "max_cost")

    def __init__(self, config: RateLimitConfig) -> None:
        self.max_cost = config.max_requests
        self._window = config.window_nanoseconds
        self._entries: deque[list[int]] = deque()  # [time, cost], the oldest first
        self._used = 0

    def _expire(self, now: int) -> None:
        entries, began = self._entries, now - self._window
        while entries and entries[0][0] <= began:
            gone = entries.popleft()
            self._used -= gone[1]
            gone[0] = -NEVER  # so that a late amendment sees that it has expired

    def try_charge(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        self._expire(now)
        if self._used + cost > self.max_cost:
            return False
        if cost:
            self.charge(now, now, cost)
        return True

    def available_at(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. A request that costs more than the limit waits until nothing counts."""
        self._expire(now)
        total = ahead + min(cost, self.max_cost)
        # First the whole windows that the requests ahead fill, then the time until enough current entries expire.
        windows, rest = divmod(total - 1, self.max_cost)
        lacking = rest + 1 - (self.max_cost - self._used)
        if lacking <= 0:
            return now + windows * self._window
        for time, expiring in self._entries:
            lacking -= expiring
            if lacking <= 0:
                return time + (windows + 1) * self._window
        raise AssertionError("the log holds less than it says")  # pragma: no cover

    def charge(self, now: int, slot: int, cost: int) -> MeterCharge:
        """See `Meter`."""
        entries = self._entries
        self._expire(now)
        if not entries or entries[-1][0] < now:
            entries.append([now, 0])
        entries[-1][1] += cost
        self._used += cost
        return entries[-1]

    def adjust(self, charge: MeterCharge, was: int, cost: int, now: int) -> MeterCharge:
        """See `Meter`. An entry that has left the window is not changed."""
        self._expire(now)
        if charge[0] > now - self._window:
            charge[1] += cost - was
            self._used += cost - was
        return charge

    def remaining(self, now: int) -> int:
        """See `Meter`."""
        self._expire(now)
        return max(0, self.max_cost - self._used)

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        self._expire(now)
        return self._entries[-1][0] + self._window if self._entries else now

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. A longer window does not bring back entries that a shorter one has dropped."""
        self._expire(now)
        self.max_cost = config.max_requests
        self._window = config.window_nanoseconds


class WindowCounter:
    """The admitted costs of this window and of the last one: two numbers, whatever the limit. See `Meter`."""

    __slots__ = ("_index", "_last", "_this", "_window", "max_cost")

    def __init__(self, config: RateLimitConfig) -> None:
        self.max_cost = config.max_requests
        self._window = config.window_nanoseconds
        self._index = self._last = self._this = 0

    def _roll(self, now: int) -> int:
        """Move on to the window of `now`; returns the time since its beginning."""
        index, into = divmod(now, self._window)
        if index != self._index:
            self._last = self._this if index == self._index + 1 else 0
            self._this = 0
            self._index = index
        return into

    def _used(self, now: int) -> int:
        into = self._roll(now)
        return self._this - (-self._last * (self._window - into) // self._window)

    def try_charge(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        if self._used(now) + cost > self.max_cost:
            return False
        self._this += cost
        return True

    def available_at(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. A request that costs more than the limit waits until nothing counts."""
        into = self._roll(now)
        cost = min(cost, self.max_cost)
        # Each window admits the limit at most, so the requests ahead delay it by whole windows.
        windows = (min(self._this, self.max_cost) + ahead + cost - 1) // self.max_cost if ahead else 0
        room = self.max_cost - min(self.max_cost, ahead + cost)
        window, this = self._window, self._this
        if this <= room:
            at = max(into, window - (room - this) * window // self._last) if self._last else into
        else:
            at = window + window - room * window // this
        return self._index * window + max(at, windows * window)

    def charge(self, now: int, slot: int, cost: int) -> MeterCharge:
        """See `Meter`."""
        self._roll(now)
        self._this += cost
        return self._index

    def adjust(self, charge: MeterCharge, was: int, cost: int, now: int) -> MeterCharge:
        """See `Meter`. A booking that has left both windows is not changed."""
        self._roll(now)
        if charge == self._index:
            self._this += cost - was
        elif charge == self._index - 1:
            self._last += cost - was
        return charge

    def remaining(self, now: int) -> int:
        """See `Meter`."""
        return max(0, self.max_cost - self._used(now))

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        self._roll(now)
        windows = 2 if self._this else 1 if self._last else 0
        return (self._index + windows) * self._window if windows else now

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. The cost that counts now counts as admitted in the new window."""
        used = self._used(now)
        self.max_cost = config.max_requests
        self._window = config.window_nanoseconds
        self._index, self._last, self._this = now // self._window, 0, used
