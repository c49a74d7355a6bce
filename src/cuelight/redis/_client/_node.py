"""One server in one event loop: the connection that all share, and those for what blocks.

The invariants:

1. At most one connection is shared at a time; who finds it broken makes the next, and others wait for that.
2. After a failure the next attempt waits, longer each time, at random: those who come meanwhile wait with it.
3. A connection on which a command blocked is used again only after its reply has come.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight.errors import StoreRefused
from cuelight.mailbox import loop_time
from cuelight.redis._client._connect import Opened, open_wire
from cuelight.redis._client._settings import Address, Settings
from cuelight.redis._client._wire import Wire, pack, pack_all

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
        return self._length * (1 - random.random() / 2)  # noqa: S311 - to spread attempts, not to hide anything


class Wires:
    """All connections that a client has in one loop, to end them with it."""

    def __init__(self) -> None:
        self.all: set[Wire] = set()
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
        ended = list(self.all)
        for wire in ended:
            wire.end(closed_error())
        return ended


def closed_error() -> redis_errors.ConnectionError:
    """What commands of a closed client fail with."""
    return redis_errors.ConnectionError("the client was closed")


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
        self._lock = anyio.Lock()
        self._idle: list[Wire] = []
        self._pause = Pause()
        self._not_before = 0.0

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
        async with self._lock:
            if self.wire is not None and self.wire.error is None:
                return self.wire  # somebody else made it meanwhile
            self.wire = await self._attempt()
            return self.wire

    async def _attempt(self) -> Wire:
        await anyio.sleep(max(0.0, self._not_before - loop_time()))
        try:
            opened = await self.open()
        except Exception:
            self._not_before = loop_time() + self._pause.next()
            raise
        self._pause.reset()
        self._not_before = 0.0
        return opened.wire

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

        async with anyio.create_task_group() as group:
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
