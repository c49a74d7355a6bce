"""Extra workers of a group: they replace workers whose work waits for other work of a pool.

Work that waits for other work keeps its worker, but its place goes to an extra worker, which does only awaited work and
leaves when there is none. So work that waits for work of the same pool makes progress at any depth of nesting, and the
number of running tasks never exceeds the number of places of the pool.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight.actors import current_cell, waits_by_node
from cuelight.coordination._lock_waiting import awaited_work
from cuelight.mailbox import running_task
from cuelight.pools._waiting import PoolWait, check, waiting

if TYPE_CHECKING:
    from cuelight.actors import Cell
    from cuelight.pools._pool_worker import PoolWorker, Work, WorkProvider


class CurrentWork(Protocol):
    """The current work of a worker: one task, or items of a map."""

    @property
    def worker(self) -> PoolWorker | None:
        """The worker; None once it has finished this work."""
        ...


current_work: Final[ContextVar[CurrentWork | None]] = ContextVar("cuelight_pool_place", default=None)
"""The pool work that the running code belongs to, if any. Tasks and callbacks that the work started inherit it."""

awaited_work.append(current_work.get)


class ExtraWorkers:
    """The extra workers of one group, and the waits that call for them.

    Attributes:
        cells: the extra workers; they are among the workers of the group.
        parked: number of workers of this group whose work waits for work of any pool.
        awaited: awaited work of this group, with the workers whose work waits for it.
        room_wanted: number of workers whose work waits for room to submit a task. Extra workers then do any work.
    """

    def __init__(self) -> None:
        self.cells: dict[Cell, None] = {}
        self.parked = 0
        self.awaited: dict[Work, list[PoolWorker]] = {}
        self.room_wanted = 0

    def park(self, worker: PoolWorker) -> None:
        """Record that the work of a worker of this group begins to wait."""
        worker.waits += 1
        self.parked += worker.waits == 1

    def unpark(self, worker: PoolWorker) -> None:
        """Record that the work goes on. Harmless if the worker has ended meanwhile."""
        if worker.waits:
            worker.waits -= 1
            self.parked -= not worker.waits

    def worker_is_over(self, worker: PoolWorker) -> None:
        self.parked -= worker.waits > 0
        worker.waits = 0

    def settled(self, work: Work) -> None:
        """Unpark the workers that wait for this work, which has ended. Their work goes on in their own places."""
        for worker in self.awaited.pop(work, ()):
            worker.group.extra_workers.unpark(worker)

    def wants(self, group: WorkProvider) -> bool:
        """Whether there may be one more extra worker, and work for it."""
        return len(self.cells) < self.parked and self.next(group) is not None

    def next(self, group: WorkProvider) -> Work | None:
        """The next work of an extra worker; None if there is none."""
        found = next((work for work in self.awaited if work.ready), None)
        return group.top() if found is None and self.room_wanted else found

    def stays(self) -> bool:
        """Whether an extra worker may go on: there are at most as many extra workers as parked workers."""
        return len(self.cells) <= self.parked


def waits_alone() -> bool:
    """Whether no task or actor can wait for the running code, so that its wait needs no check: the usual case."""
    return not waits_by_node and current_work.get() is None and current_cell.get() is None


@contextmanager
def worker_released(work: Work) -> Generator[None]:
    """Give the place of the running pool work, if any, to an extra worker while the task waits for other work.

    Raises:
        DeadlockError: the task would wait for itself, directly or through others.
    """
    place = current_work.get()
    worker = None if place is None else place.worker
    if worker is None:
        with in_graph(work, None):
            yield
        return
    group, extra_workers = work.group, worker.group.extra_workers
    extra_workers.park(worker)
    group.extra_workers.awaited.setdefault(work, []).append(worker)
    group.wake_worker()
    try:
        with in_graph(work, worker):
            yield
    finally:
        waiters = group.extra_workers.awaited.get(work, [])
        if worker in waiters:  # else the work has ended
            waiters.remove(worker)
            if not waiters:
                del group.extra_workers.awaited[work]
            extra_workers.unpark(worker)


@contextmanager
def in_graph(work: Work, worker: PoolWorker | None) -> Generator[None]:
    """Enter the wait of the running task into the graph of waits, if others may wait for this task."""
    task = running_task()
    cell = current_cell.get()
    owners: list[Any] = []
    if worker is not None and worker.task is task:
        owners.append(task)
    elif cell is not None and cell.waits_in_asks() and cell.runs(task):
        owners.append(cell)
    elif waits_by_node:
        check(PoolWait(work, [task]), [task])
    with waiting(work, owners):
        yield
