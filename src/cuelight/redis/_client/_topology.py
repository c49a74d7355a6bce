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
from cuelight.redis._client._command_info import blocking_timeout
from cuelight.redis._client._connect import find_primary
from cuelight.redis._client._connection import RedisConnection
from cuelight.redis._client._pubsub import PubSubConnection
from cuelight.redis._client._server_connections import ConnectionSet, ServerConnections
from cuelight.redis._client._settings import Address, Settings


class Topology:
    """The connections from one loop to the servers."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        """Create the connections for the running loop.

        Args:
            settings: the settings of the client.
            on_end: called with the loop when everything has ended.
        """
        running_task()  # so that other threads can call into a trio run
        self.loop: Any = running_loop()
        self._settings, self._on_end = settings, on_end
        self._backend = current_backend()
        self.time = self._backend.time
        self.connections = ConnectionSet(self._backend)
        self._ended = False
        self._watchers: list[Callable[[], object]] = []
        self._group: TaskGroup | None = None
        self._not_started: list[PubSubConnection] = []
        self._backend.spawn(self._run, context=contextvars.copy_context(), name="cuelight redis client")

    async def _run(self) -> None:
        try:
            async with TaskGroup() as group:
                self._group = group
                for pubsub in self._not_started:
                    group.start_soon(pubsub.run)
                if self.connections.ended:
                    group.cancel_scope.cancel()
                await anyio.sleep_forever()
        finally:
            gone = self.connections.end()
            with anyio.CancelScope(shield=True):
                for connection in gone:
                    await connection.closed.wait()
            self._ended = True
            self._on_end(self.loop)
            for watcher in self._watchers:
                watcher()

    def end(self, then: Callable[[], object]) -> None:
        """End everything, in its loop, and call `then` when everything has ended."""
        if self._ended:
            then()
            return
        self._watchers.append(then)
        self.connections.end()
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def abandon(self) -> None:
        """End the rest after the loop was closed without cancelling its tasks."""
        self.connections.ended = True
        while self.connections.all:
            self.connections.all.pop().abandon()
        self._on_end(self.loop)

    def start_pubsub(self, pubsub: PubSubConnection) -> PubSubConnection:
        """Run a connection for push messages until the end."""
        if self._group is None:
            self._not_started.append(pubsub)
        else:
            self._group.start_soon(pubsub.run)
        return pubsub

    def ready_connection(self) -> RedisConnection | None:
        """Return the connection for posting any command immediately, if its replies need no check; else None."""
        return None

    async def call(self, command: Sequence[Any]) -> Any:
        """Send one command; the reply may be an exception."""
        raise NotImplementedError

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write."""
        raise NotImplementedError

    async def server_of(self, command: Sequence[Any]) -> ServerConnections:
        """Return the server of a command."""
        raise NotImplementedError

    async def pubsub_of(self, channel: str) -> PubSubConnection:
        """Return the connection for a channel."""
        raise NotImplementedError

    async def publish_with(self) -> str:
        """Return the command that publishes."""
        return "PUBLISH"

    async def call_blocking(self, command: Sequence[Any]) -> Any:
        """Send a command that may block."""
        seconds = blocking_timeout(command)
        if seconds == 0:
            return await self.call(command)
        return await (await self.server_of(command)).call_blocking(command, seconds)


class SingleServer(Topology):
    """One server."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self._server_connections = ServerConnections(settings, self.connections, self._address)
        self._pubsub: PubSubConnection | None = None
        # Called for each command, so no method of this class is in between.
        self.call: Any = self._server_connections.call
        self.ready_connection: Any = self._server_connections.ready_connection

    async def _address(self) -> Address:
        return self._settings.addresses[0]

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return await self._server_connections.call_many(commands)

    async def server_of(self, command: Sequence[Any]) -> ServerConnections:
        return self._server_connections

    async def pubsub_of(self, channel: str) -> PubSubConnection:
        if self._pubsub is None:
            self._pubsub = self.start_pubsub(
                PubSubConnection(lambda on_push: self._server_connections.open(on_push=on_push))
            )
        return self._pubsub


class SentinelServers(SingleServer):
    """The server that the sentinels name as the primary."""

    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self.call = self._call
        self.ready_connection = super(SingleServer, self).ready_connection  # replies must be checked: see `_checked`

    async def _address(self) -> Address:
        return await find_primary(self._settings)

    async def _call(self, command: Sequence[Any]) -> Any:
        return self._checked(await self._server_connections.call(command))

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return [self._checked(reply) for reply in await self._server_connections.call_many(commands)]

    def _checked(self, reply: Any) -> Any:
        """Drop a primary that has become a replica; the sentinels know the new one."""
        if isinstance(reply, redis_errors.ReadOnlyError):
            error = redis_errors.ConnectionError("this server is the primary no more")
            self._server_connections.drop_connection(error)
            return error
        return reply
