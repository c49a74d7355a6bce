"""Maps of functions that do nothing over many items: in the loop, in threads and in processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import anyio

from bench._harness import Aim, Rivals
from cuelight.pools import AsyncWorkerPool, WorkerPool, WorkerPoolConfig

WORKERS, THREADS, PROCESSES, CHUNK = 100, 8, 2, 100


async def nothing(item: int) -> int:
    return item


def plain(item: int) -> int:
    return item


@contextmanager
def all_cores() -> Iterator[None]:
    """Use all cores: a benchmark otherwise keeps to one core, and processes need more."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    kept = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, kept)


# In the loop.


async def pool_map(n: int) -> float:
    async with AsyncWorkerPool(max_workers=WORKERS) as pool:
        started = perf_counter()
        results = await pool.map(nothing, range(n))
        took = perf_counter() - started
    assert len(results) == n
    assert results[-1].result == n - 1
    return took


async def pool_stream(n: int) -> float:
    async with AsyncWorkerPool(max_workers=WORKERS) as pool:
        started = perf_counter()
        seen = 0
        async for result in pool.map(nothing, range(n)):
            seen += result.success
        took = perf_counter() - started
    assert seen == n
    return took


async def gather(n: int) -> float:
    semaphore = asyncio.Semaphore(WORKERS)

    async def one(item: int) -> int:
        async with semaphore:
            return await nothing(item)

    started = perf_counter()
    results = await asyncio.gather(*(one(item) for item in range(n)))
    assert len(results) == n
    return perf_counter() - started


async def limiter(n: int) -> float:
    limit = anyio.CapacityLimiter(WORKERS)
    results = [0] * n

    async def one(item: int) -> None:
        async with limit:
            results[item] = await nothing(item)

    started = perf_counter()
    async with anyio.create_task_group() as group:
        for item in range(n):
            group.start_soon(one, item)
    return perf_counter() - started


async def aiometer(n: int) -> float:
    import aiometer

    started = perf_counter()
    results = await aiometer.run_on_each(nothing, range(n), max_at_once=WORKERS)
    assert results is None
    return perf_counter() - started


# In threads and processes.


def in_pool(kind: str, workers: int) -> Callable[[int], Awaitable[float]]:
    async def run(n: int) -> float:
        with all_cores():
            async with AsyncWorkerPool(max_workers=workers, kind=kind) as pool:
                await pool.map(plain, range(1000))  # starts all workers
                started = perf_counter()
                results = await pool.map(plain, range(n))
                took = perf_counter() - started
        assert results[-1].result == n - 1
        return took

    return run


def in_executor(make: Callable[[], Any], **options: int) -> Callable[[int], float]:
    def run(n: int) -> float:
        with all_cores(), make() as executor:
            list(executor.map(plain, range(1000), **options))
            started = perf_counter()
            results = list(executor.map(plain, range(n), **options))
            took = perf_counter() - started
        assert results[-1] == n - 1
        return took

    return run


def threads() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(THREADS)


def processes() -> Any:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(PROCESSES)


def loky() -> Any:
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(PROCESSES)


def imap(n: int) -> float:
    from multiprocessing import get_context

    with all_cores(), get_context("spawn").Pool(PROCESSES) as pool:
        list(pool.imap(plain, range(1000), chunksize=CHUNK))
        started = perf_counter()
        results = list(pool.imap(plain, range(n), chunksize=CHUNK))
        took = perf_counter() - started
    assert results[-1] == n - 1
    return took


# Blocking code: one by one.


def worker_pool(n: int) -> float:
    with WorkerPool(WorkerPoolConfig(max_workers=THREADS)) as pool:
        started = perf_counter()
        names = [pool.submit_task("nothing", plain, (item,)) for item in range(n)]
        results = [pool.get_task_result(name) for name in names]
        took = perf_counter() - started
    assert results[-1].result == n - 1
    return took


def submit(n: int) -> float:
    with threads() as executor:
        started = perf_counter()
        futures = [executor.submit(plain, item) for item in range(n)]
        results = [future.result() for future in futures]
        took = perf_counter() - started
    assert results[-1] == n - 1
    return took


ASYNC_PEERS: Rivals = {"gather+Semaphore": gather, "aiometer": aiometer, "CapacityLimiter": limiter}

WORKLOADS: dict[str, Rivals] = {
    "map, async, 100 at a time": {"cuelight": pool_map, **ASYNC_PEERS},
    "map, async, streamed": {"cuelight": pool_stream, **ASYNC_PEERS},
    "map, 8 threads": {"cuelight": in_pool("thread", THREADS), "ThreadPoolExecutor": in_executor(threads)},
    "map, 2 processes": {
        "cuelight": in_pool("process", PROCESSES),
        "ProcessPoolExecutor, chunks": in_executor(processes, chunksize=CHUNK),
        "imap, chunks": imap,
        "loky, chunks": in_executor(loky, chunksize=CHUNK),
    },
    "submit and wait, 8 threads": {"cuelight": worker_pool, "ThreadPoolExecutor": submit},
}

AIMS = {
    "map, async, 100 at a time": Aim("gather+Semaphore", 3),
    "map, async, streamed": Aim("gather+Semaphore", 2.4),
    "map, 8 threads": Aim("ThreadPoolExecutor", 1),
    "map, 2 processes": Aim("ProcessPoolExecutor, chunks", 1),
    "submit and wait, 8 threads": Aim("ThreadPoolExecutor", 1),
}
