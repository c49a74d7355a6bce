"""Rate limiters over Redis that admit everything: one at a time, by 50 tasks, several limits, and in chunks.

Each peer uses its cheapest limiter. All of them count each request on the server, except for the rows about
chunks.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio

from bench._harness import OURS, Aim, Rivals, Workload
from bench.redis_queues import server
from cuelight.coordination import RateLimitConfig
from cuelight.redis import RedisClient, RedisRateLimiter, RedisSlidingWindow, RedisTokenBucket

PLENTY = RateLimitConfig(10**7, 1.0)
Step = Callable[[], Awaitable[Any]]
Opened = Callable[[], AbstractAsyncContextManager[Step]]


def ours(make: Callable[[RedisClient], Any]) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Step]:
        async with RedisClient(server().url) as client:
            limiter = make(client)
            yield limiter.acquire
            await limiter.aclose()

    return opened


@asynccontextmanager
async def several() -> AsyncGenerator[Step]:
    async with RedisClient(server().url) as client:
        limiter = RedisRateLimiter("bench-several", server=client, requests=PLENTY, tokens=PLENTY, concurrency=10_000)

        async def step() -> None:
            async with limiter.request(tokens=1500):
                pass

        yield step
        await limiter.aclose()


def limits(strategy: str) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Step]:
        from limits import RateLimitItemPerSecond
        from limits.aio import storage, strategies

        kept = storage.RedisStorage(f"async+{server().url}", implementation="redispy")
        limiter = getattr(strategies, strategy)(kept)
        item = RateLimitItemPerSecond(PLENTY.max_requests)

        async def step() -> None:
            assert await limiter.hit(item, "bench")

        yield step
        bridge: Any = kept.bridge
        await bridge.get_connection().aclose()

    return opened


def throttled(kind: str) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Step]:
        from throttled.asyncio import RedisStore, Throttled, rate_limiter

        quota = rate_limiter.per_sec(PLENTY.max_requests, burst=PLENTY.max_requests)
        limiter = Throttled(using=kind, quota=quota, store=RedisStore(server=server().url))

        async def step() -> None:
            assert not (await limiter.limit("bench")).limited

        yield step

    return opened


def by_tasks(opened: Opened, tasks: int) -> Workload:
    """`tasks` tasks that each run one step after another; connecting is not measured."""

    async def run(n: int) -> float:
        async with opened() as step:
            await step()

            async def work() -> None:
                for _ in range(n // tasks):
                    await step()

            begun = time.perf_counter()
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(work)
            return time.perf_counter() - begun

    return run


KINDS: dict[str, dict[str, Opened]] = {
    "token bucket": {
        OURS: ours(lambda client: RedisTokenBucket("bench", PLENTY, server=client)),
        "limits": limits("FixedWindowRateLimiter"),
        "throttled-py": throttled("gcra"),
    },
    "sliding counter": {
        OURS: ours(lambda client: RedisSlidingWindow("bench-counter", PLENTY, exact=False, server=client)),
        "limits": limits("SlidingWindowCounterRateLimiter"),
        "throttled-py": throttled("sliding_window"),
    },
    "2 limits and a permit": {OURS: several},
    "chunks of 1,000": {OURS: ours(lambda client: RedisTokenBucket("bench", PLENTY, chunk=1000, server=client))},
}

WORKLOADS: dict[str, Rivals] = {
    f"redis limit, {kind}, {label}": {name: by_tasks(opened, tasks) for name, opened in rivals.items()}
    for kind, rivals in KINDS.items()
    for label, tasks in (("one at a time", 1), ("50 tasks", 50))
}

AIMS = {
    f"redis limit, {kind}, {label}": Aim("limits", times)
    for kind in ("token bucket", "sliding counter")
    for label, times in (("one at a time", 1), ("50 tasks", 2))
}
