"""The delay before a restart: exponential back-off with jitter."""

from __future__ import annotations

import math

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
