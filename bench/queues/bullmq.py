"""BullMQ's own port to Python."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bullmq import Queue, Worker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run


async def process(job: Any, token: str) -> None:
    if job.name == "slow":
        await do_slowly(job.data["item"])
    else:
        do_nothing(job.data["item"])


def work() -> None:
    async def forever() -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        worker = Worker("bench", process, {"connection": SETTINGS.url, "concurrency": SETTINGS.concurrency})
        await over.wait()
        await worker.close()

    run(forever)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    queue = Queue("bench", {"connection": SETTINGS.url})
    yield Sender(
        lambda item: queue.add("nothing", {"item": item}),
        lambda item: queue.add("slow", {"item": item}),
        lambda items: queue.addBulk([{"name": "nothing", "data": {"item": item}} for item in items]),
    )
    await queue.close()
