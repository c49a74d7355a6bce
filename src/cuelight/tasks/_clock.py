"""A clock of the day that small corrections do not turn back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import ends_the_program
from cuelight.tasks._checks import FAR

__all__ = ["SteadyClock"]

log = get_log("cuelight.tasks")

_WAITED_OUT: Final = 60.0  # seconds; a clock that was further ahead was wrong, and nobody can wait for it


class SteadyClock:
    """Seconds since the epoch that do not go back by less than a minute: such a step is waited out.

    A larger step back is followed. Then leases and delays last longer than they should, and nothing else happens.

    While the clock raises, or says what is no time, it is taken to go on as it did: a store must know the time to end
    leases.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Read `clock`, in seconds since the epoch, from any thread.

        Raises:
            ValueError: it says what is no time.
            Exception: what it raises.
        """
        self._clock = clock
        self._last = now = float(clock())
        self._failed_at: float | None = None
        if not -FAR < now < FAR:
            raise ValueError(f"clock={safe_repr(clock)}: it says {now!r}; give seconds since the epoch")

    def __call__(self) -> float:
        try:
            now = float(self._clock())
        except BaseException as error:  # it is code of a user
            if ends_the_program(error):
                raise
            return self._without(error)
        if not -FAR < now < FAR:
            return self._without(ValueError(f"it says {now!r}"))
        if self._failed_at is not None:
            self._failed_at = None
        last = self._last
        if last - _WAITED_OUT < now < last:
            return last
        self._last = now
        return now

    def _without(self, error: BaseException) -> float:
        """The time without the clock: what it said last, and what has passed since it failed first."""
        log.error("the clock %s of a store cannot be read", safe_repr(self._clock, 200), error=error, kind="clock")
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        return self._last + time.monotonic() - self._failed_at
