"""The client, for every loop and thread of a process. Each loop has its own connections."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from redis import exceptions as redis_errors

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import call_in_loop, running_loop
from cuelight.redis._client._blocking import BlockingServer
from cuelight.redis._client._cluster import Cluster
from cuelight.redis._client._command_info import MAY_BLOCK, PLAIN, blocking_timeout, command_kind, reject
from cuelight.redis._client._commands import Commands, Dedicated, in_transaction, transaction_replies
from cuelight.redis._client._connection import pack
from cuelight.redis._client._errors import translate_error
from cuelight.redis._client._pubsub import Subscriber
from cuelight.redis._client._retry import call_within, run_with_retry, run_with_retry_blocking, shorter_timeout
from cuelight.redis._client._server_connections import closed_error
from cuelight.redis._client._settings import settings_of
from cuelight.redis._client._topology import SentinelServers, SingleServer, Topology

if TYPE_CHECKING:
    from redis.credentials import CredentialProvider

    from cuelight.redis._client._server import Argument, Script, Server, Subscription


_TOPOLOGIES: Final[dict[str, type[Topology]]] = {
    "cluster": Cluster,
    "sentinel": SentinelServers,
    "single": SingleServer,
}
_PATIENCE: Final = 5.0  # seconds to wait for connections in other loops to close


class RedisClient(Commands):
    """A client of Redis or Valkey for every event loop and thread of a process, on asyncio and trio.

    It has all command methods of redis-py, with redis-py's replies and errors. It is also a `Server`, on which the
    stores, locks, limiters and actors of this package run. Commands that several tasks of a loop issue at the same time
    are sent in one write over one connection. Blocking commands get connections of their own.

        async with RedisClient("redis://localhost:6379") as client:
            await client.set("greeting", "hello", ex=10)
            print(await client.get("greeting"))     # b'hello'
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        *,
        timeout: float | None = None,
        connect_timeout: float | None = None,
        health_check_interval: float | None = None,
        username: str | None = None,
        password: str | None = None,
        credential_provider: CredentialProvider | None = None,
        client_name: str | None = None,
        decode_responses: bool = False,
    ) -> None:
        """Configure the client. It connects at the first command.

        Args:
            url: `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix://[user:password@]/path?db=0`,
                `redis+sentinel://[user:password@]host:port,host:port/service[/db]`,
                `redis+cluster://[user:password@]host:port,host:port`; options of redis-py follow a question mark.
            timeout: seconds that a command may take; by default the URL's `socket_timeout`, else 5. A connection is
                closed if it receives nothing for half of this time while replies are pending.
            connect_timeout: seconds that connecting may take; by default the URL's `socket_connect_timeout`, else 5.
            health_check_interval: seconds without traffic after which a connection is checked with PING; by default the
                URL's option of this name, else 10.
            username: overrides the user in the URL.
            password: overrides the password in the URL.
            credential_provider: called for a user and a password before each connection.
            client_name: the name of the connections in `CLIENT LIST`.
            decode_responses: whether command methods return `str` instead of bytes, as with redis-py. It does not
                affect `execute`, `run` and subscriptions.

        Raises:
            ValueError: the URL or a number is invalid.
        """
        self._settings = settings_of(
            url,
            timeout=timeout,
            connect_timeout=connect_timeout,
            health_check_interval=health_check_interval,
            username=username,
            password=password,
            credential_provider=credential_provider,
            client_name=client_name,
            decode_responses=decode_responses,
        )
        super().__init__(self._settings.encoding, decode_responses)
        self._name = self._settings.name
        self._topologies: dict[Any, Topology] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._blocking_server = BlockingServer(self._settings)

    def __repr__(self) -> str:
        return f"RedisClient({self._name!r})"

    @property
    def name(self) -> str:
        """The host, port and database of the server for messages, without credentials."""
        return self._name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, also those of other loops and threads, and wait until they are closed. A checkpoint.

        Pending commands fail. The method may be called more than once. A closed client cannot be opened again.
        """
        here, waits = running_loop(), list[anyio.Event]()
        for topology in self._end():
            ended = anyio.Event()
            if topology.loop is here:
                topology.end(ended.set)
                waits.append(ended)
            elif _end_elsewhere(topology, partial(call_in_loop, here, ended.set)):
                waits.append(ended)
        with anyio.move_on_after(_PATIENCE, shield=True):
            for wait in waits:
                await wait.wait()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Like `aclose`, for threads that run no loop. The connections of loops are closed soon after it returns."""
        for topology in self._end():
            _end_elsewhere(topology, lambda: None)

    def _end(self) -> list[Topology]:
        with self._lock:
            self._closed = True
            topologies = list(self._topologies.values())
        self._blocking_server.close()
        return topologies

    def _topology(self) -> Topology:
        loop = running_loop()
        topology = self._topologies.get(loop)
        if topology is None:
            if loop is None:
                raise RuntimeError("no event loop runs here: use the blocking methods, or anyio.run(...)")
            with self._lock:
                if self._closed:
                    raise closed_error()
                topology = self._topologies[loop] = _TOPOLOGIES[self._settings.kind](self._settings, self._forget)
        return topology

    def _forget(self, loop: Any) -> None:
        with self._lock:
            self._topologies.pop(loop, None)

    async def _call(self, command: Sequence[Any]) -> Any:
        topology = self._topologies.get(running_loop()) or self._topology()
        kind = command_kind(command[0])
        if kind != PLAIN:
            if kind == MAY_BLOCK:
                return await topology.call_blocking(command)
            reject(command)
        return await topology.call(command)

    async def _send(self, commands: list[tuple[Any, ...]], transaction: bool) -> list[Any]:
        for command in commands:
            kind = command_kind(command[0])
            if kind != PLAIN:
                reject(command)
            if kind == MAY_BLOCK and not transaction and blocking_timeout(command) != 0:
                raise ValueError(f"{command[0]}: it may block, and this pipeline with it; use `transaction=True`")
        topology = self._topology()
        if transaction:
            return transaction_replies(await topology.call_many(in_transaction(commands)))
        return await topology.call_many(commands)

    async def execute(self, *command: Argument, timeout: float | None = None) -> Any:
        """Run one command once and return its reply as the server sent it. A checkpoint.

        If the reply is lost, the command is not sent again, because it may have taken effect.

        Args:
            command: its name and arguments.
            timeout: seconds that the call may take, connecting included; None for the client's own time-out.

        Raises:
            StoreUnavailable: the server could not be reached or did not answer in time.
            StoreRefused: the server rejected the command and will reject it again until its configuration or data
                changes.
            redis.ResponseError: the command is wrong.
            ValueError: the command cannot be sent over a connection that is shared.
        """
        try:
            reply = await (self._call(command) if timeout is None else call_within(self._call, command, timeout))
        except redis_errors.RedisError as error:
            raise translate_error(error, self._name) from error
        if isinstance(reply, Exception):
            raise translate_error(reply, self._name) from reply
        return reply

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run a script; if its reply is lost, run it again within the time-out. A checkpoint.

        Args:
            script: a script that changes nothing more when it is run again with the same arguments.
            keys: the keys of the script; in a cluster, all must be in one slot.
            args: the other arguments of the script.
            timeout: seconds for all attempts together, connecting included; None for the client's own time-out, which a
                longer one does not extend.

        Raises:
            StoreUnavailable: there was no reply within the time-out.
            StoreRefused: see `execute`.
            redis.ResponseError: the script raised an error.
        """
        first: tuple[Exception, float] | None = None
        if (
            timeout is None
            and (topology := self._topologies.get(running_loop()))
            and (connection := topology.ready_connection())
        ):
            # The usual case, without another coroutine in between: one attempt over a working connection.
            packed, began = pack(("EVALSHA", script.sha, len(keys), *keys, *args)), topology.time()
            reply = await connection.post(packed)
            if not isinstance(reply, Exception):
                return reply
            first = reply, began
        return await run_with_retry(
            self._call,
            script,
            keys,
            args,
            name=self._name,
            timeout=self._settings.timeout,
            limit=timeout,
            ended=self._is_closed,
            first=first,
        )

    def _is_closed(self) -> bool:
        return self._closed

    def execute_blocking(self, *command: Argument, timeout: float | None = None) -> Any:
        """Like `execute`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        try:
            if self._closed:
                raise closed_error()
            reply = self._blocking_server.call(command, None if timeout is None else shorter_timeout(timeout, math.inf))
        except (OSError, redis_errors.RedisError) as error:
            raise translate_error(error, self._name) from error
        if isinstance(reply, Exception):
            raise translate_error(reply, self._name) from reply
        return reply

    def run_blocking(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Like `run`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        return run_with_retry_blocking(
            self.execute_blocking,
            script,
            keys,
            args,
            name=self._name,
            timeout=shorter_timeout(timeout, self._settings.timeout),
            ended=self._is_closed,
        )

    async def subscribe(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None],
        *,
        timeout: float | None = None,
    ) -> Subscription:
        """Listen to a channel in the running loop. Returns when the server has confirmed it. A checkpoint.

        Args:
            channel: the channel, with the hash tag of the keys that it belongs to; in a cluster it is a sharded
                channel.
            on_message: called in the loop with each published message; must neither block nor raise.
            on_gap: called in the loop when a lost connection is restored: messages may be missing.
            timeout: seconds that the call may take; None for the client's own time-out.

        Raises:
            StoreUnavailable: the server did not confirm the subscription within the time-out.
            StoreRefused: the server rejected the subscription.
        """
        subscriber = Subscriber(running_loop(), on_message, on_gap)
        last_error: Exception | None = None
        seconds = shorter_timeout(timeout, self._settings.timeout)
        try:
            with anyio.move_on_after(seconds):
                pubsub = await self._topology().pubsub_of(channel)
                pubsub.listen(channel.encode(), subscriber)
                await subscriber.confirmed.wait()
            if subscriber.pubsub_channel is not None:
                last_error = subscriber.pubsub_channel.pubsub.last_error
        except redis_errors.RedisError as error:
            raise translate_error(error, self._name) from error
        finally:
            if not subscriber.confirmed.is_set():
                subscriber.close()
        if subscriber.error is not None:
            raise translate_error(subscriber.error, self._name) from subscriber.error
        if not subscriber.confirmed.is_set():
            reason = f": {last_error}" if last_error else ""
            raise StoreUnavailable(f"{self._name} did not begin to listen to {channel!r} within {seconds:g} s{reason}")
        return subscriber

    async def publish(self, channel: str, message: bytes, **_: Any) -> Any:  # type: ignore[override]
        """Publish to a channel, which is sharded in a cluster. Delivery is not guaranteed. A checkpoint.

        Returns:
            The number of connections that received the message.
        """
        try:
            name = await self._topology().publish_with()
        except redis_errors.RedisError as error:
            raise translate_error(error, self._name) from error
        return await self.execute(name, channel, message)

    @asynccontextmanager
    async def dedicated(self, key: Argument = "") -> AsyncGenerator[Dedicated, None]:
        """Open a connection for this block alone, for commands that concern one connection, such as `WATCH` or
        `SELECT`.

        Args:
            key: in a cluster, one of the keys that the block uses.

        Raises:
            redis.RedisError: see `execute_command`.
        """
        settings = self._settings
        server_connections = await self._topology().server_of(("GET", key))
        connection = (await server_connections.open(timed=False)).connection
        try:
            yield Dedicated(connection, self._name, settings.timeout, settings.encoding, settings.decode)
        finally:
            connection.end(redis_errors.ConnectionError("the block of this connection has ended"))
            with anyio.CancelScope(shield=True):
                await connection.closed.wait()


def _end_elsewhere(topology: Topology, then: Callable[[], object]) -> bool:
    """End the connections of another loop, then call `then` in that loop. Returns whether that loop is alive."""
    if call_in_loop(topology.loop, topology.end, then):
        return True
    topology.abandon()
    return False


# Shared clients: all callers in this process that give the same address use the same client.


DEFAULT_URL: Final = "redis://localhost:6379"

_clients: Final[dict[str, RedisClient]] = {}


def server_for(redis_url: str, server: Server | None) -> Server:
    """Return `server` if it was given, else the shared client of an address.

    A shared client lives as long as the process. It has one or two connections in each loop that uses it, which end
    with that loop, and one for each thread.

    Raises:
        ValueError: the address is invalid, or both an address and a server were given.
    """
    if server is not None:
        if redis_url != DEFAULT_URL:
            raise ValueError("redis_url and server were both given: give one of them")
        return server
    # No lock, because another thread could hold it at a fork. If two threads arrive at once, one of them creates a
    # client that is discarded, and that has not connected yet.
    return _clients.get(redis_url) or _clients.setdefault(redis_url, RedisClient(redis_url))
