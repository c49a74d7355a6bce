"""The limits of one queue in SQLite tables: limit states, and limit queues of tasks that wait for them."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from cuelight._log import get_log
from cuelight.tasks._stores._checks import EXACT
from cuelight.tasks._stores._rows import LimitQueue, LimitState
from cuelight.tasks._stores._sqlite._columns import LATEST, InvalidText, json_of, keys_of, limit_of
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
    """The part of a row store that stores limits.

    Attributes:
        changed: see `RowStore`.
        suspicious: whether data was found that no step leaves behind, so that the tables must be checked.
    """

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        self.changed = self.suspicious = False
        self._connection = connection
        self._run = connection.execute
        self._queue = queue
        self._limit_states: dict[str, LimitState] = {}
        self._dirty_limit_states: dict[str, LimitState] = {}
        self._limit_queues: dict[int, LimitQueue] = {}
        self._limit_queues_by_keys: dict[tuple[str, ...], LimitQueue] = {}

    def flush(self) -> None:
        """Write the changed limit states."""
        if self._dirty_limit_states:
            limit_states, self._dirty_limit_states = self._dirty_limit_states, {}
            self._connection.executemany(
                SAVE_GATE, [self._limit_state_values(limit_state) for limit_state in limit_states.values()]
            )

    # Limit queues

    def limit_queue(self, limit_queue: int) -> LimitQueue | None:
        there = self._limit_queues.get(limit_queue)
        return self._limit_queue(self._run(LANE_BY_ID, (limit_queue,)).fetchone()) if there is None else there

    def _limit_queue(self, values: Any) -> LimitQueue | None:
        if values is None:
            return None
        there = self._limit_queues.get(values[0])
        if there is None:
            keys, first = keys_of(values[1]), tuple(values[3:7])
            if keys is None or None in first or not (values[2] == "" or values[2] in keys):
                self.suspicious = True  # it is repaired, see `_repair.py`
            there = LimitQueue(values[0], keys or (), values[2], None if None in first else first)
            self._limit_queues[there.id] = self._limit_queues_by_keys[there.keys] = there
        return there

    def limit_queue_of(self, keys: tuple[str, ...]) -> LimitQueue:
        there = self._limit_queues_by_keys.get(keys)
        if there is None:
            text = json_of(keys)
            there = self._limit_queue(self._run(LANE_BY_KEYS, (self._queue, text)).fetchone())
            if there is None:
                made = "INSERT INTO lanes (queue, keys) VALUES (?, ?) RETURNING id"
                (number,) = self._run(made, (self._queue, text)).fetchone()
                there = self._limit_queues[number] = self._limit_queues_by_keys[keys] = LimitQueue(number, keys)
        return there

    def give_keys(self, limit_queue: int, keys: tuple[str, ...]) -> None:
        """Set the keys of a limit queue. If another limit queue has these keys, move the tasks to that one."""
        self.flush()
        self.changed = True
        text = json_of(keys)
        other = self._run("SELECT id FROM lanes WHERE queue = ? AND keys = ?", (self._queue, text)).fetchone()
        if other is None:
            self._run("UPDATE lanes SET keys = ? WHERE id = ?", (text, limit_queue))
        else:
            self._run("UPDATE tasks SET lane = ? WHERE state = 0 AND lane = ?", (other[0], limit_queue))
            self._run("DELETE FROM lanes WHERE id = ?", (limit_queue,))
        self._limit_queues.clear()
        self._limit_queues_by_keys.clear()

    def save_limit_queue(self, limit_queue: LimitQueue) -> None:
        self.changed = True
        first = limit_queue.first_order or (None, None, None, None)
        self._run(SAVE_LANE, (limit_queue.waits_on, *first, limit_queue.id))

    def drop_limit_queue(self, limit_queue: LimitQueue) -> None:
        self.changed = True
        self._limit_queues.pop(limit_queue.id, None)
        self._limit_queues_by_keys.pop(limit_queue.keys, None)
        self._run("DELETE FROM lanes WHERE id = ?", (limit_queue.id,))

    def first_limit_queue(self, waits_on: str) -> LimitQueue | None:
        return self._limit_queue(self._run(FIRST_LANE, (self._queue, waits_on)).fetchone())

    # Gates

    def limit_state(self, key: str) -> LimitState:
        limit_state = self._limit_states.get(key)
        if limit_state is None:
            query = "SELECT running, tat, closed, override, waiting, due FROM gates WHERE queue = ? AND key = ?"
            values = self._run(query, (self._queue, key)).fetchone()
            limit_state = self._limit_states[key] = (
                LimitState(key) if values is None else self._limit_state(key, values)
            )
        return limit_state

    def _limit_state(self, key: str, values: tuple[Any, ...]) -> LimitState:
        running, tat, closed, override, waiting, due = values
        try:
            limit = limit_of(override)
        except ValueError as error:
            log.error("what overrides the limit %r cannot be read, and is dropped: %s", key, error)  # noqa: TRY400
            limit = None
        if 0 <= running < EXACT and -LATEST < tat < LATEST and -LATEST < closed < LATEST and (due or 0.0) < LATEST:
            return LimitState(key, running, tat, closed, limit, bool(waiting), due)
        log.error("the limit %r cannot be read, and is counted again", key)
        self.suspicious = True
        return LimitState(key, self.in_flight().get(key, 0), override=limit)

    def in_flight(self) -> dict[str, int]:
        """The number of tasks in flight, by the keys of their limits."""
        raise NotImplementedError

    def running(self) -> dict[str, int]:
        self.flush()
        query = "SELECT key FROM gates WHERE queue = ? AND running <> 0"
        return {str(key): 0 for (key,) in self._run(query, (self._queue,))} | self.in_flight()

    def save_limit_state(self, limit_state: LimitState) -> None:
        self.changed = True
        self._dirty_limit_states[limit_state.key] = limit_state

    def _limit_state_values(self, limit_state: LimitState) -> tuple[Any, ...]:
        override = None if limit_state.override is None else msgspec.msgpack.encode(limit_state.override)
        return (
            self._queue,
            limit_state.key,
            limit_state.running,
            limit_state.tat,
            limit_state.closed,
            override,
            limit_state.waiting,
            limit_state.due,
        )

    def drop_limit_state(self, limit_state: LimitState) -> None:
        self.changed = True
        self._limit_states.pop(limit_state.key, None)
        self._dirty_limit_states.pop(limit_state.key, None)
        self._run("DELETE FROM gates WHERE queue = ? AND key = ?", (self._queue, limit_state.key))

    def limit_states_due(self, now: float, most: int) -> list[LimitState]:
        self.flush()
        found: list[LimitState] = []
        for (key,) in self._run(GATES_DUE, (self._queue, now, most)).fetchall():
            if isinstance(key, InvalidText):  # no task can have this limit
                self._run("DELETE FROM gates WHERE queue = ? AND key = CAST(? AS TEXT)", (self._queue, key.raw))
            else:
                found.append(self.limit_state(key))
        return found
