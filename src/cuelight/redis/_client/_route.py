"""What a client has in one event loop: its connections, and the tasks that keep them.

The invariant: all of it ends with the loop, also when nobody closes the client: a task that waits for nothing is
cancelled by the loop when that ends, and takes the rest along.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import anyio
from redis import exceptions as redis_errors

from cuelight.mailbox import TaskGroup, current_backend, running_loop, running_task
from cuelight.redis._client._node import Node, Wires
from cuelight.redis._client._push import PushLine
from cuelight.redis._client._sentinel import find_primary
from cuelight.redis._client._settings import Address, Settings
from cuelight.redis._client._wire import Wire
from cuelight.redis._client._words import blocking_time

__all__ = ["Route", "SentinelRoute", "SingleRoute"]


class Route:
    """The way from one loop to the servers."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        """Make one for the running loop.

        Args:
            settings: where the servers are.
            on_end: called with the loop when nothing is left there.
        """
        running_task()  # so that other threads can call into a trio run
        self.loop: Any = running_loop()
        self._settings, self._on_end = settings, on_end
        self._backend = current_backend()
        self.time = self._backend.time
        self.wires = Wires(self._backend)
        self._ended = False
        self._watchers: list[Callable[[], object]] = []
        self._group: TaskGroup | None = None
        self._early: list[PushLine] = []
        self._backend.spawn(self._keep, context=contextvars.copy_context(), name="cuelight redis client")

    async def _keep(self) -> None:
        try:
            async with TaskGroup() as group:
                self._group = group
                for line in self._early:
                    group.start_soon(line.run)
                if self.wires.ended:
                    group.cancel_scope.cancel()
                await anyio.sleep_forever()
        finally:
            gone = self.wires.end()
            with anyio.CancelScope(shield=True):
                for wire in gone:
                    await wire.closed.wait()
            self._ended = True
            self._on_end(self.loop)
            for watcher in self._watchers:
                watcher()

    def end(self, then: Callable[[], object]) -> None:
        """End it, in its loop, and call `then` when nothing is left."""
        if self._ended:
            then()
            return
        self._watchers.append(then)
        self.wires.end()
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def abandon(self) -> None:
        """End what is left of it after its loop has ended in a way that ended no tasks."""
        self.wires.ended = True
        while self.wires.all:
            self.wires.all.pop().abandon()
        self._on_end(self.loop)

    def keep(self, line: PushLine) -> PushLine:
        """Have a connection for push messages kept, as long as this lives."""
        if self._group is None:
            self._early.append(line)
        else:
            self._group.start_soon(line.run)
        return line

    def ready_wire(self) -> Wire | None:
        """The connection over which any command can be posted at once, with nothing to be done about its reply."""
        return None

    async def call(self, command: Sequence[Any]) -> Any:
        """Send one command; its reply may be an exception."""
        raise NotImplementedError

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one piece."""
        raise NotImplementedError

    async def node_of(self, command: Sequence[Any]) -> Node:
        """Where a command belongs."""
        raise NotImplementedError

    async def line_of(self, channel: str) -> PushLine:
        """Where a channel belongs."""
        raise NotImplementedError

    async def publish_with(self) -> str:
        """The command that publishes."""
        return "PUBLISH"

    async def call_blocking(self, command: Sequence[Any]) -> Any:
        """Send a command that may block."""
        seconds = blocking_time(command)
        if seconds == 0:
            return await self.call(command)
        return await (await self.node_of(command)).call_blocking(command, seconds)


class SingleRoute(Route):
    """To one server."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self._node = Node(settings, self.wires, self._address)
        self._line: PushLine | None = None
        # It is called for each command: without a method of ours in between.
        self.call: Any = self._node.call
        self.ready_wire: Any = self._node.ready_wire

    async def _address(self) -> Address:
        return self._settings.addresses[0]

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one piece."""
        return await self._node.call_block(commands)

    async def node_of(self, command: Sequence[Any]) -> Node:
        """There is one."""
        return self._node

    async def line_of(self, channel: str) -> PushLine:
        """There is one."""
        if self._line is None:
            self._line = self.keep(PushLine(lambda on_push: self._node.open(on_push=on_push)))
        return self._line


class SentinelRoute(SingleRoute):
    """To the one server that sentinels call the primary."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self.call = self._call
        self.ready_wire = super(SingleRoute, self).ready_wire  # a primary that refuses to be written is left

    async def _address(self) -> Address:
        return await find_primary(self._settings)

    async def _call(self, command: Sequence[Any]) -> Any:
        return self._checked(await self._node.call(command))

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one piece."""
        return [self._checked(reply) for reply in await self._node.call_block(commands)]

    def _checked(self, reply: Any) -> Any:
        """A primary that has become a replica is left: the sentinels know the new one."""
        if isinstance(reply, redis_errors.ReadOnlyError):
            error = redis_errors.ConnectionError("this server is the primary no more")
            self._node.drop(error)
            return error
        return reply
