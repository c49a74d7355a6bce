"""The tasks of a blocking pool: how many are where, which are remembered, and who waits for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from cuelight.errors import DeadlockError, TaskCancelled
from cuelight.pools._results import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools._job import Job

__all__ = ["Board"]


class Board:
    """Every change is made under the lock, by the crew. The waiting methods are for anybody, and take it themselves.

    The lock can be taken again by the thread that has it, because a signal handler, or the garbage collector with code
    of users, may run in the middle of a step. Such code is refused (`check_free`) rather than let in.

    Attributes:
        jobs: the tasks that are remembered, in the order of submission.
        counts: tasks by status, those that were forgotten included.
        unfinished: tasks that have not ended.
        open: those of them that are kept.
        failures: kept tasks that have failed.
        spent: values to drop after the step, outside of the lock.
        is_inside: whether this thread is in the middle of a step.
    """

    def __init__(self, keep: int | None) -> None:
        self.lock = threading.RLock()
        lock: Any = self.lock
        self.is_inside: Callable[[], bool] = lock._is_owned
        self.jobs: dict[str, Job] = {}
        # By their texts: to hash a member of an enumeration takes a call.
        self.counts = {status.value: 0 for status in TaskStatus}
        self.unfinished = self.open = self.failures = 0
        self.spent: list[object] = []
        self._keep = keep
        self._ended: deque[str] = deque()
        self._watchers: list[_Watcher] = []

    def check_free(self) -> None:
        """Check that no step of this board is under way in this thread.

        Raises:
            DeadlockError: the caller is a signal handler or a finaliser that has interrupted the pool itself.
        """
        if self.is_inside():
            raise DeadlockError(
                "a signal handler or a finaliser has interrupted this pool in the middle of a step and calls it: "
                "set an event there, and call the pool from a thread"
            )

    def inherit(self, other: Board) -> None:
        """In a forked process: remember what was remembered there. What has not ended goes on there alone."""
        for state in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED):
            self.counts[state._value_] = other.counts[state._value_]
        self.failures, self._ended = other.failures, deque(other._ended)
        for job in list(other.jobs.values()):
            if job.ended is None:
                job.error = TaskCancelled(f"the task {job.name!r} is one of the process that has forked this one")
                job.status, job.ended, job.runner = TaskStatus.CANCELLED, time.time(), None
                self.counts[job.status._value_] += 1
                job.let_go()
                if self._keep is not None:
                    self._ended.append(job.id)
            self.jobs[job.id] = job

    # Under the lock.

    def enter(self, job: Job, job_id: str) -> None:
        """A new task."""
        # No call in between: an interrupt comes before all of this, or after it.
        self.counts[job.status._value_] += 1
        self.unfinished += 1
        job.id = job_id
        if job.kept:
            self.jobs[job_id] = job
            self.open += 1

    def move(self, job: Job, status: TaskStatus) -> None:
        """A task that has not ended is somewhere else now."""
        self.counts[job.status._value_] -= 1
        self.counts[status._value_] += 1
        job.status = status

    def end(self, job: Job, status: TaskStatus) -> None:
        """A task has ended: tell whoever waits for that."""
        now = time.time()
        waiters, job.waiters = job.waiters, ()
        # No call in between: an interrupt comes before all of this, or after it.
        self.counts[job.status._value_] -= 1
        self.counts[status._value_] += 1
        job.status = status
        self.unfinished -= 1
        if job.kept:
            self.open -= 1
            self.failures += status is TaskStatus.FAILED
        job.runner, job.ended = None, now
        self.spent.append(job.let_go())
        self._forget_oldest(job)
        for baton in waiters:
            baton.release()
        if self._watchers:
            for watcher in [watcher for watcher in self._watchers if watcher.satisfied()]:
                self._watchers.remove(watcher)
                watcher.baton.release()

    def _forget_oldest(self, ended: Job) -> None:
        if self._keep is not None and ended.kept:
            self._ended.append(ended.id)
            while len(self._ended) > self._keep:  # more than one, after a fork
                self.spent.append(self.jobs.pop(self._ended.popleft(), None))

    @property
    def waiting(self) -> int:
        """Tasks that do not run now: they wait for a thread, or for their next attempt."""
        return self.counts[TaskStatus.PENDING.value] + self.counts[TaskStatus.SCHEDULED.value]

    def take_spent(self) -> list[object]:
        """Values to drop after the lock is released: dropping them may run code of users."""
        spent, self.spent = self.spent, []
        return spent

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
