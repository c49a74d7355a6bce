"""Adapts a user's client to `Server`: commands use its connections; threads and channels use cuelight's own.

A `Server` returns replies as they were sent, so the client's conversion of replies is bypassed. Its retries are
bypassed or rejected too, because only the author of a script knows that it may run twice.
"""

# Other clients are only partly typed, or not installed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import anyio
from redis import exceptions as redis_errors

from cuelight._text import safe_str, type_name
from cuelight.mailbox import running_loop
from cuelight.redis._client._client import RedisClient
from cuelight.redis._client._command_info import MAY_BLOCK, blocking_time, kind_of, refuse
from cuelight.redis._client._connection import reply_error
from cuelight.redis._client._errors import translated
from cuelight.redis._client._retry import call_within, late, run_patiently

if TYPE_CHECKING:
    from cuelight.redis._client._server import Argument, Script, Subscription

Send = Callable[[Sequence[Any]], Awaitable[Any]]


def use_redis_py(client: Any, *, timeout: float = 5.0) -> PluggedServer:
    """Return a `Server` over your redis-py client: a `redis.asyncio.Redis` made with `protocol=3`.

    Like your client, the returned server belongs to the first loop that uses it. Threads and channels get separate
    connections to the same server. Close your client yourself, and `await server.aclose()` to close the others.

    Args:
        client: your client.
        timeout: seconds that a command may take.

    Raises:
        ValueError: it is a client of a cluster or of sentinels (give `RedisClient` the URL), or does not speak RESP3.
    """
    pool = getattr(client, "connection_pool", None)
    options: dict[str, Any] = dict(getattr(pool, "connection_kwargs", {}))
    if pool is None or not ({"host", "path"} & options.keys()):
        raise ValueError(
            f"the {type_name(client)} does not do: give a redis.asyncio.Redis of one server, or "
            "RedisClient(url) instead"
        )

    async def send(command: Sequence[Any]) -> Any:
        connection = await pool.get_connection()
        try:
            if int(connection.protocol) != 3:
                raise ValueError(f"the {type_name(client)} speaks RESP{connection.protocol}: make it with protocol=3")
            await connection.send_command(*command)
            return await connection.read_response(disable_decoding=True)
        except redis_errors.ResponseError as error:
            return error
        except BaseException:
            # Otherwise the next command would read the missing reply.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    tls = {name: value for name, value in options.items() if name.startswith("ssl_") and value is not None}
    secure = "SSL" in pool.connection_class.__name__
    url = _url(options, "rediss" if secure else "redis", tls if secure else {})
    return PluggedServer(send, _beside(url, options, timeout), timeout)


def use_coredis(client: Any, *, timeout: float = 5.0) -> PluggedServer:
    """Return a `Server` over your coredis client: a `coredis.Redis` made with `retry_policy=NoRetryPolicy()`.

    Like your client, the returned server belongs to the first loop that uses it. Threads and channels get separate
    connections to the same server. Close your client yourself, and `await server.aclose()` to close the others.

    Args:
        client: your client, inside its `async with`.
        timeout: seconds that a command may take.

    Raises:
        ValueError: it is a client of a cluster or uses TLS (give `RedisClient` the URL), or it repeats lost commands.
    """
    from coredis.commands.request import CommandRequest  # noqa: PLC0415 - not a dependency

    pool = getattr(client, "connection_pool", None)
    location = getattr(pool, "location", None)
    options: dict[str, Any] = dict(getattr(pool, "connection_kwargs", {}))
    if location is None or options.get("ssl_context") is not None:
        raise ValueError(
            f"the {type_name(client)} does not do: give a coredis.Redis of one server without TLS, or "
            "RedisClient(url) instead"
        )
    policy = type(client.retry_policy).__name__
    if policy != "NoRetryPolicy":
        raise ValueError(
            f"the {type_name(client)} sends again what was lost ({policy}): give it retry_policy=NoRetryPolicy()"
        )

    async def send(command: Sequence[Any]) -> Any:
        name, *arguments = command
        words = (name.decode() if isinstance(name, bytes) else str(name)).upper().split()
        request: Any = CommandRequest(" ".join(words).encode(), *arguments, execution_parameters={"decode": False})
        try:
            return await client.execute_command(request)
        except Exception as error:
            return _of_redis_py(error)

    return PluggedServer(send, _beside(_url({**options, **vars(location)}, "redis", {}), options, timeout), timeout)


class PluggedServer:
    """A `Server` over a client of redis-py or coredis; made by `use_redis_py` and `use_coredis`."""

    def __init__(self, send: Send, beside: RedisClient, timeout: float) -> None:
        """Create a server over a client.

        Args:
            send: sends one command once; returns its reply unconverted, or an exception of redis-py.
            beside: the client for threads and channels.
            timeout: seconds that a command may take.
        """
        self._send, self._beside, self._timeout = send, beside, timeout
        self._loop: Any = None
        self._closed = False

    @property
    def name(self) -> str:
        """The host, port and database of the server for messages, without credentials."""
        return self._beside.name

    async def aclose(self) -> None:
        """Close the connections that do not belong to the user's client. A checkpoint."""
        self._closed = True
        await self._beside.aclose()

    async def _call(self, command: Sequence[Any]) -> Any:
        loop = running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError(f"the client of {self.name} belongs to another event loop: use RedisClient(url) instead")
        if kind_of(command[0]) != MAY_BLOCK:
            refuse(command)
        seconds = blocking_time(command) if kind_of(command[0]) == MAY_BLOCK else 0.0
        with anyio.move_on_after(None if seconds is None else seconds + self._timeout):
            try:
                return await self._send(command)
            except OSError as error:  # from a credential provider; the clients wrap connection errors
                return redis_errors.ConnectionError(safe_str(error))
        return late((seconds or 0.0) + self._timeout)

    async def execute(self, *command: Argument, timeout: float | None = None) -> Any:
        """Run one command once. A checkpoint."""
        try:
            reply = await (self._call(command) if timeout is None else call_within(self._call, command, timeout))
        except redis_errors.RedisError as error:
            raise translated(error, self.name) from error
        if isinstance(reply, Exception):
            raise translated(reply, self.name) from reply
        return reply

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run a script; if its reply is lost, run it again within the time-out. A checkpoint."""
        return await run_patiently(
            self._call,
            script,
            keys,
            args,
            name=self.name,
            timeout=self._timeout,
            limit=timeout,
            ended=lambda: self._closed,
        )

    def execute_blocking(self, *command: Argument, timeout: float | None = None) -> Any:
        """Like `execute`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        return self._beside.execute_blocking(*command, timeout=timeout)

    def run_blocking(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Like `run`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        return self._beside.run_blocking(script, keys, args, timeout=timeout)

    async def subscribe(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None],
        *,
        timeout: float | None = None,
    ) -> Subscription:
        """Listen to a channel in the running loop. A checkpoint."""
        return await self._beside.subscribe(channel, on_message, on_gap, timeout=timeout)

    async def publish(self, channel: str, message: bytes) -> None:
        """Publish to a channel. A checkpoint."""
        await self.execute("PUBLISH", channel, message)


def _url(options: dict[str, Any], scheme: str, query: dict[str, Any]) -> str:
    db = options.get("db") or 0
    if options.get("path"):
        return f"unix://{quote(options['path'])}?db={db}"
    host = options.get("host", "localhost")
    place = f"[{host}]" if ":" in host else host
    return f"{scheme}://{place}:{options.get('port', 6379)}/{db}" + (f"?{urlencode(query)}" if query else "")


def _beside(url: str, options: dict[str, Any], timeout: float) -> RedisClient:
    provider = options.get("credential_provider")
    login: dict[str, Any] = {name: options.get(name) for name in ("username", "password")}
    return RedisClient(url, timeout=timeout, credential_provider=provider, **({} if provider else login))


_CODES: Final = {
    "AuthenticationFailureError": "WRONGPASS",
    "AuthenticationRequiredError": "NOAUTH",
    "AuthorizationError": "NOPERM",
    "BusyLoadingError": "LOADING",
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "NoScriptError": "NOSCRIPT",
    "ProtocolError": "NOPROTO",
    "ReadOnlyError": "READONLY",
    "StreamConsumerGroupError": "NOGROUP",
    "StreamDuplicateConsumerGroupError": "BUSYGROUP",
    "TryAgainError": "TRYAGAIN",
    "UnblockedError": "UNBLOCKED",
    "WrongTypeError": "WRONGTYPE",
}
"""The error codes that coredis removes from the text, by the class that it creates for them."""


def _of_redis_py(error: Exception) -> Exception:
    """Return redis-py's exception for an error of coredis."""
    bases = {base.__name__ for base in type(error).__mro__}
    if "ResponseError" in bases:
        code = _CODES.get(type(error).__name__)
        return reply_error(f"{code} {safe_str(error)}" if code else safe_str(error))
    return (
        redis_errors.ConnectionError(safe_str(error)) if "RedisError" in bases or isinstance(error, OSError) else error
    )
