"""Locks over Redis: acquire and release alone, by a task and by a thread; and the wait when processes contend.

Alone, each peer uses its cheapest lock. Such a lock has no lease renewal and no fencing token, while ours has both.
`python -m bench.redis_locks RIVAL URL NAME LOOP` is one of the contending processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio

from bench._harness import OURS, Aim, Result, Rivals, Workload, reason
from bench.redis_queues import server
from cuelight.redis import RedisClient, RedisLock

PROCESSES, TASKS, TURNS, HOLD = 4, 5, 15, 0.001

Opened = Callable[[str, str], AbstractAsyncContextManager[Callable[[], Any]]]
"""Connects to an address, and returns a function that makes a lock object of the given name."""


@asynccontextmanager
async def ours(url: str, name: str) -> AsyncGenerator[Callable[[], Any]]:
    async with RedisClient(url) as client:
        yield lambda: RedisLock(name, server=client)


def redis_py(sleep: float) -> Opened:
    @asynccontextmanager
    async def opened(url: str, name: str) -> AsyncGenerator[Callable[[], Any]]:
        from redis.asyncio import Redis

        async with Redis.from_url(url) as client:
            yield lambda: client.lock(name, timeout=10, sleep=sleep)

    return opened


@asynccontextmanager
async def pottery(url: str, name: str) -> AsyncGenerator[Callable[[], Any]]:
    from pottery import AIORedlock
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        yield lambda: AIORedlock(key=name, masters={client}, auto_release_time=10)


TASKS_OF: dict[str, Opened] = {OURS: ours, "redis-py": redis_py(0.1), "pottery": pottery}


def by_a_task(opened: Opened) -> Workload:
    async def run(n: int) -> float:
        async with opened(server().url, "bench") as make:
            lock = make()
            async with lock:
                pass
            begun = time.perf_counter()
            for _ in range(n):
                async with lock:
                    pass
            return time.perf_counter() - begun

    return run


def _redis_py_lock(url: str) -> Any:
    from redis import Redis

    return Redis.from_url(url).lock("bench-redis-py", timeout=10)


def _python_redis_lock(url: str) -> Any:
    from redis import Redis
    from redis_lock import Lock

    return Lock(Redis.from_url(url), "bench-python-redis-lock", expire=10)


def _redlock(url: str) -> Any:
    from pottery import Redlock
    from redis import Redis

    return Redlock(key="bench-pottery", masters={Redis.from_url(url)}, auto_release_time=10)


def by_a_thread(make: Callable[[str], Any]) -> Workload:
    def run(n: int) -> float:
        lock = make(server().url)
        with lock:
            pass
        begun = time.perf_counter()
        for _ in range(n):
            with lock:
                pass
        return time.perf_counter() - begun

    return run


WORKLOADS: dict[str, Rivals] = {
    "redis lock, alone, a task": {name: by_a_task(opened) for name, opened in TASKS_OF.items()},
    "redis lock, alone, a thread": {
        OURS: by_a_thread(lambda url: RedisLock("bench-thread", url)),
        "redis-py": by_a_thread(_redis_py_lock),
        "python-redis-lock": by_a_thread(_python_redis_lock),
        "pottery": by_a_thread(_redlock),
    },
}

AIMS = {
    "redis lock, alone, a task": Aim("redis-py", 1),
    "redis lock, alone, a thread": Aim("redis-py", 0.85),
}


# Contention.

CONTENDERS: dict[str, Opened] = {
    OURS: ours,
    "redis-py": redis_py(0.1),
    "redis-py, sleep=0.01": redis_py(0.01),
    "pottery": pottery,
}


async def contend(rival: str, url: str, name: str) -> None:
    """Run tasks of one process that contend with those of others, and print each wait."""
    waits: list[float] = []

    async def work(lock: Any) -> None:
        for _ in range(TURNS):
            asked = time.perf_counter()
            async with lock:
                waits.append(time.perf_counter() - asked)
                await anyio.sleep(HOLD)

    async with CONTENDERS[rival](url, name) as make, anyio.create_task_group() as group:
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        for _ in range(TASKS):
            group.start_soon(work, make())
    print(json.dumps(waits), flush=True)


def _waits(rival: str, loop: str) -> list[float]:
    command = [sys.executable, "-m", "bench.redis_locks", rival, server().url, f"bench {rival} {time.time_ns()}", loop]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                assert child.stderr is not None
                raise RuntimeError(child.stderr.read().strip().rpartition("\n")[2])
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        waits: list[float] = []
        for child in children:
            out, _ = child.communicate(timeout=60)
            waits += json.loads(out)
        return sorted(waits)
    finally:
        for child in children:
            child.kill()
            child.wait()


def waiting(share: float) -> Callable[[str, str], Result]:
    def measure(name: str, loop: str) -> Result:
        result = Result("redis_locks", name, loop, unit="ms")
        for rival in CONTENDERS:
            if loop == "trio" and rival != OURS:
                continue
            try:
                waits = _waits(rival, loop)
            except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
                result.failures[rival] = reason(error)
            else:
                result.figures[rival] = waits[min(len(waits) - 1, round(len(waits) * share))] * 1000
        result.compare()
        return result

    return measure


MEASURES: dict[str, Callable[[str, str], Result]] = {
    f"wait of {PROCESSES * TASKS} in {PROCESSES} processes, p50": waiting(0.50),
    f"wait of {PROCESSES * TASKS} in {PROCESSES} processes, p99": waiting(0.99),
}


if __name__ == "__main__":
    _, rival_, url_, name_, loop_ = sys.argv
    anyio.run(contend, rival_, url_, name_, backend="trio" if loop_ == "trio" else "asyncio")
