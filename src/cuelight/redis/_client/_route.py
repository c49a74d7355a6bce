"""A client in one event loop: its connections, and the tasks that keep them open.

The invariant: everything ends with the loop, even if the client is not closed. When the loop ends, it cancels a task
that sleeps forever, and that task ends the rest.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import anyio
from redis import exceptions as redis_errors

from cuelight.mailbox import TaskGroup, current_backend, running_loop, running_task
from cuelight.redis._client._command_info import blocking_time
from cuelight.redis._client._connect import find_primary
from cuelight.redis._client._connection import Wire
from cuelight.redis._client._node import Node, Wires
from cuelight.redis._client._pubsub import PushLine
from cuelight.redis._client._settings import Address, Settings


class Route:
    """The connections from one loop to the servers."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        """Create a route for the running loop.

        Args:
            settings: the settings of the client.
            on_end: called with the loop when everything has ended.
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
        """End the route, in its loop, and call `then` when everything has ended."""
        if self._ended:
            then()
            return
        self._watchers.append(then)
        self.wires.end()
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def abandon(self) -> None:
        """End the rest after the loop was closed without cancelling its tasks."""
        self.wires.ended = True
        while self.wires.all:
            self.wires.all.pop().abandon()
        self._on_end(self.loop)

    def keep(self, line: PushLine) -> PushLine:
        """Run a connection for push messages for as long as the route lives."""
        if self._group is None:
            self._early.append(line)
        else:
            self._group.start_soon(line.run)
        return line

    def ready_wire(self) -> Wire | None:
        """Return the connection for posting any command immediately, if its replies need no check; else None."""
        return None

    async def call(self, command: Sequence[Any]) -> Any:
        """Send one command; the reply may be an exception."""
        raise NotImplementedError

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write."""
        raise NotImplementedError

    async def node_of(self, command: Sequence[Any]) -> Node:
        """Return the server of a command."""
        raise NotImplementedError

    async def line_of(self, channel: str) -> PushLine:
        """Return the connection for a channel."""
        raise NotImplementedError

    async def publish_with(self) -> str:
        """Return the command that publishes."""
        return "PUBLISH"

    async def call_blocking(self, command: Sequence[Any]) -> Any:
        """Send a command that may block."""
        seconds = blocking_time(command)
        if seconds == 0:
            return await self.call(command)
        return await (await self.node_of(command)).call_blocking(command, seconds)


class SingleRoute(Route):
    """A route to one server."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self._node = Node(settings, self.wires, self._address)
        self._line: PushLine | None = None
        # Called for each command, so no method of this class is in between.
        self.call: Any = self._node.call
        self.ready_wire: Any = self._node.ready_wire

    async def _address(self) -> Address:
        return self._settings.addresses[0]

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return await self._node.call_block(commands)

    async def node_of(self, command: Sequence[Any]) -> Node:
        return self._node

    async def line_of(self, channel: str) -> PushLine:
        if self._line is None:
            self._line = self.keep(PushLine(lambda on_push: self._node.open(on_push=on_push)))
        return self._line


class SentinelRoute(SingleRoute):
    """A route to the server that the sentinels name as the primary."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self.call = self._call
        self.ready_wire = super(SingleRoute, self).ready_wire  # replies must be checked: see `_checked`

    async def _address(self) -> Address:
        return await find_primary(self._settings)

    async def _call(self, command: Sequence[Any]) -> Any:
        return self._checked(await self._node.call(command))

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return [self._checked(reply) for reply in await self._node.call_block(commands)]

    def _checked(self, reply: Any) -> Any:
        """Drop a primary that has become a replica; the sentinels know the new one."""
        if isinstance(reply, redis_errors.ReadOnlyError):
            error = redis_errors.ConnectionError("this server is the primary no more")
            self._node.drop(error)
            return error
        return reply
