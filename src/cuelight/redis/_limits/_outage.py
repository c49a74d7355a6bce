"""The behaviour of a limiter while its server is away."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar, get_args

import anyio

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.coordination._meters import check_positive
from cuelight.errors import StoreUnavailable

T = TypeVar("T")

OnOutage = Literal["closed", "open", "local"]
"""The handling of requests while the server is away: they raise `StoreUnavailable`, are admitted without being counted,
or are counted by this process alone.
"""

_CHOICES: Final = get_args(OnOutage)

_AGAIN: Final = 1.0
"""Seconds between two checks whether the server is back. The first request after that time checks for all."""

log = get_log("cuelight.redis")


class Outage:
    """Whether the server is considered away. Shared by all loops and threads without a lock: a race costs one check too
    many.

    Attributes:
        mode: the handling of requests while it is away.
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
        """Make a call that waits only for the server. Returns None if the server is away and the mode is not "closed".

        Args:
            call: makes the call, with a timeout in seconds or None for that of the client.
            timeout: seconds that the caller has. If they end before the server is considered away, this request is
                admitted without it, and other requests go on asking.

        Raises:
            StoreUnavailable: the server is away, and the mode is "closed".
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
        """Whether a request must not try the server."""
        if not self.away:
            return False
        now = time.monotonic()
        if now < self._again:
            return True
        self._again = now + _AGAIN
        return False


_SAID: Final = {"open": "let through uncounted", "local": "counted in this process alone"}
