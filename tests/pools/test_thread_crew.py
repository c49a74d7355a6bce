"""The crew of a blocking pool, without its threads: what it does when it is interrupted, and when parts of it fail."""

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
from cuelight.pools._threads._pool import Crew
from cuelight.pools._threads._timer import TimerThread
from cuelight.pools._threads._worker import Worker


class Keeper:
    """Keeps no time, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.called: list[Callable[[], object]] = []
        self.stopped = threading.Event()

    def look(self) -> None:
        pass

    def call(self, function: Callable[[], object]) -> None:
        self.called.append(function)

    def stop(self) -> None:
        self.stopped.set()

    def join(self) -> None:
        pass


def no_process(_: str) -> None:
    return None


def new_crew(reports: list[tuple[str, Exception]] | None = None) -> Crew:
    def report(job: Job, error: Exception) -> None:
        if reports is not None:
            reports.append((job.name, error))

    crew = Crew("pet", WorkerPoolConfig(max_workers=2), no_process, None, None, report)
    keeper: Any = Keeper()
    crew.keeper = keeper
    return crew


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are hired, but do not run."""

    def start(worker: Worker) -> None: ...

    monkeypatch.setattr(Worker, "start", start)


def new_job(name: str = "job") -> Job:
    return Job(name, len, ("",), {}, 0, contextvars.copy_context())


def submitted(crew: Crew, *names: str) -> list[Job]:
    jobs = [new_job(name) for name in names]
    for job in jobs:
        crew.submit(job)
    return jobs


def keeper_of(crew: Crew) -> Keeper:
    keeper: Any = crew.keeper
    return keeper  # type: ignore[no-any-return]


# From outside.


def test_a_task_is_refused_in_the_middle_of_a_step() -> None:
    crew = new_crew()
    with crew.lock, pytest.raises(DeadlockError, match="in the middle of a step"):
        crew.submit(new_job())
    assert crew.board.unfinished == 0


def test_a_task_whose_submission_was_interrupted_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    crew = new_crew()
    [first] = submitted(crew, "first")
    crew._waking = False
    monkeypatch.setattr(crew, "_engage", interrupt)
    second = new_job("second")
    with pytest.raises(KeyboardInterrupt):
        crew.submit(second)
    assert (first.status, second.status) == (TaskStatus.PENDING, TaskStatus.CANCELLED)
    assert crew.board.unfinished == 1


def test_a_task_that_no_thread_can_run_was_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(worker: Worker) -> None:
        raise RuntimeError("can't start new thread")

    crew = new_crew()
    monkeypatch.setattr(Worker, "start", no_thread)
    job = new_job()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        crew.submit(job)
    assert (job.id, crew.board.unfinished, crew.threads) == ("", 0, set())


def test_cancelling_in_the_middle_of_a_step_is_done_after_it() -> None:
    crew = new_crew()
    first, second = submitted(crew, "first", "second")
    with crew.lock:
        assert crew.cancel() == 2
        assert (first.ended, second.ended) == (None, None)
    assert crew.board.wait_until(lambda: not crew.board.unfinished, 30)
    assert {type(first.error), type(second.error)} == {TaskCancelled}


def test_closing_in_the_middle_of_a_step_is_done_after_it() -> None:
    crew = new_crew()
    with crew.lock:
        crew.close()
        assert not crew.closed
    assert keeper_of(crew).stopped.wait(30)
    assert (crew.closed, crew.over) == (True, True)
    with pytest.raises(PoolClosed, match=r"the pool 'pet' was shut down: it takes no task \('job'\)"):
        crew.submit(new_job())


@pytest.mark.parametrize("closed", [False, True])
def test_a_forked_process_takes_over_what_is_remembered(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    left: list[Crew] = []
    monkeypatch.setattr(module, "_left_to_parents", left)
    parent = new_crew()
    [job] = submitted(parent, "job")
    if closed:
        parent.close()
    crew = new_crew()
    assert crew.inherit(parent) is crew
    assert left == [parent]
    assert (crew.closed, crew.over) == (closed, closed)
    assert crew.board.jobs == {"pet-1": job}
    assert job.status is TaskStatus.CANCELLED
    if not closed:
        [later] = submitted(crew, "later")
        assert later.id == "pet-2"  # no identifier is given twice


def test_a_pool_that_was_dropped_closes_itself_but_not_in_a_forked_process() -> None:
    crew = new_crew()
    crew._generation -= 1  # as if it were of the process that has forked this one
    crew.dropped()
    assert keeper_of(crew).called == []
    crew._generation += 1
    crew.dropped()
    assert keeper_of(crew).called == [crew.close]


# A thread that fails.


def working(crew: Crew, job: Job, *, helps: bool = False) -> Worker:
    """A worker that has taken this task."""
    worker = Worker(crew, "pet-worker", None, helps=helps)
    crew.threads.add(worker)
    if helps:
        crew.helpers.threads.add(worker)
    with crew.lock:
        crew.board.move(job, TaskStatus.IN_FLIGHT)
    worker.job = job
    return worker


def test_a_thread_that_fails_costs_its_task_and_makes_room_for_the_next() -> None:
    reports: list[tuple[str, Exception]] = []
    crew = new_crew(reports)
    [job] = submitted(crew, "job")
    crew.threads.clear()
    worker = working(crew, job)
    crew._ready.clear()
    fault = MemoryError()
    crew._crashed(worker, fault)
    assert (crew.threads, crew.replaced, crew._waking) == (set(), 1, False)
    assert (job.status, type(job.error)) == (TaskStatus.FAILED, TaskFailed)
    assert str(job.error) == "the thread of the task 'job' failed: MemoryError"
    assert job.error.__cause__ is fault if job.error is not None else False
    assert reports == [("job", job.error)]


def test_a_thread_that_fails_is_replaced_while_tasks_are_ready() -> None:
    crew = new_crew()
    first, second = submitted(crew, "first", "second")
    crew.threads.clear()
    worker = working(crew, first)
    crew._crashed(worker, MemoryError())
    [executor_started] = crew.threads
    assert executor_started is not worker
    assert (crew._waking, second.status) == (True, TaskStatus.PENDING)


def test_a_thread_that_was_left_behind_fails_without_effect() -> None:
    reports: list[tuple[str, Exception]] = []
    crew = new_crew(reports)
    [job] = submitted(crew, "job")
    worker = working(crew, job)
    worker.abandoned, crew.abandoned = True, 1
    crew._crashed(worker, MemoryError())
    assert (crew.abandoned, crew.replaced, worker.job) == (0, 0, None)
    assert (job.status, reports) == (TaskStatus.IN_FLIGHT, [])


def test_a_helper_that_fails_leaves_the_waking_of_workers_alone() -> None:
    crew = new_crew()
    [job] = submitted(crew, "job")
    assert crew._waking
    worker = working(crew, job, helps=True)
    crew._ready.clear()
    crew._crashed(worker, MemoryError())
    assert crew._waking
    assert (worker in crew.threads, crew.helpers.threads, job.status) == (False, set(), TaskStatus.FAILED)


def test_a_thread_that_fails_after_its_task_has_ended_changes_nothing_about_it() -> None:
    reports: list[tuple[str, Exception]] = []
    crew = new_crew(reports)
    done, ready = submitted(crew, "done", "ready")
    worker = working(crew, done)
    with crew.lock:
        crew.board.end(done, TaskStatus.COMPLETED)
    crew._crashed(worker, MemoryError())
    assert (done.status, done.error, reports) == (TaskStatus.COMPLETED, None, [])
    idle = Worker(crew, "idle", None)
    crew._crashed(idle, MemoryError())
    assert (ready.status, reports, crew.replaced) == (TaskStatus.PENDING, [], 2)


def test_a_failure_that_cannot_be_reported_ends_its_task_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def report(job: Job, error: Exception) -> None:
        raise SystemExit(1)

    crew = Crew("pet", WorkerPoolConfig(max_workers=1), no_process, None, None, report)
    keeper: Any = Keeper()
    crew.keeper = keeper
    [job] = submitted(crew, "job")
    with crew.lock:
        crew.board.move(job, TaskStatus.IN_FLIGHT)
    error = ValueError("itself")
    assert crew._give_up(job, error, None) is None
    assert (job.status, job.error) == (TaskStatus.FAILED, error)
    assert "pet: the failure of the task pet-1 could not be reported" in caplog.text


# The timekeeper.


def test_a_timekeeper_whose_start_was_interrupted_ends_once_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_timekeeper_that_has_ended_is_asked_in_vain() -> None:
    def tick(now: float) -> float:
        return now + 1000

    called: list[str] = []
    keeper = TimerThread("pet", tick, None)
    keeper.stop()
    keeper.join()
    keeper.look()
    keeper.call(lambda: called.append("called"))
    keeper.stop()
    assert called == []


def test_a_timekeeper_between_two_loops_is_not_in_the_way_of_those_who_call_it() -> None:
    class Lost:
        def tell_threadsafe(self, message: object) -> None:
            raise RuntimeError("the loop has ended")

        call_threadsafe = tell_threadsafe

    keeper = TimerThread("pet", lambda now: now + 1000, None)
    keeper.stop()
    keeper.join()
    lost: Any = Lost()
    keeper._checker = keeper._system = lost
    keeper.look()
    keeper.stop()
