"""Clients of Redis: GET and SET, one at a time, by 50 and by 1,000 tasks, in blocks of 100; the server has its own
core.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from bench._harness import OURS, Aim, Rivals, Workload
from bench.redis_queues import server
from cuelight.redis import RedisClient

Step = Callable[[Any], Awaitable[Any]]
Opened = Callable[[], Any]

BLOCK = 100
VALUE = b"x" * 32


def get(client: Any) -> Awaitable[Any]:
    return client.get("bench:key")


def put(client: Any) -> Awaitable[Any]:
    return client.set("bench:key", VALUE)


def ours() -> Any:
    return RedisClient(server().url)


def redis_py() -> Any:
    # The default: a connection for each command in flight, up to 100.
    from redis.asyncio import Redis

    return Redis.from_url(server().url)


def redis_py_that_waits() -> Any:
    from redis.asyncio import BlockingConnectionPool, Redis

    return Redis.from_pool(BlockingConnectionPool.from_url(server().url, max_connections=50, timeout=60))


def coredis() -> Any:
    from coredis import Redis

    return Redis.from_url(server().url)


def by_tasks(opened: Opened, step: Step, tasks: int) -> Workload:
    """`tasks` tasks that each run one step after another; connecting is not measured."""

    async def run(n: int) -> float:
        async with opened() as client:
            await put(client)

            async def work() -> None:
                for _ in range(n // tasks):
                    await step(client)

            await step(client)
            begun = time.perf_counter()
            if tasks == 1:
                await work()
            else:
                async with anyio.create_task_group() as group:
                    for _ in range(tasks):
                        group.start_soon(work)
            return time.perf_counter() - begun

    return run


def in_blocks(opened: Opened, step: Step) -> Workload:
    """One task that sends blocks of commands, as pipelines of redis-py do."""

    async def run(n: int) -> float:
        async with opened() as client:
            await put(client)
            begun = time.perf_counter()
            for _ in range(n // BLOCK):
                pipe = client.pipeline(transaction=False)
                for _ in range(BLOCK):
                    step(pipe)
                await pipe.execute()
            return time.perf_counter() - begun

    return run


def rivals(step: Step, tasks: int) -> Rivals:
    peers = {OURS: ours, "redis-py": redis_py if tasks < 100 else redis_py_that_waits, "coredis": coredis}
    found: dict[str, Workload] = {name: by_tasks(opened, step, tasks) for name, opened in peers.items()}
    if tasks > 1:
        found["redis-py in blocks"] = in_blocks(redis_py, step)
    return found


WORKLOADS: dict[str, Rivals] = {
    f"redis {name}, {label}": rivals(step, tasks)
    for name, step in (("GET", get), ("SET", put))
    for label, tasks in (("one at a time", 1), ("50 tasks", 50), ("1,000 tasks", 1000))
}
WORKLOADS["redis GET, blocks of 100"] = {OURS: in_blocks(ours, get), "redis-py": in_blocks(redis_py, get)}

AIMS = {
    **{f"redis {name}, one at a time": Aim("redis-py", 1) for name in ("GET", "SET")},
    **{f"redis {name}, {tasks} tasks": Aim("redis-py", 3) for name in ("GET", "SET") for tasks in ("50", "1,000")},
}
