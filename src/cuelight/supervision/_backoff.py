"""How long to wait before a restart (or, elsewhere, a retry): a value and two formulas."""

from __future__ import annotations

import math

import msgspec

__all__ = ["Backoff"]


class Backoff(msgspec.Struct, frozen=True):
    """Delays that double: `min(maximum, minimum * 2**n) * (1 + U * jitter)`, the cap before the jitter.

    The formula is that of Akka's back-off supervisor. The count begins anew after a healthy life of
    `(minimum + maximum) / 2` seconds.

    Attributes:
        minimum: seconds before the first restart; 0 restarts at once.
        maximum: seconds at most, before jitter.
        jitter: how much longer a delay may be at random, as a share of it.
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
        """Seconds before restart number `restarts`, counted from 0.

        Args:
            restarts: how many there were since the last healthy life.
            jitter: a random number in [0, 1).
        """
        # 2.0**1024 overflows; no delay needs so many doublings.
        doubled = self.minimum * 2.0 ** min(restarts, 1000) if self.minimum else 0.0
        return min(self.maximum, doubled) * (1 + jitter * self.jitter)

    @property
    def healthy_after(self) -> float:
        """Seconds of life after which the count begins anew."""
        return (self.minimum + self.maximum) / 2
