"""The limits of one queue in SQLite tables: gates, and lanes of tasks that wait for them."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from cuelight._log import get_log
from cuelight.tasks._stores._checks import EXACT
from cuelight.tasks._stores._rows import Gate, Lane
from cuelight.tasks._stores._sqlite._columns import LATEST, Garbled, json_of, keys_of, limit_of
from cuelight.tasks._stores._sqlite._statements import (
    FIRST_LANE,
    GATES_DUE,
    LANE_BY_ID,
    LANE_BY_KEYS,
    SAVE_GATE,
    SAVE_LANE,
)

log = get_log("cuelight.tasks")


class SQLiteLimits:
    """The part of a book that stores limits.

    Attributes:
        changed: see `Book`.
        suspicious: whether data was found that no step leaves behind, so that the tables must be checked.
    """

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        self.changed = self.suspicious = False
        self._connection = connection
        self._run = connection.execute
        self._queue = queue
        self._gates: dict[str, Gate] = {}
        self._dirty_gates: dict[str, Gate] = {}
        self._lanes: dict[int, Lane] = {}
        self._lanes_by_keys: dict[tuple[str, ...], Lane] = {}

    def flush(self) -> None:
        """Write the changed gates."""
        if self._dirty_gates:
            gates, self._dirty_gates = self._dirty_gates, {}
            self._connection.executemany(SAVE_GATE, [self._gate_values(gate) for gate in gates.values()])

    # Lanes

    def lane(self, lane: int) -> Lane | None:
        there = self._lanes.get(lane)
        return self._lane(self._run(LANE_BY_ID, (lane,)).fetchone()) if there is None else there

    def _lane(self, values: Any) -> Lane | None:
        if values is None:
            return None
        there = self._lanes.get(values[0])
        if there is None:
            keys, head = keys_of(values[1]), tuple(values[3:7])
            if keys is None or None in head or not (values[2] == "" or values[2] in keys):
                self.suspicious = True  # it is repaired, see `_repair.py`
            there = Lane(values[0], keys or (), values[2], None if None in head else head)
            self._lanes[there.id] = self._lanes_by_keys[there.keys] = there
        return there

    def lane_of(self, keys: tuple[str, ...]) -> Lane:
        there = self._lanes_by_keys.get(keys)
        if there is None:
            text = json_of(keys)
            there = self._lane(self._run(LANE_BY_KEYS, (self._queue, text)).fetchone())
            if there is None:
                made = "INSERT INTO lanes (queue, keys) VALUES (?, ?) RETURNING id"
                (number,) = self._run(made, (self._queue, text)).fetchone()
                there = self._lanes[number] = self._lanes_by_keys[keys] = Lane(number, keys)
        return there

    def give_keys(self, lane: int, keys: tuple[str, ...]) -> None:
        """Set the keys of a lane. If another lane has these keys, move the tasks to that one."""
        self.flush()
        self.changed = True
        text = json_of(keys)
        other = self._run("SELECT id FROM lanes WHERE queue = ? AND keys = ?", (self._queue, text)).fetchone()
        if other is None:
            self._run("UPDATE lanes SET keys = ? WHERE id = ?", (text, lane))
        else:
            self._run("UPDATE tasks SET lane = ? WHERE state = 0 AND lane = ?", (other[0], lane))
            self._run("DELETE FROM lanes WHERE id = ?", (lane,))
        self._lanes.clear()
        self._lanes_by_keys.clear()

    def save_lane(self, lane: Lane) -> None:
        self.changed = True
        head = lane.head or (None, None, None, None)
        self._run(SAVE_LANE, (lane.waits_on, *head, lane.id))

    def drop_lane(self, lane: Lane) -> None:
        self.changed = True
        self._lanes.pop(lane.id, None)
        self._lanes_by_keys.pop(lane.keys, None)
        self._run("DELETE FROM lanes WHERE id = ?", (lane.id,))

    def first_lane(self, waits_on: str) -> Lane | None:
        return self._lane(self._run(FIRST_LANE, (self._queue, waits_on)).fetchone())

    # Gates

    def gate(self, key: str) -> Gate:
        gate = self._gates.get(key)
        if gate is None:
            query = "SELECT running, tat, closed, override, waiting, due FROM gates WHERE queue = ? AND key = ?"
            values = self._run(query, (self._queue, key)).fetchone()
            gate = self._gates[key] = Gate(key) if values is None else self._gate(key, values)
        return gate

    def _gate(self, key: str, values: tuple[Any, ...]) -> Gate:
        running, tat, closed, override, waiting, due = values
        try:
            limit = limit_of(override)
        except ValueError as error:
            log.error("what overrides the limit %r cannot be read, and is dropped: %s", key, error)  # noqa: TRY400
            limit = None
        if 0 <= running < EXACT and -LATEST < tat < LATEST and -LATEST < closed < LATEST and (due or 0.0) < LATEST:
            return Gate(key, running, tat, closed, limit, bool(waiting), due)
        log.error("the limit %r cannot be read, and is counted again", key)
        self.suspicious = True
        return Gate(key, self.in_flight().get(key, 0), override=limit)

    def in_flight(self) -> dict[str, int]:
        """The number of tasks in flight, by the keys of their limits."""
        raise NotImplementedError

    def running(self) -> dict[str, int]:
        self.flush()
        query = "SELECT key FROM gates WHERE queue = ? AND running <> 0"
        return {str(key): 0 for (key,) in self._run(query, (self._queue,))} | self.in_flight()

    def save_gate(self, gate: Gate) -> None:
        self.changed = True
        self._dirty_gates[gate.key] = gate

    def _gate_values(self, gate: Gate) -> tuple[Any, ...]:
        override = None if gate.override is None else msgspec.msgpack.encode(gate.override)
        return (self._queue, gate.key, gate.running, gate.tat, gate.closed, override, gate.waiting, gate.due)

    def drop_gate(self, gate: Gate) -> None:
        self.changed = True
        self._gates.pop(gate.key, None)
        self._dirty_gates.pop(gate.key, None)
        self._run("DELETE FROM gates WHERE queue = ? AND key = ?", (self._queue, gate.key))

    def gates_due(self, now: float, most: int) -> list[Gate]:
        self.flush()
        found: list[Gate] = []
        for (key,) in self._run(GATES_DUE, (self._queue, now, most)).fetchall():
            if isinstance(key, Garbled):  # no task can have this limit
                self._run("DELETE FROM gates WHERE queue = ? AND key = CAST(? AS TEXT)", (self._queue, key.raw))
            else:
                found.append(self.gate(key))
        return found
