"""The administrative operations of a store: reading, cancelling, replaying and editing tasks, switches and limits."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

import msgspec

from cuelight.tasks._stores._checks import (
    check_control,
    check_ids,
    check_pause,
    check_query,
    check_schedule,
    check_set_limit,
)
from cuelight.tasks._stores._engine_core import EngineCore
from cuelight.tasks._stores._protocol import Query, Schedule, Size, Snapshot
from cuelight.tasks._stores._rows import (
    CANCELLED,
    DEAD_LETTER,
    IN_FLIGHT,
    PENDING,
    STATES,
    AttemptHistory,
    Row,
    snapshot,
)
from cuelight.tasks._stores._transitions import Transition
from cuelight.tasks._task import Limit

_FORGOTTEN: Final = 1000
"""The maximum number of expired results that one step removes."""


class EngineAdmin(EngineCore):
    """The administrative part of an engine."""

    def cancel(self, now: float, ids: Sequence[str]) -> list[str]:
        """See `Store.cancel`."""
        check_ids(ids)
        rows = self.remove_expired(ids, now)
        return [self._cancel(rows.get(task_id), now) for task_id in ids]

    def _cancel(self, row: Row | None, now: float) -> str:
        if row is None:
            return "unknown"
        if row.state == IN_FLIGHT:
            if not row.cancelling:
                row.cancelling = True
                self.row_store.save(row)
            return "cancelling"
        if row.state < IN_FLIGHT:
            self.apply(row, Transition(CANCELLED), now)
        return "cancelled" if row.state == CANCELLED else "finished"

    def unpark(self, now: float, types: Sequence[str]) -> int:
        """See `Store.unpark`."""
        rows = self.row_store.parked(types)
        for row in rows:
            self.move(row, PENDING, now)
        return len(rows)

    def control(self, now: float, paused: bool | None, closed: bool | None) -> None:
        """See `Store.control`."""
        check_control(paused, closed)
        row_store = self.row_store
        wanted = (row_store.paused if paused is None else paused, row_store.closed if closed is None else closed)
        if wanted != (row_store.paused, row_store.closed):
            row_store.paused, row_store.closed = wanted
            row_store.save_queue()

    def set_limit(self, now: float, limit: Limit | None, key: str) -> None:
        """See `Store.set_limit`."""
        check_set_limit(limit, key)
        limit_state = self.row_store.limit_state(key)
        limit_state.override = limit
        self.row_store.save_limit_state(limit_state)
        self.limit_queues.settle(key, now)

    def pause_limit(self, now: float, key: str, seconds: float) -> None:
        """See `Store.pause_limit`."""
        check_pause(key, seconds)
        limit_state = self.row_store.limit_state(key)
        limit_state.closed = max(limit_state.closed, now + seconds) if seconds else 0.0
        self.row_store.save_limit_state(limit_state)
        self.limit_queues.settle(key, now)

    def put_schedule(self, now: float, schedule: Schedule) -> None:
        """See `Store.put_schedule`."""
        check_schedule(schedule)
        old = self.row_store.schedule(schedule.name)
        due = old.due if old is not None and old.spec == schedule.spec else schedule.due
        record = msgspec.structs.replace(schedule.record)
        self.row_store.save_schedule(msgspec.structs.replace(schedule, due=due, record=record))

    def remove_schedule(self, now: float, name: str) -> bool:
        """See `Store.remove_schedule`."""
        if self.row_store.schedule(name) is None:
            return False
        self.row_store.drop_schedule(name)
        return True

    def schedules(self, now: float) -> list[Schedule]:
        """See `Store.schedules`."""
        return [
            msgspec.structs.replace(schedule, record=msgspec.structs.replace(schedule.record))
            for schedule in self.row_store.schedules()
        ]

    def get(self, now: float, ids: Sequence[str]) -> list[Snapshot | None]:
        """See `Store.get`."""
        check_ids(ids)
        rows = self.known(ids, now, payload=True)
        return [snapshot(rows[task_id]) if task_id in rows else None for task_id in ids]

    def find(self, now: float, query: Query) -> list[Snapshot]:
        """See `Store.find`."""
        check_query(query)
        return [snapshot(row) for row in self.row_store.find(query, now)]

    def size(self, now: float) -> Size:
        """See `Store.size`."""
        row_store = self.row_store
        completed, cancelled = row_store.count_expired(now)
        sizes = dict(zip(STATES, row_store.sizes, strict=True))
        sizes["completed"] -= completed
        sizes["cancelled"] -= cancelled
        return Size(**sizes, paused=row_store.paused, closed=row_store.closed)

    def forget(self, now: float) -> None:
        """Remove some of the expired results."""
        self.row_store.forget(now, _FORGOTTEN)
        self.row_store.count_expired(now)

    def replay(self, now: float, ids: Sequence[str]) -> list[bool]:
        """See `Store.replay`."""
        check_ids(ids)
        self.remove_expired(ids, now)
        rows = self.known(ids, now, payload=True)
        return [self._replay(rows.get(task_id), now) for task_id in ids]

    def _replay(self, row: Row | None, now: float) -> bool:
        if row is None or row.state != DEAD_LETTER:
            return False
        row.reason, row.ended = "", 0.0
        if row.attempts is not None:
            row.attempts = AttemptHistory(history=row.attempts.history, checkpoint=row.attempts.checkpoint)
            self.row_store.save_attempts(row)
        record = row.record
        if record.deadline <= now:
            record.deadline = inf
            self.row_store.fair_queue.requeue(row)
            self.row_store.save_record(row)
        if (
            record.unique is not None
            and record.unique_for is None
            and self.row_store.unique_holder(record.unique, now) is None
        ):
            self.row_store.hold_unique(record.unique, record.id, inf)
        self.move(row, PENDING, now)
        return True

    def edit(self, now: float, task_id: str, payload: bytes) -> bool:
        """See `Store.edit`."""
        row = self.known([task_id], now).get(task_id)
        if row is None or not (row.state == DEAD_LETTER or (row.state < IN_FLIGHT and row.epoch == 0)):
            return False
        row.record.payload = payload
        self.row_store.save_record(row)
        return True

    def purge(self, now: float, ids: Sequence[str]) -> int:
        """See `Store.purge`."""
        check_ids(ids)
        rows = [row for row in self.remove_expired(ids, now).values() if row.state > IN_FLIGHT]
        for row in rows:
            self.remove(row)
        return len(rows)
