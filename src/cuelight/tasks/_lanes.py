"""Which task with limits may go next, without looking at those that may not.

Tasks with the same set of limits are one lane. A lane is asked for work until one of its limits does not admit its
first task; then it waits on that limit, however many tasks are in it. Nothing here walks over tasks.

1. A lane that is asked for work waits on no limit; any other waits on exactly one.
2. Where lanes wait on a limit that would admit the first task of the first of them, that lane is asked for work.
   It passes the turn on when it has been looked at: `settle` is called for each key of a lane that has changed.
3. So a task does not overtake a more urgent one that waits on the same limit, and it does overtake all others.
"""

from __future__ import annotations

from math import inf

from cuelight.tasks._book import Book
from cuelight.tasks._gates import forget_at, opens, take
from cuelight.tasks._rows import Lane, Row, order_of
from cuelight.tasks._task import Limit

__all__ = ["Lanes"]


class Lanes:
    """The lanes and gates of one queue."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def lane_of(self, row: Row) -> Lane:
        """The lane for a task with limits."""
        return self._book.lane_of(tuple(sorted({limit.key for limit in row.record.limits})))

    def entered(self, lane: Lane, row: Row, now: float) -> None:
        """A task has become pending in a lane, and was saved."""
        order = order_of(row)
        if lane.head is None or order < lane.head:
            lane.head = order
            self._book.save_lane(lane)
            if lane.waits_on:
                self.settle(lane.waits_on, now)

    def left(self, lane_id: int, row: Row, now: float) -> None:
        """A task is pending no more, and was saved."""
        lane = self._book.lane(lane_id)
        if lane is None or lane.head is None or lane.head[-1] != row.seq:
            return
        head = self._book.head(lane)
        if head is None:
            self._book.drop_lane(lane)
        else:
            lane.head = order_of(head)
            self._book.save_lane(lane)
        self._settle_all(lane, now)

    def refused(self, lane: Lane, row: Row, now: float) -> bool:
        """Whether a limit does not admit the first task of a lane; then the lane waits on it from now on."""
        for limit in row.record.limits:
            gate = self._book.gate(limit.key)
            ahead = self._book.first_lane(limit.key) if gate.waiting else None
            if opens(gate, limit) > now or (ahead is not None and ahead.head < lane.head):  # type: ignore[operator]
                lane.waits_on = limit.key
                self._book.save_lane(lane)
                self._settle_all(lane, now)
                return True
        return False

    def start(self, row: Row, now: float) -> None:
        """Take what the limits of a task say, before it is saved as in flight."""
        for limit in row.record.limits:
            gate = self._book.gate(limit.key)
            take(gate, limit, now)
            self._book.save_gate(gate)

    def ended(self, row: Row, now: float) -> None:
        """Give back the places of a task that is in flight no more."""
        for limit in row.record.limits:
            gate = self._book.gate(limit.key)
            gate.running = max(0, gate.running - 1)
            self._book.save_gate(gate)
            self.settle(limit.key, now)

    def _settle_all(self, lane: Lane, now: float) -> None:
        for key in lane.keys:
            self.settle(key, now)

    def settle(self, key: str, now: float) -> None:
        """Ask the first lane that waits on a limit for work if the limit admits its first task, or note when to."""
        gate = self._book.gate(key)
        lane, own = self._book.first_lane(key), None
        while lane is not None:
            own = self._limit_of_first(lane, key)
            if own is not None:
                break
            lane = self._book.first_lane(key)
        if lane is None or own is None:
            gate.waiting = False
            gate.due = forget_at(gate)
            if gate.due is not None and gate.due <= now:
                self._book.drop_gate(gate)
                return
        else:
            gate.waiting = True
            at = opens(gate, own)
            gate.due = at if now < at < inf else None
            if at <= now:
                lane.waits_on = ""
                self._book.save_lane(lane)
        self._book.save_gate(gate)

    def _limit_of_first(self, lane: Lane, key: str) -> Limit | None:
        """None for a lane that cannot wait here, which no step leaves behind: it does not any more."""
        head = self._book.head(lane)
        if head is None:
            self._book.drop_lane(lane)
            return None
        own = next((limit for limit in head.record.limits if limit.key == key), None)
        if own is None:
            lane.waits_on, lane.head = "", lane.head or order_of(head)
            self._book.save_lane(lane)
        return own

    def recount(self, now: float) -> None:
        """Count the tasks in flight anew, for all limits that may be wrong."""
        running = self._book.running()
        for key in running:
            gate = self._book.gate(key)
            gate.running = running[key]
            self._book.save_gate(gate)
            self.settle(key, now)
