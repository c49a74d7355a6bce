"""Extra threads of a blocking pool: they replace threads that wait for another task.

A task that waits for another task keeps its thread, but its place goes to an extra thread, which runs only awaited
tasks and leaves when there is none. So tasks that wait for tasks of the same pool make progress at any
depth of nesting, and the number of running tasks never exceeds the number of places of the pool.

All methods of `ExtraThreads` are called under the lock of the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight.pools._results import TaskStatus

if TYPE_CHECKING:
    from cuelight.pools._threads._job import Job
    from cuelight.pools._threads._worker import Worker


class ExtraThreads:
    """The extra threads of one pool, and the waits that call for them.

    Attributes:
        threads: the extra threads; they are among the threads of the pool.
        parked: number of threads of this pool that wait for a task of any pool.
        awaited: tasks of this pool that are awaited, with the number of tasks, of any pool, that wait for them.
    """

    def __init__(self) -> None:
        self.threads: set[Worker] = set()
        self.parked = 0
        self.awaited: dict[Job, int] = {}

    def park(self, worker: Worker) -> None:
        """Record that a thread of this pool begins to wait."""
        worker.parked = True
        self.parked += 1

    def unpark(self, worker: Worker) -> None:
        """Record that the thread goes on, or was abandoned. Harmless if it does not wait."""
        if worker.parked:
            worker.parked = False
            self.parked -= 1

    def expect(self, job: Job) -> None:
        """Record that a task waits for `job`."""
        self.awaited[job] = self.awaited.get(job, 0) + 1

    def expect_no_more(self, job: Job) -> None:
        """Undo one `expect`."""
        left = self.awaited.get(job, 0) - 1
        if left > 0:
            self.awaited[job] = left
        else:
            self.awaited.pop(job, None)

    @property
    def wanted(self) -> bool:
        """Whether there may be one more extra thread, and a task for it."""
        return len(self.threads) < self.parked and self.next() is not None

    def next(self) -> Job | None:
        """An awaited task that has not begun; None if there is none."""
        return next((job for job in self.awaited if job.status is TaskStatus.PENDING), None)

    def take(self) -> Job | None:
        """The next task of an extra thread; None if the extra thread should leave."""
        return self.next() if len(self.threads) <= self.parked else None
