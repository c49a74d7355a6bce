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
from cuelight.redis._client._connect import Opened, open_wire
from cuelight.redis._client._connection import Wire, fresh, pack, pack_all
from cuelight.redis._client._settings import Address, Settings

_IDLE: Final = 4  # idle connections for blocking commands that are kept


class Pause:
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


class Wires:
    """All connections of a client in one loop; they end together."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.all: set[Wire] = set()
        self.attempts: set[anyio.CancelScope] = set()
        self.ended = False

    def add(self, wire: Wire) -> None:
        """Register a connection.

        Raises:
            redis.ConnectionError: the connections have ended already.
        """
        if self.ended:
            wire.end(closed_error())
            raise closed_error()
        self.all.add(wire)
        wire.on_end = self.all.discard

    def end(self) -> list[Wire]:
        """End all connections and attempts. Returns the connections, for callers that wait until they are closed."""
        self.ended = True
        for attempt in list(self.attempts):
            attempt.cancel()
        ended = list(self.all)
        for wire in ended:
            wire.end(closed_error())
        return ended


def closed_error() -> redis_errors.ConnectionError:
    """Return the error with which commands of a closed client fail."""
    return redis_errors.ConnectionError("the client was closed")


class _Attempt:
    """One attempt to connect, on which any number of tasks wait.

    Attributes:
        over: set when the attempt has succeeded or failed.
        wire: the connection, if the attempt succeeded.
        error: the reason of the failure.
    """

    __slots__ = ("error", "over", "wire")

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.wire: Wire | None = None
        self.error: BaseException | None = None

    async def result(self) -> Wire:
        """Wait for the connection and return it."""
        await self.over.wait()
        if self.wire is not None:
            return self.wire
        assert self.error is not None  # noqa: S101 - it is over
        raise fresh(self.error)


class Node:
    """One server as seen from one loop.

    Attributes:
        wire: the shared connection; None until one was opened.
        version: the version of the server when it was last reached.
    """

    def __init__(self, settings: Settings, wires: Wires, address: Callable[[], Awaitable[Address]]) -> None:
        """Create a node that is not connected.

        Args:
            settings: the settings of the client.
            wires: the connections of the loop.
            address: called for the address before each connection.
        """
        self._settings, self._wires, self._address = settings, wires, address
        self.wire: Wire | None = None
        self.version = (0, 0)
        self._attempt: _Attempt | None = None
        self._idle: list[Wire] = []
        self._pause = Pause()
        self._not_before = 0.0

    def ready_wire(self) -> Wire | None:
        """Return the shared connection if a command can be posted to it immediately, else None."""
        wire = self.wire
        return None if wire is None or wire.error is not None or wire.full else wire

    async def call(self, command: Sequence[Any]) -> Any:
        """Send a command over the shared connection; the reply may be an exception."""
        wire = self.wire
        if wire is None or wire.error is not None or wire.full:
            packed = pack(command)
            return await (await self.shared()).call(packed)
        return await wire.post(pack(command))

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write over the shared connection."""
        packed = pack_all(commands)
        return await (await self.shared()).call_block(packed, len(commands))

    async def shared(self) -> Wire:
        """Return the shared connection. Open it if there is none."""
        if self.wire is not None and self.wire.error is None:
            return self.wire
        attempt = self._attempt
        if attempt is None:
            if self._wires.ended:
                raise closed_error()
            attempt = self._attempt = _Attempt()
            # An empty context: context variables of the first caller must not stay with the connection.
            self._wires.backend.spawn(
                self._connect, attempt, context=contextvars.Context(), name="cuelight redis connects"
            )
        return await attempt.result()

    async def _connect(self, attempt: _Attempt) -> None:
        attempt.error = closed_error()
        scope = anyio.CancelScope()
        self._wires.attempts.add(scope)
        try:
            with scope:
                await anyio.sleep(max(0.0, self._not_before - loop_time()))
                attempt.wire = self.wire = (await self.open()).wire
                self._pause.reset()
                self._not_before = 0.0
        except BaseException as error:  # also errors of a credential provider: callers that wait get them
            if _is_being_cancelled(error):  # the loop ends
                raise
            attempt.error = _as_error(error)
            self._not_before = loop_time() + self._pause.next()
        finally:
            self._wires.attempts.discard(scope)
            self._attempt = None
            attempt.over.set()

    async def open(self, *, watched: bool = True, on_push: Callable[[Any], bool] | None = None) -> Opened:
        """Open a connection for the caller alone. It ends with the loop at the latest."""
        if self._wires.ended:
            raise closed_error()
        opened = await open_wire(self._settings, await self._address(), watched=watched, on_push=on_push)
        self._wires.add(opened.wire)
        self.version = opened.version
        return opened

    async def call_blocking(self, command: Sequence[Any], seconds: float | None) -> Any:
        """Send a blocking command over a connection that is not shared.

        Args:
            command: the command.
            seconds: the time that it may block; None for no limit.
        """
        packed = pack(command)
        async with self.reserved() as wire:
            with anyio.move_on_after(None if seconds is None else seconds + self._settings.timeout):
                return await self._alive(wire, packed) if seconds is None else await wire.call(packed)
            return redis_errors.TimeoutError(
                f"there was no reply within {seconds:g} s and {self._settings.timeout:g} s"
            )

    async def _alive(self, wire: Wire, packed: bytes) -> Any:
        """Wait for a reply without limit, as long as the server answers PING on the shared connection."""

        async def look() -> None:
            while True:
                await anyio.sleep(self._settings.heartbeat)
                try:
                    reply = await self.call(("PING",))
                except (redis_errors.RedisError, StoreRefused) as error:
                    reply = error
                if isinstance(reply, (redis_errors.ConnectionError, redis_errors.TimeoutError)):
                    wire.end(reply)

        async with TaskGroup() as group:
            group.start_soon(look)
            try:
                return await wire.call(packed)
            finally:
                group.cancel_scope.cancel()

    @asynccontextmanager
    async def reserved(self) -> AsyncGenerator[Wire, None]:
        """Reserve a connection for this block. It is kept for the next block if all its replies have arrived."""
        wire = self._idle.pop() if self._idle else None
        while wire is not None and wire.error is not None:
            wire = self._idle.pop() if self._idle else None
        if wire is None:
            wire = (await self.open(watched=False)).wire
        try:
            yield wire
        finally:
            if wire.owed or wire.error is not None or len(self._idle) >= _IDLE:
                wire.end(redis_errors.ConnectionError("the connection was given up"))
            else:
                self._idle.append(wire)

    def drop(self, error: Exception) -> None:
        """End the shared connection; the next command opens a new one."""
        assert self.wire is not None  # noqa: S101 - it replied
        self.wire.end(error)


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
