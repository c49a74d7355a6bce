"""Items through a channel from one task to another, one by one, for several capacities."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from cuelight.mailbox import Channel

Workload = Callable[[int], Awaitable[None]]


async def _through(n: int, send: Callable[[int], Awaitable[Any]], receive: Callable[[], Awaitable[Any]]) -> None:
    async def produce() -> None:
        for item in range(n):
            await send(item)

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        for _ in range(n):
            await receive()


def cuelight(capacity: int) -> Workload:
    async def run(n: int) -> None:
        channel: Channel[int] = Channel(capacity)
        await _through(n, channel.send, channel.receive)

    return run


def anyio_stream(capacity: int) -> Workload:
    async def run(n: int) -> None:
        sender, receiver = anyio.create_memory_object_stream[int](capacity)
        async with sender, receiver:
            await _through(n, sender.send, receiver.receive)

    return run


def asyncio_queue(capacity: int) -> Workload:
    async def run(n: int) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(capacity)
        await _through(n, queue.put, queue.get)

    return run


def aiochan(capacity: int) -> Workload:
    async def run(n: int) -> None:
        import aiochan

        channel = aiochan.Chan(capacity or None)
        await _through(n, channel.put, channel.get)

    return run


def trio_channel(capacity: int) -> Workload:
    async def run(n: int) -> None:
        import trio

        sender, receiver = trio.open_memory_channel[int](capacity)
        await _through(n, sender.send, receiver.receive)

    return run


def _peers(capacity: int) -> dict[str, Workload]:
    peers = {"cuelight": cuelight(capacity), "anyio": anyio_stream(capacity), "aiochan": aiochan(capacity)}
    if capacity:
        peers["asyncio.Queue"] = asyncio_queue(capacity)  # it has no rendezvous
    return peers


WORKLOADS: dict[str, dict[str, Workload]] = {
    "channel cap 0": _peers(0),
    "channel cap 100": _peers(100),
    "channel cap 1000": _peers(1000),
}

# The rivals that run on trio.
TRIO_WORKLOADS: dict[str, dict[str, Workload]] = {
    f"channel cap {capacity}": {
        "cuelight": cuelight(capacity),
        "anyio": anyio_stream(capacity),
        "trio": trio_channel(capacity),
    }
    for capacity in (0, 100, 1000)
}
