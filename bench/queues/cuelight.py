"""Cuelight, on any loop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run
from cuelight.redis import RedisStore
from cuelight.tasks import TaskQueue, TaskWorker, task


@task(name="nothing")
async def nothing(item: int) -> None:
    do_nothing(item)


@task(name="slow")
async def slow(item: int) -> None:
    await do_slowly(item)


def opened() -> TaskQueue:
    return TaskQueue(RedisStore(SETTINGS.url), max_length=1_000_000)


def work() -> None:
    async def until_asked_to_end() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with opened() as queue, TaskWorker(queue, [nothing, slow], concurrency=SETTINGS.concurrency):
                async for _ in signals:
                    return

    run(until_asked_to_end)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    async with opened() as queue:
        yield Sender(
            lambda item: queue.send(nothing, item),
            lambda item: queue.send(slow, item),
            lambda items: queue.enqueue_many([nothing.task(item) for item in items]),
        )
