"""Time for actors: one heap and one alarm of the loop for all deadlines and timers of a system."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._cell import Cell
    from cuelight.mailbox import Backend

__all__ = ["Alarms", "Entry", "ActorTimer"]

TOLERANCE = 1e-6
"""Seconds by which an alarm may be early: loops round."""

SLACK = 64
"""Empty times that the heap may hold before it is rebuilt."""


class Entry(Protocol):
    """Something that is due at a time."""

    def ring(self) -> None:
        """Called once, when its time has come, by the loop and never by user code."""
        ...


class Alarms:
    """Entries by due time. Entries that are due at the same time share a place in the heap."""

    __slots__ = ("_armed", "_backend", "_due", "_heap")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._due: dict[float, dict[Entry, None]] = {}
        self._heap: list[float] = []
        self._armed: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    def add(self, due: float, entry: Entry) -> None:
        """Have `entry.ring()` called at the loop's time `due`."""
        bucket = self._due.get(due)
        if bucket is not None:
            bucket[entry] = None
            return
        self._due[due] = {entry: None}
        heap = self._heap
        if len(heap) > 2 * len(self._due) + SLACK:
            heap[:] = self._due
            heapify(heap)
        else:
            heappush(heap, due)
        if self._armed is None or due < self._armed:
            self._armed = due
            self._backend.set_alarm(due, self._ring)

    def remove(self, due: float, entry: Entry) -> None:
        """Forget an entry; harmless if it has rung."""
        bucket = self._due.get(due)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                del self._due[due]
                if not self._due:
                    self._heap.clear()
                    self._armed = None
                    self._backend.clear_alarm()

    def _ring(self) -> None:
        self._armed = None
        now = self._backend.time() + TOLERANCE
        heap, due = self._heap, self._due
        while heap and heap[0] <= now:
            bucket = due.get(heap[0])
            if not bucket:
                due.pop(heappop(heap), None)
                continue
            for entry in list(bucket):
                if entry in bucket:  # one that rang before may have cancelled it
                    del bucket[entry]
                    entry.ring()
        while heap and heap[0] not in due:
            heappop(heap)
        if heap and (self._armed is None or heap[0] < self._armed):
            self._armed = heap[0]
            self._backend.set_alarm(heap[0], self._ring)

    def close(self) -> None:
        """Forget all entries."""
        self._due.clear()
        self._heap.clear()
        self._armed = None
        self._backend.clear_alarm()


class Later:
    """Calls a function at a time."""

    __slots__ = ("_alarms", "_args", "_due", "_function")

    def __init__(self, alarms: Alarms, due: float, function: Callable[..., object], *args: Any) -> None:
        self._alarms, self._due, self._function, self._args = alarms, due, function, args
        alarms.add(due, self)

    def ring(self) -> None:
        """The time has come."""
        self._function(*self._args)

    def cancel(self) -> None:
        """Forget it."""
        self._alarms.remove(self._due, self)


class ActorTimer:
    """A message that an actor sends itself later, once or again and again, while its incarnation lives."""

    __slots__ = ("_cell", "_due", "_key", "_message", "_period")

    def __init__(self, cell: Cell, key: object, message: Any, delay: float, period: float | None) -> None:
        cell.must_live("timers")
        self._cell, self._message, self._period = cell, message, period
        self._key = self if key is None else key
        self._due = cell.runtime.backend.time() + delay
        timers = cell.bonds_made().timers
        earlier = timers.get(self._key)
        if earlier is not None:
            earlier.cancel()
        timers[self._key] = self
        cell.runtime.alarms.add(self._due, self)

    @property
    def active(self) -> bool:
        """Whether it will send its message (again)."""
        bonds = self._cell.bonds
        return bonds is not None and bonds.timers.get(self._key) is self

    def cancel(self) -> None:
        """Send nothing any more. A message that is in the mailbox already stays there. Harmless when over."""
        if self.active and self._cell.bonds is not None:
            del self._cell.bonds.timers[self._key]
            self._cell.runtime.alarms.remove(self._due, self)

    def ring(self) -> None:
        """The time has come."""
        cell = self._cell
        if self._period is None:
            if cell.bonds is not None:
                cell.bonds.timers.pop(self._key, None)
        else:
            # Periods that were missed, as after a blocked loop, are skipped: no burst, no drift.
            now = cell.runtime.backend.time()
            missed = max(0.0, (now - self._due) // self._period)
            self._due += (missed + 1) * self._period
            cell.runtime.alarms.add(self._due, self)
        cell.put_or_drop(self._message)
