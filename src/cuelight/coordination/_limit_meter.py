"""What limiters are built of: the limit, what they answer, and the `Meter`, which counts and knows no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from cuelight._text import safe_repr

__all__ = [
    "EVER",
    "Decision",
    "LimiterStatistics",
    "Meter",
    "Permits",
    "RateLimitConfig",
    "SECOND",
    "Ticket",
    "check_positive",
    "check_timeout",
    "check_whole",
    "from_rate",
]

EVER: Final = 1 << 62
"""Nanoseconds, 146 years: a time that does not come."""

SECOND: Final = 1_000_000_000
"""Nanoseconds."""

Ticket = Any
"""What a meter has to remember of a booking, to amend it."""


@dataclass(frozen=True)
class RateLimitConfig:
    """At most `max_requests` in each window of `window_seconds`.

    Attributes:
        max_requests: how much in a window, a whole number; what a request costs is up to the caller.
        window_seconds: more than 0; counted in whole nanoseconds.
        burst_size: how much a token bucket lets through at once after a quiet time. None for `max_requests`. In one
            window it can so let through `burst_size` more than `max_requests`; with 1 it spaces requests evenly.
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
        """What a token bucket lets through at once."""
        return self.max_requests if self.burst_size is None else self.burst_size

    @property
    def window_nanoseconds(self) -> int:
        """The window in nanoseconds."""
        return round(self.window_seconds * SECOND)


def from_rate(rate: float, capacity: int | None) -> RateLimitConfig:
    """The limit of `rate` a second on average, and `capacity` at once.

    Args:
        rate: per second, more than 0; read as a fraction with a denominator of up to a million.
        capacity: None for what comes in a second, and at least 1.

    Raises:
        TypeError: one of them is no number, or the capacity not a whole one.
        ValueError: one of them is not more than 0.
    """
    from fractions import Fraction  # noqa: PLC0415 - only here

    check_positive("rate", rate)
    # A rate below one in eleven days needs more than the million.
    share = Fraction(rate).limit_denominator(1_000_000) or 1 / Fraction(round(1 / rate))
    burst = max(1, int(rate)) if capacity is None else capacity
    return RateLimitConfig(share.numerator, float(share.denominator), burst)


class Decision(NamedTuple):
    """The answer of `try_acquire`.

    Attributes:
        allowed: whether the request is let through; it is charged then.
        retry_after: seconds until the same request would be let through; 0.0 if it is. Exact, unless others come
            first or leave; with others waiting in a sliding window it may be too short.
        remaining: what is left to be let through at once.
        reset_after: seconds until the limiter is as if it had not been used.
    """

    allowed: bool
    retry_after: float
    remaining: int
    reset_after: float


class LimiterStatistics(NamedTuple):
    """What a limiter has done so far.

    Attributes:
        admitted: requests let through, whatever they cost.
        refused: requests turned away: by `try_acquire`, or because of their time-out.
        waited: how many of those let through had to wait.
        waiting: requests that wait now.
        total_wait: seconds that those let through waited, together.
    """

    admitted: int
    refused: int
    waited: int
    waiting: int
    total_wait: float


class Meter(Protocol):
    """Counts what is let through. It is told the time, in nanoseconds that never go back, and owns no clock."""

    @property
    def most(self) -> int:
        """The greatest cost that it lets through at once."""
        ...

    def take(self, now: int, cost: int) -> bool:
        """Let a request through and charge it, or refuse it and change nothing."""
        ...

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """When a request can be let through, after others that cost `ahead`; it may be in the past.

        It is exact when nothing is ahead, and never too late. Together they cost 1 or more.
        """
        ...

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """Charge a request that is let through now, and could have been at `slot`; whatever the limit says."""
        ...

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """What was booked to cost `was` really costs `cost`."""
        ...

    def left(self, now: int) -> int:
        """How much could be let through at once."""
        ...

    def unused_at(self, now: int) -> int:
        """When it will be, or was, as if nothing had ever been let through."""
        ...

    def update(self, config: Any, now: int) -> None:
        """Take on another limit; what was let through still counts."""
        ...


class Permits:
    """A meter for how much is under way at once: its cost is given back when it ends."""

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
        """See `Meter`. No time will make room: somebody has to give something back."""
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
    """The value, if it is a whole number of `least` or more.

    Raises:
        TypeError: it is no `int`.
        ValueError: it is less.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={safe_repr(value)}: give a whole number; for parts of one, count in a smaller unit")
    if value < least:
        raise ValueError(f"{name}={safe_repr(value)}: give {least} or more")
    return value


def check_positive(name: str, value: object, least: float = 0.0) -> None:
    """Refuse what is no finite number of more than 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is not more than 0, less than `least`, or infinite.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}={safe_repr(value)}: give a number")
    if not 0 < value < math.inf or value < least:
        raise ValueError(f"{name}={safe_repr(value)}: give more than {least:g}, and less than infinity")


def check_timeout(timeout: float | None) -> None:
    """Refuse what is no time-out.

    Raises:
        ValueError: it is negative or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None to wait as long as it takes")
