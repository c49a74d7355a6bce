"""Helpers of a crew: workers in the place of workers whose work waits for other work of a pool.

Work that waits for other work keeps its worker, and gives its place away: to a helper, which does only what work of
pools waits for, and leaves when there is nothing of that. So work that waits for work of the same pool goes on however
deep it is nested, and no more of it runs at a time than the pool has places.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight.actors import handling
from cuelight.coordination._waiting import awaited_work
from cuelight.mailbox import running_task
from cuelight.pools._waiting import PoolWait, blocked, check, waiting

if TYPE_CHECKING:
    from cuelight.actors import Cell
    from cuelight.pools._crew import Crew, Work
    from cuelight.pools._pool_worker import PoolWorker

__all__ = ["Helpers", "Place", "current_place", "in_graph", "place_given_away", "waits_alone"]


class Place(Protocol):
    """What a worker does: one task, or items of a map."""

    worker: PoolWorker | None
    """The worker; None once it is through with that."""


current_place: Final[ContextVar[Place | None]] = ContextVar("cuelight_pool_place", default=None)
"""What the running code belongs to, if it is work of a pool: also in tasks and callbacks that the work has started."""

awaited_work.append(current_place.get)


class Helpers:
    """The helpers of one crew, and what they are there for.

    Attributes:
        cells: the helpers; they are among the workers of the crew.
        parked: workers of this crew whose work waits for work of whichever pool.
        awaited: work of this crew that is waited for, and the workers whose work waits.
        room_wanted: how many wait until one more task may be submitted; then helpers do what is next.
    """

    def __init__(self) -> None:
        self.cells: dict[Cell, None] = {}
        self.parked = 0
        self.awaited: dict[Work, list[PoolWorker]] = {}
        self.room_wanted = 0

    def park(self, worker: PoolWorker) -> None:
        """The work of a worker of this crew begins to wait."""
        worker.waits += 1
        self.parked += worker.waits == 1

    def unpark(self, worker: PoolWorker) -> None:
        """It goes on. Harmless if the worker has ended meanwhile."""
        if worker.waits:
            worker.waits -= 1
            self.parked -= not worker.waits

    def worker_is_over(self, worker: PoolWorker) -> None:
        """A worker is no more."""
        self.parked -= worker.waits > 0
        worker.waits = 0

    def settled(self, work: Work) -> None:
        """Work has ended: those who wait for it go on, in their own places."""
        for worker in self.awaited.pop(work, ()):
            worker.crew.helpers.unpark(worker)

    def wants(self, crew: Crew) -> bool:
        """Whether one more helper may come, and has something to do."""
        return len(self.cells) < self.parked and self.next(crew) is not None

    def next(self, crew: Crew) -> Work | None:
        """What a helper does next; None if there is nothing for it."""
        found = next((work for work in self.awaited if work.ready), None)
        return crew.top() if found is None and self.room_wanted else found

    def stays(self) -> bool:
        """Whether a helper may go on: not more of them are there than places were given away."""
        return len(self.cells) <= self.parked


def waits_alone() -> bool:
    """Whether nobody can wait for the running code, so that its wait needs no look: the usual case."""
    return not blocked and current_place.get() is None and handling.get() is None


@contextmanager
def place_given_away(work: Work) -> Generator[None]:
    """While a task waits for work of a pool: if the task belongs to work of a pool, that gives its place away.

    Raises:
        DeadlockError: it would wait for itself, through whomever.
    """
    place = current_place.get()
    worker = None if place is None else place.worker
    if worker is None:
        with in_graph(work, None):
            yield
        return
    crew, helpers = work.crew, worker.crew.helpers
    helpers.park(worker)
    crew.helpers.awaited.setdefault(work, []).append(worker)
    crew.call()
    try:
        with in_graph(work, worker):
            yield
    finally:
        waiters = crew.helpers.awaited.get(work, [])
        if worker in waiters:  # else the work has ended
            waiters.remove(worker)
            if not waiters:
                del crew.helpers.awaited[work]
            helpers.unpark(worker)


@contextmanager
def in_graph(work: Work, worker: PoolWorker | None) -> Generator[None]:
    """Enter the wait of the running task in the graph of waits, if others may wait for it."""
    task = running_task()
    cell = handling.get()
    owners: list[Any] = []
    if worker is not None and worker.task is task:
        owners.append(task)
    elif cell is not None and cell.waits_in_asks() and cell.runs(task):
        owners.append(cell)
    elif blocked:
        check(PoolWait(work, [task]), [task])
    with waiting(work, owners):
        yield
