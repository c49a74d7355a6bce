"""taskiq: a stream, or a list with the variant "list"."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq.api import run_receiver_task
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run

# With the default id, "$", the stream hides messages sent before its first worker from this worker.
broker = (
    ListQueueBroker(SETTINGS.url) if SETTINGS.variant == "list" else RedisStreamBroker(SETTINGS.url, consumer_id="0")
)


@broker.task
async def nothing(item: int) -> None:
    do_nothing(item)


@broker.task
async def slow(item: int) -> None:
    await do_slowly(item)


def work() -> None:
    run(lambda: run_receiver_task(broker, max_async_tasks=SETTINGS.concurrency, run_startup=True))


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    await broker.startup()
    yield Sender(nothing.kiq, slow.kiq)
    await broker.shutdown()
