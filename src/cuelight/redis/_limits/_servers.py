"""Clients that limiters made from URLs: one for each URL in a process, until its last limiter is closed."""

from __future__ import annotations

import threading
from typing import Final

from cuelight.redis._client import RedisClient

__all__ = ["borrow", "give_back"]

_clients: Final[dict[str, list[RedisClient]]] = {}  # the same client as often as it is borrowed
_lock: Final = threading.Lock()


def borrow(url: str) -> RedisClient:
    """The client for a URL.

    Raises:
        ValueError: it is none for a server.
    """
    with _lock:
        borrowed = _clients.get(url)
        client = borrowed[0] if borrowed else RedisClient(url)
        _clients.setdefault(url, []).append(client)
        return client


async def give_back(url: str) -> None:
    """Close the client for a URL, if nobody else has it. A checkpoint."""
    with _lock:
        borrowed = _clients[url]
        client = borrowed.pop()
        if borrowed:
            return
        del _clients[url]
    await client.aclose()
