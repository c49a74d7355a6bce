"""A wall clock that small corrections do not set back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import ends_the_program
from cuelight.tasks._checks import FAR

log = get_log("cuelight.tasks")

# seconds; a larger step means that the clock was wrong, and it would take too long to wait for
_WAITED_OUT: Final = 60.0


class SteadyClock:
    """Returns seconds since the epoch, without small steps back.

    After a step back of less than a minute, the time stands still until the clock has caught up. A larger step back is
    followed. Its only effect is that current leases and delays last longer than they should.

    While the underlying clock raises an exception or returns an invalid time, the time advances by the monotonic clock,
    because a store must know the time to end leases.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Use `clock`, which returns seconds since the epoch and may be called from any thread.

        Raises:
            ValueError: the clock returns an invalid time.
            Exception: any exception that the clock raises.
        """
        self._clock = clock
        self._last = now = float(clock())
        self._failed_at: float | None = None
        if not -FAR < now < FAR:
            raise ValueError(f"clock={safe_repr(clock)}: it returned {now!r}; give seconds since the epoch")

    def __call__(self) -> float:
        try:
            now = float(self._clock())
        except BaseException as error:  # the clock is user code
            if ends_the_program(error):
                raise
            return self._without(error)
        if not -FAR < now < FAR:
            return self._without(ValueError(f"it returned {now!r}"))
        if self._failed_at is not None:
            self._failed_at = None
        last = self._last
        if last - _WAITED_OUT < now < last:
            return last
        self._last = now
        return now

    def _without(self, error: BaseException) -> float:
        """The time without the clock: the last value that it returned, plus the time since its first failure."""
        log.error("the clock %s of a store cannot be read", safe_repr(self._clock, 200), error=error, kind="clock")
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        return self._last + time.monotonic() - self._failed_at
