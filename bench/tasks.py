"""A durable queue in one SQLite file: filled task by task and in batches, and drained by one worker process.

Every store, ours and the peers', syncs its file before it acknowledges (`synchronous=FULL`). DBOS stores more about
each step than a queue needs, so it is measured with few tasks.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

from bench._harness import Aim, Rivals
from cuelight.tasks import MemoryStore, SQLiteStore, Task, TaskQueue, TaskWorker, task

BATCH, CONCURRENCY, THREADS, FEW = 100, 100, 8, 200


@contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="bench"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


# Ours.


class Countdown:
    def __init__(self, n: int) -> None:
        self.left = n
        self.over = anyio.Event()

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


def tasks(n: int) -> list[Task]:
    return [Task(task_type="nothing", payload={"args": [item]}) for item in range(n)]


async def enqueue_one_by_one(n: int) -> float:
    with folder() as where:
        async with TaskQueue(SQLiteStore(where / "queue.db"), max_length=n) as queue:
            todo = tasks(n)
            started = perf_counter()
            for one in todo:
                await queue.enqueue(one)
            return perf_counter() - started


async def enqueue_in_batches(n: int) -> float:
    with folder() as where:
        async with TaskQueue(SQLiteStore(where / "queue.db"), max_length=n) as queue:
            todo = tasks(n)
            started = perf_counter()
            for first in range(0, n, BATCH):
                assert all(await queue.enqueue_many(todo[first : first + BATCH]))
            return perf_counter() - started


async def enqueue_at_once(n: int) -> float:
    with folder() as where:
        async with (
            TaskQueue(SQLiteStore(where / "queue.db"), max_length=n) as queue,
            anyio.create_task_group() as group,
        ):

            async def produce(todo: list[Task]) -> None:
                for one in todo:
                    await queue.enqueue(one)

            todo = tasks(n)
            started = perf_counter()
            for start in range(BATCH):
                group.start_soon(produce, todo[start::BATCH])
        return perf_counter() - started


async def drain(queue: TaskQueue, n: int) -> float:
    countdown = Countdown(n)

    @task(name="nothing")
    async def nothing(item: int) -> None:
        countdown.count()

    async with queue:
        for first in range(0, n, 1000):
            await queue.enqueue_many([nothing.task(item) for item in range(first, min(n, first + 1000))])
        started = perf_counter()
        async with TaskWorker(queue, [nothing], concurrency=CONCURRENCY):
            await countdown.over.wait()
        took = perf_counter() - started  # the worker has ended, so the last tasks are settled too
        size = await queue.size()
        assert size.completed == n, size
    return took


async def drain_sqlite(n: int) -> float:
    with folder() as where:
        return await drain(TaskQueue(SQLiteStore(where / "queue.db"), max_length=n), n)


async def drain_memory(n: int) -> float:
    return await drain(TaskQueue(MemoryStore(), max_length=n), n)


# huey.


@contextmanager
def huey_queue() -> Iterator[Any]:
    from huey import SqliteHuey

    with folder() as where:
        yield SqliteHuey("bench", filename=str(where / "huey.db"), fsync=True, results=False)


def huey_enqueue(n: int) -> float:
    with huey_queue() as huey:

        @huey.task()
        def nothing(item: int) -> None:
            pass

        started = perf_counter()
        for item in range(n):
            nothing(item)
        return perf_counter() - started


def huey_drain(n: int) -> float:
    with huey_queue() as huey:
        over = threading.Event()
        lock = threading.Lock()
        left = n

        @huey.task()
        def nothing(item: int) -> None:
            nonlocal left
            with lock:
                left -= 1
                if not left:
                    over.set()

        for item in range(n):
            nothing(item)
        consumer = huey.create_consumer(workers=THREADS, periodic=False, check_worker_health=False)
        started = perf_counter()
        consumer.start()
        over.wait()
        took = perf_counter() - started
        consumer.stop(graceful=True)
        return took


# DBOS.


def dbos_drain(n: int) -> float:
    from dbos import DBOS

    with folder() as where:
        DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{where / 'dbos.db'}", "log_level": "CRITICAL"})

        @DBOS.workflow()
        def nothing(item: int) -> None:
            pass

        DBOS.launch()
        DBOS.register_queue("bench", worker_concurrency=CONCURRENCY)
        try:
            started = perf_counter()
            for handle in [DBOS.enqueue_workflow("bench", nothing, item) for item in range(FEW)]:
                handle.get_result()
            return (perf_counter() - started) * n / FEW
        finally:
            DBOS.destroy(destroy_registry=True)


WORKLOADS: dict[str, Rivals] = {
    "SQLite, enqueue one by one": {"cuelight": enqueue_one_by_one, "huey": huey_enqueue},
    "SQLite, enqueue, 100 producers": {"cuelight": enqueue_at_once, "huey": huey_enqueue},
    "SQLite, enqueue in batches of 100": {"cuelight": enqueue_in_batches, "huey": huey_enqueue},
    "SQLite, drained by one worker": {"cuelight": drain_sqlite, "huey": huey_drain, "DBOS": dbos_drain},
    "memory, drained by one worker": {"cuelight": drain_memory},
}

AIMS = {
    "SQLite, enqueue one by one": Aim("huey", 0.3),
    "SQLite, enqueue in batches of 100": Aim("huey", 3),
    "SQLite, drained by one worker": Aim("huey", 3),
}
