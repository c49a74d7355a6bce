"""Opening a connection: the transport, the login, and whether the server will do."""

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
from cuelight.redis._client._faults import read_reply
from cuelight.redis._client._settings import Address, Settings, place
from cuelight.redis._client._wire import AsyncioWire, Wire, pack_all

__all__ = ["Opened", "check_version", "of_login", "open_wire", "warn_of_eviction"]

log = get_log("cuelight.redis")

OLDEST: Final = {"redis": (6, 2), "valkey": (7, 2)}
"""The first versions of each server that have what the scripts need."""

_KEEPALIVE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # they differ between systems
)
_warned: Final[set[str]] = set()


class Opened:
    """A connection that is logged in, and which server that is.

    Attributes:
        wire: the connection.
        version: of the server, its two first numbers.
    """

    __slots__ = ("version", "wire")

    def __init__(self, wire: Wire, hello: dict[bytes, Any]) -> None:
        self.wire = wire
        self.version = check_version(hello)


async def open_wire(
    settings: Settings,
    address: Address,
    *,
    watched: bool = True,
    on_push: Callable[[Any], bool] | None = None,
    login: bool = True,
) -> Opened:
    """Open a connection and log in. A checkpoint.

    Args:
        settings: how.
        address: where.
        watched: see `Wire`.
        on_push: see `Wire`.
        login: false for sentinels, whose user and password are others, and who have no databases.

    Raises:
        redis.ConnectionError, redis.TimeoutError: it could not be reached.
        redis.ResponseError: it said no.
        StoreRefused: its version is too old.
    """
    wire: Wire | None = None
    try:
        with anyio.fail_after(settings.connect_timeout):
            words = await (_words(settings) if login else _words_for_sentinel(settings))
            backend = current_backend()
            wire = await _connect(backend, settings, address, watched, on_push)
            opened = Opened(wire, await _handshake(wire, words, place(address)))
    except (anyio.BrokenResourceError, anyio.EndOfStream) as error:  # of a handshake of TLS
        raise redis_errors.ConnectionError(f"{place(address)}: the server closed the connection") from error
    except OSError as error:
        # The error of a time-out has no text.
        text = safe_str(error) or f"no connection within {settings.connect_timeout:g} s"
        _end(wire, text)
        raise redis_errors.ConnectionError(f"{place(address)}: {text}") from error
    except BaseException as error:
        _end(wire, safe_str(error))
        raise
    return opened


def _end(wire: Wire | None, text: str) -> None:
    if wire is not None:
        wire.end(redis_errors.ConnectionError(text))


async def _connect(
    backend: Backend,
    settings: Settings,
    address: Address,
    watched: bool,
    on_push: Callable[[Any], bool] | None,
) -> Wire:
    timeout, heartbeat = settings.timeout, settings.heartbeat
    if backend.name == "asyncio":
        loop: asyncio.AbstractEventLoop = backend.loop

        def make() -> AsyncioWire:
            return AsyncioWire(backend, timeout, heartbeat, watched=watched, on_push=on_push)

        if isinstance(address, str):
            _, wire = await loop.create_unix_connection(make, address)
        else:
            transport, wire = await loop.create_connection(make, *address, ssl=settings.context)
            _keep_alive(transport.get_extra_info("socket"))
        return wire
    from cuelight.redis._client._streams import StreamWire  # noqa: PLC0415 - asyncio has no use for it

    hold_interrupts()  # in that module too
    other = StreamWire(backend, timeout, heartbeat, watched=watched, on_push=on_push)
    if isinstance(address, str):
        other.start(await anyio.connect_unix(address))
        return other
    if settings.context is None:
        stream: Any = await anyio.connect_tcp(*address)
    else:
        stream = await anyio.connect_tcp(*address, ssl_context=settings.context, tls_standard_compatible=False)
    other.start(stream)
    _keep_alive(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 - it is no Django
    return other


def _keep_alive(connection: Any) -> None:
    """Have the operating system notice a peer that is gone while nothing is to be said."""
    with contextlib.suppress(OSError):  # it broke already: who reads from it is told
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, name, value)


async def _words(settings: Settings) -> list[Sequence[Any]]:
    hello: list[Any] = ["HELLO", 3]
    login = await settings.login()
    if login is not None:
        hello += ["AUTH", *login]
    if settings.client_name:
        hello += ["SETNAME", settings.client_name]
    words: list[Sequence[Any]] = [hello]
    if settings.db:
        words.append(("SELECT", settings.db))
    # Last, what may be refused: those who log in need not have the right to it, nor the server the command.
    return [*words, ("CLIENT", "SETINFO", "LIB-NAME", "cuelight"), ("INFO", "memory")]


async def _words_for_sentinel(settings: Settings) -> list[Sequence[Any]]:
    user, secret = settings.sentinel
    login = [] if secret is None else ["AUTH", user or "default", secret]
    return [["HELLO", 3, *login], ("PING",), ("PING",)]


async def _handshake(wire: Wire, words: list[Sequence[Any]], where: str) -> dict[bytes, Any]:
    replies = await wire.call_block(pack_all(words), len(words))
    *needed, _, memory = replies
    for reply in needed:
        if isinstance(reply, Exception):
            raise of_login(reply, where)
    warn_of_eviction(memory, where)
    hello: dict[bytes, Any] = needed[0]
    return hello


def of_login(error: Exception, where: str) -> Exception:
    """The error of who could not log in.

    Args:
        error: what the server said.
        where: it is.
    """
    if "unknown command" in safe_str(error).lower():
        return StoreRefused(
            f"{where} does not know the command HELLO: {_needed()}, and the command must not be renamed"
        )
    return error


def check_version(hello: dict[bytes, Any]) -> tuple[int, int]:
    """The version of a server, its two first numbers.

    Args:
        hello: what it answered to HELLO.

    Raises:
        StoreRefused: it is too old, or no such server.
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
    """Say once that a server throws keys away when it is full: tasks and locks would vanish."""
    if not isinstance(memory, bytes) or where in _warned:  # without the right to ask
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
