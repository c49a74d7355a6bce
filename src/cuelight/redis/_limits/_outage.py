"""What a limiter does while its server is away."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar, get_args

import anyio

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.coordination._limit_meter import check_positive
from cuelight.errors import StoreUnavailable

__all__ = ["OnOutage", "Outage"]

T = TypeVar("T")

OnOutage = Literal["closed", "open", "local"]
"""What becomes of requests while the server is away: they raise `StoreUnavailable`, are let through uncounted, or are
counted by this process alone."""

_CHOICES: Final = get_args(OnOutage)

_AGAIN: Final = 1.0
"""Seconds between two looks whether the server is there again. Whoever comes first then looks for all."""

log = get_log("cuelight.redis")


class Outage:
    """Whether the server is taken to be away. For all loops and threads: nothing here is worse than a look too many.

    Attributes:
        mode: what happens then.
    """

    __slots__ = ("_again", "_name", "_patience", "away", "mode")

    def __init__(self, name: str, mode: OnOutage, patience: float) -> None:
        if mode not in _CHOICES:
            raise ValueError(f"on_outage={safe_repr(mode)}: it is one of {', '.join(_CHOICES)}")
        check_positive("outage_after", patience)
        self.mode, self.away = mode, False
        self._name, self._patience = name, patience
        self._again = 0.0

    async def reach(self, call: Callable[[float | None], Awaitable[T]], timeout: float | None) -> T | None:
        """Make a call that waits for nothing but the server; None if that is away, and there is another way.

        Args:
            call: makes it, within so many seconds or those of the client.
            timeout: seconds that the caller has. When they are over before the server is taken to be away, this one
                goes without it, and others go on asking.

        Raises:
            StoreUnavailable: it is away, and the mode is "closed".
        """
        if self.mode == "closed":
            return await call(timeout)
        with anyio.move_on_after(self._patience if timeout is None else min(self._patience, timeout)):
            try:
                result = await call(None)
            except StoreUnavailable:
                pass
            else:
                if self.away:
                    log.warning("limiter %s: its server is back", self._name)
                self.away = False
                return result
        if timeout is not None and timeout < self._patience:
            return None
        if not self.away:
            log.warning("limiter %s: its server is away, requests are %s", self._name, _SAID[self.mode])
        self.away, self._again = True, time.monotonic() + _AGAIN
        return None

    def skips(self) -> bool:
        """Whether a request is not to try the server."""
        if not self.away:
            return False
        now = time.monotonic()
        if now < self._again:
            return True
        self._again = now + _AGAIN
        return False


_SAID: Final = {"open": "let through uncounted", "local": "counted in this process alone"}
