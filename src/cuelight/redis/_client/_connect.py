"""Opens connections: connects, logs in, checks whether the server is suitable, and asks sentinels for the primary."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.errors import StoreRefused
from cuelight.mailbox import Backend, current_backend, hold_interrupts
from cuelight.redis._client._connection import AsyncioRedisConnection, RedisConnection, pack, pack_all
from cuelight.redis._client._errors import read_reply
from cuelight.redis._client._settings import Address, Settings, format_address

log = get_log("cuelight.redis")

OLDEST: Final = {"redis": (6, 2), "valkey": (7, 2)}
"""The oldest version of each server that has the features used by the scripts."""

_KEEPALIVE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # they differ between systems
)
_warned: Final[set[str]] = set()


class OpenedConnection:
    """A connection that is logged in, and the version of its server.

    Attributes:
        connection: the connection.
        version: the major and minor version of the server.
    """

    __slots__ = ("connection", "version")

    def __init__(self, connection: RedisConnection, hello: dict[bytes, Any]) -> None:
        self.connection = connection
        self.version = check_version(hello)


async def open_connection(
    settings: Settings,
    address: Address,
    *,
    timed: bool = True,
    on_push: Callable[[Any], bool] | None = None,
    login: bool = True,
) -> OpenedConnection:
    """Open a connection and log in. A checkpoint.

    Args:
        settings: the settings of the client.
        address: the address of the server.
        timed: see `RedisConnection`.
        on_push: see `RedisConnection`.
        login: false for sentinels, which have their own user and password, and no databases.

    Raises:
        redis.ConnectionError, redis.TimeoutError: the server could not be reached.
        redis.ResponseError: the server rejected the login.
        StoreRefused: the version of the server is too old.
    """
    connection: RedisConnection | None = None
    try:
        with anyio.fail_after(settings.connect_timeout):
            words = await (_login_commands(settings) if login else _sentinel_login_commands(settings))
            backend = current_backend()
            connection = await _connect(backend, settings, address, timed, on_push)
            opened = OpenedConnection(connection, await _handshake(connection, words, format_address(address)))
    except (anyio.BrokenResourceError, anyio.EndOfStream) as error:  # in the TLS handshake
        raise redis_errors.ConnectionError(f"{format_address(address)}: the server closed the connection") from error
    except OSError as error:
        # A time-out error has no text.
        text = safe_str(error) or f"no connection within {settings.connect_timeout:g} s"
        _end(connection, text)
        raise redis_errors.ConnectionError(f"{format_address(address)}: {text}") from error
    except BaseException as error:
        _end(connection, safe_str(error))
        raise
    return opened


def _end(connection: RedisConnection | None, text: str) -> None:
    if connection is not None:
        connection.end(redis_errors.ConnectionError(text))


async def _connect(
    backend: Backend,
    settings: Settings,
    address: Address,
    timed: bool,
    on_push: Callable[[Any], bool] | None,
) -> RedisConnection:
    timeout, heartbeat = settings.timeout, settings.heartbeat
    if backend.name == "asyncio":
        loop: asyncio.AbstractEventLoop = backend.loop

        def make() -> AsyncioRedisConnection:
            return AsyncioRedisConnection(backend, timeout, heartbeat, timed=timed, on_push=on_push)

        if isinstance(address, str):
            _, connection = await loop.create_unix_connection(make, address)
        else:
            transport, connection = await loop.create_connection(make, *address, ssl=settings.context)
            _keep_alive(transport.get_extra_info("socket"))
        return connection
    from cuelight.redis._client._connection import TrioRedisConnection  # noqa: PLC0415 - asyncio has no use for it

    hold_interrupts()  # for the newly imported module too
    other = TrioRedisConnection(backend, timeout, heartbeat, timed=timed, on_push=on_push)
    if isinstance(address, str):
        other.start(await anyio.connect_unix(address))
        return other
    if settings.context is None:
        stream: Any = await anyio.connect_tcp(*address)
    else:
        stream = await anyio.connect_tcp(*address, ssl_context=settings.context, tls_standard_compatible=False)
    other.start(stream)
    _keep_alive(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 - not Django
    return other


def _keep_alive(connection: Any) -> None:
    """Let the operating system detect a dead peer while the connection is idle."""
    with contextlib.suppress(OSError):  # already broken: the reader gets the error
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, name, value)


async def _login_commands(settings: Settings) -> list[Sequence[Any]]:
    hello: list[Any] = ["HELLO", 3]
    login = await settings.login()
    if login is not None:
        hello += ["AUTH", *login]
    if settings.client_name:
        hello += ["SETNAME", settings.client_name]
    words: list[Sequence[Any]] = [hello]
    if settings.db:
        words.append(("SELECT", settings.db))
    # The commands that may fail are last: the user may lack the right to them, and the server may not know them.
    return [*words, ("CLIENT", "SETINFO", "LIB-NAME", "cuelight"), ("INFO", "memory")]


async def _sentinel_login_commands(settings: Settings) -> list[Sequence[Any]]:
    user, secret = settings.sentinel
    login = [] if secret is None else ["AUTH", user or "default", secret]
    return [["HELLO", 3, *login], ("PING",), ("PING",)]


async def _handshake(connection: RedisConnection, words: list[Sequence[Any]], where: str) -> dict[bytes, Any]:
    replies = await connection.call_many(pack_all(words), len(words))
    *needed, _, memory = replies
    for reply in needed:
        if isinstance(reply, Exception):
            raise login_error(reply, where)
    warn_of_eviction(memory, where)
    hello: dict[bytes, Any] = needed[0]
    return hello


def login_error(error: Exception, where: str) -> Exception:
    """Return the error to raise for a failed login.

    Args:
        error: the server's reply.
        where: the address of the server.
    """
    if "unknown command" in safe_str(error).lower():
        return StoreRefused(
            f"{where} does not know the command HELLO: {_needed()}, and the command must not be renamed"
        )
    return error


def check_version(hello: dict[bytes, Any]) -> tuple[int, int]:
    """Return the major and minor version of a server.

    Args:
        hello: its reply to HELLO.

    Raises:
        StoreRefused: it is too old, or neither Redis nor Valkey.
    """
    server, version = read_reply("the server", "HELLO", _name_and_version, hello)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if numbers and found < OLDEST.get(server, (0, 0)):
        raise StoreRefused(f"the server is {server} {version}, which is too old: {_needed()}")
    return found


def _name_and_version(hello: dict[bytes, Any]) -> tuple[str, str]:
    return hello[b"server"].decode(), hello[b"version"].decode()


def _needed() -> str:
    return "Redis 6.2 or Valkey 7.2 are the oldest that will do"


def warn_of_eviction(memory: Any, where: str) -> None:
    """Warn once about a server that evicts keys when its memory is full: tasks and locks would vanish."""
    if not isinstance(memory, bytes) or where in _warned:  # not permitted to ask, or warned already
        return
    limit, policy = re.search(rb"\nmaxmemory:(\d+)", memory), re.search(rb"\nmaxmemory_policy:(\S+)", memory)
    if limit is not None and policy is not None and int(limit[1]) and policy[1] != b"noeviction":
        _warned.add(where)
        log.warning(
            "%s evicts keys when its memory is full (maxmemory-policy %s): tasks, locks and limits would vanish; "
            "set maxmemory-policy to noeviction",
            where,
            policy[1].decode(),
        )


async def find_primary(settings: Settings) -> Address:
    """Ask the sentinels, one after the other, for the address of the primary. A checkpoint.

    Raises:
        redis.ConnectionError: no sentinel knows it; the message contains the answer of each.
    """
    answers: list[str] = []
    for sentinel in settings.addresses:
        try:
            with anyio.fail_after(settings.timeout):
                found = await _ask(settings, sentinel)
        except redis_errors.AuthenticationError:
            raise
        except (redis_errors.RedisError, TimeoutError) as error:
            answers.append(str(error) or f"{format_address(sentinel)}: no answer within {settings.timeout:g} s")
            continue
        if isinstance(found, Exception):
            answers.append(f"{format_address(sentinel)}: {found}")
        elif found is None:
            answers.append(f"{format_address(sentinel)}: does not know {settings.service!r}")
        else:
            return primary_of(found, format_address(sentinel))
    raise no_primary(settings.service, answers)


def no_primary(service: str, answers: Sequence[str]) -> redis_errors.ConnectionError:
    """Return the error for the case that no sentinel knows the primary.

    Args:
        service: the name of the service.
        answers: the answer of each sentinel.
    """
    return redis_errors.ConnectionError(f"no sentinel knows the primary of {service!r}: {'; '.join(answers)}")


def primary_of(reply: Any, sentinel: str) -> Address:
    """Return the address in a sentinel's reply.

    Args:
        reply: the reply as it was received.
        sentinel: the address of the sentinel, for the message.

    Raises:
        StoreRefused: the reply contains no address.
    """
    return read_reply(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", lambda it: (it[0].decode(), int(it[1])), reply)


async def _ask(settings: Settings, sentinel: Address) -> Any:
    connection = (await open_connection(settings, sentinel, login=False)).connection
    try:
        return await connection.call(pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings.service)))
    finally:
        connection.end(redis_errors.ConnectionError("the sentinel was asked"))
