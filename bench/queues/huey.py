"""huey: threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huey import RedisHuey

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly_in_a_thread

huey = RedisHuey("bench", url=SETTINGS.url)
nothing = huey.task()(do_nothing)
slow = huey.task()(do_slowly_in_a_thread)


def work() -> None:
    huey.create_consumer(workers=SETTINGS.concurrency, graceful_signal="TERM").run()


@contextmanager
def producer() -> Iterator[Sender]:
    yield Sender(nothing, slow)
