"""The tasks of a blocking pool: how many are where, which are remembered, and who waits for them."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from cuelight.pools._results import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools._job import Job

__all__ = ["Board"]


class Board:
    """Every change is made under the lock, by the crew. The waiting methods are for anybody, and take it themselves.

    Attributes:
        jobs: the tasks that are remembered, in the order of submission.
        counts: tasks by status, those that were forgotten included.
        unfinished: tasks that have not ended.
        open: those of them that are kept.
        failures: kept tasks that have failed.
    """

    def __init__(self, keep: int | None) -> None:
        self.lock = threading.Lock()
        self.jobs: dict[str, Job] = {}
        self.counts = dict.fromkeys(TaskStatus, 0)
        self.unfinished = self.open = self.failures = 0
        self._keep = keep
        self._ended: deque[str] = deque()
        self._watchers: list[_Watcher] = []

    # Under the lock.

    def enter(self, job: Job) -> None:
        """A new task."""
        self.counts[job.status] += 1
        self.unfinished += 1
        if job.kept:
            self.jobs[job.id] = job
            self.open += 1

    def move(self, job: Job, status: TaskStatus) -> None:
        """A task that has not ended is somewhere else now."""
        self.counts[job.status] -= 1
        self.counts[status] += 1
        job.status = status

    def end(self, job: Job, status: TaskStatus) -> None:
        """A task has ended: tell whoever waits for that."""
        self.move(job, status)
        job.end()
        self.unfinished -= 1
        if job.kept:
            self.open -= 1
            self.failures += status is TaskStatus.FAILED
            if self._keep is not None:
                self._ended.append(job.id)
                if len(self._ended) > self._keep:
                    del self.jobs[self._ended.popleft()]
        waiters, job.waiters = job.waiters, ()
        for baton in waiters:
            baton.release()
        if self._watchers:
            for watcher in [watcher for watcher in self._watchers if watcher.satisfied()]:
                self._watchers.remove(watcher)
                watcher.baton.release()

    # Waiting.

    def wait_for(self, job: Job, timeout: float | None) -> bool:
        """Block until a task has ended; whether it has."""
        with self.lock:
            if job.ended is not None:
                return True
            baton = _baton()
            job.waiters = (*job.waiters, baton)
        try:
            return baton.acquire(timeout=_seconds(timeout))
        finally:
            with self.lock:
                job.waiters = tuple(waiter for waiter in job.waiters if waiter is not baton)

    def wait_until(self, satisfied: Callable[[], bool], timeout: float | None) -> bool:
        """Block until the board is in some state; whether it is. The condition is called under the lock."""
        with self.lock:
            if satisfied():
                return True
            watcher = _Watcher(satisfied)
            self._watchers.append(watcher)
        try:
            return watcher.baton.acquire(timeout=_seconds(timeout))
        finally:
            with self.lock:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)


class _Watcher:
    """Somebody who waits for a state of the board as a whole."""

    def __init__(self, satisfied: Callable[[], bool]) -> None:
        self.satisfied = satisfied
        self.baton = _baton()


def _baton() -> threading.Lock:
    """What one thread waits for and another lets go of."""
    baton = threading.Lock()
    baton.acquire()
    return baton


def _seconds(timeout: float | None) -> float:
    """A time-out as locks take it."""
    return -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
