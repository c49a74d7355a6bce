"""RQ: a process for each task; the variant "simple" runs them in the process of the worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from rq import Queue, SimpleWorker, Worker
from rq.worker_pool import WorkerPool

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly_in_a_thread

connection = Redis.from_url(SETTINGS.url)
queue = Queue("bench", connection=connection)


def work() -> None:
    if SETTINGS.variant == "simple":
        SimpleWorker([queue], connection=connection).work(logging_level="WARNING")
    elif SETTINGS.concurrency == 1:
        Worker([queue], connection=connection).work(logging_level="WARNING")
    else:
        WorkerPool([queue], connection=connection, num_workers=SETTINGS.concurrency).start(logging_level="WARNING")


@contextmanager
def producer() -> Iterator[Sender]:
    def many(items: list[int]) -> None:
        queue.enqueue_many([Queue.prepare_data(do_nothing, (item,)) for item in items])

    yield Sender(
        lambda item: queue.enqueue(do_nothing, item), lambda item: queue.enqueue(do_slowly_in_a_thread, item), many
    )
