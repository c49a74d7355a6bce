"""The tasks of a blocking pool: counts by status, remembered tasks, and threads that wait for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from cuelight.errors import DeadlockError, TaskCancelled
from cuelight.pools._results import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools._threads._job import Job


class JobTable:
    """The pool makes every change under the lock. The waiting methods take the lock themselves; any code may call them.

    The lock is reentrant, because a signal handler, or user code that the garbage collector runs, may interrupt a step
    in the same thread. `check_free` refuses calls of such code.

    Attributes:
        jobs: the remembered tasks, in the order of submission.
        counts: numbers of tasks by status, including forgotten tasks.
        unfinished: number of tasks that have not ended.
        open: number of kept tasks that have not ended.
        failures: number of kept tasks that have failed.
        discarded: values to drop after the step, outside of the lock.
        is_inside: whether this thread is in the middle of a step.
    """

    def __init__(self, keep: int | None) -> None:
        self.lock = threading.RLock()
        lock: Any = self.lock
        self.is_inside: Callable[[], bool] = lock._is_owned
        self.jobs: dict[str, Job] = {}
        # Keyed by text, because hashing a member of an enumeration takes a call.
        self.counts = {status.value: 0 for status in TaskStatus}
        self.unfinished = self.open = self.failures = 0
        self.discarded: list[object] = []
        self._keep = keep
        self._ended: deque[str] = deque()
        self._table_waiters: list[_TableWaiter] = []

    def check_free(self) -> None:
        """Check that this thread is not in the middle of a step of this pool.

        Raises:
            DeadlockError: the caller is a signal handler or finaliser that has interrupted a step of the pool.
        """
        if self.is_inside():
            raise DeadlockError(
                "a signal handler or a finaliser has interrupted this pool in the middle of a step and calls it: "
                "set an event there, and call the pool from a thread"
            )

    def inherit(self, other: JobTable) -> None:
        """In a forked process: copy the tasks of the parent; unfinished ones are cancelled here, and go on there."""
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
        # No call in between, so an interrupt comes before all these lines or after them.
        self.counts[job.status._value_] += 1
        self.unfinished += 1
        job.id = job_id
        if job.kept:
            self.jobs[job_id] = job
            self.open += 1

    def move(self, job: Job, status: TaskStatus) -> None:
        """Change the status of a task that has not ended."""
        self.counts[job.status._value_] -= 1
        self.counts[status._value_] += 1
        job.status = status

    def end(self, job: Job, status: TaskStatus) -> None:
        """Record the end of a task, and wake the threads that wait for it."""
        now = time.time()
        waiters, job.waiters = job.waiters, ()
        # No call in between, so an interrupt comes before all these lines or after them.
        self.counts[job.status._value_] -= 1
        self.counts[status._value_] += 1
        job.status = status
        self.unfinished -= 1
        if job.kept:
            self.open -= 1
            self.failures += status is TaskStatus.FAILED
        job.runner, job.ended = None, now
        self.discarded.append(job.let_go())
        self._forget_oldest(job)
        for wake_lock in waiters:
            wake_lock.release()
        if self._table_waiters:
            for watcher in [watcher for watcher in self._table_waiters if watcher.satisfied()]:
                self._table_waiters.remove(watcher)
                watcher.wake_lock.release()

    def _forget_oldest(self, ended: Job) -> None:
        if self._keep is not None and ended.kept:
            self._ended.append(ended.id)
            while len(self._ended) > self._keep:  # more than one, after a fork
                self.discarded.append(self.jobs.pop(self._ended.popleft(), None))

    @property
    def waiting(self) -> int:
        """Number of tasks that wait for a thread, or for their next attempt."""
        return self.counts[TaskStatus.PENDING.value] + self.counts[TaskStatus.SCHEDULED.value]

    def take_discarded(self) -> list[object]:
        """Return values to drop after the lock is released, because dropping them may run user code."""
        discarded, self.discarded = self.discarded, []
        return discarded

    # Waiting.

    def wait_for(self, job: Job, timeout: float | None) -> bool:
        """Block until a task has ended or the time is up. Returns whether the task has ended."""
        with self.lock:
            if job.ended is not None:
                return True
            wake_lock = _held_lock()
            job.waiters = (*job.waiters, wake_lock)
        try:
            return wake_lock.acquire(timeout=_seconds(timeout))
        finally:
            with self.lock:
                job.waiters = tuple(waiter for waiter in job.waiters if waiter is not wake_lock)

    def wait_until(self, satisfied: Callable[[], bool], timeout: float | None) -> bool:
        """Block until the condition holds or the time is up. Returns whether it holds. It is called under the lock."""
        with self.lock:
            if satisfied():
                return True
            watcher = _TableWaiter(satisfied)
            self._table_waiters.append(watcher)
        try:
            return watcher.wake_lock.acquire(timeout=_seconds(timeout))
        finally:
            with self.lock:
                if watcher in self._table_waiters:
                    self._table_waiters.remove(watcher)


class _TableWaiter:
    """A thread that waits for a state of the whole table."""

    def __init__(self, satisfied: Callable[[], bool]) -> None:
        self.satisfied = satisfied
        self.wake_lock = _held_lock()


def _held_lock() -> threading.Lock:
    """A held lock: one thread waits for it, another thread releases it."""
    wake_lock = threading.Lock()
    wake_lock.acquire()
    return wake_lock


def _seconds(timeout: float | None) -> float:
    """The time-out in the form that `Lock.acquire` takes."""
    return -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
