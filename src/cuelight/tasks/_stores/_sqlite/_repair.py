"""Repairs damage in a SQLite file that was edited by hand, by another program, or by another version.

Queries handle the unreadable rows that they return. This module handles the rest: tasks that no query returns, counters
that do not match the tasks, and limit queues that wait without a reason.

1. It runs when a claim has found no task, once per minute, or at once if something looks wrong.
2. The first run, and a run in which the counters cannot be right, reads all tasks. Other runs use indexes, and read
   some hundred limit queues, limits and parked tasks, continuing where the last run stopped. Their cost does not
   depend on the number of tasks.
"""

from __future__ import annotations

import sqlite3
from math import inf
from typing import Any, Final

from cuelight._log import get_log
from cuelight.tasks._stores._engine import Engine
from cuelight.tasks._stores._rows import COMPLETED, IN_FLIGHT, PARKED, PENDING, SCHEDULED, order_of
from cuelight.tasks._stores._sqlite._columns import LATEST
from cuelight.tasks._stores._sqlite._row_store import SQLiteRowStore
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


class FileRepair:
    """Repairs one queue in one process."""

    def __init__(self, connection: sqlite3.Connection, queue: int, row_store: SQLiteRowStore, engine: Engine) -> None:
        self._run = connection.execute
        self._queue, self._row_store, self._engine = queue, row_store, engine
        self._last = -inf
        self._limit_queue: float = -inf  # where the next run continues
        self._owner, self._limit, self._parked = 0, "", 0
        self._row_store.suspicious = True  # the history of the file is unknown

    def repair_if_due(self, now: float) -> bool:
        """Look for damage if it is time to. Return whether anything was changed."""
        since = now - self._last
        if 0 <= since < (_SOONEST if self._row_store.suspicious else _EVERY):
            return False
        self._last = now
        changed, self._row_store.changed = self._row_store.changed, False
        suspicious, self._row_store.suspicious = self._row_store.suspicious, False
        self._adopt_tasks()
        self._repair_late_tasks(now)
        self._repair_parked()
        if suspicious or self._row_store.suspicious or self._sizes_are_wrong():
            self._repair_odd_tasks(now)
            self._row_store.recount()
        if self._row_store.sizes[PENDING]:
            self._repair_pending(now)
            self._repair_limit_queues()
            self._repair_limits(now)
        repaired, self._row_store.changed = self._row_store.changed, changed or self._row_store.changed
        return repaired

    def _adopt_tasks(self) -> None:
        """Repair tasks of a missing queue, and tasks that no page of a listing contains."""
        for owner in orphaned(self._run):
            if self._run("SELECT count(*) FROM queues").fetchone() == (1,):
                for statement in ADOPT:
                    self._run(statement, (self._queue, owner))
                self._row_store.suspicious = True
            else:
                log.error("the file has tasks of queue %d, which its table `queues` does not have", owner)
        for (seq,) in self._run(UNLISTED, (self._queue, _SOME)).fetchall():
            self._row_store.renumber(seq)

    def _sizes_are_wrong(self) -> bool:
        """Whether a counter is zero although there are tasks in the state, or the other way round."""
        self._row_store.flush()
        there = self._run(WAITING, (-self._queue, *(self._queue,) * 4)).fetchone()
        return any(bool(self._row_store.sizes[state]) != bool(there[state]) for state in range(COMPLETED))

    def _repair_parked(self) -> None:
        """Repair parked tasks that `unpark` would not find."""
        rows = self._row_store.parked_after(self._parked, _SOME) if self._row_store.sizes[PARKED] else []
        self._parked = rows[-1].seq if len(rows) == _SOME else 0
        for row in rows:
            if row.damage is None:
                self._run(
                    "UPDATE tasks SET type = ? WHERE seq = ? AND type <> ?", (row.record.type, row.seq, row.record.type)
                )

    def _repair_odd_tasks(self, now: float) -> None:
        """Repair tasks in an invalid state, and tasks whose state should end at a time and has none."""
        for row in self._row_store.odd(_SOME):
            if row.damage is not None:
                self._engine.dead_letter_corrupt(row, row.damage, now)
            elif row.state >= COMPLETED:
                row.due = now + row.record.result_ttl
                self._row_store.save(row)

    def _repair_late_tasks(self, now: float) -> None:
        """Repair tasks that wait for an invalid time."""
        for state in (SCHEDULED, IN_FLIGHT):
            for row in self._row_store.beyond(state, LATEST, _SOME):
                if row.damage is not None:
                    self._engine.dead_letter_corrupt(row, row.damage, now)

    def _repair_pending(self, now: float) -> None:
        """Repair pending tasks in an invalid limit queue."""
        for _ in range(_SOME):
            found = self._run(NEXT_LANE, (self._limit_queue,)).fetchone()
            if found is None:
                self._limit_queue = -inf
                return
            limit_queue = self._limit_queue = found[0]
            if self._has_our_tasks(limit_queue):
                for row in self._row_store.pending_in(limit_queue, _SOME):
                    self._engine.move(row, PENDING, now)

    def _has_our_tasks(self, limit_queue: int) -> bool:
        """Whether a limit queue is not of this queue, but has tasks of it.

        For a limit queue of another queue, only its first task is checked.
        """
        owner = (
            (-limit_queue,)
            if limit_queue < 0
            else self._run("SELECT queue FROM lanes WHERE id = ?", (limit_queue,)).fetchone()
        )
        if owner is None or owner[0] == self._queue:
            return owner is None
        if self._run("SELECT 1 FROM queues WHERE id = ?", (min(owner[0], 2**63 - 1),)).fetchone() is None:
            return True
        return bool(self._run(FIRST_OWNER, (limit_queue,)).fetchone() == (self._queue,))

    def _repair_limit_queues(self) -> None:
        """Repair limit queues whose first task is missing, or is not the one that they name."""
        limit_queues = self._run(LANES, (self._owner, _SOME)).fetchall()
        self._owner = limit_queues[-1][0] if len(limit_queues) == _SOME else 0
        for number, queue in limit_queues:
            limit_queue = self._row_store.limit_queue(number) if queue == self._queue else None
            if limit_queue is None:
                continue
            first = self._row_store.first_ready(limit_queue)
            if first is None:
                self._row_store.drop_limit_queue(limit_queue)
            if first is None or first.damage is not None:
                continue
            keys = tuple(sorted({limit.key for limit in first.record.limits}))
            if limit_queue.keys != keys:
                self._row_store.give_keys(limit_queue.id, keys)
            elif limit_queue.first_order != order_of(first) or not (
                limit_queue.waits_on == "" or limit_queue.waits_on in keys
            ):
                limit_queue.first_order = order_of(first)
                limit_queue.waits_on = limit_queue.waits_on if limit_queue.waits_on in keys else ""
                self._row_store.save_limit_queue(limit_queue)

    def _repair_limits(self, now: float) -> None:
        """Repair limits on which limit queues wait although no running task and no time can open them."""
        running = self._row_store.in_flight() if self._row_store.sizes[IN_FLIGHT] <= _MANY else None
        for _ in range(_SOME):
            found: Any = self._run(NEXT_WAIT, (self._queue, self._limit)).fetchone()
            if found is None:
                self._limit = ""
                return
            self._limit = str(found[0])
            limit_state = self._row_store.limit_state(self._limit)
            runs = limit_state.running if running is None else running.get(self._limit, 0)
            if limit_state.waiting and limit_state.running == runs and (runs or limit_state.due is not None):
                continue  # it will open when a task ends, or at its time
            log.error("the limit %r let nobody through for no reason: %d tasks run", self._limit, runs)
            limit_state.running = runs
            self._engine.limit_queues.settle(self._limit, now)
