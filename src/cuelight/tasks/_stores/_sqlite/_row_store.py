"""The rows of one queue in SQLite tables.

Invariants:

1. A row store is used between `begin` and `end`, within one transaction. Nothing is cached between transactions,
   because other processes write, too.
2. Tasks and limit states are written together, by `flush`, before any query whose result they may change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import msgspec

from cuelight.errors import StoreRefused
from cuelight.tasks._stores._checks import EXACT
from cuelight.tasks._stores._fair_queue import FairQueue
from cuelight.tasks._stores._protocol import Query, Schedule
from cuelight.tasks._stores._rows import CANCELLED, COMPLETED, IN_FLIGHT, STATES, LimitQueue, Row
from cuelight.tasks._stores._sqlite._columns import (
    LATEST,
    body_of,
    encode,
    json_of,
    leases_of,
    renamed_seq,
    rows_of,
    schedules_of,
    virtual_times_of,
)
from cuelight.tasks._stores._sqlite._limits import SQLiteLimits
from cuelight.tasks._stores._sqlite._statements import (
    BEYOND,
    CLAIMED,
    COUNT_OVER,
    DELETE,
    DUE,
    EXPIRED,
    FORGET_CLAIMS,
    FORGET_UNIQUES,
    HOLDER,
    INSERT,
    JOIN,
    LAST,
    MAKE_LAST,
    NEXT_DUE,
    NOT_OVER,
    ODD,
    OVER,
    PARKED_AFTER,
    PARKED_TYPE,
    PARKED_TYPES,
    PENDING_IN,
    READY,
    ROWS,
    ROWS_ALL,
    SELECT_ALL,
    SEQUENCES,
    UNFINISHED,
    UPDATE,
    UPDATE_ALIKE,
)
from cuelight.tasks._task import Record


class SQLiteFairQueue(FairQueue):
    """`FairQueue` in SQLite tables: read at the beginning of a transaction, except for the virtual finishes."""

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        super().__init__()
        self._run = connection.execute
        self._queue = queue
        self._before: tuple[float, float, str | None] = (0.0, 0.0, None)

    def begin(self, floor: float, top: float, lines: str | None) -> None:
        """Set the values that were read from the row of the queue."""
        self._before = (floor, top, lines)
        sound = 0.0 <= floor <= top < EXACT
        self.floor, self.latest_finish = (floor, top) if sound else (0.0, 0.0)
        self.virtual_times = virtual_times_of(lines) if sound else {}

    def end(self) -> None:
        """Write the changes."""
        lines = msgspec.json.encode(self.virtual_times).decode() if self.virtual_times else None
        if (self.floor, self.latest_finish, lines) != self._before:
            statement = "UPDATE queues SET floor = ?, top = ?, lines = ? WHERE id = ?"
            self._run(statement, (self.floor, self.latest_finish, lines, self._queue))

    def finish_of(self, priority_class: str, tenant: str) -> float:
        query = "SELECT until FROM turns WHERE queue = ? AND line = ? AND tenant = ?"
        found = self._run(query, (self._queue, priority_class, tenant)).fetchone()
        return found[0] if found is not None and 0 <= found[0] < EXACT else 0.0

    def save_finish(self, priority_class: str, tenant: str, finish: float) -> None:
        self._run("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?)", (self._queue, priority_class, tenant, finish))

    def forget(self) -> None:
        statement = "DELETE FROM turns INDEXED BY turns_until WHERE queue = ? AND line = ? AND until <= ?"
        for priority_class, virtual in self.virtual_times.items():
            self._run(statement, (self._queue, priority_class, virtual))

    def forget_all(self) -> None:
        self._run("DELETE FROM turns WHERE queue = ?", (self._queue,))


class SQLiteRowStore(SQLiteLimits):
    """A `RowStore` in SQLite tables.

    Attributes:
        stale: whether a step has found results to delete. The code that deletes them resets it.
    """

    def __init__(self, connection: sqlite3.Connection, queue: int, where: str) -> None:
        self._where = where
        super().__init__(connection, queue)
        self.sizes = [0] * len(STATES)
        self.paused = self.closed = self.stale = False
        self._sizes_before: list[int] = []
        self.fair_queue = SQLiteFairQueue(connection, queue)
        self._sequence: int | None = None
        self._fresh: list[Row] = []
        self._dirty: dict[int, Row] = {}

    def begin(self) -> None:
        """Read the data that every step needs."""
        for cache in (
            self._fresh,
            self._dirty,
            self._limit_states,
            self._dirty_limit_states,
            self._limit_queues,
            self._limit_queues_by_keys,
        ):
            cache.clear()
        self._sequence = None
        row = self._run(
            """SELECT paused, closed, pending, scheduled, parked, in_flight, completed, cancelled, dead_letter,
            floor, top, lines FROM queues WHERE id = ?""",
            (self._queue,),
        ).fetchone()
        if row is None:
            raise StoreRefused(
                f"{self._where}: the file has no queue {self._queue} any more: another program has removed its row "
                "from the table `queues`; put it back, or open the queue anew"
            )
        self.paused, self.closed, self.sizes = bool(row[0]), bool(row[1]), list(row[2:9])
        self._sizes_before = self.sizes.copy()
        if min(self.sizes) < 0 or max(self.sizes) > EXACT:
            self.recount()
        self.fair_queue.begin(*row[9:])

    def end(self) -> None:
        """Write all remaining changes."""
        self.flush()
        self.fair_queue.end()
        if self._sequence is not None:
            self._run("INSERT OR REPLACE INTO file VALUES (1, ?)", (self._sequence,))
        if self.sizes != self._sizes_before:
            self._run(
                """UPDATE queues SET pending = ?, scheduled = ?, parked = ?, in_flight = ?, completed = ?,
                cancelled = ?, dead_letter = ? WHERE id = ?""",
                (*self.sizes, self._queue),
            )

    def flush(self) -> None:
        """Write the changed tasks and limit states."""
        many = self._connection.executemany
        if self._fresh:
            rows, self._fresh = self._fresh, []
            many(INSERT, [self._new_values(row) for row in rows])
            many("INSERT OR REPLACE INTO bodies VALUES (?, ?, ?)", [body_of(row) for row in rows])
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            # Most tasks of a batch get the same values: one statement for all of these takes a third of the time.
            alike: dict[tuple[Any, ...], list[int]] = {}
            for row in dirty.values():
                alike.setdefault(self._values(row), []).append(row.seq)
            many(UPDATE, [(*values, seqs[0]) for values, seqs in alike.items() if len(seqs) == 1])
            for values, seqs in alike.items():
                if len(seqs) > 1:
                    self._run(UPDATE_ALIKE, (*values, json_of(seqs)))
        super().flush()

    def recount(self) -> None:
        """Recount the tasks in each state, because another program has changed the tables."""
        self.flush()
        counted = dict(self._run("SELECT state, count(*) FROM tasks WHERE queue = ? GROUP BY state", (self._queue,)))
        self.sizes = [counted.get(state, 0) for state in range(len(STATES))]

    # Tasks

    def new(self, record: Record) -> Row:
        seq = self._sequence
        if seq is None:
            # After all existing rows, including those that another program has added.
            seq = max(at for (at,) in self._run(SEQUENCES) if at is not None and 0 <= at < EXACT)
        self._sequence = seq + 1
        return Row(seq=seq + 1, record=record)

    def renumber(self, seq: int) -> None:
        """Give a task with an invalid sequence the next one, after all others."""
        fresh = self.new(Record(id="", type="")).seq
        for table in ("tasks", "bodies", "stories"):
            self._run(f"UPDATE OR IGNORE {table} SET seq = ? WHERE seq = ?", (fresh, seq))  # noqa: S608
        self.changed = True

    def insert(self, row: Row) -> None:
        self.changed = True
        self._fresh.append(row)

    def _new_values(self, row: Row) -> tuple[Any, ...]:
        record = row.record
        limit_queue = row.limit_queue or -self._queue
        place = (record.priority, record.deadline)
        return (row.seq, self._queue, record.id, record.type, row.state, limit_queue, *place, row.due, row.turn)

    def _values(self, row: Row) -> tuple[Any, ...]:
        return (
            row.state,
            row.limit_queue or -self._queue,
            row.due,
            row.epoch,
            row.worker,
            row.last_finished_epoch,
            row.last_finish,
            row.ended,
            row.reason,
            row.cancelling,
            row.result,
        )

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        self.flush()
        wanted = (self._queue, json_of(ids))
        found = rows_of(self._run(ROWS_ALL if payload else ROWS, wanted), self._columns)
        rows = {row.record.id: row for row in found}
        if len(rows) < len(ids):
            self._add_renamed(ids, rows)
        return rows

    def _add_renamed(self, ids: Sequence[str], rows: dict[str, Row]) -> None:
        """Add tasks whose ids in the file are invalid. They are shown under other ids, which may not be stored yet."""
        for task_id in ids:
            seq = renamed_seq(task_id) if task_id not in rows else None
            if seq is not None:
                for row in self._rows(f"{SELECT_ALL} {JOIN} WHERE tasks.seq = ? AND queue = ?", seq, self._queue):
                    if row.record.id == task_id:
                        rows[task_id] = row

    def _columns(self, seq: int) -> Sequence[Any]:
        columns: Sequence[Any] = self._run("SELECT type, priority FROM tasks WHERE seq = ?", (seq,)).fetchone()
        return columns

    def save(self, row: Row) -> None:
        self.changed = True
        self._dirty[row.seq] = row

    def save_attempts(self, row: Row) -> None:
        self.changed = True
        self._run("INSERT OR REPLACE INTO stories VALUES (?, ?)", (row.seq, encode(row.attempts)))

    def save_record(self, row: Row) -> None:
        self.changed = True
        seq, meta, payload = body_of(row)
        if row.damage is not None and row.damage.part == "record":  # the unreadable record is kept
            self._run("UPDATE bodies SET payload = ? WHERE seq = ?", (payload, seq))
        else:
            self._run("UPDATE bodies SET meta = ?, payload = ? WHERE seq = ?", (meta, payload, seq))
        self._run("UPDATE tasks SET deadline = ?, turn = ? WHERE seq = ?", (row.record.deadline, row.turn, seq))

    def save_corrupt(self, row: Row) -> None:
        if row.damage is not None and row.damage.renamed:
            self._run("UPDATE tasks SET id = ? WHERE seq = ?", (row.record.id, row.seq))
        if row.damage is not None and row.damage.unplaced:
            self.recount()

    def delete(self, row: Row) -> None:
        self.changed = True
        self._dirty.pop(row.seq, None)
        self._delete([(row.seq,)])

    def _delete(self, rows: list[tuple[int]]) -> None:
        for statement in DELETE:
            self._connection.executemany(statement, rows)

    def iter_ready(self, hint: int) -> Iterator[Row]:
        most = max(1, hint)
        while True:
            rows = self._rows(READY, -self._queue, most)
            yield from rows
            if len(rows) < most:
                return

    def first_ready(self, limit_queue: LimitQueue) -> Row | None:
        return next(iter(self._rows(READY, limit_queue.id, 1)), None)

    def due(self, state: int, now: float, most: int) -> list[Row]:
        return self._rows(DUE, self._queue, state, now, most)

    def expired(self, now: float, most: int) -> list[Row]:
        return self._rows(EXPIRED, self._queue, now, most)

    def odd(self, most: int) -> list[Row]:
        """Return tasks that no step leaves behind, and that no other query finds."""
        return self._rows(ODD, self._queue, most)

    def beyond(self, state: int, at: float, most: int) -> list[Row]:
        """Return tasks in a state whose `due` is not before a time."""
        return self._rows(BEYOND, self._queue, state, at, most)

    def pending_in(self, limit_queue: int, most: int) -> list[Row]:
        """Return pending tasks of this queue in a limit queue."""
        return self._rows(PENDING_IN, limit_queue, self._queue, most)

    def last(self) -> Row | None:
        self._run(MAKE_LAST)
        return next(iter(self._rows(LAST, self._queue)), None)

    def parked(self, types: Sequence[str]) -> list[Row]:
        rows = self._rows(PARKED_TYPES, self._queue, json_of([kind for kind in types if "\0" not in kind]))
        for kind in types:
            if "\0" in kind:  # at which `json_each` truncates a text
                rows += self._rows(PARKED_TYPE, self._queue, kind)
        return rows

    def parked_after(self, seq: int, most: int) -> list[Row]:
        """Return parked tasks in their order."""
        return self._rows(PARKED_AFTER, self._queue, seq, most)

    def find(self, query: Query, now: float) -> list[Row]:
        # States that few tasks have are read by an index; all others are read in the order of the table.
        source, conditions = SELECT_ALL, ["queue = ?", "tasks.seq > ?", NOT_OVER]
        values: list[Any] = [self._queue, query.after, now]
        if query.state is not None:
            conditions.append(f"state = {STATES.index(query.state)}")
            if query.state == "in_flight":
                source += " INDEXED BY tasks_due"
                conditions.append("due IS NOT NULL")
            elif query.state in ("parked", "dead_letter"):
                source += " INDEXED BY tasks_stuck"
        for condition, value in (
            ("type = ?", query.type),
            ("reason = ?", query.reason),
            ("ended > 0 AND ended < ?", query.ended_before),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = " AND ".join(conditions)
        return self._rows(f"{source} {JOIN} WHERE {where} ORDER BY tasks.seq LIMIT ?", *values, query.limit)

    def count_expired(self, now: float) -> tuple[int, int]:
        self.flush()
        completed, cancelled = self._run(COUNT_OVER, (self._queue, now) * 2).fetchone()
        self.stale = bool(completed or cancelled)
        return completed, cancelled

    def next_due(self) -> float:
        self.flush()
        times = self._run(NEXT_DUE, (self._queue,) * 4).fetchone()
        return min((at for at in times if at is not None), default=inf)

    def _rows(self, statement: str, *values: Any) -> list[Row]:
        self.flush()
        return rows_of(self._run(statement, values), self._columns)

    def in_flight(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self._rows(DUE, self._queue, IN_FLIGHT, inf, -1):
            for limit in row.record.limits:
                found[limit.key] = found.get(limit.key, 0) + 1
        return found

    # Unique keys, claims, schedules

    def unique_holder(self, key: str, now: float) -> str | None:
        found = self._run(HOLDER, (self._queue, key, now)).fetchone()
        if found is None or LATEST <= found[1] < inf:  # an invalid time
            return None
        if found[1] == inf:
            self.flush()
            if self._run(UNFINISHED, (self._queue, found[0])).fetchone() is None:
                return None  # otherwise the key would never be free again
        return str(found[0])

    def hold_unique(self, key: str, task_id: str, until: float) -> None:
        self.changed = True
        self._run("INSERT OR REPLACE INTO uniques VALUES (?, ?, ?, ?)", (self._queue, key, task_id, until))

    def release_unique(self, key: str, task_id: str) -> None:
        statement = "DELETE FROM uniques WHERE queue = ? AND key = ? AND id = ? AND until = 9e999"
        self._run(statement, (self._queue, key, task_id))

    def claimed(self, nonce: str) -> list[tuple[Row, int]] | None:
        query = "SELECT leases FROM claims WHERE queue = ? AND nonce = ?"
        found = self._run(query, (self._queue, nonce)).fetchone()
        if found is None:
            return None
        leases = leases_of(found[0])
        if leases is None:
            return None
        rows = {row.seq: row for row in self._rows(CLAIMED, json_of([seq for seq, _ in leases]))}
        return [(rows[seq], epoch) for seq, epoch in leases if seq in rows]

    def remember(self, nonce: str, rows: Sequence[Row], until: float) -> None:
        leases = encode([(row.seq, row.epoch) for row in rows])
        self._run("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", (self._queue, nonce, until, leases))

    def forget(self, now: float, most: int) -> None:
        for state in (COMPLETED, CANCELLED):
            rows = self._run(OVER, (self._queue, state, now, most)).fetchall()
            if rows:
                self.changed = True
                self.sizes[state] -= len(rows)
                self._delete(rows)
        self._run(FORGET_UNIQUES, (self._queue, self._queue, now, most))
        self._run(FORGET_CLAIMS, (self._queue, now, most))

    def schedules(self) -> list[Schedule]:
        query = "SELECT name, spec, due, record FROM schedules WHERE queue = ? ORDER BY due, name"
        return list(schedules_of(self._run(query, (self._queue,))))

    def schedule(self, name: str) -> Schedule | None:
        query = "SELECT name, spec, due, record FROM schedules WHERE queue = ? AND name = ?"
        return next(iter(schedules_of(self._run(query, (self._queue, name)))), None)

    def save_schedule(self, schedule: Schedule) -> None:
        self.changed = True
        values = (self._queue, schedule.name, schedule.spec, schedule.due, encode(schedule.record))
        self._run("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?)", values)

    def drop_schedule(self, name: str) -> None:
        self.changed = True
        self._run("DELETE FROM schedules WHERE queue = ? AND name = ?", (self._queue, name))

    def save_queue(self) -> None:
        self.changed = True
        statement = "UPDATE queues SET paused = ?, closed = ? WHERE id = ?"
        self._run(statement, (self.paused, self.closed, self._queue))
