"""The values and functions that decide on restarts: back-off, restart limits and strategies.

To add a strategy, write a function here. It gets the children in start order and the crashed child, and returns the
children to restart, in start order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """Exponential delays: `min(maximum, minimum * 2**n) * (1 + U * jitter)`, where `U` is random in [0, 1).

    `maximum` applies before the jitter. The formula is that of Akka's back-off supervisor. `n` returns to 0 when an
    actor has run for `(minimum + maximum) / 2` seconds without a crash.

    Attributes:
        minimum: seconds before the first restart; 0 restarts at once.
        maximum: the longest delay in seconds, before jitter.
        jitter: the largest random extension of a delay, as a share of it.
    """

    minimum: float = 0.1
    maximum: float = 10.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum < math.inf:
            raise ValueError(
                f"Backoff(minimum={self.minimum!r}, maximum={self.maximum!r}): give seconds, 0 <= minimum <= maximum"
            )
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"Backoff(jitter={self.jitter!r}): give a share, 0 or more (0.2 is 20 %)")

    def delay(self, restarts: int, jitter: float) -> float:
        """Return the delay in seconds before restart number `restarts`, counted from 0.

        Args:
            restarts: the number of restarts since the actor was last healthy.
            jitter: a random number in [0, 1).
        """
        # 2.0**1024 overflows; no delay needs that many doublings.
        doubled = self.minimum * 2.0 ** min(restarts, 1000) if self.minimum else 0.0
        return min(self.maximum, doubled) * (1 + jitter * self.jitter)

    @property
    def healthy_after(self) -> float:
        """Seconds without a crash after which the count of restarts returns to 0."""
        return (self.minimum + self.maximum) / 2


class RestartLimit(msgspec.Struct, frozen=True):
    """At most `max_restarts` restarts within any `within` seconds, counted as in OTP's supervisors.

    Attributes:
        max_restarts: 0 or more; 0 escalates the first crash.
        within: the window in seconds, more than 0.
    """

    max_restarts: int = 3
    within: float = 5.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts!r}: give 0 or more")
        if not self.within > 0:
            raise ValueError(f"within={self.within!r}: give a window of more than 0 seconds")

    def count(self, history: tuple[float, ...], now: float) -> tuple[tuple[float, ...], bool]:
        """Count one more restart.

        Args:
            history: the times of earlier restarts, as returned by the previous call.
            now: the current time in seconds.

        Returns:
            The new history, and whether this restart is allowed.
        """
        recent = (*(time for time in history if time >= now - self.within), now)
        return recent, len(recent) <= self.max_restarts


T = TypeVar("T")

Strategy: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Any]]
"""A function from `(children, crashed)` to the children to restart."""


def one_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001 - the shape of a strategy
    """Restart only the crashed child. For children that do not depend on each other."""
    return [crashed]


def one_for_all(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001
    """Restart all children. For children that cannot work without each other."""
    return list(children)


def rest_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:
    """Restart the crashed child and those started after it. For children that depend on earlier ones."""
    return list(children[children.index(crashed) :])
