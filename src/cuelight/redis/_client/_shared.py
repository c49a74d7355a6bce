"""The client behind an address: all in this process that are given the same address share one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cuelight.redis._client._client import RedisClient

if TYPE_CHECKING:
    from cuelight.redis._client._server import Server

__all__ = ["DEFAULT_URL", "server_for"]

DEFAULT_URL: Final = "redis://localhost:6379"

_clients: Final[dict[str, RedisClient]] = {}


def server_for(redis_url: str, server: Server | None) -> Server:
    """The server that was given, else the shared client of an address.

    A shared client stays for as long as the process: it has a connection or two in each loop that uses it, which end
    with that loop, and one for each thread.

    Raises:
        ValueError: the address is none.
    """
    if server is not None:
        if redis_url != DEFAULT_URL:
            raise ValueError("redis_url and server were both given: give one of them")
        return server
    # Of two threads that come at once one makes a client in vain: it has connected to nothing yet. A lock could be
    # held by another thread at a fork.
    return _clients.get(redis_url) or _clients.setdefault(redis_url, RedisClient(redis_url))
