"""A clock of the day that small corrections do not turn back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["SteadyClock"]

_WAITED_OUT: Final = 60.0  # seconds; a clock that was further ahead was wrong, and nobody can wait for it


class SteadyClock:
    """Seconds since the epoch that do not go back by less than a minute: such a step is waited out.

    A larger step back is followed. Then leases and delays last longer than they should, and nothing else happens.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Read `clock`, in seconds since the epoch, from any thread."""
        self._clock = clock
        self._last = clock()

    def __call__(self) -> float:
        now = self._clock()
        last = self._last
        if last - _WAITED_OUT < now < last:
            return last
        self._last = now
        return now
