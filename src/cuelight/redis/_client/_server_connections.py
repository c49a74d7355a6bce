"""One server in one event loop: the shared connection, and the connections for blocking commands.

The invariants:

1. At most one connection is shared at a time. The first caller that finds it broken starts one attempt to connect, on
   behalf of all callers that wait.
2. An attempt continues when its callers give up; otherwise callers in a hurry could keep a slow server from ever being
   reached. When it fails, it fails for all callers that wait.
3. After each failure, the next attempt is delayed by a random time that grows. Callers that arrive meanwhile wait for
   that attempt.
4. A connection on which a command blocked is used again only after its reply has arrived.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, UnexpectedCancellation
from cuelight.mailbox import Backend, TaskGroup, loop_time
from cuelight.redis._client._connect import OpenedConnection, open_connection
from cuelight.redis._client._connection import RedisConnection, copy_error, pack, pack_all
from cuelight.redis._client._settings import Address, Settings

_IDLE: Final = 4  # idle connections for blocking commands that are kept


class RetryDelay:
    """The delay before the next attempt: 0.05 s, doubled each time up to 1 s, and reduced by up to half at random."""

    def __init__(self) -> None:
        self._length = 0.0

    def reset(self) -> None:
        """Start again with the shortest delay, after a successful attempt."""
        self._length = 0.0

    def next(self) -> float:
        """Return the next delay in seconds."""
        self._length = min(1.0, max(0.05, 2 * self._length))
        return self._length * (1 - spread.random() / 2)


class ConnectionSet:
    """All connections of a client in one loop; they end together."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.all: set[RedisConnection] = set()
        self.attempts: set[anyio.CancelScope] = set()
        self.ended = False

    def add(self, connection: RedisConnection) -> None:
        """Register a connection.

        Raises:
            redis.ConnectionError: the connections have ended already.
        """
        if self.ended:
            connection.end(closed_error())
            raise closed_error()
        self.all.add(connection)
        connection.on_end = self.all.discard

    def end(self) -> list[RedisConnection]:
        """End all connections and attempts. Returns the connections, for callers that wait until they are closed."""
        self.ended = True
        for attempt in list(self.attempts):
            attempt.cancel()
        ended = list(self.all)
        for connection in ended:
            connection.end(closed_error())
        return ended


def closed_error() -> redis_errors.ConnectionError:
    """Return the error with which commands of a closed client fail."""
    return redis_errors.ConnectionError("the client was closed")


class _ConnectAttempt:
    """One attempt to connect, on which any number of tasks wait.

    Attributes:
        over: set when the attempt has succeeded or failed.
        connection: the connection, if the attempt succeeded.
        error: the reason of the failure.
    """

    __slots__ = ("connection", "done", "error")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.connection: RedisConnection | None = None
        self.error: BaseException | None = None

    async def result(self) -> RedisConnection:
        """Wait for the connection and return it."""
        await self.done.wait()
        if self.connection is not None:
            return self.connection
        assert self.error is not None  # noqa: S101 - it is over
        raise copy_error(self.error)


class ServerConnections:
    """One server as seen from one loop.

    Attributes:
        connection: the shared connection; None until one was opened.
        version: the version of the server when it was last reached.
    """

    def __init__(
        self, settings: Settings, connections: ConnectionSet, address: Callable[[], Awaitable[Address]]
    ) -> None:
        """Create a node that is not connected.

        Args:
            settings: the settings of the client.
            connections: the connections of the loop.
            address: called for the address before each connection.
        """
        self._settings, self._connections, self._address = settings, connections, address
        self.connection: RedisConnection | None = None
        self.version = (0, 0)
        self._attempt: _ConnectAttempt | None = None
        self._idle: list[RedisConnection] = []
        self._backoff = RetryDelay()
        self._not_before = 0.0

    def ready_connection(self) -> RedisConnection | None:
        """Return the shared connection if a command can be posted to it immediately, else None."""
        connection = self.connection
        return None if connection is None or connection.error is not None or connection.full else connection

    async def call(self, command: Sequence[Any]) -> Any:
        """Send a command over the shared connection; the reply may be an exception."""
        connection = self.connection
        if connection is None or connection.error is not None or connection.full:
            packed = pack(command)
            return await (await self.shared()).call(packed)
        return await connection.post(pack(command))

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write over the shared connection."""
        packed = pack_all(commands)
        return await (await self.shared()).call_many(packed, len(commands))

    async def shared(self) -> RedisConnection:
        """Return the shared connection. Open it if there is none."""
        if self.connection is not None and self.connection.error is None:
            return self.connection
        attempt = self._attempt
        if attempt is None:
            if self._connections.ended:
                raise closed_error()
            attempt = self._attempt = _ConnectAttempt()
            # An empty context: context variables of the first caller must not stay with the connection.
            self._connections.backend.spawn(
                self._connect, attempt, context=contextvars.Context(), name="cuelight redis connects"
            )
        return await attempt.result()

    async def _connect(self, attempt: _ConnectAttempt) -> None:
        attempt.error = closed_error()
        scope = anyio.CancelScope()
        self._connections.attempts.add(scope)
        try:
            with scope:
                await anyio.sleep(max(0.0, self._not_before - loop_time()))
                attempt.connection = self.connection = (await self.open()).connection
                self._backoff.reset()
                self._not_before = 0.0
        except BaseException as error:  # also errors of a credential provider: callers that wait get them
            if _is_being_cancelled(error):  # the loop ends
                raise
            attempt.error = _as_error(error)
            self._not_before = loop_time() + self._backoff.next()
        finally:
            self._connections.attempts.discard(scope)
            self._attempt = None
            attempt.done.set()

    async def open(self, *, timed: bool = True, on_push: Callable[[Any], bool] | None = None) -> OpenedConnection:
        """Open a connection for the caller alone. It ends with the loop at the latest."""
        if self._connections.ended:
            raise closed_error()
        opened = await open_connection(self._settings, await self._address(), timed=timed, on_push=on_push)
        self._connections.add(opened.connection)
        self.version = opened.version
        return opened

    async def call_blocking(self, command: Sequence[Any], seconds: float | None) -> Any:
        """Send a blocking command over a connection that is not shared.

        Args:
            command: the command.
            seconds: the time that it may block; None for no limit.
        """
        packed = pack(command)
        async with self.reserved() as connection:
            with anyio.move_on_after(None if seconds is None else seconds + self._settings.timeout):
                return (
                    await self._call_while_alive(connection, packed)
                    if seconds is None
                    else await connection.call(packed)
                )
            return redis_errors.TimeoutError(
                f"there was no reply within {seconds:g} s and {self._settings.timeout:g} s"
            )

    async def _call_while_alive(self, connection: RedisConnection, packed: bytes) -> Any:
        """Wait for a reply without limit, as long as the server answers PING on the shared connection."""

        async def check_server() -> None:
            while True:
                await anyio.sleep(self._settings.heartbeat)
                try:
                    reply = await self.call(("PING",))
                except (redis_errors.RedisError, StoreRefused) as error:
                    reply = error
                if isinstance(reply, (redis_errors.ConnectionError, redis_errors.TimeoutError)):
                    connection.end(reply)

        async with TaskGroup() as group:
            group.start_soon(check_server)
            try:
                return await connection.call(packed)
            finally:
                group.cancel_scope.cancel()

    @asynccontextmanager
    async def reserved(self) -> AsyncGenerator[RedisConnection, None]:
        """Reserve a connection for this block. It is kept for the next block if all its replies have arrived."""
        connection = self._idle.pop() if self._idle else None
        while connection is not None and connection.error is not None:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = (await self.open(timed=False)).connection
        try:
            yield connection
        finally:
            if connection.pending or connection.error is not None or len(self._idle) >= _IDLE:
                connection.end(redis_errors.ConnectionError("the connection was given up"))
            else:
                self._idle.append(connection)

    def drop_connection(self, error: Exception) -> None:
        """End the shared connection; the next command opens a new one."""
        assert self.connection is not None  # noqa: S101 - it replied
        self.connection.end(error)


def _is_being_cancelled(error: BaseException) -> bool:
    """Return whether `error` is the cancellation of the running task, and not of something that it awaited."""
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    if not isinstance(error, asyncio.CancelledError):
        return anyio.current_effective_deadline() == -math.inf
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _as_error(error: BaseException) -> BaseException:
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return error
    failure = UnexpectedCancellation("what the connection waited for was cancelled by somebody else")
    failure.__cause__ = error
    return failure
