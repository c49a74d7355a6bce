"""Repairs damage in a SQLite file that was edited by hand, by another program, or by another version.

Queries handle the unreadable rows that they return. This module handles the rest: tasks that no query returns, counters
that do not match the tasks, and lanes that wait without a reason.

1. It runs when a claim has found no task, once per minute, or at once if something looks wrong.
2. The first run, and a run in which the counters cannot be right, reads all tasks. Other runs use indexes, and read
   some hundred lanes, limits and parked tasks, continuing where the last run stopped. Their cost does not depend on the
   number of tasks.
"""

from __future__ import annotations

import sqlite3
from math import inf
from typing import Any, Final

from cuelight._log import get_log
from cuelight.tasks._stores._engine import Engine
from cuelight.tasks._stores._rows import COMPLETED, IN_FLIGHT, PARKED, PENDING, SCHEDULED, order_of
from cuelight.tasks._stores._sqlite._columns import LATEST
from cuelight.tasks._stores._sqlite._row_store import SQLiteBook
from cuelight.tasks._stores._sqlite._schema import orphaned
from cuelight.tasks._stores._sqlite._statements import (
    ADOPT,
    FIRST_OWNER,
    LANES,
    NEXT_LANE,
    NEXT_WAIT,
    UNLISTED,
    WAITING,
)

log = get_log("cuelight.tasks")

_EVERY: Final = 60.0
_SOONEST: Final = 1.0
_SOME: Final = 200
_MANY: Final = 2000
"""The maximum number of tasks in flight for which all are read to count the tasks of a limit."""


class Mending:
    """Repairs one queue in one process."""

    def __init__(self, connection: sqlite3.Connection, queue: int, book: SQLiteBook, engine: Engine) -> None:
        self._run = connection.execute
        self._queue, self._book, self._engine = queue, book, engine
        self._last = -inf
        self._lane: float = -inf  # where the next run continues
        self._owner, self._limit, self._parked = 0, "", 0
        self._book.suspicious = True  # the history of the file is unknown

    def look(self, now: float) -> bool:
        """Look for damage if it is time to. Return whether anything was changed."""
        since = now - self._last
        if 0 <= since < (_SOONEST if self._book.suspicious else _EVERY):
            return False
        self._last = now
        changed, self._book.changed = self._book.changed, False
        suspicious, self._book.suspicious = self._book.suspicious, False
        self._adopt_tasks()
        self._place_late_tasks(now)
        self._see_to_parked()
        if suspicious or self._book.suspicious or self._counts_of_none():
            self._place_odd_tasks(now)
            self._book.recount()
        if self._book.sizes[PENDING]:
            self._place_pending(now)
            self._see_to_lanes()
            self._see_to_limits(now)
        mended, self._book.changed = self._book.changed, changed or self._book.changed
        return mended

    def _adopt_tasks(self) -> None:
        """Repair tasks of a missing queue, and tasks that no page of a listing contains."""
        for owner in orphaned(self._run):
            if self._run("SELECT count(*) FROM queues").fetchone() == (1,):
                for statement in ADOPT:
                    self._run(statement, (self._queue, owner))
                self._book.suspicious = True
            else:
                log.error("the file has tasks of queue %d, which its table `queues` does not have", owner)
        for (seq,) in self._run(UNLISTED, (self._queue, _SOME)).fetchall():
            self._book.renumber(seq)

    def _counts_of_none(self) -> bool:
        """Whether a counter is zero although there are tasks in the state, or the other way round."""
        self._book.flush()
        there = self._run(WAITING, (-self._queue, *(self._queue,) * 4)).fetchone()
        return any(bool(self._book.sizes[state]) != bool(there[state]) for state in range(COMPLETED))

    def _see_to_parked(self) -> None:
        """Repair parked tasks that `unpark` would not find."""
        rows = self._book.parked_after(self._parked, _SOME) if self._book.sizes[PARKED] else []
        self._parked = rows[-1].seq if len(rows) == _SOME else 0
        for row in rows:
            if row.damage is None:
                self._run(
                    "UPDATE tasks SET type = ? WHERE seq = ? AND type <> ?", (row.record.type, row.seq, row.record.type)
                )

    def _place_odd_tasks(self, now: float) -> None:
        """Repair tasks in an invalid state, and tasks whose state should end at a time and has none."""
        for row in self._book.odd(_SOME):
            if row.damage is not None:
                self._engine.condemn(row, row.damage, now)
            elif row.state >= COMPLETED:
                row.due = now + row.record.result_ttl
                self._book.save(row)

    def _place_late_tasks(self, now: float) -> None:
        """Repair tasks that wait for an invalid time."""
        for state in (SCHEDULED, IN_FLIGHT):
            for row in self._book.beyond(state, LATEST, _SOME):
                if row.damage is not None:
                    self._engine.condemn(row, row.damage, now)

    def _place_pending(self, now: float) -> None:
        """Repair pending tasks in an invalid lane."""
        for _ in range(_SOME):
            found = self._run(NEXT_LANE, (self._lane,)).fetchone()
            if found is None:
                self._lane = -inf
                return
            lane = self._lane = found[0]
            if self._holds_ours(lane):
                for row in self._book.pending_in(lane, _SOME):
                    self._engine.shift(row, PENDING, now)

    def _holds_ours(self, lane: int) -> bool:
        """Whether a lane is not of this queue, but has tasks of it.

        For a lane of another queue, only its first task is checked.
        """
        owner = (-lane,) if lane < 0 else self._run("SELECT queue FROM lanes WHERE id = ?", (lane,)).fetchone()
        if owner is None or owner[0] == self._queue:
            return owner is None
        if self._run("SELECT 1 FROM queues WHERE id = ?", (min(owner[0], 2**63 - 1),)).fetchone() is None:
            return True
        return bool(self._run(FIRST_OWNER, (lane,)).fetchone() == (self._queue,))

    def _see_to_lanes(self) -> None:
        """Repair lanes whose first task is missing, or is not the one that they name."""
        lanes = self._run(LANES, (self._owner, _SOME)).fetchall()
        self._owner = lanes[-1][0] if len(lanes) == _SOME else 0
        for number, queue in lanes:
            lane = self._book.lane(number) if queue == self._queue else None
            if lane is None:
                continue
            head = self._book.head(lane)
            if head is None:
                self._book.drop_lane(lane)
            if head is None or head.damage is not None:
                continue
            keys = tuple(sorted({limit.key for limit in head.record.limits}))
            if lane.keys != keys:
                self._book.give_keys(lane.id, keys)
            elif lane.head != order_of(head) or not (lane.waits_on == "" or lane.waits_on in keys):
                lane.head = order_of(head)
                lane.waits_on = lane.waits_on if lane.waits_on in keys else ""
                self._book.save_lane(lane)

    def _see_to_limits(self, now: float) -> None:
        """Repair limits on which lanes wait although no running task and no time can open them."""
        running = self._book.in_flight() if self._book.sizes[IN_FLIGHT] <= _MANY else None
        for _ in range(_SOME):
            found: Any = self._run(NEXT_WAIT, (self._queue, self._limit)).fetchone()
            if found is None:
                self._limit = ""
                return
            self._limit = str(found[0])
            gate = self._book.gate(self._limit)
            runs = gate.running if running is None else running.get(self._limit, 0)
            if gate.waiting and gate.running == runs and (runs or gate.due is not None):
                continue  # it will open when a task ends, or at its time
            log.error("the limit %r let nobody through for no reason: %d tasks run", self._limit, runs)
            gate.running = runs
            self._engine.lanes.settle(self._limit, now)
