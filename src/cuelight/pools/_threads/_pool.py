"""The threads of a blocking pool and their shared state, under one lock.

The invariants, which `tests/pools/test_worker_pool_model.py` asserts:

1. Each task ends once: completed, failed or cancelled. At most one thread that was not abandoned runs an attempt of it.
2. Threads take tasks in the order of (priority, sequence). While a task is ready, no thread is idle, or one thread is
   on its way to take it.
3. There are at most `max_workers` threads, not counting abandoned threads and extra threads. There are at most as many
   extra threads as threads that wait for another task.
4. Nothing that an abandoned thread still does changes the state of the pool.
5. Once the pool is closed and the last task has ended, every thread ends. An abandoned thread ends when its call does.
6. A failure is logged and made a dead letter before the task ends, outside of the lock. Meanwhile the task is still in
   flight, and nothing else ends it.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, Self

from cuelight._fork import forks
from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.actors import wait_code, waits_by_node
from cuelight.coordination._owner import this_thread
from cuelight.errors import PoolClosed, TaskCancelled, TaskFailed, TaskTimedOut
from cuelight.pools._failures import as_failure
from cuelight.pools._interrupts import InterruptsHeld
from cuelight.pools._results import TaskStatus
from cuelight.pools._threads._state import ThreadPoolState
from cuelight.pools._threads._timer import TimerThread
from cuelight.pools._threads._worker import Worker, current_worker
from cuelight.pools._waiting import OUTSIDE, PoolWait, check, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from cuelight.pools._options import WorkerPoolConfig
    from cuelight.pools._processes._caller import ProcessCaller
    from cuelight.pools._threads._job import Job

log = get_log("cuelight.pools")

_left_to_parents: Final[list[ThreadPool]] = []

_PENDING, _SCHEDULED = TaskStatus.PENDING, TaskStatus.SCHEDULED


class ThreadPool(ThreadPoolState):
    """Assigns tasks to threads. Policies and timers are in other modules."""

    def __init__(  # noqa: PLR0917 - called in one place
        self,
        name: str,
        config: WorkerPoolConfig,
        new_caller: Callable[[str], ProcessCaller | None],
        keep: int | None,
        backend_options: dict[str, Any] | None,
        report: Callable[[Job, Exception], object],
    ) -> None:
        super().__init__(name, config, new_caller, keep)
        self._options, self._report, self._logged = backend_options, report, config.enable_instrumentation
        self._sequence = 0
        self._generation = forks.generation
        self._starting = threading.Lock()

    # Calls of other threads.

    def start(self) -> None:
        with InterruptsHeld(), self._starting:
            if self.timer is None and not self.closed:
                timer = TimerThread(self.name, self.tick, self._options)
                self.clock = timer.clock
                self.timer = timer

    def submit(self, job: Job) -> None:
        """Accept a task.

        Raises:
            PoolClosed: the pool takes no more tasks.
            DeadlockError: the caller is a signal handler or finaliser that has interrupted a step of the pool.
            RuntimeError: there is no thread, and none can be started.
        """
        if self.table.is_inside():
            self.table.check_free()
        if self.timer is None:
            self.start()
        try:
            with self.lock:
                if self.closed:
                    raise PoolClosed(f"the pool {self.name!r} was shut down: it takes no task ({job.name!r})")
                self._sequence = job.sequence = self._sequence + 1
                engaged = not self.threads
                if engaged:
                    self._start_thread()  # before the task is entered, so that a failure leaves no task
                self.table.enter(job, f"{self.name}-{job.sequence}")
                job.listed = True
                heappush(self._ready, (job.priority, job.sequence, job))
                if not (engaged or self._waking):
                    self._wake_or_start()
        except BaseException:  # an interrupt, perhaps in the middle of these steps
            if job.id:
                self.cancel([job])
            raise

    def cancel(self, jobs: Iterable[Job] | None = None) -> int:
        """Cancel the given tasks (by default all) that are not running. Returns their number."""
        if self.table.is_inside():
            # In another thread, so after the current step.
            threading.Thread(target=self.cancel, args=(jobs,), daemon=True).start()
            return self.table.waiting
        cancelled = 0
        with InterruptsHeld(), self.lock:
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
            discarded = self.table.take_discarded()
        del discarded
        return cancelled

    def close(self) -> None:
        """Take no more tasks. The threads end after the last task. May be called twice."""
        if self.table.is_inside():
            # In another thread, so after the current step.
            threading.Thread(target=self.close, daemon=True).start()
            return
        with InterruptsHeld(), self._starting, self.lock:
            self.closed = True
            if not self.table.unfinished and not self.over:
                self._finish()

    def inherit(self, other: Self) -> Self:
        """In a forked process: take over the remembered tasks of the pool of the parent, whose threads stay there.

        Tasks that have not ended go on in the parent, and are cancelled here.
        """
        _left_to_parents.append(other)  # keeps its threads and its event loop from being freed here
        self._sequence, self.closed, self.over = other._sequence, other.closed, other.closed
        self.table.inherit(other.table)
        return self

    def close_when_dropped(self) -> None:
        """Close after the pool was dropped. The garbage collector calls this in any thread, which may hold locks."""
        timer = self.timer
        if timer is not None and not forks.is_old(self._generation):
            timer.call(self.close)

    def join(self) -> None:
        """Wait until all tasks and threads, except abandoned threads, have ended. Call `close` first."""
        self.table.wait_until(lambda: not self.table.unfinished, None)
        with self.lock:
            leaving = self._leaving
        for worker in leaving:
            worker.join()
        if self.timer is not None:
            self.timer.join()

    # Code of the threads.

    def serve(self, worker: Worker) -> None:
        """Run task after task in this thread."""
        try:
            job = self._next(worker)
            while job is not None:
                succeeded, value = worker.attempt(job)
                job = self._finish_and_take(worker, job, succeeded, value)
                del value
        except BaseException as error:
            self._crashed(worker, error)
        finally:
            if worker.caller is not None:
                worker.caller.close()

    def _next(self, worker: Worker) -> Job | None:
        """The next task of a worker that was woken or started; None when the pool is over."""
        while True:
            with self.lock:
                if not worker.is_extra:
                    self._waking = False
                job = self._assign_next(worker)
                if job is not None:
                    if self._ready:
                        self._wake_or_start()  # each thread wakes the next, hence a burst of small tasks wakes few
                    return job
                if self.over or worker.is_extra:
                    return None
            worker.wake_lock.acquire()

    def _finish_and_take(self, worker: Worker, job: Job, succeeded: bool, value: Any) -> Job | None:
        """Record the outcome of one task, and take the next task."""
        now = self.clock()
        table, final = self.table, False
        error = None if succeeded else as_failure(f"the task {job.name!r}", value)
        with self.lock:
            if worker.abandoned:
                self.abandoned -= 1
                return None
            if worker.overdue and worker.caller is not None:  # the process was killed
                worker.overdue = worker.caller.killed = False
                self.replaced += 1
                error = self._timed_out_error(job, "its process was killed")
            if error is None:
                job.run_seconds += now - worker.began
                self.total_run_seconds += now - worker.began
                job.result, job.error = value, None
                self._end(job, TaskStatus.COMPLETED)
            else:
                final = self._attempt_over(job, error, now - worker.began)
            if final:
                worker.deadline = math.inf  # the attempt is over, but not the task
                following = None
            else:
                worker.job = None
                following = self._assign_next(worker)
            discarded, table.discarded = table.discarded, []
        del discarded
        if error is None:
            if self._logged and log.is_enabled_for(logging.DEBUG):
                log.debug("%s: the task %s (%s) completed", self.name, job.name, job.id)
        elif final:
            following = self._report_and_fail(job, error, worker)
        else:
            self._log_retry(job, error)
        if following is not None or self.over or worker.is_extra:
            return following
        worker.wake_lock.acquire()
        return self._next(worker)

    def _report_and_fail(self, job: Job, error: Exception, worker: Worker | None) -> Job | None:
        """Report a failure, and then end its task. Returns the next task of the worker."""
        try:
            self._report(job, error)
        except BaseException:  # a user's queue of dead letters has failed, which must not end the program here
            log.exception("%s: the failure of the task %s could not be reported", self.name, job.id)
        with self.lock:
            self._fail(job, error)
            following = None
            if worker is not None:
                worker.job = None
                following = self._assign_next(worker)
            discarded = self.table.take_discarded()
        del discarded
        return following

    def _crashed(self, worker: Worker, error: BaseException) -> None:
        """Handle a failure of the pool's own code: end the task of this thread, and replace the thread."""
        log.error("%s: the thread %s failed and is replaced", self.name, worker.worker_id, error=error)
        with self.lock:
            if not worker.is_extra:
                self._waking = False  # this may be the thread that was woken
            job, worker.job = worker.job, None
            if worker.abandoned:
                self.abandoned -= 1
                return
            self._discard(worker)
            self.replaced += 1
            if self._ready:
                self._wake_or_start()
        if job is not None and job.ended is None:
            failure = TaskFailed(f"the thread of the task {job.name!r} failed: {describe_error(error)}")
            failure.__cause__ = error
            self._report_and_fail(job, failure, None)

    # Time.

    def tick(self, now: float) -> float:
        """Handle due times, in the timer thread. Returns the next due time; `math.inf` if there is none."""
        overdue: list[tuple[Job, TaskTimedOut, bool]] = []
        with self.lock:
            while self._delayed and self._delayed[0][0] <= now:
                job = heappop(self._delayed)[2]
                if job.status is _SCHEDULED:
                    self.table.move(job, _PENDING)
                    self._push(job)
                    self._wake_or_start()
            for worker in [worker for worker in self.threads if worker.job is not None and worker.deadline <= now]:
                overdue += self._stop_overdue(worker, now)
            if self._ready and not self.threads:
                self._wake_or_start()
            trouble, self._start_failure = self._start_failure, None
            abandoned = self.abandoned
        if trouble is not None:
            error, threads = trouble
            log.error("%s: no thread can be started; there are %d", self.name, threads, error=error)
        for job, late, final in overdue:
            if self.config.enable_instrumentation:
                log.warning("%s: %s; %d such threads still run", self.name, late, abandoned)
            if final:
                self._report_and_fail(job, late, None)
            else:
                self._log_retry(job, late)
        with self.lock:
            self._timer_due = due = self._next_due(now)
        return due

    def _stop_overdue(self, worker: Worker, now: float) -> list[tuple[Job, TaskTimedOut, bool]]:
        """Stop an attempt that has run too long: kill its process, or abandon its thread."""
        job = worker.job
        assert job is not None  # noqa: S101 - the caller looked
        worker.deadline = math.inf
        if worker.caller is not None:
            worker.overdue = True
            worker.caller.kill()  # the thread then handles the failed call
            return []
        worker.abandoned, worker.job = True, None
        self._discard(worker)
        self.abandoned += 1
        self.replaced += 1
        error = self._timed_out_error(job, "a thread cannot be stopped: it was left behind, and may run on")
        final = self._attempt_over(job, error, now - worker.began)
        if self._ready:
            self._wake_or_start()
        return [(job, error, final)]

    def _timed_out_error(self, job: Job, what: str) -> TaskTimedOut:
        seconds = self.config.task_timeout_seconds
        return TaskTimedOut(f"the task {job.name!r} ran longer than task_timeout_seconds={seconds:g}; {what}")

    def _log_retry(self, job: Job, error: Exception) -> None:
        if self.config.enable_instrumentation:
            log.info("%s: the task %s (%s) is tried again: %s", self.name, job.name, job.id, describe_error(error))

    # Waiting.

    def wait(self, job: Job, timeout: float | None) -> bool:
        """Block until a task has ended or the time is up. Returns whether the task has ended.

        Raises:
            DeadlockError: the task waits for the caller, directly or through others; or the caller is a signal handler
                that has interrupted a step of the pool.
        """
        self.table.check_free()
        if job.ended is not None:
            return True
        me = current_worker()
        if me is None:
            if waits_by_node:
                check(PoolWait(JobWait(self, job), [this_thread.owner]), [this_thread.owner])
            return self.table.wait_for(job, timeout)
        with self._released_for(me, job), waiting(JobWait(self, job), [this_thread.owner]):
            return self.table.wait_for(job, timeout)

    @staticmethod
    def seen_wait(variables: Mapping[str, Any], node: Any) -> PoolWait:
        """The wait of a thread that is inside `wait`, from the local variables of its frame."""
        return PoolWait(JobWait(variables["self"], variables["job"]), [node])

    @contextmanager
    def _released_for(self, worker: Worker, job: Job) -> Generator[None]:
        """Have an extra thread run the awaited task during the block, if no thread is free."""
        home = worker.pool
        assert isinstance(home, ThreadPool)  # noqa: S101 - every worker has one
        with home.lock:
            home.extra_threads.park(worker)
        with self.lock:
            self.extra_threads.expect(job)
            self.start_extra_thread()
        try:
            yield
        finally:
            with self.lock:
                self.extra_threads.expect_no_more(job)
            with home.lock:
                home.extra_threads.unpark(worker)


class JobWait:
    """A task of a blocking pool in the graph of waits. It reads single fields without the lock."""

    def __init__(self, pool: ThreadPool, job: Job) -> None:
        self._pool, self._job = pool, job

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        return f"task {self._job.name!r} of the pool {self._pool.name!r}"

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        return OUTSIDE

    def running_nodes(self) -> list[Any] | None:
        """The node of the thread that runs the task; None if the task waits for a thread."""
        runner = self._job.runner
        if runner is not None:
            return [] if runner.lock_owner is None else [runner.lock_owner]
        return None if self._job.status is TaskStatus.PENDING else []

    def busy_nodes(self) -> list[Any]:
        """The threads that keep all places, one of which must end its task first; empty if a place is free."""
        pool = self._pool
        busy = [worker for worker in list(pool.threads) if worker.job is not None and not worker.parked]
        if len(busy) < pool.config.max_workers or pool.extra_threads.wanted:
            return []
        return [worker.lock_owner for worker in busy]


wait_code[ThreadPool.wait.__code__] = ThreadPool.seen_wait
