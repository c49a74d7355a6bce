"""Sends the steps of a store to its server, within the timeouts, and keeps the time of the server."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
from redis.exceptions import DataError, RedisError

from cuelight._text import safe_str
from cuelight.errors import PoolClosed, StoreRefused, StoreUnavailable
from cuelight.redis._client import RedisClient
from cuelight.redis._tasks import _scripts as steps
from cuelight.tasks._stores._step_timeout import time_for_step
from cuelight.tasks._stores._support import MonotonicWallClock

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cuelight.redis._client import Argument, Server
    from cuelight.redis._tasks._scripts import ScriptCall

_DRIFT: Final = 0.001
"""Seconds by which a slow reply may set back the estimated time of the server."""


class ServerSteps:
    """The part of a store that knows the server and the keys."""

    def __init__(self, server: Server | str, queue: str, prefix: str, clock: Callable[[], float] | None) -> None:
        for name, value in {"queue": queue, "prefix": prefix}.items():
            if not value:
                raise ValueError(f"RedisStore({name}={value!r}): give a name")
        self._url = server if isinstance(server, str) else None
        self._server: Server = RedisClient(server) if isinstance(server, str) else server
        self._own_timeout = _timeout_of(self._server)
        self._queue = queue
        self._keys: list[Argument] = list(steps.keys_of(prefix, queue))
        self._channel = steps.channel_of(prefix, queue)
        self._clock = None if clock is None else MonotonicWallClock(clock)
        self._ahead = time.time() - time.monotonic()  # seconds that the server's clock is ahead of the monotonic clock
        self._publish = "PUBLISH"
        self._is_open = False

    def __repr__(self) -> str:
        return f"RedisStore({self._server.name!r}, queue={self._queue!r})"

    def now(self) -> float:
        """Return the server's clock, in seconds since the epoch, as estimated from the last answers."""
        return time.monotonic() + self._ahead if self._clock is None else self._clock()

    def _check_open(self) -> None:
        if not self._is_open:
            raise PoolClosed(f"{self!r} is not open: await open() first, or again")

    def _arguments(self, call: ScriptCall) -> list[Argument]:
        now = "" if self._clock is None else repr(self._clock())
        return steps.arguments_of(call, now, self._channel, self._publish)

    def _apply_reply(self, raw: Any) -> steps.ScriptReply:
        reply = steps.reply_of(raw, self._server.name, str(self._keys[0]))
        ahead = reply.now - time.monotonic()
        known = (
            self._is_open and abs(ahead - self._ahead) < 1.0
        )  # otherwise the server's clock was set, or this is its first reply
        self._ahead = max(ahead, self._ahead - _DRIFT) if known else ahead
        return reply

    async def _send(self, call: ScriptCall) -> steps.ScriptReply:
        arguments, seconds = self._arguments(call), time_for_step()
        try:
            if seconds is None or seconds >= self._own_timeout:
                return self._apply_reply(await self._server.run(call.script, self._keys, arguments))
            with self._in_time(call.script.name):
                return self._apply_reply(await self._server.run(call.script, self._keys, arguments))
        except RedisError as error:
            raise self._failed(call, error) from error
        except StoreRefused as error:
            if "WRONGTYPE" in str(error):
                await steps.check_keys(self._server, self._keys)  # its error names the key
            raise

    def _send_blocking(self, call: ScriptCall) -> steps.ScriptReply:
        arguments = self._arguments(call)
        try:
            return self._apply_reply(self._server.run_blocking(call.script, self._keys, arguments))
        except RedisError as error:
            raise self._failed(call, error) from error

    def _failed(self, call: ScriptCall, error: RedisError) -> Exception:
        """Return the error for a step that could not be sent, or that failed on the server."""
        if isinstance(error, DataError):
            return TypeError(f"{self!r}: the step {call.script.name!r} cannot be sent: {safe_str(error)}")
        return StoreRefused(f"{self!r}: the step {call.script.name!r} failed on the server: {safe_str(error)}")

    @contextmanager
    def _in_time(self, step: str) -> Generator[None]:
        """Limit the block to the time that the caller of the step allows.

        Raises:
            StoreUnavailable: the block took too long.
        """
        seconds = time_for_step()
        with anyio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise StoreUnavailable(f"{self!r}: there was no answer to {step!r} within {seconds:g} s")


def _timeout_of(server: Server) -> float:
    """Seconds after which a call of a server fails by itself; 0 if unknown."""
    settings = server._settings if isinstance(server, RedisClient) else None
    return 0.0 if settings is None else settings.timeout + settings.connect_timeout
