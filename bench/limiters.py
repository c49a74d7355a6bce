"""Rate limiters that admit everything: one by one, with keys, with several limits; and the bytes of a key.

`python -m bench.limiters RIVAL COUNT` weighs `COUNT` keys, in a fresh process for each figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from bench._harness import OURS, Aim, Result, Rivals
from bench.memory import Scales
from cuelight.coordination import (
    AsyncSlidingWindow,
    AsyncTokenBucket,
    KeyedLimiter,
    RateLimitConfig,
    RateLimiter,
)

HUGE = 10**9
PLENTY = RateLimitConfig(HUGE, 1.0)
KEYS = [f"user:{number}" for number in range(1000)]

COUNTS = {OURS: 1_000_000, "limits": 200_000, "throttled-py": 100_000}
"""The number of keys to weigh; fewer where the peer is slow."""

Work = Callable[[int], Awaitable[None]]


def ours(make: Callable[[], Any]) -> Work:
    async def run(n: int) -> None:
        limiter = make()
        for _ in range(n):
            await limiter.acquire()

    return run


async def ours_try(n: int) -> None:
    limiter = AsyncTokenBucket(PLENTY)
    for _ in range(n):
        limiter.try_acquire()


async def ours_request(n: int) -> None:
    limiter = RateLimiter(requests=PLENTY, tokens=PLENTY, concurrency=10)
    for _ in range(n):
        async with limiter.request(tokens=1500):
            pass


async def ours_crowded(n: int) -> None:
    limiter = RateLimiter(requests=PLENTY, concurrency=10)

    async def work() -> None:
        for _ in range(n // 100):
            async with limiter.request():
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(work)


async def ours_keyed(n: int) -> None:
    config = RateLimitConfig(1, 1.0, HUGE)  # no key is idle
    users = KeyedLimiter[str, AsyncTokenBucket](lambda _: AsyncTokenBucket(config))
    for _ in range(n // len(KEYS)):
        for key in KEYS:
            await users[key].acquire()


async def aiolimiter(n: int) -> None:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(HUGE, 1.0)
    for _ in range(n):
        await limiter.acquire()


def limits_of(strategy: str) -> Any:
    from limits.aio import storage, strategies

    return getattr(strategies, strategy)(storage.MemoryStorage())


def limits(strategy: str, keys: list[str]) -> Work:
    async def run(n: int) -> None:
        from limits import RateLimitItemPerSecond

        limiter, item = limits_of(strategy), RateLimitItemPerSecond(HUGE)
        for _ in range(n // len(keys)):
            for key in keys:
                await limiter.hit(item, key)

    return run


def throttled_of(kind: str) -> Any:
    from throttled.asyncio import MemoryStore, Throttled, rate_limiter

    store = MemoryStore(options={"MAX_SIZE": max(COUNTS.values())})
    return Throttled(using=kind, quota=rate_limiter.per_sec(HUGE, burst=HUGE), store=store)


def throttled(kind: str, keys: list[str]) -> Work:
    async def run(n: int) -> None:
        limiter = throttled_of(kind)
        for _ in range(n // len(keys)):
            for key in keys:
                await limiter.limit(key)

    return run


ONE = ["one"]

WORKLOADS: dict[str, Rivals] = {
    "acquire, token bucket": {
        OURS: ours(lambda: AsyncTokenBucket(PLENTY)),
        "aiolimiter": aiolimiter,
        "limits": limits("FixedWindowRateLimiter", ONE),
        "throttled-py": throttled("token_bucket", ONE),
    },
    "acquire, sliding counter": {
        OURS: ours(lambda: AsyncSlidingWindow(PLENTY, exact=False)),
        "limits": limits("SlidingWindowCounterRateLimiter", ONE),
        "throttled-py": throttled("sliding_window", ONE),
    },
    "acquire, sliding log": {OURS: ours(lambda: AsyncSlidingWindow(PLENTY))},
    "try_acquire": {OURS: ours_try},
    "acquire, 1000 keys": {
        OURS: ours_keyed,
        "limits": limits("FixedWindowRateLimiter", KEYS),
        "throttled-py": throttled("token_bucket", KEYS),
    },
    "request, 2 limits and a permit": {OURS: ours_request},
    "request, 100 tasks for 10 permits": {OURS: ours_crowded},
}

AIMS = {"acquire, token bucket": Aim("aiolimiter", 1)}


# Memory.


async def weigh(rival: str, count: int) -> None:
    keys = [f"user:{number}" for number in range(count)]
    scales = Scales(traced=False)
    if rival == OURS:
        config = RateLimitConfig(10, 3600.0)
        users = KeyedLimiter[str, AsyncTokenBucket](lambda _: AsyncTokenBucket(config))
        scales.begin()
        for key in keys:
            await users[key].acquire()
        kept: Any = users
        assert len(users) == count
    elif rival == "limits":
        from limits import RateLimitItemPerHour

        kept, item = limits_of("FixedWindowRateLimiter"), RateLimitItemPerHour(10)
        scales.begin()
        for key in keys:
            await kept.hit(item, key)
    else:
        kept = throttled_of("token_bucket")
        scales.begin()
        for key in keys:
            await kept.limit(key)
    print(json.dumps(scales.per(count)), flush=True)


def measure(name: str, loop: str) -> Result:
    result = Result("limiters", name, loop, unit="B")
    for rival, count in COUNTS.items():
        command = [sys.executable, "-m", "bench.limiters", rival, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            result.failures[rival] = done.stderr.strip().rpartition("\n")[2]
        else:
            result.figures[rival] = float(json.loads(done.stdout))
    result.compare()
    return result


MEASURES: dict[str, Callable[[str, str], Result]] = {"bytes of a key, of a million": measure}


if __name__ == "__main__":
    anyio.run(weigh, sys.argv[1], int(sys.argv[2]))
