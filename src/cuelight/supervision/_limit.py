"""Restart intensity: the number of restarts allowed in a sliding window."""

from __future__ import annotations

import msgspec


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
