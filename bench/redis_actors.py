"""Actors in two processes: one tells and asks, the other answers; and the cost of the server itself.

Once the two nodes have exchanged messages, they are connected directly, and the server takes no part in the measured
work. The scripts show how fast the machine is. The server has its own core. The other process may also run on it, as
the scheduler decides.
"""

from __future__ import annotations

import atexit
import functools
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import anyio

from bench._actors import ADD, TOTAL, Add, Plain, Total
from bench._harness import Aim, Rivals
from bench.queues._rig import RedisServer, cores, pin
from cuelight import ActorSystem, Ref
from cuelight.redis import RedisClient, RedisNode, Script

NOTHING = Script("return 1", "nothing")
IN_FLIGHT = 1000


@functools.cache
def _server() -> RedisServer:
    made = RedisServer()
    made.start()
    assert made.process is not None
    pin(made.process.pid, cores()[0])
    atexit.register(made.remove)
    return made


@functools.cache
def _far() -> str:
    """Start a node in another process, which ends with this one, and return its cluster."""
    cluster = uuid.uuid4().hex
    command = [sys.executable, "-m", "bench.redis_actors", _server().url, cluster]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    pin(process.pid, cores()[0] | cores()[1])
    atexit.register(process.communicate)
    return cluster


def _node(url: str, cluster: str) -> RedisNode:
    return RedisNode(url, cluster=cluster, messages=[Add, Total])


def _between(measure: Callable[[Ref[Any], int], Awaitable[None]]) -> Callable[[int], Awaitable[float]]:
    """A workload with a ref to the remote actor. Joining and leaving are not measured."""

    async def run(n: int) -> float:
        async with ActorSystem("near", node=_node(_server().url, _far())) as system:
            ref = await system.resolve("counter", timeout=20)
            await ref.ask(TOTAL)
            started = perf_counter()
            await measure(ref, n)
            return perf_counter() - started

    return run


async def _tell(ref: Ref[Any], n: int) -> None:
    before = await ref.ask(TOTAL)
    for _ in range(n):
        await ref.tell(ADD)
    assert await ref.ask(TOTAL) == before + n


async def _ask(ref: Ref[Any], n: int) -> None:
    for _ in range(n):
        await ref.ask(TOTAL)


async def _ask_many(ref: Ref[Any], n: int) -> None:
    async def asker() -> None:
        for _ in range(n // IN_FLIGHT):
            await ref.ask(TOTAL)

    async with anyio.create_task_group() as group:
        for _ in range(IN_FLIGHT):
            group.start_soon(asker)


async def _round_trips(n: int) -> float:
    async with RedisClient(_server().url) as client:
        await client.run(NOTHING)
        started = perf_counter()
        for _ in range(n):
            await client.run(NOTHING)
        return perf_counter() - started


async def _round_trips_at_once(n: int) -> float:
    async def one() -> None:
        for _ in range(n // IN_FLIGHT):
            await client.run(NOTHING)

    async with RedisClient(_server().url) as client, AsyncExitStack() as stack:
        await client.run(NOTHING)
        started = perf_counter()
        group = await stack.enter_async_context(anyio.create_task_group())
        for _ in range(IN_FLIGHT):
            group.start_soon(one)
        await stack.aclose()
        return perf_counter() - started


WORKLOADS: dict[str, Rivals] = {
    "remote tell": {"cuelight": _between(_tell), "scripts, 1,000 at once": _round_trips_at_once},
    "remote ask, one at a time": {"cuelight": _between(_ask), "scripts, one by one": _round_trips},
    "remote ask, 1,000 in flight": {"cuelight": _between(_ask_many), "scripts, 1,000 at once": _round_trips_at_once},
}


AIMS = {
    "remote tell": Aim("scripts, 1,000 at once", 1.5),
    "remote ask, one at a time": Aim("scripts, one by one", 0.3, trio=0.5),
    "remote ask, 1,000 in flight": Aim("scripts, 1,000 at once", 0.3),
}


async def _serve(url: str, cluster: str) -> None:
    async with ActorSystem("far", node=_node(url, cluster)) as system:
        await system.expose(await system.spawn(Plain), "counter")
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    anyio.run(_serve, sys.argv[1], sys.argv[2])
