"""The transitions of a store, over a book that keeps its rows. One step at a time; each method is one step.

Whatever may be refused is refused before anything is written, so that a step takes effect wholly or not at all also
where a book cannot take anything back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from cuelight.tasks._book import Book
from cuelight.tasks._checks import (
    check_beat,
    check_control,
    check_exchange,
    check_ids,
    check_pause,
    check_query,
    check_record,
    check_schedule,
    check_set_limit,
    queue_closed,
)
from cuelight.tasks._claims import Claims
from cuelight.tasks._lanes import Lanes
from cuelight.tasks._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    IN_FLIGHT,
    PARKED,
    PENDING,
    SCHEDULED,
    STATES,
    Row,
    Story,
    order_of,
    snapshot,
)
from cuelight.tasks._store import Added, Beat, Bound, Claim, Exchange, Finish, Query, Record, Schedule, Size, Snapshot
from cuelight.tasks._task import Attempt, Limit
from cuelight.tasks._transitions import Fate, count, fate_of, settled_before, step_of

__all__ = ["Engine"]


class Engine:
    """What a store does to the tasks of one queue."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.lanes = Lanes(book)
        self._claims = Claims(self)

    # What moves a task

    def shift(self, row: Row, state: int, now: float, due: float | None = None) -> None:
        """Bring a task into another state, with all that follows for its limits and its unique key."""
        book, old, lane_left = self.book, row.state, row.lane
        book.sizes[old] -= 1
        book.sizes[state] += 1
        row.state, row.due, row.lane = state, due, 0
        limits = row.record.limits
        if limits and state == PENDING:
            lane = self.lanes.lane_of(row)
            row.lane = lane.id
            book.save(row)
            self.lanes.entered(lane, row, now)
        else:
            book.save(row)
        if lane_left > 0 and old == PENDING:
            self.lanes.left(lane_left, row, now)
        if limits and old == IN_FLIGHT:
            self.lanes.ended(row, now)

    def apply(self, row: Row, fate: Fate, now: float) -> None:
        """Let a task have its fate."""
        if fate.state <= IN_FLIGHT:
            self.shift(row, fate.state, now, fate.due or None)
            return
        row.ended, row.reason, row.cancelling = now, fate.reason, False
        if row.record.unique is not None and row.record.unique_for is None:
            self.book.let_go(row.record.unique, row.record.id)
        self.shift(row, fate.state, now, None if fate.state == DEAD_LETTER else now + row.record.result_ttl)

    def expire(self, row: Row, now: float) -> None:
        """Its deadline has passed before it was started."""
        self.apply(row, Fate(DEAD_LETTER, reason="expired"), now)

    def remove(self, row: Row) -> None:
        """Forget a task that is over."""
        self.book.sizes[row.state] -= 1
        self.book.delete(row)

    # What producers do

    def add(self, now: float, records: Sequence[Record], bound: Bound | None) -> list[Added]:
        """See `Store.add`."""
        for record in records:
            check_record(record)
        self._check_open()
        there = self.book.taken(records)
        outcomes: list[Added] = []
        for record in records:
            outcome = self._outcome(record, bound, there, now)
            if outcome.outcome == "added" and record.id not in there:
                there[record.id] = record.nonce
                self._insert(record, now)
            outcomes.append(outcome)
        return outcomes

    def _check_open(self) -> None:
        if self.book.closed:
            raise queue_closed()

    def _outcome(self, record: Record, bound: Bound | None, there: dict[str, str], now: float) -> Added:
        nonce = there.get(record.id)
        if nonce is not None:
            return Added("added" if nonce and nonce == record.nonce else "duplicate", record.id)
        if record.unique is not None:
            holder = self.book.holder(record.unique, now)
            if holder is not None:
                return Added("duplicate", holder)
        sizes = self.book.sizes
        if bound is None or sizes[PENDING] + sizes[SCHEDULED] + sizes[PARKED] < bound.most:
            return Added("added", record.id)
        last = self.book.last() if bound.shed else None
        if last is None or order_of(last)[:2] <= (record.priority, record.deadline):
            return Added("full", record.id)
        self.apply(last, Fate(DEAD_LETTER, reason="shed"), now)
        return Added("added", record.id)

    def _insert(self, record: Record, now: float) -> None:
        record = msgspec.structs.replace(record)
        row = self.book.new(record)
        row.turn = self.book.turns.of_new(record)
        due = record.due
        if record.delay > 0:
            due = (due or now) + record.delay
        if due > now:
            row.state, row.due = SCHEDULED, due
        self.book.sizes[row.state] += 1
        if record.unique is not None:
            self.book.hold(record.unique, record.id, inf if record.unique_for is None else now + record.unique_for)
        if record.limits and row.state == PENDING:
            lane = self.lanes.lane_of(row)
            row.lane = lane.id
            self.book.insert(row)
            self.lanes.entered(lane, row, now)
        else:
            self.book.insert(row)

    # What workers do

    def exchange(self, now: float, finishes: Sequence[Finish], claim: Claim | None) -> Exchange:
        """See `Store.exchange`."""
        check_exchange(finishes, claim)
        accepted: list[str] = []
        if finishes:
            rows = self.book.rows([finish.id for finish in finishes])
            accepted = [self._settle(finish, rows.get(finish.id), now) for finish in finishes]
        if claim is None:
            return Exchange(accepted, [])
        leases, wake_at = self._claims.serve(claim, now)
        return Exchange(accepted, leases, wake_at)

    def _settle(self, finish: Finish, row: Row | None, now: float) -> str:
        if row is None:
            return ""
        if row.state != IN_FLIGHT or row.epoch != finish.epoch:
            return settled_before(row, finish) or ""
        kind, attempt = finish.kind, finish.attempt
        if attempt is None and kind not in ("done", "unknown"):
            attempt = Attempt(kind, row.worker, now)
        before, row.story = row.story, count(row.story, kind, attempt)
        fate = fate_of(row, kind, finish.delay, now)
        if fate.state in (COMPLETED, CANCELLED) and row.story is not None and row.story.checkpoint is not None:
            row.story = msgspec.structs.replace(row.story, checkpoint=None)
        if row.story is not before:
            self.book.save_story(row)
        row.settled, row.step = row.epoch, step_of(kind, fate.state)
        row.result = finish.result if kind == "done" else None
        self.apply(row, fate, now)
        if kind == "rate_limited" and finish.pause_key is not None:
            self.pause_limit(now, finish.pause_key, finish.delay)
        return STATES[fate.state]

    def beat(self, now: float, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        """See `Store.beat`."""
        check_beat(lease)
        rows = self.book.rows([task_id for task_id, _ in leases])
        answer = Beat([], [])
        for task_id, epoch in leases:
            row = rows.get(task_id)
            if row is None or (row.state, row.epoch, row.worker) != (IN_FLIGHT, epoch, worker):
                answer.lost.append((task_id, epoch))
                continue
            if row.cancelling:
                answer.cancelled.append((task_id, epoch))
            if lease is not None:
                row.due = now + lease
                self.book.save(row)
        return answer

    def keep(self, now: float, task_id: str, epoch: int, progress: bytes | None, checkpoint: bytes | None) -> bool:
        """See `Store.save`."""
        row = self.book.rows([task_id]).get(task_id)
        if row is None or row.state != IN_FLIGHT or row.epoch != epoch:
            return False
        row.story = Story() if row.story is None else msgspec.structs.replace(row.story)
        if progress is not None:
            row.story.progress = progress
        if checkpoint is not None:
            row.story.checkpoint = checkpoint
        self.book.save_story(row)
        return True

    # What people do

    def cancel(self, now: float, ids: Sequence[str]) -> list[str]:
        """See `Store.cancel`."""
        check_ids(ids)
        rows = self.book.rows(ids)
        return [self._cancel(rows.get(task_id), now) for task_id in ids]

    def _cancel(self, row: Row | None, now: float) -> str:
        if row is None:
            return "unknown"
        if row.state == IN_FLIGHT:
            if not row.cancelling:
                row.cancelling = True
                self.book.save(row)
            return "cancelling"
        if row.state < IN_FLIGHT:
            self.apply(row, Fate(CANCELLED), now)
        return "cancelled" if row.state == CANCELLED else "finished"

    def unpark(self, now: float, types: Sequence[str]) -> int:
        """See `Store.unpark`."""
        rows = self.book.parked(types)
        for row in rows:
            self.shift(row, PENDING, now)
        return len(rows)

    def control(self, now: float, paused: bool | None, closed: bool | None) -> None:
        """See `Store.control`."""
        check_control(paused, closed)
        book = self.book
        wanted = (book.paused if paused is None else paused, book.closed if closed is None else closed)
        if wanted != (book.paused, book.closed):
            book.paused, book.closed = wanted
            book.save_queue()

    def set_limit(self, now: float, limit: Limit | None, key: str) -> None:
        """See `Store.set_limit`."""
        check_set_limit(limit, key)
        gate = self.book.gate(key)
        gate.override = limit
        self.book.save_gate(gate)
        self.lanes.settle(key, now)

    def pause_limit(self, now: float, key: str, seconds: float) -> None:
        """See `Store.pause_limit`."""
        check_pause(key, seconds)
        gate = self.book.gate(key)
        gate.closed = max(gate.closed, now + seconds) if seconds else 0.0
        self.book.save_gate(gate)
        self.lanes.settle(key, now)

    def fire(self, now: float, name: str, due: float, next_due: float) -> bool:
        """See `Store.fire`."""
        schedule = self.book.schedule(name)
        if schedule is None or schedule.due != due:
            return False
        self._check_open()
        record = msgspec.structs.replace(schedule.record, id=f"{schedule.record.id}@{due:.3f}", nonce="", created=now)
        self.add(now, [record], None)
        self.book.save_schedule(msgspec.structs.replace(schedule, due=next_due))
        return True

    def put_schedule(self, now: float, schedule: Schedule) -> None:
        """See `Store.put_schedule`."""
        check_schedule(schedule)
        old = self.book.schedule(schedule.name)
        due = old.due if old is not None and old.spec == schedule.spec else schedule.due
        record = msgspec.structs.replace(schedule.record)
        self.book.save_schedule(msgspec.structs.replace(schedule, due=due, record=record))

    def remove_schedule(self, now: float, name: str) -> bool:
        """See `Store.remove_schedule`."""
        if self.book.schedule(name) is None:
            return False
        self.book.drop_schedule(name)
        return True

    def schedules(self, now: float) -> list[Schedule]:
        """See `Store.schedules`."""
        return [
            msgspec.structs.replace(schedule, record=msgspec.structs.replace(schedule.record))
            for schedule in self.book.schedules()
        ]

    def get(self, now: float, ids: Sequence[str]) -> list[Snapshot | None]:
        """See `Store.get`."""
        check_ids(ids)
        rows = self.book.rows(ids, payload=True)
        return [snapshot(rows[task_id]) if task_id in rows else None for task_id in ids]

    def find(self, now: float, query: Query) -> list[Snapshot]:
        """See `Store.find`."""
        check_query(query)
        return [snapshot(row) for row in self.book.find(query)]

    def size(self, now: float) -> Size:
        """See `Store.size`."""
        book = self.book
        return Size(**dict(zip(STATES, book.sizes, strict=True)), paused=book.paused, closed=book.closed)

    def replay(self, now: float, ids: Sequence[str]) -> list[bool]:
        """See `Store.replay`."""
        check_ids(ids)
        rows = self.book.rows(ids, payload=True)
        return [self._replay(rows.get(task_id), now) for task_id in ids]

    def _replay(self, row: Row | None, now: float) -> bool:
        if row is None or row.state != DEAD_LETTER:
            return False
        row.reason, row.ended = "", 0.0
        if row.story is not None:
            row.story = Story(history=row.story.history, checkpoint=row.story.checkpoint)
            self.book.save_story(row)
        record = row.record
        if record.deadline <= now:
            record.deadline = inf
            self.book.turns.again(row)
            self.book.save_record(row)
        if record.unique is not None and record.unique_for is None and self.book.holder(record.unique, now) is None:
            self.book.hold(record.unique, record.id, inf)
        self.shift(row, PENDING, now)
        return True

    def edit(self, now: float, task_id: str, payload: bytes) -> bool:
        """See `Store.edit`."""
        row = self.book.rows([task_id]).get(task_id)
        if row is None or not (row.state == DEAD_LETTER or (row.state < IN_FLIGHT and row.epoch == 0)):
            return False
        row.record.payload = payload
        self.book.save_record(row)
        return True

    def purge(self, now: float, ids: Sequence[str]) -> int:
        """See `Store.purge`."""
        check_ids(ids)
        rows = [row for row in self.book.rows(ids).values() if row.state > IN_FLIGHT]
        for row in rows:
            self.remove(row)
        return len(rows)
