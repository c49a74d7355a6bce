"""The parts of limiters: the limit, the answers and statistics, and the `Meter`, which counts and has no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from cuelight._text import safe_repr

EVER: Final = 1 << 62
"""Nanoseconds, 146 years: stands for a time that never comes."""

SECOND: Final = 1_000_000_000
"""Nanoseconds."""

Ticket = Any
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
    def most(self) -> int:
        """The greatest cost that is admitted at once."""
        ...

    def take(self, now: int, cost: int) -> bool:
        """Admit a request and charge it, or refuse it and change nothing."""
        ...

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """Return when a request can be admitted, after others that cost `ahead`; the time may be in the past.

        It is exact when `ahead` is 0, and never too late. `cost` and `ahead` together are 1 or more.
        """
        ...

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """Charge a request that is admitted now and was due at `slot`, even if the limit does not allow it."""
        ...

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """Change the cost of a booking from `was` to `cost`."""
        ...

    def left(self, now: int) -> int:
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

    __slots__ = ("_used", "most")

    def __init__(self, size: int) -> None:
        self.most = size
        self._used = 0

    def take(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        if self._used + cost > self.most:
            return False
        self._used += cost
        return True

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. No passing of time makes room: another request has to end."""
        return now if not self._used or self._used + ahead + cost <= self.most else EVER

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """See `Meter`."""
        self._used += cost
        return None

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """See `Meter`."""
        self._used += cost - was
        return None

    def left(self, now: int) -> int:
        """See `Meter`."""
        return max(0, self.most - self._used)

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        return EVER if self._used else now

    def update(self, config: int, now: int) -> None:
        """See `Meter`."""
        self.most = config


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
