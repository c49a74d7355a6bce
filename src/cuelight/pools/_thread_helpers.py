"""Helpers of a blocking pool: threads in the place of threads that wait for another task.

A task that waits for another task keeps its thread, and gives its place away: to a helper, which runs only what tasks
of pools wait for, and leaves when there is nothing of that. So work that waits for work of the same pool goes on
however deep it is nested, and no more tasks run at a time than the pool has places.

All of it under the lock of the crew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight.pools._results import TaskStatus
from cuelight.pools._waiting import OUTSIDE

if TYPE_CHECKING:
    from cuelight.pools._job import Job
    from cuelight.pools._thread_crew import Crew
    from cuelight.pools._thread_worker import Worker

__all__ = ["AwaitedJob", "Helpers"]


class Helpers:
    """The helpers of one crew, and what they are there for.

    Attributes:
        threads: the helpers; they are among the threads of the crew.
        parked: threads of this crew that wait for a task, of whichever pool.
        awaited: tasks of this crew that a task waits for, of whichever pool, and by how many.
    """

    def __init__(self) -> None:
        self.threads: set[Worker] = set()
        self.parked = 0
        self.awaited: dict[Job, int] = {}

    def park(self, worker: Worker) -> None:
        """A thread of this crew begins to wait."""
        worker.parked = True
        self.parked += 1

    def unpark(self, worker: Worker) -> None:
        """It goes on, or was left behind. Harmless if it does not wait."""
        if worker.parked:
            worker.parked = False
            self.parked -= 1

    def expect(self, job: Job) -> None:
        """A task waits for this one."""
        self.awaited[job] = self.awaited.get(job, 0) + 1

    def expect_no_more(self, job: Job) -> None:
        """It waits no more."""
        left = self.awaited.get(job, 0) - 1
        if left > 0:
            self.awaited[job] = left
        else:
            self.awaited.pop(job, None)

    @property
    def wanted(self) -> bool:
        """Whether one more helper may come, and has something to do."""
        return len(self.threads) < self.parked and self.next() is not None

    def next(self) -> Job | None:
        """A task that is waited for and has not begun."""
        return next((job for job in self.awaited if job.status is TaskStatus.PENDING), None)

    def take(self) -> Job | None:
        """What a helper does next; None if it is to leave."""
        return self.next() if len(self.threads) <= self.parked else None


class AwaitedJob:
    """A task of a blocking pool in the graph of waits. It looks without the lock: at single fields."""

    def __init__(self, crew: Crew, job: Job) -> None:
        self._crew, self._job = crew, job

    @property
    def thing(self) -> str:
        """What it is, for people."""
        return f"task {self._job.name!r} of the pool {self._crew.name!r}"

    @property
    def way_out(self) -> str:
        """What to do about a deadlock."""
        return OUTSIDE

    def runners(self) -> list[Any] | None:
        """The thread that runs it; None if it waits for one."""
        runner = self._job.runner
        if runner is not None:
            return [] if runner.party is None else [runner.party]
        return None if self._job.status is TaskStatus.PENDING else []

    def occupants(self) -> list[Any]:
        """The threads of which one must end its task before this one begins; none if a place is free."""
        crew = self._crew
        busy = [worker for worker in list(crew.threads) if worker.job is not None and not worker.parked]
        if len(busy) < crew.config.max_workers or crew.helpers.wanted:
            return []
        return [worker.party for worker in busy]
