"""The state of a blocking pool, without its threads: interrupts, and parts that fail."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cuelight.errors import DeadlockError, PoolClosed, TaskCancelled, TaskFailed
from cuelight.pools import TaskStatus, WorkerPoolConfig
from cuelight.pools._threads import _pool as module
from cuelight.pools._threads._job import Job
from cuelight.pools._threads._pool import ThreadPool
from cuelight.pools._threads._timer import TimerThread
from cuelight.pools._threads._worker import Worker


class FakeTimer:
    """Keeps no time, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.called: list[Callable[[], object]] = []
        self.stopped = threading.Event()

    def check_soon(self) -> None:
        pass

    def call(self, function: Callable[[], object]) -> None:
        self.called.append(function)

    def stop(self) -> None:
        self.stopped.set()

    def join(self) -> None:
        pass


def no_process(_: str) -> None:
    return None


def new_pool(reports: list[tuple[str, Exception]] | None = None) -> ThreadPool:
    def report(job: Job, error: Exception) -> None:
        if reports is not None:
            reports.append((job.name, error))

    pool = ThreadPool("pet", WorkerPoolConfig(max_workers=2), no_process, None, None, report)
    timer: Any = FakeTimer()
    pool.timer = timer
    return pool


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are hired, but do not run."""

    def start(worker: Worker) -> None: ...

    monkeypatch.setattr(Worker, "start", start)


def new_job(name: str = "job") -> Job:
    return Job(name, len, ("",), {}, 0, contextvars.copy_context())


def submitted(pool: ThreadPool, *names: str) -> list[Job]:
    jobs = [new_job(name) for name in names]
    for job in jobs:
        pool.submit(job)
    return jobs


def timer_of(pool: ThreadPool) -> FakeTimer:
    timer: Any = pool.timer
    return timer  # type: ignore[no-any-return]


# From outside.


def test_a_task_is_refused_in_the_middle_of_a_step() -> None:
    pool = new_pool()
    with pool.lock, pytest.raises(DeadlockError, match="in the middle of a step"):
        pool.submit(new_job())
    assert pool.table.unfinished == 0


def test_a_task_whose_submission_was_interrupted_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pool = new_pool()
    [first] = submitted(pool, "first")
    pool._waking = False
    monkeypatch.setattr(pool, "_wake_or_start", interrupt)
    second = new_job("second")
    with pytest.raises(KeyboardInterrupt):
        pool.submit(second)
    assert (first.status, second.status) == (TaskStatus.PENDING, TaskStatus.CANCELLED)
    assert pool.table.unfinished == 1


def test_a_task_that_no_thread_can_run_was_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(worker: Worker) -> None:
        raise RuntimeError("can't start new thread")

    pool = new_pool()
    monkeypatch.setattr(Worker, "start", no_thread)
    job = new_job()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(job)
    assert (job.id, pool.table.unfinished, pool.threads) == ("", 0, set())


def test_cancelling_in_the_middle_of_a_step_is_done_after_it() -> None:
    pool = new_pool()
    first, second = submitted(pool, "first", "second")
    with pool.lock:
        assert pool.cancel() == 2
        assert (first.ended, second.ended) == (None, None)
    assert pool.table.wait_until(lambda: not pool.table.unfinished, 30)
    assert {type(first.error), type(second.error)} == {TaskCancelled}


def test_closing_in_the_middle_of_a_step_is_done_after_it() -> None:
    pool = new_pool()
    with pool.lock:
        pool.close()
        assert not pool.closed
    assert timer_of(pool).stopped.wait(30)
    assert (pool.closed, pool.over) == (True, True)
    with pytest.raises(PoolClosed, match=r"the pool 'pet' was shut down: it takes no task \('job'\)"):
        pool.submit(new_job())


@pytest.mark.parametrize("closed", [False, True])
def test_a_forked_process_takes_over_what_is_remembered(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    left: list[ThreadPool] = []
    monkeypatch.setattr(module, "_left_to_parents", left)
    parent = new_pool()
    [job] = submitted(parent, "job")
    if closed:
        parent.close()
    pool = new_pool()
    assert pool.inherit(parent) is pool
    assert left == [parent]
    assert (pool.closed, pool.over) == (closed, closed)
    assert pool.table.jobs == {"pet-1": job}
    assert job.status is TaskStatus.CANCELLED
    if not closed:
        [later] = submitted(pool, "later")
        assert later.id == "pet-2"  # no identifier is given twice


def test_a_pool_that_was_dropped_closes_itself_but_not_in_a_forked_process() -> None:
    pool = new_pool()
    pool._generation -= 1  # as if it were of the process that has forked this one
    pool.close_when_dropped()
    assert timer_of(pool).called == []
    pool._generation += 1
    pool.close_when_dropped()
    assert timer_of(pool).called == [pool.close]


# A thread that fails.


def working(pool: ThreadPool, job: Job, *, is_extra: bool = False) -> Worker:
    """A worker that has taken this task."""
    worker = Worker(pool, "pet-worker", None, is_extra=is_extra)
    pool.threads.add(worker)
    if is_extra:
        pool.extra_threads.threads.add(worker)
    with pool.lock:
        pool.table.move(job, TaskStatus.IN_FLIGHT)
    worker.job = job
    return worker


def test_a_thread_that_fails_costs_its_task_and_makes_room_for_the_next() -> None:
    reports: list[tuple[str, Exception]] = []
    pool = new_pool(reports)
    [job] = submitted(pool, "job")
    pool.threads.clear()
    worker = working(pool, job)
    pool._ready.clear()
    fault = MemoryError()
    pool._crashed(worker, fault)
    assert (pool.threads, pool.replaced, pool._waking) == (set(), 1, False)
    assert (job.status, type(job.error)) == (TaskStatus.FAILED, TaskFailed)
    assert str(job.error) == "the thread of the task 'job' failed: MemoryError"
    assert job.error.__cause__ is fault if job.error is not None else False
    assert reports == [("job", job.error)]


def test_a_thread_that_fails_is_replaced_while_tasks_are_ready() -> None:
    pool = new_pool()
    first, second = submitted(pool, "first", "second")
    pool.threads.clear()
    worker = working(pool, first)
    pool._crashed(worker, MemoryError())
    [started] = pool.threads
    assert started is not worker
    assert (pool._waking, second.status) == (True, TaskStatus.PENDING)


def test_a_thread_that_was_left_behind_fails_without_effect() -> None:
    reports: list[tuple[str, Exception]] = []
    pool = new_pool(reports)
    [job] = submitted(pool, "job")
    worker = working(pool, job)
    worker.abandoned, pool.abandoned = True, 1
    pool._crashed(worker, MemoryError())
    assert (pool.abandoned, pool.replaced, worker.job) == (0, 0, None)
    assert (job.status, reports) == (TaskStatus.IN_FLIGHT, [])


def test_a_helper_that_fails_leaves_the_waking_of_workers_alone() -> None:
    pool = new_pool()
    [job] = submitted(pool, "job")
    assert pool._waking
    worker = working(pool, job, is_extra=True)
    pool._ready.clear()
    pool._crashed(worker, MemoryError())
    assert pool._waking
    assert (worker in pool.threads, pool.extra_threads.threads, job.status) == (False, set(), TaskStatus.FAILED)


def test_a_thread_that_fails_after_its_task_has_ended_changes_nothing_about_it() -> None:
    reports: list[tuple[str, Exception]] = []
    pool = new_pool(reports)
    done, ready = submitted(pool, "done", "ready")
    worker = working(pool, done)
    with pool.lock:
        pool.table.end(done, TaskStatus.COMPLETED)
    pool._crashed(worker, MemoryError())
    assert (done.status, done.error, reports) == (TaskStatus.COMPLETED, None, [])
    idle = Worker(pool, "idle", None)
    pool._crashed(idle, MemoryError())
    assert (ready.status, reports, pool.replaced) == (TaskStatus.PENDING, [], 2)


def test_a_failure_that_cannot_be_reported_ends_its_task_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def report(job: Job, error: Exception) -> None:
        raise SystemExit(1)

    pool = ThreadPool("pet", WorkerPoolConfig(max_workers=1), no_process, None, None, report)
    timer: Any = FakeTimer()
    pool.timer = timer
    [job] = submitted(pool, "job")
    with pool.lock:
        pool.table.move(job, TaskStatus.IN_FLIGHT)
    error = ValueError("itself")
    assert pool._report_and_fail(job, error, None) is None
    assert (job.status, job.error) == (TaskStatus.FAILED, error)
    assert "pet: the failure of the task pet-1 could not be reported" in caplog.text


# The timer thread.


def test_a_timer_thread_whose_start_was_interrupted_ends_once_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    ticks: list[float] = []

    def tick(now: float) -> float:
        ticks.append(now)
        return now + 1000

    def interrupted(thread: threading.Thread) -> None:
        started.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            TimerThread("pet", tick, None)
    [thread] = started
    thread.run()  # here: it returns
    assert len(ticks) <= 1


def test_a_timer_thread_that_has_ended_is_asked_in_vain() -> None:
    def tick(now: float) -> float:
        return now + 1000

    called: list[str] = []
    timer = TimerThread("pet", tick, None)
    timer.stop()
    timer.join()
    timer.check_soon()
    timer.call(lambda: called.append("called"))
    timer.stop()
    assert called == []


def test_a_timer_thread_between_two_loops_is_not_in_the_way_of_those_who_call_it() -> None:
    class Lost:
        def tell_threadsafe(self, message: object) -> None:
            raise RuntimeError("the loop has ended")

        call_threadsafe = tell_threadsafe

    timer = TimerThread("pet", lambda now: now + 1000, None)
    timer.stop()
    timer.join()
    lost: Any = Lost()
    timer._checker = timer._system = lost
    timer.check_soon()
    timer.stop()
