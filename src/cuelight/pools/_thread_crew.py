"""The threads of a blocking pool and what they share, under one lock.

The invariants, which `tests/pools/test_worker_pool_model.py` asserts in the same words:

1. Each task ends once: completed, failed or cancelled; and an attempt of it is under way in at most one thread that was
   not left behind.
2. Threads take tasks in the order of (priority, sequence), and while one is ready no thread is idle, or one is on its
   way to look.
3. There are at most `max_workers` threads, those left behind not counted.
4. What a thread that was left behind still does changes nothing.
5. Once the crew is closed and the last task has ended, every thread ends, except those left behind; they end when their
   call does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.errors import PoolClosed, RateLimited, TaskCancelled, TaskFailed, TaskTimedOut
from cuelight.pools._board import Board
from cuelight.pools._job import Job, as_failure, retry_delay
from cuelight.pools._results import TaskStatus
from cuelight.pools._timekeeper import Timekeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cuelight.pools._process_call import ProcessCaller
    from cuelight.pools._worker_pool import WorkerPoolConfig

__all__ = ["Crew", "Worker"]

log = get_log("cuelight.pools")

_PENDING, _IN_FLIGHT, _SCHEDULED = TaskStatus.PENDING, TaskStatus.IN_FLIGHT, TaskStatus.SCHEDULED
_NO_THREAD = 1.0  # seconds before it is tried again to start a thread when the system had none to give


class Worker(threading.Thread):
    """A thread. Its fields change under the lock of the crew.

    Attributes:
        job: what it runs.
        deadline: until when that may run, by the clock of the crew.
        abandoned: it was left behind with its call.
        overdue: its process was killed because the call took too long.
        baton: it waits for this when it is idle.
    """

    def __init__(self, crew: Crew, name: str, caller: ProcessCaller | None) -> None:
        super().__init__(name=name, daemon=True)
        self.crew, self.caller = crew, caller
        self.worker_id = name
        self.job: Job | None = None
        self.began, self.deadline = 0.0, math.inf
        self.abandoned = self.overdue = False
        self.baton = threading.Lock()
        self.baton.acquire()

    def run(self) -> None:
        self.crew.serve(self)

    def attempt(self, job: Job) -> tuple[bool, Any]:
        """Call the function: here, or in the worker's process."""
        return job.attempt() if self.caller is None else self.caller.call(job.function, job.args, job.kwargs)


class Crew:
    """Tasks and threads. Policies and timers are elsewhere; this is who has what."""

    def __init__(
        self,
        name: str,
        config: WorkerPoolConfig,
        new_caller: Callable[[str], ProcessCaller | None],
        keep: int | None,
        backend_options: dict[str, Any] | None,
    ) -> None:
        self.name, self.config = name, config
        self.board = Board(keep)
        self.lock = self.board.lock
        self.retries, self.total_ran, self.replaced, self.abandoned = 0, 0.0, 0, 0
        self.threads: set[Worker] = set()
        self.idle: list[Worker] = []
        self.closed = self.over = False
        self._new_caller, self._options = new_caller, backend_options
        self._sequence = self._hired = 0
        self._waking = False
        self._leaving: list[Worker] = []
        self._ready: list[tuple[int, int, Job]] = []
        self._delayed: list[tuple[float, int, Job]] = []
        self._clock: Callable[[], float] = time.monotonic
        self._armed = math.inf
        self._keeper: Timekeeper | None = None
        self._starting = threading.Lock()

    # From outside.

    def start(self) -> None:
        """Start what keeps time, once."""
        with self._starting:
            if self._keeper is None and not self.closed:
                keeper = Timekeeper(self.name, self.tick, self._options)
                self._clock = keeper.clock
                self._keeper = keeper

    def submit(self, job: Job) -> None:
        """Take a task.

        Raises:
            PoolClosed: the crew takes no more.
            RuntimeError: there is no thread, and none can be started.
        """
        if self._keeper is None:
            self.start()
        with self.lock:
            if self.closed:
                raise PoolClosed(f"the pool {self.name!r} was shut down: it takes no task ({job.name!r})")
            self._sequence = job.sequence = self._sequence + 1
            job.id = f"{self.name}-{job.sequence}"
            engaged = not self.threads
            if engaged:
                self._hire()  # before the task is there: if that fails, it is not
            heappush(self._ready, (job.priority, job.sequence, job))
            self.board.enter(job)
            if not engaged:
                self._engage()

    def cancel(self, jobs: Iterable[Job] | None = None) -> int:
        """End those of these tasks (by default of all) that do not run; how many."""
        cancelled = 0
        with self.lock:
            every = jobs is None
            if jobs is None:
                jobs = [entry[2] for entry in (*self._ready, *self._delayed)]
            for job in jobs:
                if job.status is _PENDING or job.status is _SCHEDULED:
                    self._fail(job, TaskCancelled(f"the task {job.name!r} was cancelled before it ran"))
                    cancelled += 1
            if every:
                self._ready.clear()
                self._delayed.clear()
        return cancelled

    def close(self) -> None:
        """Take no more tasks; the threads end after the last one. May be called twice."""
        with self._starting, self.lock:
            self.closed = True
            if not self.board.unfinished and not self.over:
                self._wind_up()

    def dropped(self) -> None:
        """Nobody can reach the pool any more: close. Called by the collector, in any thread, whatever that holds."""
        keeper = self._keeper
        if keeper is not None:
            keeper.call(self.close)

    def join(self) -> None:
        """Wait until all tasks and all threads have ended, but for those left behind; `close` comes first."""
        self.board.wait_until(lambda: not self.board.unfinished, None)
        with self.lock:
            leaving = self._leaving
        for worker in leaving:
            worker.join()
        if self._keeper is not None:
            self._keeper.join()

    # A thread's life.

    def serve(self, worker: Worker) -> None:
        """Run task after task in this thread."""
        try:
            job = self._next(worker)
            while job is not None:
                succeeded, value = worker.attempt(job)
                job = self._exchange(worker, job, succeeded, value)
                del value
        except BaseException as error:
            self._crashed(worker, error)
        finally:
            if worker.caller is not None:
                worker.caller.close()

    def _next(self, worker: Worker) -> Job | None:
        """The next task, for a worker that somebody woke or hired; None when all is over."""
        while True:
            with self.lock:
                self._waking = False
                job = self._take(worker)
                if job is not None:
                    if self._ready:
                        self._engage()  # it wakes the next: so a crowd of small tasks wakes few
                    return job
                if self.over:
                    return None
            worker.baton.acquire()

    def _exchange(self, worker: Worker, job: Job, succeeded: bool, value: Any) -> Job | None:
        """Hand in the outcome of one task and take the next, in one step."""
        now = self._clock()
        with self.lock:
            if worker.abandoned:
                self.abandoned -= 1
                return None
            worker.job = None
            if worker.overdue:
                worker.overdue = False
                if worker.caller is not None:
                    worker.caller.killed = False
                self.replaced += 1
                succeeded, value = False, self._too_long(job, "its process was killed")
            note = self._attempt_over(job, succeeded, value, now - worker.began)
            following = self._take(worker)
            over = self.over
        if note is not None and self.config.enable_instrumentation:
            log.log(*note)
        if following is not None or over:
            return following
        worker.baton.acquire()
        return self._next(worker)

    def _crashed(self, worker: Worker, error: BaseException) -> None:
        """Something in the harness itself failed: it costs one attempt and one thread."""
        log.error("%s: the thread %s failed and is replaced", self.name, worker.worker_id, error=error)
        with self.lock:
            self._waking = False  # it may have been this one
            job, worker.job = worker.job, None
            if worker.abandoned:
                self.abandoned -= 1
                return
            self.threads.discard(worker)
            self.replaced += 1
            if job is not None:
                failure = TaskFailed(f"the thread of the task {job.name!r} failed: {describe_error(error)}")
                failure.__cause__ = error
                self._fail(job, failure)
            if self._ready:
                self._engage()

    # Under the lock: who has what.

    def _take(self, worker: Worker) -> Job | None:
        """Give the worker the next task; without one it is idle, or leaves if all is over."""
        ready = self._ready
        while ready:
            job = heappop(ready)[2]
            if job.status is not _PENDING:
                continue  # cancelled
            self.board.move(job, _IN_FLIGHT)
            job.worker = worker.worker_id
            if not job.began:
                job.began = time.time()
            worker.job = job
            worker.began = now = self._clock()
            worker.deadline = due = now + self.config.task_timeout_seconds
            if due < self._armed:
                self._arm(due)
            return job
        if not self.over:
            self.idle.append(worker)
        return None

    def _engage(self) -> None:
        """A task is ready: have a thread look, unless one is on its way."""
        if self._waking:
            return
        if self.idle:
            self._waking = True
            self.idle.pop().baton.release()
        elif len(self.threads) < self.config.max_workers:
            try:
                self._hire()
            except RuntimeError:
                log.exception("%s: no thread can be started; there are %d", self.name, len(self.threads))
                self._arm(min(self._armed, self._clock() + _NO_THREAD))

    def _hire(self) -> None:
        self._hired += 1
        name = f"{self.name}-worker-{self._hired}"
        worker = Worker(self, name, self._new_caller(name))
        self.threads.add(worker)
        try:
            worker.start()
        except BaseException:
            if not worker.is_alive():
                self.threads.discard(worker)
            raise
        self._waking = True

    def _attempt_over(self, job: Job, succeeded: bool, value: Any, seconds: float) -> tuple[Any, ...] | None:
        """An attempt has ended; what to log."""
        job.ran += seconds
        self.total_ran += seconds
        if succeeded:
            job.result, job.error = value, None
            self._end(job, TaskStatus.COMPLETED)
            return (logging.DEBUG, "%s: the task %s (%s) completed", self.name, job.name, job.id)
        config = self.config
        error = as_failure(job.name, value)
        delay = retry_delay(
            value, job.retries, config.max_retries, config.backoff_base_seconds, config.backoff_max_seconds
        )
        if delay is None:
            retries = job.retries
            self._fail(job, error)
            return (logging.WARNING, "%s: %s failed after %d retries: %r", self.name, job.name, retries, error)
        if not isinstance(error, RateLimited):
            job.retries += 1
            self.retries += 1
        job.error = error
        self._try_again(job, delay)
        return (logging.INFO, "%s: %s is tried again in %g s: %r", self.name, job.name, delay, error)

    def _try_again(self, job: Job, delay: float) -> None:
        if delay:
            self.board.move(job, _SCHEDULED)
            due = self._clock() + delay
            heappush(self._delayed, (due, job.sequence, job))
            if due < self._armed:
                self._arm(due)
        else:
            self.board.move(job, _PENDING)
            heappush(self._ready, (job.priority, job.sequence, job))

    def _fail(self, job: Job, error: Exception) -> None:
        job.error = error
        self._end(job, TaskStatus.CANCELLED if isinstance(error, TaskCancelled) else TaskStatus.FAILED)

    def _end(self, job: Job, status: TaskStatus) -> None:
        self.board.end(job, status)
        if self.closed and not self.board.unfinished:
            self._wind_up()

    def _wind_up(self) -> None:
        """The last task has ended: send everybody home."""
        self.over = True
        self._leaving = [*self.threads]
        self.threads.clear()
        for worker in self.idle:
            worker.baton.release()
        self.idle.clear()
        if self._keeper is not None:
            self._keeper.stop()

    # Time.

    def _arm(self, due: float) -> None:
        self._armed = due
        if self._keeper is not None:
            self._keeper.look()

    def tick(self, now: float) -> float:
        """Do what is due, in the thread that keeps time; when the next is, `math.inf` for never."""
        notes: list[tuple[Any, ...]] = []
        with self.lock:
            while self._delayed and self._delayed[0][0] <= now:
                job = heappop(self._delayed)[2]
                if job.status is _SCHEDULED:
                    self.board.move(job, _PENDING)
                    heappush(self._ready, (job.priority, job.sequence, job))
                    self._engage()
            for worker in [worker for worker in self.threads if worker.job is not None and worker.deadline <= now]:
                notes += self._overdue(worker, now)
            if self._ready and not self.threads:
                self._engage()
            self._armed = due = min(
                self._delayed[0][0] if self._delayed else math.inf,
                min((worker.deadline for worker in self.threads if worker.job is not None), default=math.inf),
                now + _NO_THREAD if self._ready and not self.threads else math.inf,
            )
        if self.config.enable_instrumentation:
            for note in notes:
                log.log(*note)
        return due

    def _overdue(self, worker: Worker, now: float) -> list[tuple[Any, ...]]:
        """An attempt has run too long: end its process, or leave its thread behind."""
        job = worker.job
        assert job is not None  # noqa: S101 - the caller looked
        worker.deadline = math.inf
        if worker.caller is not None:
            worker.overdue = True
            worker.caller.kill()  # the thread will notice
            return []
        worker.abandoned, worker.job = True, None
        self.threads.discard(worker)
        self.abandoned += 1
        self.replaced += 1
        error = self._too_long(job, "a thread cannot be stopped: it was left behind, and may run on")
        note = (logging.WARNING, "%s: %s; %d such threads still run", self.name, error, self.abandoned)
        over = self._attempt_over(job, succeeded=False, value=error, seconds=now - worker.began)
        if self._ready:
            self._engage()
        return [note] if over is None else [note, over]

    def _too_long(self, job: Job, what: str) -> TaskTimedOut:
        seconds = self.config.task_timeout_seconds
        return TaskTimedOut(f"the task {job.name!r} ran longer than task_timeout_seconds={seconds:g}; {what}")
