"""The state transitions of a store, on a book that keeps its rows. Each method is one step, and one step runs at a
time.

All checks are made before anything is written, so that a step is atomic even if the book cannot roll back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from cuelight.tasks._book import Book
from cuelight.tasks._checks import check_beat, check_exchange, check_record, queue_closed
from cuelight.tasks._claims import Claims
from cuelight.tasks._engine_admin import EngineAdmin
from cuelight.tasks._engine_core import is_over
from cuelight.tasks._record import Record
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
)
from cuelight.tasks._store import Added, Beat, Bound, Claim, Exchange, Finish
from cuelight.tasks._task import Attempt
from cuelight.tasks._transitions import Fate, count, fate_of, settled_before, step_of


class Engine(EngineAdmin):
    """All operations on the tasks of one queue."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self.claims = Claims(self)

    # Producing

    def add(self, now: float, records: Sequence[Record], bound: Bound | None) -> list[Added]:
        """See `Store.add`."""
        for record in records:
            check_record(record)
        self._check_open()
        there = {
            task_id: row.record.nonce
            for task_id, row in self.remove_over([record.id for record in records], now).items()
        }
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

    # Working

    def exchange(self, now: float, finishes: Sequence[Finish], claim: Claim | None) -> Exchange:
        """See `Store.exchange`."""
        check_exchange(finishes, claim)
        accepted: list[str] = []
        if finishes:
            rows = self.book.rows([finish.id for finish in finishes])
            accepted = [self._settle(finish, rows.get(finish.id), now) for finish in finishes]
        if claim is None:
            return Exchange(accepted, [])
        leases, wake_at = self.claims.serve(claim, now)
        return Exchange(accepted, leases, wake_at)

    def _settle(self, finish: Finish, row: Row | None, now: float) -> str:
        if row is None:
            return ""
        if row.state != IN_FLIGHT or row.epoch != finish.epoch:
            return "" if is_over(row, now) else settled_before(row, finish) or ""
        kind, attempt = finish.kind, finish.attempt
        if row.damage is not None and not (kind == "done" and row.damage.part == "story"):
            self.condemn(row, row.damage, now)
            return STATES[DEAD_LETTER]
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
        if row is None or row.state != IN_FLIGHT or row.epoch != epoch or row.damage is not None:
            return False
        row.story = Story() if row.story is None else msgspec.structs.replace(row.story)
        if progress is not None:
            row.story.progress = progress
        if checkpoint is not None:
            row.story.checkpoint = checkpoint
        self.book.save_story(row)
        return True

    def fire(self, now: float, name: str, due: float, next_due: float) -> bool:
        """See `Store.fire`."""
        schedule = self.book.schedule(name)
        if schedule is None or schedule.due != due or due == inf:  # an unreadable schedule is never due
            return False
        self._check_open()
        record = msgspec.structs.replace(schedule.record, id=f"{schedule.record.id}@{due:.3f}", nonce="", created=now)
        self.add(now, [record], None)
        self.book.save_schedule(msgspec.structs.replace(schedule, due=next_due))
        return True
