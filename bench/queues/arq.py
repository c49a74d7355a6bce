"""arq."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run

SERVER = RedisSettings.from_dsn(SETTINGS.url)


async def nothing(context: Any, item: int) -> None:
    do_nothing(item)


async def slow(context: Any, item: int) -> None:
    await do_slowly(item)


def work() -> None:
    async def forever() -> None:
        worker = Worker(functions=[nothing, slow], redis_settings=SERVER, max_jobs=SETTINGS.concurrency)
        try:
            await worker.async_run()
        finally:
            await worker.close()

    run(forever)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    pool = await create_pool(SERVER)
    yield Sender(lambda item: pool.enqueue_job("nothing", item), lambda item: pool.enqueue_job("slow", item))
    await pool.aclose()
