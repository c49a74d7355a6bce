"""The client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import anyio
import redis
from redis import exceptions as redis_errors

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import running_loop
from cuelight.redis._client._faults import translated
from cuelight.redis._client._wire import Wire, pack

if TYPE_CHECKING:
    from cuelight.redis._client._script import Script
    from cuelight.redis._client._server import Argument, Subscription

__all__ = ["RedisClient"]


class _Loop:
    """What the client has in one event loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.wire: Wire | None = None
        self.push: Wire | None = None
        self.channels: dict[bytes, list[_Channel]] = {}


class _Channel:
    def __init__(self, on_message: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        self.on_message, self.on_gap = on_message, on_gap
        self.open = True

    def close(self) -> None:
        self.open = False


class RedisClient:
    """A client of one server, for every loop and thread of a process."""

    def __init__(
        self, url: str = "redis://localhost:6379", *, timeout: float = 5.0, connect_timeout: float = 5.0
    ) -> None:
        self._url, self._timeout, self._connect_timeout = url, timeout, connect_timeout
        self._options = redis.connection.parse_url(url)
        self._loops: dict[Any, _Loop] = {}
        self._sync: redis.Redis | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Where it is."""
        options = self._options
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"{place}/{options.get('db', 0)}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what this client has in all loops."""
        for here in self._loops.values():
            for wire in (here.wire, here.push):
                if wire is not None:
                    wire.close()
                    await wire._stream.aclose()
                    await wire.ended.wait()
        self._loops.clear()
        if self._sync is not None:
            self._sync.close()

    def _here(self) -> _Loop:
        loop = running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = _Loop()
        return here

    async def _connect(self, on_push: Callable[[Any], None] | None = None) -> Wire:
        options = self._options
        try:
            with anyio.fail_after(self._connect_timeout):
                if "path" in options:
                    stream: Any = await anyio.connect_unix(options["path"])
                else:
                    stream = await anyio.connect_tcp(options.get("host", "localhost"), options.get("port", 6379))
                wire = Wire(stream, on_push)
                wire.start()
                hello: list[Any] = ["HELLO", "3"]
                if options.get("password"):
                    hello += ["AUTH", options.get("username") or "default", options["password"]]
                for command in (hello, ["SELECT", options.get("db", 0)]):
                    reply = await wire.call(pack(command))
                    if isinstance(reply, Exception):
                        raise reply
        except (OSError, TimeoutError) as error:
            raise redis_errors.ConnectionError(str(error)) from error
        return wire

    async def _wire(self) -> Wire:
        here = self._here()
        if here.wire is None or here.wire.error is not None:
            async with here.lock:
                if here.wire is None or here.wire.error is not None:
                    here.wire = await self._connect()
        return here.wire

    async def execute(self, *command: Argument) -> Any:
        """Run one command once."""
        try:
            wire = await self._wire()
            with anyio.fail_after(self._timeout):
                reply = await wire.call(pack(command))
        except (OSError, redis_errors.RedisError) as error:
            raise translated(error, self.name) from error
        if isinstance(reply, Exception):
            raise translated(reply, self.name)
        return reply

    async def run(self, script: Script, keys: Sequence[Argument] = (), args: Sequence[Argument] = ()) -> Any:
        """Run a script."""
        deadline = anyio.current_time() + self._timeout
        while True:
            try:
                try:
                    return await self.execute("EVALSHA", script.sha, len(keys), *keys, *args)
                except redis_errors.ResponseError as error:
                    if not str(error).startswith("NOSCRIPT"):
                        raise
                    return await self.execute("EVAL", script.text, len(keys), *keys, *args)
            except StoreUnavailable:
                if anyio.current_time() >= deadline:
                    raise
                await anyio.sleep(0.05)

    def _blocking(self) -> redis.Redis:
        with self._lock:
            if self._sync is None:
                self._sync = redis.Redis.from_url(self._url, protocol=3, socket_timeout=self._timeout)
            return self._sync

    def execute_blocking(self, *command: Argument) -> Any:
        """As `execute`, on a connection of the calling thread."""
        client = self._blocking()
        connection = client.connection_pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        except (OSError, redis_errors.RedisError) as error:
            raise translated(error, self.name) from error
        finally:
            client.connection_pool.release(connection)

    def run_blocking(self, script: Script, keys: Sequence[Argument] = (), args: Sequence[Argument] = ()) -> Any:
        """As `run`, on a connection of the calling thread."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                try:
                    return self.execute_blocking("EVALSHA", script.sha, len(keys), *keys, *args)
                except redis_errors.ResponseError as error:
                    if "NOSCRIPT" not in str(error) and not isinstance(error, redis_errors.NoScriptError):
                        raise
                    return self.execute_blocking("EVAL", script.text, len(keys), *keys, *args)
            except StoreUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    async def subscribe(
        self, channel: str, on_message: Callable[[bytes], None], on_gap: Callable[[], None]
    ) -> Subscription:
        """Listen to a channel in the running loop."""
        here = self._here()
        one = _Channel(on_message, on_gap)

        def on_push(push: Any) -> None:
            if push[0] == b"message":
                for listener in here.channels.get(push[1], ()):
                    if listener.open:
                        listener.on_message(push[2])

        async with here.lock:
            here.channels.setdefault(channel.encode(), []).append(one)
            if here.push is None or here.push.error is not None:
                here.push = await self._connect(on_push)
            here.push._out.append(pack(("SUBSCRIBE", channel)))
            here.push._wake.set()
            # Replies come in order: that of PING says that the one before was served.
            await here.push.call(pack(("PING",)))
        return one

    async def publish(self, channel: str, message: bytes) -> None:
        """Publish to a channel."""
        await self.execute("PUBLISH", channel, message)
