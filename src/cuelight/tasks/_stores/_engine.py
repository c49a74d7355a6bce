"""The state transitions of a store, on a book that keeps its rows. Each method is one step, and one step runs at a
time.

All checks are made before anything is written, so that a step is atomic even if the book cannot roll back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Final, cast

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight.tasks._stores._checks import check_beat, check_exchange, check_record, queue_closed
from cuelight.tasks._stores._engine_admin import EngineAdmin
from cuelight.tasks._stores._engine_core import is_over
from cuelight.tasks._stores._protocol import Added, Beat, Bound, Claim, Exchange, Finish, Lease
from cuelight.tasks._stores._row_store import Book
from cuelight.tasks._stores._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    IN_FLIGHT,
    PARKED,
    PENDING,
    SCHEDULED,
    STATES,
    Lane,
    Row,
    Story,
    order_of,
)
from cuelight.tasks._stores._transitions import CRASH, Fate, count, fate_of, settled_before, step_of
from cuelight.tasks._task import Record

# Claims: they apply the effects of time, and then lease the next tasks in their order.


_SWEEP: Final = 300
"""The maximum number of tasks that one claim moves for each effect of time."""
_IN_VAIN: Final = 256
"""The maximum number of blocked lanes and expired tasks that one claim examines after that."""


class Claims:
    """The part of an engine that serves claims."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._book, self._lanes = engine, engine.book, engine.lanes
        self.mend: Callable[[float], bool] | None = None
        """Looks for damage when a claim has found nothing. Returns whether it has changed anything."""

    def serve(self, claim: Claim, now: float) -> tuple[list[Lease], float]:
        """Return the leases, and the next time at which a task may be claimable."""
        again = self._book.claimed(claim.nonce)
        if again is not None:
            return self._given_again(claim, again, now), self._book.next_due()
        unfinished = self._sweep(now)
        given: list[Row] = []
        if not self._book.paused and claim.most > 0:
            unfinished |= self._pick(claim, now, given)
            if given:
                self._book.remember(claim.nonce, given, now + claim.lease)
            elif not unfinished and self.mend is not None:
                unfinished = self.mend(now)
        self._book.turns.settle(self._book.sizes[PENDING])
        return [_lease(row) for row in given], now if unfinished else self._book.next_due()

    def _given_again(self, claim: Claim, given: Sequence[tuple[Row, int]], now: float) -> list[Lease]:
        held, until = (IN_FLIGHT, claim.worker), now + claim.lease
        rows = [
            row for row, epoch in given if (row.state, row.worker) == held and row.epoch == epoch and row.damage is None
        ]
        for row in rows:
            row.due = max(row.due or 0.0, until)
            self._book.save(row)
        self._book.remember(claim.nonce, rows, until)
        return [_lease(row) for row in rows]

    def _sweep(self, now: float) -> bool:
        """Apply the effects of time. Return whether some may be left."""
        book = self._book
        crashed = book.due(IN_FLIGHT, now, _SWEEP)
        for row in crashed:
            self.crash(row, now)
        woken = book.due(SCHEDULED, now, _SWEEP)
        for row in woken:
            self._engine.wake(row, now)
        expired = book.expired(now, _SWEEP)
        for row in expired:
            self._engine.expire(row, now)
        opened = book.gates_due(now, _SWEEP)
        for gate in opened:
            self._lanes.settle(gate.key, now)
        book.forget(now, _SWEEP)
        return max(len(crashed), len(woken), len(expired), len(opened)) == _SWEEP

    def crash(self, row: Row, now: float) -> None:
        """End an attempt whose lease has expired."""
        if row.damage is not None:
            self._engine.condemn(row, row.damage, now)
            return
        attempt = Attempt(CRASH, row.worker, now, error="the lease ran out")
        row.story = count(row.story, CRASH, attempt)
        self._book.save_story(row)
        self._engine.apply(row, fate_of(row, CRASH, 0.0, now), now)

    def _pick(self, claim: Claim, now: float, given: list[Row]) -> bool:
        """Lease the next tasks. Return whether it stopped before it had examined all claimable tasks."""
        book, in_vain = self._book, 0
        plain = book.heads(claim.most)
        row, lane = next(plain, None), book.first_lane("")
        while (row is not None or lane is not None) and in_vain < _IN_VAIN:
            if lane is not None and lane.head is not None and (row is None or lane.head < order_of(row)):
                given_one = self._give_first(lane, claim, now, given)
                lane = book.first_lane("")
            elif row is not None:
                given_one = self._give(row, claim, now, given)
                row = None
            else:  # a lane without a first task, which no step leaves behind
                given_one = self._give_first(cast("Lane", lane), claim, now, given)
                lane = book.first_lane("")
            in_vain += not given_one
            if len(given) == claim.most:
                return False
            row = next(plain, None) if row is None else row
        return in_vain == _IN_VAIN

    def _give_first(self, lane: Lane, claim: Claim, now: float, given: list[Row]) -> bool:
        row = self._book.head(lane)
        if row is None:  # its tasks are missing, which no step causes
            self._book.drop_lane(lane)
            return False
        if lane.head != order_of(row) and row.damage is None:  # which no step causes, either
            lane.head = order_of(row)
            self._book.save_lane(lane)
        if row.record.deadline > now and row.damage is None:
            if self._lanes.refused(lane, row, now):
                return False
            self._lanes.start(row, now)
        return self._give(row, claim, now, given)

    def _give(self, row: Row, claim: Claim, now: float, given: list[Row]) -> bool:
        # there are more of these than `_sweep` handles at once
        if row.damage is not None or row.record.deadline <= now:
            self._engine.expire(row, now)
            return False
        if row.lane <= 0 and row.record.limits:  # another program has changed the row
            self._engine.shift(row, PENDING, now)
            return False
        row.epoch += 1
        row.worker = claim.worker
        self._book.turns.started(row)
        self._engine.shift(row, IN_FLIGHT, now, now + claim.lease)
        given.append(row)
        return True


def _lease(row: Row) -> Lease:
    record, due, story = msgspec.structs.replace(row.record), row.due or 0.0, row.story
    if story is None:
        return Lease(record, row.epoch, due, Counts())
    return Lease(record, row.epoch, due, msgspec.structs.replace(story.counts), story.checkpoint)


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
