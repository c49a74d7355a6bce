"""docket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from docket import Docket, Worker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly, run


async def nothing(item: int) -> None:
    do_nothing(item)


async def slow(item: int) -> None:
    await do_slowly(item)


@asynccontextmanager
async def opened() -> AsyncIterator[Docket]:
    # The default pool is too small for more than a few concurrent tasks.
    async with Docket(name="bench", url=f"{SETTINGS.url}?max_connections=1000") as docket:
        docket.register(nothing)
        docket.register(slow)
        yield docket


def work() -> None:
    async def forever() -> None:
        async with opened() as docket, Worker(docket, concurrency=SETTINGS.concurrency) as worker:
            await worker.run_forever()

    run(forever)


@asynccontextmanager
async def producer() -> AsyncIterator[Sender]:
    async with opened() as docket:
        yield Sender(
            lambda item: docket.add(nothing)(item),
            lambda item: docket.add(slow)(item),
            lambda items: docket.add_many([docket.call(nothing)(item) for item in items]),
        )
