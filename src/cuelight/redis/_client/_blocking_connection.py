"""A connection opened and logged in by redis-py, used by one thread at a time without redis-py's own layers.

For each command, redis-py takes a connection from a pool, checks its health and selects a reader. With a nearby server,
these steps take longer than the command itself.
"""

# The functions of hiredis have no return types.
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
from cuelight.redis._client._connection import reply_error

_CHUNK: Final = 65536
_NOTHING: Final = object()
_SLACK: Final = 0.01
"""Seconds by which a command may exceed its caller's deadline. Setting a time-out more often would cost system calls.
"""


class BlockingConnection:
    """A connection taken out of a redis-py pool until it is closed."""

    def __init__(self, made: Any, pool: redis.ConnectionPool, timeout: float, idle: float) -> None:
        """Take over a connection that has no pending replies.

        Args:
            made: the redis-py connection.
            pool: the pool that `made` belongs to.
            timeout: seconds that the server may be silent.
            idle: seconds without a command after which the connection is no longer used.
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
        """Whether a command may be sent over this connection.

        It is usable if the process has not forked, the last command is recent enough and no unexpected data has
        arrived. The end of the connection counts as data.
        """
        if self._process != os.getpid() or time.monotonic() - self._used > self._idle:
            return False
        came = select.select([self._socket], [], [], 0)[0] if self._poll is None else self._poll.poll(0)
        return not came

    def call(self, packed: bytes, replies: int, until: float | None) -> Any:
        """Send commands in one write and return the reply to the last; an error reply is returned as an exception.

        Args:
            packed: the encoded commands.
            replies: the number of commands.
            until: the caller's deadline on the monotonic clock; None if there is none.

        Raises:
            redis.RedisError: sending or receiving failed. The caller must close the connection.
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
        """Limit the socket's time-out to the time that the caller has left.

        Raises:
            TimeoutError: no time is left.
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
        """Close the connection. In a forked process, leave it to the process that opened it."""
        if self._process == os.getpid():
            self._made.disconnect()
            self._pool.release(self._made)
