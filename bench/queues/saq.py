"""SAQ; the variant "retries" tries each task up to three times, the default only once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue, Worker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run

OPTIONS = {"retries": 3} if SETTINGS.variant == "retries" else {}


async def nothing(context: Any, *, item: int) -> None:
    do_nothing(item)


async def slow(context: Any, *, item: int) -> None:
    await do_slowly(item)


def work() -> None:
    async def start() -> None:
        queue = Queue.from_url(SETTINGS.url)
        await Worker(queue, functions=[nothing, slow], concurrency=SETTINGS.concurrency).start()

    run(start)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    queue = Queue.from_url(SETTINGS.url)
    await queue.connect()
    yield Sender(
        lambda item: queue.enqueue("nothing", item=item, **OPTIONS),
        lambda item: queue.enqueue("slow", item=item, **OPTIONS),
    )
    await queue.disconnect()
