"""The counters of a blocking pool, moved by hand."""

from __future__ import annotations

import contextvars

import pytest

from cuelight.errors import DeadlockError, TaskCancelled
from cuelight.pools import TaskStatus
from cuelight.pools._threads._job import Job
from cuelight.pools._threads._job_table import JobTable


def new_job(name: str = "job", *, kept: bool = True) -> Job:
    job = Job(name, print, (), {}, 0, contextvars.copy_context())
    job.kept = kept
    return job


def entered(table: JobTable, *names: str) -> list[Job]:
    jobs = [new_job(name) for name in names]
    with table.lock:
        for job in jobs:
            table.enter(job, job.name)
    return jobs


def used(table: JobTable) -> dict[str, int]:
    return {status: count for status, count in table.counts.items() if count}


def test_each_task_counts_under_one_status() -> None:
    table = JobTable(None)
    first, second, third = entered(table, "first", "second", "third")
    assert (used(table), table.waiting, table.unfinished, table.open) == ({"pending": 3}, 3, 3, 3)
    with table.lock:
        table.move(first, TaskStatus.SCHEDULED)
        table.move(second, TaskStatus.IN_FLIGHT)
        table.move(third, TaskStatus.IN_FLIGHT)
    assert (used(table), table.waiting) == ({"scheduled": 1, "in_flight": 2}, 1)
    with table.lock:
        table.end(second, TaskStatus.COMPLETED)
        table.end(third, TaskStatus.FAILED)
    assert used(table) == {"scheduled": 1, "completed": 1, "failed": 1}
    assert (table.unfinished, table.open, table.failures) == (1, 1, 1)


def test_tasks_that_are_not_kept_are_counted_and_not_remembered() -> None:
    table = JobTable(None)
    job = new_job(kept=False)
    with table.lock:
        table.enter(job, "hidden")
        table.end(job, TaskStatus.FAILED)
    assert (table.jobs, table.open, table.failures, used(table)) == ({}, 0, 0, {"failed": 1})


def test_the_oldest_ended_task_is_forgotten() -> None:
    table = JobTable(keep=1)
    first, second = entered(table, "first", "second")
    with table.lock:
        table.end(first, TaskStatus.COMPLETED)
        assert list(table.jobs) == ["first", "second"]
        table.end(second, TaskStatus.COMPLETED)
    assert list(table.jobs) == ["second"]
    assert first in table.take_discarded()
    assert table.take_discarded() == []


def test_code_that_interrupts_a_step_is_refused() -> None:
    table = JobTable(None)
    table.check_free()
    with table.lock, pytest.raises(DeadlockError, match="in the middle of a step and calls it: set an event there"):
        table.check_free()
    table.check_free()


@pytest.mark.parametrize("keep", [None, 2])
def test_a_forked_process_remembers_what_has_ended_and_cancels_the_rest(keep: int | None) -> None:
    parent = JobTable(keep)
    done, failed, waiting = entered(parent, "done", "failed", "waiting")
    with parent.lock:
        parent.end(done, TaskStatus.COMPLETED)
        parent.end(failed, TaskStatus.FAILED)
    table = JobTable(keep)
    table.inherit(parent)
    assert used(table) == {"completed": 1, "failed": 1, "cancelled": 1}
    assert (table.unfinished, table.open, table.failures) == (0, 0, 1)
    assert table.jobs == {"done": done, "failed": failed, "waiting": waiting}
    assert (waiting.status, waiting.runner, waiting.ended is None) == (TaskStatus.CANCELLED, None, False)
    assert isinstance(waiting.error, TaskCancelled)
    assert str(waiting.error) == "the task 'waiting' is one of the process that has forked this one"
    assert not hasattr(waiting, "args")  # nothing of the call is kept
    [later] = entered(table, "later")
    with table.lock:
        table.end(later, TaskStatus.COMPLETED)
    every = ["done", "failed", "waiting", "later"]
    assert list(table.jobs) == (every if keep is None else every[2:])


def test_waiting_ends_with_what_is_waited_for_or_its_time() -> None:
    table = JobTable(None)
    [job] = entered(table, "job")
    assert not table.wait_for(job, 0)
    assert not table.wait_until(lambda: not table.unfinished, 0)
    assert job.waiters == ()
    assert table._table_waiters == []
    with table.lock:
        table.end(job, TaskStatus.COMPLETED)
    assert table.wait_for(job, None)
    assert table.wait_until(lambda: not table.unfinished, None)
