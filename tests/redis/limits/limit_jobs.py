"""Processes that use a limiter: `python limit_jobs.py JOB URL NAME`. They tell what they do, one word a line."""

from __future__ import annotations

import sys
import time

import anyio

from cuelight.coordination import RateLimitConfig
from cuelight.redis import RedisClient
from cuelight.redis._limits import RedisRateLimiter, RedisTokenBucket


async def spend(client: RedisClient, name: str) -> None:
    """Take whatever is to be had for two seconds, with 5 tasks; say how much that was."""
    bucket = RedisTokenBucket(name, RateLimitConfig(200, 1.0, 50), server=client)
    taken, until = 0, time.monotonic() + 2

    async def take() -> None:
        nonlocal taken
        while time.monotonic() < until:
            try:
                await bucket.acquire(timeout=max(0.0, until - time.monotonic()))
            except TimeoutError:
                return
            taken += 1

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(take)
    print(taken, flush=True)


async def hold(client: RedisClient, name: str) -> None:
    """Hold both permits until killed, and have another request wait."""
    limiter = RedisRateLimiter(name, server=client, requests=RateLimitConfig(100, 1.0), concurrency=2, lease=1.0)

    async def wait() -> None:
        async with limiter.request():
            print("more than allowed", flush=True)

    async with limiter.request(), limiter.request(), anyio.create_task_group() as group:
        group.start_soon(wait)
        while not limiter.statistics().waiting:  # noqa: ASYNC110 - the server says so
            await anyio.sleep(0.001)
        print("held", flush=True)
        await anyio.sleep_forever()


async def main(job: str, url: str, name: str) -> None:
    async with RedisClient(url) as client:
        await {"spend": spend, "hold": hold}[job](client, name)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
