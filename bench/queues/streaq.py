"""streaq, on any loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run

worker: Worker[None] = Worker(redis_url=SETTINGS.url, concurrency=SETTINGS.concurrency)


@worker.task
async def nothing(item: int) -> None:
    do_nothing(item)


@worker.task
async def slow(item: int) -> None:
    await do_slowly(item)


def work() -> None:
    run(worker.run_async)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    async def one(item: int) -> None:
        await nothing.enqueue(item)

    async def a_slow_one(item: int) -> None:
        await slow.enqueue(item)

    async def many(items: list[int]) -> None:
        await worker.enqueue_many([nothing.enqueue(item) for item in items])

    async with worker:
        yield Sender(one, a_slow_one, many)
