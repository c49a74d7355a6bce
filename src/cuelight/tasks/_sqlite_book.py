"""The rows of one queue in SQLite tables.

1. A book is used between `begin` and `end`, within one transaction. Nothing is cached from one transaction to the
   next: other processes write too.
2. Tasks and gates are written together, by `flush`, before anything is asked that they may change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final, cast

import msgspec

from cuelight.tasks._rows import CANCELLED, COMPLETED, STATES, Gate, Lane, Row, Story
from cuelight.tasks._sqlite_statements import (
    CLAIMED,
    COUNT_OVER,
    DELETE,
    DUE,
    EXPIRED,
    FIRST_LANE,
    FORGET_CLAIMS,
    FORGET_UNIQUES,
    GATES_DUE,
    INSERT,
    JOIN,
    LAST,
    MAKE_LAST,
    NEXT_DUE,
    NOT_OVER,
    OVER,
    PARKED_TYPES,
    READY,
    ROWS,
    ROWS_ALL,
    SAVE_GATE,
    SELECT_ALL,
    UPDATE,
    UPDATE_ALIKE,
)
from cuelight.tasks._sqlite_turns import SQLiteTurns
from cuelight.tasks._store import Query, Record, Schedule
from cuelight.tasks._task import Limit

__all__ = ["SQLiteBook"]

_encode: Final = msgspec.msgpack.encode
_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_story: Final = msgspec.msgpack.Decoder(Story).decode
_decode_limit: Final = msgspec.msgpack.Decoder(Limit).decode
_decode_keys: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_new_row: Final = cast("Callable[..., Row]", Row)  # its fields come in the order of the columns
_decode_leases: Final = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode


class SQLiteBook:
    """See `Book`.

    Attributes:
        stale: somebody has seen that there are results to forget; whoever sees to that clears it.
    """

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        self.sizes = [0] * len(STATES)
        self.paused = self.closed = self.changed = self.stale = False
        self._connection = connection
        self._run = connection.execute
        self._queue = queue
        self._sizes_before: list[int] = []
        self.turns = SQLiteTurns(connection, queue)
        self._sequence: int | None = None
        self._fresh: list[Row] = []
        self._dirty: dict[int, Row] = {}
        self._gates: dict[str, Gate] = {}
        self._dirty_gates: dict[str, Gate] = {}
        self._lanes: dict[int, Lane] = {}
        self._lanes_by_keys: dict[tuple[str, ...], Lane] = {}

    def begin(self) -> None:
        """Read what each step needs."""
        for cache in (self._fresh, self._dirty, self._gates, self._dirty_gates, self._lanes, self._lanes_by_keys):
            cache.clear()
        self._sequence = None
        row = self._run(
            """SELECT paused, closed, pending, scheduled, parked, in_flight, completed, cancelled, dead_letter,
            floor, top, lines FROM queues WHERE id = ?""",
            (self._queue,),
        ).fetchone()
        self.paused, self.closed, self.sizes = bool(row[0]), bool(row[1]), list(row[2:9])
        self.turns.begin(*row[9:])
        self._sizes_before = self.sizes.copy()

    def end(self) -> None:
        """Write what is left."""
        self.flush()
        self.turns.end()
        if self._sequence is not None:
            self._run("UPDATE file SET sequence = ?", (self._sequence,))
        if self.sizes != self._sizes_before:
            self._run(
                """UPDATE queues SET pending = ?, scheduled = ?, parked = ?, in_flight = ?, completed = ?,
                cancelled = ?, dead_letter = ? WHERE id = ?""",
                (*self.sizes, self._queue),
            )

    def flush(self) -> None:
        """Write the tasks and gates that have changed."""
        many = self._connection.executemany
        if self._fresh:
            rows, self._fresh = self._fresh, []
            many(INSERT, [self._new_values(row) for row in rows])
            many("INSERT INTO bodies VALUES (?, ?, ?)", [_body(row) for row in rows])
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            # Most of a batch become the same: one statement for all that do costs a third.
            alike: dict[tuple[Any, ...], list[int]] = {}
            for row in dirty.values():
                alike.setdefault(self._values(row), []).append(row.seq)
            many(UPDATE, [(*values, seqs[0]) for values, seqs in alike.items() if len(seqs) == 1])
            for values, seqs in alike.items():
                if len(seqs) > 1:
                    self._run(UPDATE_ALIKE, (*values, _json(seqs)))
        if self._dirty_gates:
            gates, self._dirty_gates = self._dirty_gates, {}
            many(SAVE_GATE, [self._gate_values(gate) for gate in gates.values()])

    # Tasks

    def new(self, record: Record) -> Row:
        if self._sequence is None:
            (self._sequence,) = self._run("SELECT sequence FROM file").fetchone()
        self._sequence = (self._sequence or 0) + 1
        return Row(seq=self._sequence, record=record)

    def insert(self, row: Row) -> None:
        self.changed = True
        self._fresh.append(row)

    def _new_values(self, row: Row) -> tuple[Any, ...]:
        record = row.record
        lane = row.lane or -self._queue
        place = (record.priority, record.deadline)
        return (row.seq, self._queue, record.id, record.type, row.state, lane, *place, row.due, row.turn)

    def _values(self, row: Row) -> tuple[Any, ...]:
        return (
            row.state,
            row.lane or -self._queue,
            row.due,
            row.epoch,
            row.worker,
            row.settled,
            row.step,
            row.ended,
            row.reason,
            row.cancelling,
            row.result,
        )

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        self.flush()
        wanted = (self._queue, _json(ids))
        found = (_row(values) for values in self._run(ROWS_ALL if payload else ROWS, wanted))
        return {row.record.id: row for row in found}

    def save(self, row: Row) -> None:
        self.changed = True
        self._dirty[row.seq] = row

    def save_story(self, row: Row) -> None:
        self.changed = True
        self._run("INSERT OR REPLACE INTO stories VALUES (?, ?)", (row.seq, _encode(row.story)))

    def save_record(self, row: Row) -> None:
        self.changed = True
        seq, meta, payload = _body(row)
        self._run("UPDATE bodies SET meta = ?, payload = ? WHERE seq = ?", (meta, payload, seq))
        self._run("UPDATE tasks SET deadline = ?, turn = ? WHERE seq = ?", (row.record.deadline, row.turn, seq))

    def delete(self, row: Row) -> None:
        self.changed = True
        self._dirty.pop(row.seq, None)
        self._delete([(row.seq,)])

    def _delete(self, rows: list[tuple[int]]) -> None:
        for statement in DELETE:
            self._connection.executemany(statement, rows)

    def heads(self, hint: int) -> Iterator[Row]:
        most = max(1, hint)
        while True:
            rows = self._rows(READY, -self._queue, most)
            yield from rows
            if len(rows) < most:
                return

    def head(self, lane: Lane) -> Row | None:
        return next(iter(self._rows(READY, lane.id, 1)), None)

    def due(self, state: int, now: float, most: int) -> list[Row]:
        return self._rows(DUE, self._queue, state, now, most)

    def expired(self, now: float, most: int) -> list[Row]:
        return self._rows(EXPIRED, self._queue, now, most)

    def last(self) -> Row | None:
        self._run(MAKE_LAST)
        return next(iter(self._rows(LAST, self._queue)), None)

    def parked(self, types: Sequence[str]) -> list[Row]:
        return self._rows(PARKED_TYPES, self._queue, _json(types))

    def find(self, query: Query, now: float) -> list[Row]:
        # Where most tasks are in other states, an index leads to the few; all others are read in their order.
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

    def over(self, now: float) -> tuple[int, int]:
        self.flush()
        completed, cancelled = self._run(COUNT_OVER, (self._queue, now) * 2).fetchone()
        self.stale = bool(completed or cancelled)
        return completed, cancelled

    def next_due(self) -> float:
        self.flush()
        return min((at for at in self._run(NEXT_DUE, (self._queue,) * 4).fetchone() if at is not None), default=inf)

    def _rows(self, statement: str, *values: Any) -> list[Row]:
        self.flush()
        return [_row(found) for found in self._run(statement, values)]

    # Limits

    def lane(self, lane: int) -> Lane:
        there = self._lanes.get(lane)
        if there is None:
            query = "SELECT id, keys, waits_on, priority, deadline, turn, seq FROM lanes WHERE id = ?"
            there = self._lane(self._run(query, (lane,)).fetchone())
        return there

    def _lane(self, values: Any) -> Lane:
        there = self._lanes.get(values[0])
        if there is None:
            there = Lane(values[0], _decode_keys(values[1]), values[2], tuple(values[3:7]))
            self._lanes[there.id] = self._lanes_by_keys[there.keys] = there
        return there

    def lane_of(self, keys: tuple[str, ...]) -> Lane:
        there = self._lanes_by_keys.get(keys)
        if there is None:
            text = _json(keys)
            query = "SELECT id, keys, waits_on, priority, deadline, turn, seq FROM lanes WHERE queue = ? AND keys = ?"
            values = self._run(query, (self._queue, text)).fetchone()
            if values is not None:
                return self._lane(values)
            (number,) = self._run(
                "INSERT INTO lanes (queue, keys) VALUES (?, ?) RETURNING id", (self._queue, text)
            ).fetchone()
            there = self._lanes[number] = self._lanes_by_keys[keys] = Lane(number, keys)
        return there

    def save_lane(self, lane: Lane) -> None:
        self.changed = True
        head = lane.head or (None, None, None, None)
        statement = "UPDATE lanes SET waits_on = ?, priority = ?, deadline = ?, turn = ?, seq = ? WHERE id = ?"
        self._run(statement, (lane.waits_on, *head, lane.id))

    def drop_lane(self, lane: Lane) -> None:
        self.changed = True
        del self._lanes[lane.id], self._lanes_by_keys[lane.keys]
        self._run("DELETE FROM lanes WHERE id = ?", (lane.id,))

    def first_lane(self, waits_on: str) -> Lane | None:
        values = self._run(FIRST_LANE, (self._queue, waits_on)).fetchone()
        return None if values is None else self._lane(values)

    def gate(self, key: str) -> Gate:
        gate = self._gates.get(key)
        if gate is None:
            query = "SELECT running, tat, closed, override, waiting, due FROM gates WHERE queue = ? AND key = ?"
            values = self._run(query, (self._queue, key)).fetchone()
            if values is None:
                gate = Gate(key)
            else:
                override = None if values[3] is None else _decode_limit(values[3])
                running, tat, closed, _, waiting, due = values
                gate = Gate(key, running, tat, closed, override, bool(waiting), due)
            self._gates[key] = gate
        return gate

    def save_gate(self, gate: Gate) -> None:
        self.changed = True
        self._dirty_gates[gate.key] = gate

    def _gate_values(self, gate: Gate) -> tuple[Any, ...]:
        override = None if gate.override is None else _encode(gate.override)
        return (self._queue, gate.key, gate.running, gate.tat, gate.closed, override, gate.waiting, gate.due)

    def drop_gate(self, gate: Gate) -> None:
        self.changed = True
        self._gates.pop(gate.key, None)
        self._dirty_gates.pop(gate.key, None)
        self._run("DELETE FROM gates WHERE queue = ? AND key = ?", (self._queue, gate.key))

    def gates_due(self, now: float, most: int) -> list[Gate]:
        self.flush()
        return [self.gate(key) for (key,) in self._run(GATES_DUE, (self._queue, now, most)).fetchall()]

    # Unique keys, claims, schedules

    def holder(self, key: str, now: float) -> str | None:
        query = "SELECT id FROM uniques WHERE queue = ? AND key = ? AND until > ?"
        found = self._run(query, (self._queue, key, now)).fetchone()
        return None if found is None else found[0]

    def hold(self, key: str, task_id: str, until: float) -> None:
        self.changed = True
        self._run("INSERT OR REPLACE INTO uniques VALUES (?, ?, ?, ?)", (self._queue, key, task_id, until))

    def let_go(self, key: str, task_id: str) -> None:
        statement = "DELETE FROM uniques WHERE queue = ? AND key = ? AND id = ? AND until = 9e999"
        self._run(statement, (self._queue, key, task_id))

    def claimed(self, nonce: str) -> list[tuple[Row, int]] | None:
        query = "SELECT leases FROM claims WHERE queue = ? AND nonce = ?"
        found = self._run(query, (self._queue, nonce)).fetchone()
        if found is None:
            return None
        leases = _decode_leases(found[0])
        rows = {row.seq: row for row in self._rows(CLAIMED, _json([seq for seq, _ in leases]))}
        return [(rows[seq], epoch) for seq, epoch in leases if seq in rows]

    def remember(self, nonce: str, rows: Sequence[Row], until: float) -> None:
        leases = _encode([(row.seq, row.epoch) for row in rows])
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
        return list(_schedules(self._run(query, (self._queue,))))

    def schedule(self, name: str) -> Schedule | None:
        query = "SELECT name, spec, due, record FROM schedules WHERE queue = ? AND name = ?"
        return next(iter(_schedules(self._run(query, (self._queue, name)))), None)

    def save_schedule(self, schedule: Schedule) -> None:
        self.changed = True
        values = (self._queue, schedule.name, schedule.spec, schedule.due, _encode(schedule.record))
        self._run("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?)", values)

    def drop_schedule(self, name: str) -> None:
        self.changed = True
        self._run("DELETE FROM schedules WHERE queue = ? AND name = ?", (self._queue, name))

    def save_queue(self) -> None:
        self.changed = True
        statement = "UPDATE queues SET paused = ?, closed = ? WHERE id = ?"
        self._run(statement, (self.paused, self.closed, self._queue))


def _schedules(found: Iterable[Any]) -> Iterator[Schedule]:
    for name, spec, due, record in found:
        yield Schedule(name=name, spec=spec, due=due, record=_decode_record(record))


def _json(values: Sequence[Any]) -> str:
    return msgspec.json.encode(values).decode()


def _body(row: Row) -> tuple[int, bytes, bytes]:
    meta = msgspec.structs.replace(row.record, id="", payload=b"")
    return (row.seq, _encode(meta), row.record.payload)


def _row(values: tuple[Any, ...]) -> Row:
    record = _decode_record(values[2])
    record.id, record.deadline, record.payload = values[0], values[1], values[15]
    story = None if values[3] is None else _decode_story(values[3])
    return _new_row(values[4], record, *values[5:15], story, values[16], values[17])
