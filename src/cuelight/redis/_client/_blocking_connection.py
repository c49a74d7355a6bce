"""A connection that redis-py has made and logged in, used by one thread at a time without redis-py's own layers.

What redis-py does around each command (take from a pool, look whether it is healthy, pick a reader) takes longer than a
command of a server that is near.
"""

# hiredis tells the type checkers nothing of what its functions return.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any, Final

import hiredis
import redis
from redis import exceptions as redis_errors

from cuelight._text import describe_error, safe_str
from cuelight.redis._client._wire import reply_error

__all__ = ["BlockingConnection"]

_CHUNK: Final = 65536
_NOTHING: Final = object()
_SLACK: Final = 0.01
"""Seconds by which a command may end after its caller's time: setting a time-out is a call of the system."""


class BlockingConnection:
    """One connection of a pool of redis-py, taken out of the pool until it is closed."""

    def __init__(self, made: Any, pool: redis.ConnectionPool, timeout: float, idle: float) -> None:
        """Take over a connection over which all replies have come.

        Args:
            made: the connection of redis-py.
            pool: where it comes from.
            timeout: seconds that the server may be silent.
            idle: seconds without a command after which nobody relies on it any more.
        """
        self._made, self._pool, self._process = made, pool, os.getpid()
        self._socket: socket.socket = made._sock
        self._timeout = self._set = timeout
        self._socket.settimeout(timeout)
        self._idle, self._used = idle, time.monotonic()
        self._reader = hiredis.Reader(replyError=reply_error, notEnoughData=_NOTHING)
        self._poll: Any = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(self._socket, select.POLLIN)

    @property
    def is_usable(self) -> bool:
        """Whether a command may go over it: no fork is in between, and nothing has come that nobody asked for.

        The end of a connection is something that comes.
        """
        if self._process != os.getpid() or time.monotonic() - self._used > self._idle:
            return False
        came = select.select([self._socket], [], [], 0)[0] if self._poll is None else self._poll.poll(0)
        return not came

    def call(self, packed: bytes, replies: int, until: float | None) -> Any:
        """Send commands in one piece; the reply to the last, an exception if that is an error.

        Args:
            packed: the commands.
            replies: how many they are.
            until: when the time of the caller is over, by the monotonic clock; None if it has not said.

        Raises:
            redis.RedisError: what went wrong; then it is to be closed.
        """
        try:
            self._wait_until(until)
            self._socket.sendall(packed)
            reply: Any = None
            while replies:
                reply = self._next(until)
                replies -= type(reply) is not hiredis.PushNotification
        except TimeoutError as error:
            raise redis_errors.TimeoutError("there was no reply within the time-out") from error
        except OSError as error:
            raise redis_errors.ConnectionError(safe_str(error)) from error
        self._used = time.monotonic()
        return reply

    def _next(self, until: float | None) -> Any:
        try:
            while (reply := self._reader.gets()) is _NOTHING:
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise redis_errors.ConnectionError("the server closed the connection")
                self._reader.feed(data)
                if len(data) < _CHUNK:
                    self._wait_until(until)
        except (OSError, redis_errors.RedisError):
            raise
        except Exception as error:
            raise redis_errors.InvalidResponse(f"what came is not RESP: {describe_error(error)}") from error
        return reply

    def _wait_until(self, until: float | None) -> None:
        """Have the socket wait no longer than its caller does.

        Raises:
            TimeoutError: the time of the caller is over.
        """
        wait = self._timeout
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if left < wait - _SLACK:
                wait = left
        if wait != self._set:
            self._socket.settimeout(wait)
            self._set = wait

    def close(self) -> None:
        """Close it; in a process that was forked since, leave it to the other."""
        if self._process == os.getpid():
            self._made.disconnect()
            self._pool.release(self._made)
