"""Shared clients: all callers in this process that give the same address use the same client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cuelight.redis._client._client import RedisClient

if TYPE_CHECKING:
    from cuelight.redis._client._server import Server

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
