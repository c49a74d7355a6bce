"""One server in one event loop: the connection that all share, and those for what blocks.

The invariants:

1. At most one connection is shared at a time. The first caller that finds it broken starts one
   attempt to connect, for all that wait.
2. An attempt goes on when its callers give up, so callers in a hurry do not keep a slow server from ever being reached.
   When it fails, it fails for all that wait.
3. After a failure the next attempt waits, longer each time, at random: those who come meanwhile wait with it.
4. A connection on which a command blocked is used again only after its reply has come.
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
from cuelight.redis._client._settings import Address, Settings
from cuelight.redis._client._wire import Wire, fresh, pack, pack_all

__all__ = ["Node", "Pause", "Wires"]

_IDLE: Final = 4  # connections for blocking commands that are kept


class Pause:
    """How long to wait before the next attempt: 0.05 s, then twice as long each time, up to 1 s; up to half less."""

    def __init__(self) -> None:
        self._length = 0.0

    def reset(self) -> None:
        """Begin anew: an attempt succeeded."""
        self._length = 0.0

    def next(self) -> float:
        """Seconds."""
        self._length = min(1.0, max(0.05, 2 * self._length))
        return self._length * (1 - spread.random() / 2)


class Wires:
    """All connections that a client has in one loop, to end them with it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.all: set[Wire] = set()
        self.attempts: set[anyio.CancelScope] = set()
        self.ended = False

    def add(self, wire: Wire) -> None:
        """Have it ended with the others.

        Raises:
            redis.ConnectionError: they have ended already.
        """
        if self.ended:
            wire.end(closed_error())
            raise closed_error()
        self.all.add(wire)
        wire.on_end = self.all.discard

    def end(self) -> list[Wire]:
        """End them; returns which were there, to wait for."""
        self.ended = True
        for attempt in list(self.attempts):
            attempt.cancel()
        ended = list(self.all)
        for wire in ended:
            wire.end(closed_error())
        return ended


def closed_error() -> redis_errors.ConnectionError:
    """What commands of a closed client fail with."""
    return redis_errors.ConnectionError("the client was closed")


class _Attempt:
    """One attempt to connect, which any number of tasks wait for.

    Attributes:
        over: set when it has succeeded or failed.
        wire: the connection, if it succeeded.
        error: why it failed.
    """

    __slots__ = ("error", "over", "wire")

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.wire: Wire | None = None
        self.error: BaseException | None = None

    async def result(self) -> Wire:
        """Wait for the connection."""
        await self.over.wait()
        if self.wire is not None:
            return self.wire
        assert self.error is not None  # noqa: S101 - it is over
        raise fresh(self.error)


class Node:
    """A server as one loop sees it.

    Attributes:
        wire: the shared connection; None before there was one.
        version: of the server, when it was reached last.
    """

    def __init__(self, settings: Settings, wires: Wires, address: Callable[[], Awaitable[Address]]) -> None:
        """Say which.

        Args:
            settings: how to connect.
            wires: of the loop.
            address: asked for anew before each connection.
        """
        self._settings, self._wires, self._address = settings, wires, address
        self.wire: Wire | None = None
        self.version = (0, 0)
        self._attempt: _Attempt | None = None
        self._idle: list[Wire] = []
        self._pause = Pause()
        self._not_before = 0.0

    def ready_wire(self) -> Wire | None:
        """The shared connection, if a command can be posted to it at once."""
        wire = self.wire
        return None if wire is None or wire.error is not None or wire.full else wire

    async def call(self, command: Sequence[Any]) -> Any:
        """Send a command over the shared connection; its reply may be an exception."""
        wire = self.wire
        if wire is None or wire.error is not None or wire.full:
            packed = pack(command)
            return await (await self.shared()).call(packed)
        return await wire.post(pack(command))

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one piece over the shared connection."""
        packed = pack_all(commands)
        return await (await self.shared()).call_block(packed, len(commands))

    async def shared(self) -> Wire:
        """The shared connection, made if it is not there."""
        if self.wire is not None and self.wire.error is None:
            return self.wire
        attempt = self._attempt
        if attempt is None:
            if self._wires.ended:
                raise closed_error()
            attempt = self._attempt = _Attempt()
            # In a context of its own: what is special to the first caller must not stay with the connection.
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
        except BaseException as error:  # also what a credential provider raises: it is for those who wait
            if _is_being_cancelled(error):  # the loop ends
                raise
            attempt.error = _as_error(error)
            self._not_before = loop_time() + self._pause.next()
        finally:
            self._wires.attempts.discard(scope)
            self._attempt = None
            attempt.over.set()

    async def open(self, *, watched: bool = True, on_push: Callable[[Any], bool] | None = None) -> Opened:
        """A connection of one's own; it ends with the loop at the latest."""
        if self._wires.ended:
            raise closed_error()
        opened = await open_wire(self._settings, await self._address(), watched=watched, on_push=on_push)
        self._wires.add(opened.wire)
        self.version = opened.version
        return opened

    async def call_blocking(self, command: Sequence[Any], seconds: float | None) -> Any:
        """Send a command that blocks over a connection that nobody else uses.

        Args:
            command: the command.
            seconds: how long it may block; None for as long as it takes.
        """
        packed = pack(command)
        async with self.reserved() as wire:
            with anyio.move_on_after(None if seconds is None else seconds + self._settings.timeout):
                return await self._alive(wire, packed) if seconds is None else await wire.call(packed)
            return redis_errors.TimeoutError(
                f"there was no reply within {seconds:g} s and {self._settings.timeout:g} s"
            )

    async def _alive(self, wire: Wire, packed: bytes) -> Any:
        """Wait for a reply without limit, while the server shows on the shared connection that it lives."""

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
        """A connection for the block alone, kept for the next one if all replies to it have come."""
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
        """End the shared connection: the next command makes a new one."""
        assert self.wire is not None  # noqa: S101 - it replied
        self.wire.end(error)


def _is_being_cancelled(error: BaseException) -> bool:
    """Whether `error` is the cancellation of the running task, and not of something that it awaited."""
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
