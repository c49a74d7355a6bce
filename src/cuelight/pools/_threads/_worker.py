"""A thread of a blocking pool."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

from cuelight.coordination._owner import this_thread

if TYPE_CHECKING:
    from cuelight.pools._processes._caller import ProcessCaller
    from cuelight.pools._threads._job import Job


class JobServer(Protocol):
    """The interface of the pool for a thread."""

    def serve(self, worker: Worker) -> None:
        """Run task after task in this thread."""
        ...


class Worker(threading.Thread):
    """A thread. Its fields change under the lock of the pool.

    Attributes:
        job: the task that it runs.
        deadline: time until which this task may run, by the clock of the pool.
        abandoned: whether it was abandoned with its call.
        overdue: whether its process was killed because the call took too long.
        is_extra: whether it is an extra thread, which runs only awaited tasks in the place of a waiting thread.
        parked: whether it waits for another task, so that an extra thread may take its place.
        wake_lock: the lock that it waits for when it is idle.
        lock_owner: its identity for locks and in the graph of waits; None before it runs.
    """

    def __init__(self, pool: JobServer, name: str, caller: ProcessCaller | None, *, is_extra: bool = False) -> None:
        super().__init__(name=name, daemon=True)
        self.pool, self.caller = pool, caller
        self.worker_id = name
        self.job: Job | None = None
        self.began, self.deadline = 0.0, math.inf
        self.abandoned = self.overdue = self.parked = False
        self.is_extra = is_extra
        self.wake_lock = threading.Lock()
        self.wake_lock.acquire()
        self.lock_owner: Any = None

    def run(self) -> None:
        self.lock_owner = this_thread.owner
        self.pool.serve(self)

    def attempt(self, job: Job) -> tuple[bool, Any]:
        """Call the function, in this thread or in the worker's process."""
        return job.attempt() if self.caller is None else self.caller.call(job.function, job.args, job.kwargs)


def current_worker() -> Worker | None:
    """The worker, of any pool, whose task is the caller; None if the caller is no task of a pool."""
    thread = threading.current_thread()
    return thread if isinstance(thread, Worker) else None
