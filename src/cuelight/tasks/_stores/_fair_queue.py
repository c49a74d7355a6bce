"""Fair sharing between tenants: each gets a share of the claims by its weight, however many tasks it has.

The algorithm is start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling
Algorithm for Integrated Services Packet Switching Networks", SIGCOMM 1996), with tasks instead of packets:

1. The turn of a new task is the virtual time, or the end of its tenant's last task if that is later. The task ends
   `1 / weight` after its turn.
2. The virtual time is the latest turn of all claimed tasks. It never goes back.
3. Each priority has a separate virtual time and separate ends. So have tasks with deadlines of each priority: they are
   claimed early, and would advance the virtual time of all others.
4. When a claim leaves no task pending, all virtual times become the end of the last task, and all ends are forgotten.
   An end that is not after the virtual time has no effect and is forgotten, too.
5. Tasks without a tenant count as one tenant of weight 1, from when a task with a tenant is added until step 4. Outside
   that time, their turns are the virtual time, and nothing is stored or computed.
"""

from __future__ import annotations

from math import inf
from typing import Final

from cuelight.tasks._stores._rows import Row
from cuelight.tasks._task import Record

_FEW: Final = 64


class Turns:
    """The turns of one queue, in memory. The books of other stores keep the ends elsewhere.

    Attributes:
        floor: the virtual time of lines that are not in `lines`.
        top: the latest end of all tasks.
        lines: the virtual times by line; empty while no task has a tenant.
    """

    def __init__(self) -> None:
        self.floor = self.top = 0.0
        self.lines: dict[str, float] = {}
        self._moved = False
        self._ends: dict[tuple[str, str], float] = {}
        self._room = _FEW

    def of_new(self, record: Record) -> float:
        """The turn of a task that is added now."""
        if record.tenant is None and not self.lines:
            return self.floor
        line, tenant = _line_of(record), record.tenant or ""
        turn = max(self.lines.setdefault(line, self.floor), self.end_of(line, tenant))
        end = turn + 1.0 / record.weight
        self.keep(line, tenant, end)
        self.top = max(self.top, end)
        return turn

    def again(self, row: Row) -> None:
        """Update the turn of a task that has lost its deadline, and has therefore moved to another line."""
        row.turn = min(row.turn, self.lines.get(_line_of(row.record), self.floor))

    def started(self, row: Row) -> None:
        """Advance the virtual time for a claimed task."""
        if self.lines:
            line = _line_of(row.record)
            if row.turn > self.lines.get(line, inf):
                self.lines[line] = row.turn
                self._moved = True

    def settle(self, pending: int) -> None:
        """End a claim that left `pending` tasks pending."""
        if not self.lines:
            return
        if not pending:
            self.floor = self.top
            self.lines.clear()
            self.forget_all()
        elif self._moved:
            self.forget()
        self._moved = False

    # Ends

    def end_of(self, line: str, tenant: str) -> float:
        """The end of a tenant's last task; 0 if it was forgotten."""
        return self._ends.get((line, tenant), 0.0)

    def keep(self, line: str, tenant: str, end: float) -> None:
        """Store the end of a tenant's last task."""
        self._ends[line, tenant] = end

    def forget(self) -> None:
        """Remove ends that are not after the virtual time of their line. They may also be kept for a while."""
        if len(self._ends) > self._room:
            self._ends = {place: end for place, end in self._ends.items() if end > self.lines[place[0]]}
            self._room = max(_FEW, 2 * len(self._ends))

    def forget_all(self) -> None:
        self._ends.clear()
        self._room = _FEW


def _line_of(record: Record) -> str:
    return f"{record.priority}{'d' if record.deadline < inf else ''}"
