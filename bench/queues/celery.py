"""Celery: a pool of processes, its default, or with the variants "threads" or "acks_late"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery

from bench.queues._program import SETTINGS, Sender, do_nothing, do_slowly_in_a_thread

app = Celery("bench", broker=SETTINGS.url)
app.conf.task_acks_late = SETTINGS.variant == "acks_late"
app.conf.broker_connection_retry_on_startup = True
nothing = app.task(name="nothing")(do_nothing)
slow = app.task(name="slow")(do_slowly_in_a_thread)


def work() -> None:
    pool = "threads" if SETTINGS.variant == "threads" else "prefork"
    app.worker_main(["worker", f"--pool={pool}", f"--concurrency={SETTINGS.concurrency}", "--loglevel=WARNING"])


@contextmanager
def producer() -> Iterator[Sender]:
    yield Sender(nothing.delay, slow.delay)
