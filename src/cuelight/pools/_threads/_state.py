"""The state of a blocking pool: its tasks and threads. Every method is called under the lock of the pool."""

from __future__ import annotations

import math
import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from cuelight.errors import RateLimited, TaskCancelled
from cuelight.pools._failures import is_a
from cuelight.pools._interrupts import InterruptsHeld
from cuelight.pools._results import TaskStatus
from cuelight.pools._threads._extra_threads import ExtraThreads
from cuelight.pools._threads._job import Job, retry_delay
from cuelight.pools._threads._job_table import JobTable
from cuelight.pools._threads._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools._options import WorkerPoolConfig
    from cuelight.pools._processes._caller import ProcessCaller
    from cuelight.pools._threads._timer import TimerThread

_PENDING, _IN_FLIGHT, _SCHEDULED = TaskStatus.PENDING, TaskStatus.IN_FLIGHT, TaskStatus.SCHEDULED

NO_THREAD = 1.0
"""Seconds before the next try to start a thread after the system could not start one."""


class ThreadPoolState:
    """Tasks and threads. `ThreadPool` adds locking, the loop of a thread, and timers."""

    def __init__(
        self,
        name: str,
        config: WorkerPoolConfig,
        new_caller: Callable[[str], ProcessCaller | None],
        keep: int | None,
    ) -> None:
        self.name, self.config = name, config
        self.table = JobTable(keep)
        self.lock = self.table.lock
        self.retries: int = 0
        self.replaced: int = 0
        self.abandoned: int = 0
        self.total_run_seconds: float = 0.0
        self.threads: set[Worker] = set()
        self.idle: list[Worker] = []
        self.extra_threads = ExtraThreads()
        self.closed = self.over = False
        self.clock: Callable[[], float] = time.monotonic
        self.timer: TimerThread | None = None
        self._new_caller = new_caller
        self._started_count = 0
        self._waking = False
        self._leaving: list[Worker] = []
        self._ready: list[tuple[int, int, Job]] = []
        self._delayed: list[tuple[float, int, Job]] = []
        self._timer_due = math.inf
        self._start_failure: tuple[RuntimeError, int] | None = None

    def serve(self, worker: Worker) -> None:
        """Run task after task in this thread. Called without the lock."""
        raise NotImplementedError

    def _push(self, job: Job) -> None:
        """Put a task into the heap of tasks that wait for a thread."""
        if not job.listed:
            job.listed = True
            heappush(self._ready, (job.priority, job.sequence, job))

    def _assign_next(self, worker: Worker) -> Job | None:
        """Assign the next task to the worker. Without one, extra threads leave; others are idle unless all is over."""
        job = self.extra_threads.take() if worker.is_extra else self._pop()
        if job is not None:
            self.table.move(job, _IN_FLIGHT)
            job.worker, job.runner = worker.worker_id, worker
            if not job.began:
                job.began = time.time()
            worker.job = job
            worker.began = now = self.clock()
            worker.deadline = due = now + self.config.task_timeout_seconds
            if due < self._timer_due:
                self._set_timer(due)
        elif worker.is_extra:
            self._discard(worker)
            self._leaving = [*(one for one in self._leaving if one.is_alive()), worker]
        elif not self.over:
            self.idle.append(worker)
        return job

    def _pop(self) -> Job | None:
        ready = self._ready
        while ready:
            job = heappop(ready)[2]
            job.listed = False
            if job.status is _PENDING:  # else the task was cancelled, or an extra thread has it
                return job
        return None

    def _wake_or_start(self) -> None:
        """Wake or start a thread for a ready task, unless a thread is on its way."""
        if self._waking:
            return
        if self.idle:
            worker = self.idle[-1]
            worker.wake_lock.release()
            del self.idle[-1]  # no call in between, so no interrupt comes before the thread is woken
            self._waking = True
        elif len(self.threads) - len(self.extra_threads.threads) < self.config.max_workers:
            self._try_start_thread()
        elif self.extra_threads.awaited:
            self.start_extra_thread()

    def start_extra_thread(self) -> None:
        """Start an extra thread, if there is a task for one."""
        if self.extra_threads.wanted:
            self._try_start_thread(is_extra=True)

    def _try_start_thread(self, *, is_extra: bool = False) -> None:
        try:
            self._start_thread(is_extra=is_extra)
        except RuntimeError as error:
            self._start_failure = error, len(self.threads)  # logged outside of the lock
            self._set_timer(min(self._timer_due, self.clock() + NO_THREAD))

    def _start_thread(self, *, is_extra: bool = False) -> None:
        with InterruptsHeld():
            self._started_count += 1
            name = f"{self.name}-worker-{self._started_count}"
            worker = Worker(self, name, self._new_caller(name), is_extra=is_extra)
            self.threads.add(worker)
            if is_extra:
                self.extra_threads.threads.add(worker)
            try:
                worker.start()
            except BaseException:
                self._discard(worker)
                raise
            if not is_extra:
                self._waking = True

    def _discard(self, worker: Worker) -> None:
        self.threads.discard(worker)
        self.extra_threads.threads.discard(worker)
        self.extra_threads.unpark(worker)

    def _attempt_over(self, job: Job, error: Exception, seconds: float) -> bool:
        """Record a failed attempt. Returns True if the task has failed for good; it is then still in flight."""
        config = self.config
        job.runner = None
        job.run_seconds += seconds
        self.total_run_seconds += seconds
        delay = retry_delay(
            error, job.retries, config.max_retries, config.backoff_base_seconds, config.backoff_max_seconds
        )
        job.error = error
        if delay is None:
            return True
        if not is_a(error, RateLimited):
            job.retries += 1
            self.retries += 1
        self._try_again(job, delay)
        return False

    def _try_again(self, job: Job, delay: float) -> None:
        if delay:
            self.table.move(job, _SCHEDULED)
            due = self.clock() + delay
            heappush(self._delayed, (due, job.sequence, job))
            if due < self._timer_due:
                self._set_timer(due)
        else:
            self.table.move(job, _PENDING)
            self._push(job)

    def _fail(self, job: Job, error: Exception) -> None:
        job.error = error
        self._end(job, TaskStatus.CANCELLED if is_a(error, TaskCancelled) else TaskStatus.FAILED)

    def _end(self, job: Job, status: TaskStatus) -> None:
        self.table.end(job, status)
        if self.closed and not self.table.unfinished:
            self._finish()

    def _finish(self) -> None:
        """End all threads, because the last task has ended."""
        self.over = True
        self._leaving += self.threads
        self.threads.clear()
        for worker in self._leaving:
            if worker.wake_lock.locked():  # an idle thread wakes; a busy one looks again after its task
                worker.wake_lock.release()
        self.idle.clear()
        if self.timer is not None:
            self.timer.stop()

    def _set_timer(self, due: float) -> None:
        """Have the timer thread call `tick` at the time `due`."""
        self._timer_due = due
        if self.timer is not None:
            self.timer.check_soon()

    def _next_due(self, now: float) -> float:
        return min(
            self._delayed[0][0] if self._delayed else math.inf,
            min((worker.deadline for worker in self.threads if worker.job is not None), default=math.inf),
            now + NO_THREAD if self._ready and not self.threads else math.inf,
        )
