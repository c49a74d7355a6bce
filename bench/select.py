"""Receive from the first of four channels that has an item; a task sends to each channel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from cuelight.mailbox import Channel, select

Workload = Callable[[int], Awaitable[None]]


def cuelight(capacity: int) -> Workload:
    async def run(n: int) -> None:
        channels = [Channel[int](capacity) for _ in range(4)]

        async def produce(channel: Channel[int]) -> None:
            for item in range(n // 4):
                await channel.send(item)

        async with anyio.create_task_group() as group:
            for channel in channels:
                group.start_soon(produce, channel)
            a, b, c, d = channels
            for _ in range(n // 4 * 4):
                await select(a, b, c, d)

    return run


def aiochan(capacity: int) -> Workload:
    async def run(n: int) -> None:
        from aiochan import Chan, select

        channels = [Chan(capacity or None) for _ in range(4)]

        async def produce(channel: Chan) -> None:
            for item in range(n // 4):
                await channel.put(item)

        async with anyio.create_task_group() as group:
            for channel in channels:
                group.start_soon(produce, channel)
            for _ in range(n // 4 * 4):
                await select(*channels)

    return run


def cuelight_sleeping() -> Workload:
    async def run(n: int) -> None:
        channels = [Channel[int]() for _ in range(4)]
        a, b, c, d = channels

        async def consume() -> None:
            for _ in range(n // 4 * 4):
                await select(a, b, c, d)

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await anyio.wait_all_tasks_blocked()
            for item in range(n // 4):
                for channel in channels:
                    await channel.send(item)

    return run


def aiochan_sleeping() -> Workload:
    async def run(n: int) -> None:
        from aiochan import Chan, select

        channels = [Chan() for _ in range(4)]

        async def consume() -> None:
            for _ in range(n // 4 * 4):
                await select(*channels)

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await anyio.wait_all_tasks_blocked()
            for item in range(n // 4):
                for channel in channels:
                    await channel.put(item)

    return run


WORKLOADS: dict[str, dict[str, Workload]] = {
    "select over 4, cap 0": {"cuelight": cuelight(0), "aiochan": aiochan(0)},
    "select over 4, cap 100": {"cuelight": cuelight(100), "aiochan": aiochan(100)},
    "select over 4, sleeping each time": {"cuelight": cuelight_sleeping(), "aiochan": aiochan_sleeping()},
}

# The rivals that run on trio.
TRIO_WORKLOADS: dict[str, dict[str, Workload]] = {
    "select over 4, cap 0": {"cuelight": cuelight(0)},
    "select over 4, cap 100": {"cuelight": cuelight(100)},
    "select over 4, sleeping each time": {"cuelight": cuelight_sleeping()},
}
