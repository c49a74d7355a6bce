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


def entered(board: JobTable, *names: str) -> list[Job]:
    jobs = [new_job(name) for name in names]
    with board.lock:
        for job in jobs:
            board.enter(job, job.name)
    return jobs


def used(board: JobTable) -> dict[str, int]:
    return {status: count for status, count in board.counts.items() if count}


def test_each_task_counts_under_one_status() -> None:
    board = JobTable(None)
    first, second, third = entered(board, "first", "second", "third")
    assert (used(board), board.waiting, board.unfinished, board.open) == ({"pending": 3}, 3, 3, 3)
    with board.lock:
        board.move(first, TaskStatus.SCHEDULED)
        board.move(second, TaskStatus.IN_FLIGHT)
        board.move(third, TaskStatus.IN_FLIGHT)
    assert (used(board), board.waiting) == ({"scheduled": 1, "in_flight": 2}, 1)
    with board.lock:
        board.end(second, TaskStatus.COMPLETED)
        board.end(third, TaskStatus.FAILED)
    assert used(board) == {"scheduled": 1, "completed": 1, "failed": 1}
    assert (board.unfinished, board.open, board.failures) == (1, 1, 1)


def test_tasks_that_are_not_kept_are_counted_and_not_remembered() -> None:
    board = JobTable(None)
    job = new_job(kept=False)
    with board.lock:
        board.enter(job, "hidden")
        board.end(job, TaskStatus.FAILED)
    assert (board.jobs, board.open, board.failures, used(board)) == ({}, 0, 0, {"failed": 1})


def test_the_oldest_ended_task_is_forgotten() -> None:
    board = JobTable(keep=1)
    first, second = entered(board, "first", "second")
    with board.lock:
        board.end(first, TaskStatus.COMPLETED)
        assert list(board.jobs) == ["first", "second"]
        board.end(second, TaskStatus.COMPLETED)
    assert list(board.jobs) == ["second"]
    assert first in board.take_spent()
    assert board.take_spent() == []


def test_code_that_interrupts_a_step_is_refused() -> None:
    board = JobTable(None)
    board.check_free()
    with board.lock, pytest.raises(DeadlockError, match="in the middle of a step and calls it: set an event there"):
        board.check_free()
    board.check_free()


@pytest.mark.parametrize("keep", [None, 2])
def test_a_forked_process_remembers_what_has_ended_and_cancels_the_rest(keep: int | None) -> None:
    parent = JobTable(keep)
    done, failed, waiting = entered(parent, "done", "failed", "waiting")
    with parent.lock:
        parent.end(done, TaskStatus.COMPLETED)
        parent.end(failed, TaskStatus.FAILED)
    board = JobTable(keep)
    board.inherit(parent)
    assert used(board) == {"completed": 1, "failed": 1, "cancelled": 1}
    assert (board.unfinished, board.open, board.failures) == (0, 0, 1)
    assert board.jobs == {"done": done, "failed": failed, "waiting": waiting}
    assert (waiting.status, waiting.runner, waiting.ended is None) == (TaskStatus.CANCELLED, None, False)
    assert isinstance(waiting.error, TaskCancelled)
    assert str(waiting.error) == "the task 'waiting' is one of the process that has forked this one"
    assert not hasattr(waiting, "args")  # nothing of the call is kept
    [later] = entered(board, "later")
    with board.lock:
        board.end(later, TaskStatus.COMPLETED)
    every = ["done", "failed", "waiting", "later"]
    assert list(board.jobs) == (every if keep is None else every[2:])


def test_waiting_ends_with_what_is_waited_for_or_its_time() -> None:
    board = JobTable(None)
    [job] = entered(board, "job")
    assert not board.wait_for(job, 0)
    assert not board.wait_until(lambda: not board.unfinished, 0)
    assert job.waiters == ()
    assert board._table_waiters == []
    with board.lock:
        board.end(job, TaskStatus.COMPLETED)
    assert board.wait_for(job, None)
    assert board.wait_until(lambda: not board.unfinished, None)
