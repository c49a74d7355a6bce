"""Selects the next task with limits, without a scan of the tasks that have to wait.

A lane contains the tasks with the same set of limits. A lane is runnable until one of its limits rejects its first
task. It then waits on that limit, with all its tasks.

Invariants:

1. A runnable lane waits on no limit. Every other lane waits on exactly one.
2. If a limit would admit the first task of the first lane that waits on it, that lane is made runnable. After that lane
   was used, `settle` is called for each of its keys, which makes the next lane runnable.
3. Therefore a task does not overtake a more urgent one that waits on the same limit, but it does overtake all others.

The rules of limits: when a task may start, and how a start changes a limit. Independent of the store.

A rate is enforced with GCRA: starting a task moves the theoretical arrival time `tat` ahead by the task's cost, and a
task may start if `tat` is then at most the burst ahead of now. The state is one number, so there are no time windows
with edges.

This is the algorithm of `coordination.gcra`, and a test compares the two. It is implemented again because a task with
several limits must pass all of them before it uses any, and because stores use seconds and costs that need not be
integers.

An override replaces the whole limit of a task except for its cost.
"""

from __future__ import annotations

from math import inf

from cuelight.tasks._stores._row_store import Book
from cuelight.tasks._stores._rows import Gate, Lane, Row, order_of
from cuelight.tasks._task import Limit


def opens(gate: Gate, own: Limit) -> float:
    """The time at which a task with this limit may start, in seconds since the epoch.

    A time that is not after now means at once; `math.inf` means when another task has ended. If a task costs more than
    the burst, it may start when all earlier costs are paid off. That only happens with an override: a task's own limit
    cannot be like that.
    """
    limit = gate.override or own
    if limit.max_concurrent is not None and gate.running >= limit.max_concurrent:
        return inf
    if limit.rate is None:
        return gate.closed
    burst = limit.rate if limit.burst is None else limit.burst
    return max(gate.closed, gate.tat - max(0.0, burst - own.cost) * limit.per / limit.rate)


def take(gate: Gate, own: Limit, now: float) -> None:
    """Start a task: count it as running and charge its cost."""
    gate.running += 1
    limit = gate.override or own
    if limit.rate is not None:
        gate.tat = max(gate.tat, now) + own.cost * limit.per / limit.rate


def forget_at(gate: Gate) -> float | None:
    """The time from which a gate without waiting lanes equals a new one, or None while it is in use."""
    if gate.running or gate.override is not None:
        return None
    return max(gate.tat, gate.closed)


class Lanes:
    """The lanes and gates of one queue."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def lane_of(self, row: Row) -> Lane:
        """The lane for a task with limits."""
        return self._book.lane_of(tuple(sorted({limit.key for limit in row.record.limits})))

    def entered(self, lane: Lane, row: Row, now: float) -> None:
        """Record that a task became pending in a lane. The task must be saved already."""
        order = order_of(row)
        if lane.head is None or order < lane.head:
            lane.head = order
            self._book.save_lane(lane)
            if lane.waits_on:
                self.settle(lane.waits_on, now)

    def left(self, lane_id: int, row: Row, now: float) -> None:
        """Record that a task is no longer pending. The task must be saved already."""
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
        """Return whether a limit rejects the first task of a lane. If so, the lane now waits on that limit."""
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
        """Charge the limits of a task, before it is saved as in flight."""
        for limit in row.record.limits:
            gate = self._book.gate(limit.key)
            take(gate, limit, now)
            self._book.save_gate(gate)

    def ended(self, row: Row, now: float) -> None:
        """Release the limits of a task that is no longer in flight."""
        for limit in row.record.limits:
            gate = self._book.gate(limit.key)
            gate.running = max(0, gate.running - 1)
            self._book.save_gate(gate)
            self.settle(limit.key, now)

    def _settle_all(self, lane: Lane, now: float) -> None:
        for key in lane.keys:
            self.settle(key, now)

    def settle(self, key: str, now: float) -> None:
        """Make the first lane that waits on a limit runnable if its first task may start, or note when it may."""
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
        """The limit of the lane's first task, or None for a lane that cannot wait here.

        No step leaves such a lane behind. It is repaired, so that it waits here no longer.
        """
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
        """Recount the tasks in flight for all limits whose count may be wrong."""
        running = self._book.running()
        for key in running:
            gate = self._book.gate(key)
            gate.running = running[key]
            self._book.save_gate(gate)
            self.settle(key, now)
