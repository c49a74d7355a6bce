"""One heap, and one alarm of the event loop, for all deadlines and timers of a system."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.mailbox import Backend

TOLERANCE = 1e-6
"""The time in seconds by which an alarm may be early, because loops round times."""

SLACK = 64
"""The number of due times without an entry that are kept before the heap is rebuilt."""

MISSING = object()


class TimerEntry(Protocol):
    """An object that is due at a time."""

    def fire(self) -> None:
        """Called once, by the loop and never by user code, when the time has come."""
        ...


class TimerHeap:
    """Entries by due time. Entries that are due at the same time share one item of the heap.

    If an entry raises when it fires, the exception is reported and the other entries still fire.
    """

    __slots__ = ("_armed", "_backend", "_closed", "_due", "_empty", "_failed", "_heap")

    def __init__(self, backend: Backend, failed: Callable[[BaseException], object]) -> None:
        """Make an empty set of entries.

        Args:
            backend: the event loop.
            failed: called with the exception of an entry.
        """
        self._backend = backend
        self._failed = failed
        self._closed = False
        self._due: dict[float, dict[TimerEntry, None]] = {}
        self._heap: list[float] = []
        self._armed: float | None = None
        self._empty = 0

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    def add(self, due: float, entry: TimerEntry) -> None:
        """Have `entry.fire()` called at the loop's time `due`, which must not be NaN. Do nothing after `close`."""
        if self._closed or due == math.inf:
            return
        bucket = self._due.get(due)
        if bucket is not None:
            if not bucket:
                self._empty -= 1
            bucket[entry] = None
            return
        self._due[due] = {entry: None}
        heappush(self._heap, due)
        if self._armed is None or due < self._armed:
            self._armed = due
            self._backend.set_alarm(due, self._fire)

    def remove(self, due: float, entry: TimerEntry) -> None:
        """Forget an entry. Do nothing if it has already fired."""
        bucket = self._due.get(due)
        # An empty due time stays for a while: asks soon need it again, and the alarm need not be changed.
        if bucket is not None and bucket.pop(entry, MISSING) is None and not bucket:
            self._empty += 1
            if self._empty > SLACK and self._empty * 2 > len(self._due):
                self._compact()

    def _compact(self) -> None:
        self._empty = 0
        self._due = {due: bucket for due, bucket in self._due.items() if bucket}
        self._heap = list(self._due)
        heapify(self._heap)

    def _fire(self) -> None:
        self._armed = None
        try:
            self._fire_due(self._backend.time() + TOLERANCE)
        except BaseException as error:  # the clock of the loop raised
            self._failed(error)
        heap = self._heap
        if heap and (self._armed is None or heap[0] < self._armed):
            self._armed = heap[0]
            self._backend.set_alarm(heap[0], self._fire)

    def _fire_due(self, now: float) -> None:
        while self._heap and (self._heap[0] <= now or not self._due[self._heap[0]]):
            bucket = self._due[self._heap[0]]
            if not bucket:
                del self._due[heappop(self._heap)]
                self._empty = max(0, self._empty - 1)
                continue
            for entry in list(bucket):
                if entry in bucket:  # an entry that fired before it may have removed it
                    del bucket[entry]
                    try:
                        entry.fire()
                    except BaseException as error:
                        self._failed(error)

    def close(self) -> None:
        """Forget all entries and accept no more."""
        self._closed = True
        self._due.clear()
        self._heap.clear()
        self._empty = 0
        self._armed = None
        self._backend.clear_alarm()


class ScheduledCall:
    """Calls a function at a time."""

    __slots__ = ("_args", "_due", "_function", "_timers")

    def __init__(self, timers: TimerHeap, due: float, function: Callable[..., object], *args: Any) -> None:
        self._timers, self._due, self._function, self._args = timers, due, function, args
        timers.add(due, self)

    def fire(self) -> None:
        self._function(*self._args)

    def cancel(self) -> None:
        self._timers.remove(self._due, self)
