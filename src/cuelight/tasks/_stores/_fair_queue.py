"""Fair sharing between tenants: each gets a share of the claims by its weight, however many tasks it has.

The algorithm is start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling
Algorithm for Integrated Services Packet Switching Networks", SIGCOMM 1996), with tasks instead of packets:

1. The turn of a new task is the virtual time, or the virtual finish of its tenant's last task if that is later. The
   virtual finish of the task is `1 / weight` after its turn.
2. The virtual time is the latest turn of all claimed tasks. It never goes back.
3. Each priority has a separate virtual time and separate finishes. So have tasks with deadlines of each priority: they
   are claimed early, and would advance the virtual time of all others.
4. When a claim leaves no task pending, all virtual times become the finish of the last task, and all finishes are
   forgotten. A finish that is not after the virtual time has no effect and is forgotten, too.
5. Tasks without a tenant count as one tenant of weight 1, from when a task with a tenant is added until step 4. Outside
   that time, their turns are the virtual time, and nothing is stored or computed.
"""

from __future__ import annotations

from math import inf
from typing import Final

from cuelight.tasks._stores._rows import Row
from cuelight.tasks._task import Record

_FEW: Final = 64


class FairQueue:
    """The turns of one queue, in memory. `SQLiteFairQueue` keeps the virtual finishes in a table.

    Attributes:
        floor: the virtual time of priority classes that are not in `virtual_times`.
        latest_finish: the latest virtual finish of all tasks.
        virtual_times: the virtual times by priority class; empty while no task has a tenant.
    """

    def __init__(self) -> None:
        self.floor = self.latest_finish = 0.0
        self.virtual_times: dict[str, float] = {}
        self._moved = False
        self._finishes: dict[tuple[str, str], float] = {}
        self._max_finishes = _FEW

    def turn_of_new(self, record: Record) -> float:
        """The turn of a task that is added now."""
        if record.tenant is None and not self.virtual_times:
            return self.floor
        priority_class, tenant = _priority_class(record), record.tenant or ""
        turn = max(self.virtual_times.setdefault(priority_class, self.floor), self.finish_of(priority_class, tenant))
        finish = turn + 1.0 / record.weight
        self.save_finish(priority_class, tenant, finish)
        self.latest_finish = max(self.latest_finish, finish)
        return turn

    def requeue(self, row: Row) -> None:
        """Update the turn of a task that has lost its deadline, and has therefore moved to another priority class."""
        row.turn = min(row.turn, self.virtual_times.get(_priority_class(row.record), self.floor))

    def started(self, row: Row) -> None:
        """Advance the virtual time for a claimed task."""
        if self.virtual_times:
            priority_class = _priority_class(row.record)
            if row.turn > self.virtual_times.get(priority_class, inf):
                self.virtual_times[priority_class] = row.turn
                self._moved = True

    def settle(self, pending: int) -> None:
        """End a claim that left `pending` tasks pending."""
        if not self.virtual_times:
            return
        if not pending:
            self.floor = self.latest_finish
            self.virtual_times.clear()
            self.forget_all()
        elif self._moved:
            self.forget()
        self._moved = False

    # Virtual finishes

    def finish_of(self, priority_class: str, tenant: str) -> float:
        """The virtual finish of a tenant's last task; 0 if it was forgotten."""
        return self._finishes.get((priority_class, tenant), 0.0)

    def save_finish(self, priority_class: str, tenant: str, finish: float) -> None:
        """Store the virtual finish of a tenant's last task."""
        self._finishes[priority_class, tenant] = finish

    def forget(self) -> None:
        """Remove virtual finishes that are not after the virtual time of their class, at once or later."""
        if len(self._finishes) > self._max_finishes:
            self._finishes = {
                place: finish for place, finish in self._finishes.items() if finish > self.virtual_times[place[0]]
            }
            self._max_finishes = max(_FEW, 2 * len(self._finishes))

    def forget_all(self) -> None:
        self._finishes.clear()
        self._max_finishes = _FEW


def _priority_class(record: Record) -> str:
    return f"{record.priority}{'d' if record.deadline < inf else ''}"
