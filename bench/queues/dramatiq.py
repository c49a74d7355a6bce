"""dramatiq: threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly_in_a_thread, wait_for_the_end

broker = RedisBroker(url=SETTINGS.url)
dramatiq.set_broker(broker)
nothing = dramatiq.actor(do_nothing)
slow = dramatiq.actor(do_slowly_in_a_thread)


def work() -> None:
    worker = dramatiq.Worker(broker, worker_threads=SETTINGS.concurrency)
    worker.start()
    wait_for_the_end()
    worker.stop()


@contextmanager
def producer() -> Iterator[Sender]:
    yield Sender(nothing.send, slow.send)
