"""The options and the statistics of a worker."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._checks import check_seconds
from cuelight._text import safe_repr
from cuelight.tasks._arguments import string_given
from cuelight.tasks._worker._failure import RETRIES
from cuelight.tasks._worker._handlers import Handlers, TaskHandlers, task_handlers_of
from cuelight.tasks._worker._lease_keeper import Heartbeat

if TYPE_CHECKING:
    from cuelight.pools._functions import Kind
    from cuelight.supervision import Backoff
    from cuelight.tasks._stores._protocol import Finish

THREADS = 32


class WorkerOptions(msgspec.Struct, frozen=True):
    """The checked arguments of `TaskWorker`.

    Attributes:
        slots: the maximum number of concurrent tasks: `concurrency`, or at most the number of threads if all functions
            are plain.
    """

    worker_id: str
    handlers: TaskHandlers
    slots: int
    threads: int
    lease: float
    timeout: float | None
    kind: Kind | None
    backoff: Backoff
    shutdown_timeout: float
    heartbeat: Heartbeat


@dataclass(slots=True)
class WorkerStats:
    """Totals of a worker since it was created.

    Attributes:
        processed: attempts that ended.
        succeeded: attempts that completed their task.
        failed: attempts that raised, timed out, lost their process or could not be called.
        cancelled: attempts whose task was cancelled.
        rate_limited: attempts that raised `RateLimited`.
        released: tasks that were given back, started or not, and tasks whose arguments did not fit.
        unknown: tasks that were parked because no handler knows their type.
        lease_lost: attempts that were cancelled, or whose finish was rejected, because another worker may have the
            task.
        running: attempts that are running now.
        waiting: tasks that were claimed and have not started yet.
        unsent: attempts that ended and that the store has not acknowledged yet.
        last_claim: when the store last answered a claim, in seconds since the epoch by its clock; 0 before that. A
            healthy worker claims every few seconds, even if there are no tasks.
        away: whether the store did not answer the last call.
        abandoned: threads that were abandoned after a time-out and still run.
        replaced: threads and processes that were replaced.
    """

    processed: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rate_limited: int = 0
    released: int = 0
    unknown: int = 0
    lease_lost: int = 0
    running: int = 0
    waiting: int = 0
    unsent: int = 0
    last_claim: float = 0.0
    away: bool = False
    abandoned: int = 0
    replaced: int = 0


class WorkerCounters(WorkerStats):
    """The totals with a method to count."""

    __slots__ = ()

    def count(self, finish: Finish | None) -> None:
        """Count an attempt that has ended; None means that its lease was lost."""
        kind = "lost" if finish is None else finish.kind
        if kind == "released":
            self.released += 1
            return
        self.processed += 1
        if kind == "done":
            self.succeeded += 1
        elif kind == "cancelled":
            self.cancelled += 1
        elif kind == "rate_limited":
            self.rate_limited += 1
        elif kind == "lost":
            self.lease_lost += 1
        else:
            self.failed += 1


def options_of(
    handlers: Handlers,
    handler: Callable[..., Any] | None,
    *,
    worker_id: str | None,
    concurrency: int,
    threads: int | None,
    lease: float,
    timeout: float | None,
    kind: Kind | None,
    backoff: Backoff | None,
    shutdown_timeout: float,
    heartbeat: Heartbeat,
) -> WorkerOptions:
    """Check the arguments of a worker.

    Raises:
        ValueError: a value is invalid; the message names it and the accepted values.
        TypeError: a handler cannot run tasks.
    """
    numbers: dict[str, Any] = {"concurrency": concurrency, "threads": 1 if threads is None else threads}
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}={safe_repr(number)}: give a whole number, 1 or more")
    if not 0 < check_seconds("TaskWorker(lease)", lease) < inf:
        raise ValueError(f"lease={lease!r}: give more than 0 seconds, such as 15")
    if timeout is not None and not 0 < check_seconds("TaskWorker(timeout)", timeout) < inf:
        raise ValueError(f"timeout={timeout!r}: give more than 0 seconds, or None for as long as it takes")
    if not 0 <= check_seconds("TaskWorker(shutdown_timeout)", shutdown_timeout) < inf:
        raise ValueError(f"shutdown_timeout={shutdown_timeout!r}: give seconds, 0 or more")
    for name, value, choices in (
        ("kind", kind, (None, "thread", "process")),
        ("heartbeat", heartbeat, ("thread", "loop")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={safe_repr(value)}: give one of {', '.join(map(repr, choices))}")
    if worker_id is not None:
        string_given("TaskWorker(worker_id)", worker_id)
    delays: Any = backoff
    if delays is not None and not callable(getattr(delays, "delay", None)):
        raise TypeError(f"TaskWorker(backoff={safe_repr(delays)}): give a Backoff, such as Backoff(maximum=60)")
    if worker_id == "":
        raise ValueError("worker_id='': give it some characters, or leave it out")
    checked = task_handlers_of(handlers, handler)
    most = threads if threads is not None else (os.cpu_count() or 1) if kind == "process" else THREADS
    return WorkerOptions(
        worker_id=worker_id or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}",
        handlers=checked,
        slots=concurrency if checked.in_loop else min(concurrency, most),
        threads=most,
        lease=float(lease),
        timeout=None if timeout is None else float(timeout),
        kind=kind,
        backoff=RETRIES if backoff is None else backoff,
        shutdown_timeout=shutdown_timeout,
        heartbeat=heartbeat,
    )
