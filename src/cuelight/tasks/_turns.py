"""Whose turn it is: tenants share what workers do by their weights, however many tasks each of them has.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for
Integrated Services Packet Switching Networks", SIGCOMM 1996), with tasks for packets:

1. The turn of a new task is the virtual time, or where its tenant's last task ends if that is later. It ends
   `1 / weight` after it begins.
2. The virtual time is the latest turn of the tasks that were claimed. It never goes back.
3. Each priority has a virtual time and ends of its own, and so have its tasks with deadlines: what is more urgent is
   claimed before its time, and would turn the time of all others on.
4. When a claim leaves no task pending, the virtual time of all is where the last task ends, and all ends are forgotten.
   An end that is not after the virtual time says nothing and is forgotten too.
5. Tasks without a tenant are one tenant, of weight 1, from when a task with a tenant is added until 4. Before that
   they have the virtual time for their turns, nothing is kept, and nothing is paid.
"""

from __future__ import annotations

from math import inf
from typing import Final

from cuelight.tasks._record import Record
from cuelight.tasks._rows import Row

__all__ = ["Turns"]

_FEW: Final = 64


class Turns:
    """The turns of one queue, in memory; a book of another kind says where else the ends are.

    Attributes:
        floor: the virtual time of lines that are not in `lines`.
        top: where the last task of all ends.
        lines: the virtual times; empty while nobody has a tenant.
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
        """A task has lost its deadline, and with it its line: its turn comes now."""
        row.turn = min(row.turn, self.lines.get(_line_of(row.record), self.floor))

    def started(self, row: Row) -> None:
        """A task was claimed."""
        if self.lines:
            line = _line_of(row.record)
            if row.turn > self.lines.get(line, inf):
                self.lines[line] = row.turn
                self._moved = True

    def settle(self, pending: int) -> None:
        """A claim is over, and left so many tasks pending."""
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
        """Where the last task of a tenant ends; 0 if that is forgotten."""
        return self._ends.get((line, tenant), 0.0)

    def keep(self, line: str, tenant: str, end: float) -> None:
        """Note where the last task of a tenant ends."""
        self._ends[line, tenant] = end

    def forget(self) -> None:
        """Drop ends that are not after the virtual time of their line, sooner or later."""
        if len(self._ends) > self._room:
            self._ends = {place: end for place, end in self._ends.items() if end > self.lines[place[0]]}
            self._room = max(_FEW, 2 * len(self._ends))

    def forget_all(self) -> None:
        """Drop all ends."""
        self._ends.clear()
        self._room = _FEW


def _line_of(record: Record) -> str:
    return f"{record.priority}{'d' if record.deadline < inf else ''}"
