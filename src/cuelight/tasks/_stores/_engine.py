"""The operations of a store on its rows, which a row store keeps. Each method is one step; one step runs at a time.

All checks are made before anything is written, so that a step is atomic even if the row store cannot roll back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Final, cast

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight.tasks._stores._checks import check_beat, check_exchange, check_record, queue_closed
from cuelight.tasks._stores._engine_admin import EngineAdmin
from cuelight.tasks._stores._engine_core import is_expired
from cuelight.tasks._stores._protocol import Added, Beat, Bound, Claim, Exchange, Finish, Lease
from cuelight.tasks._stores._row_store import RowStore
from cuelight.tasks._stores._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    IN_FLIGHT,
    PARKED,
    PENDING,
    SCHEDULED,
    STATES,
    AttemptHistory,
    LimitQueue,
    Row,
    order_of,
)
from cuelight.tasks._stores._transitions import CRASH, Transition, count, encode_finish, repeated_finish, transition_of
from cuelight.tasks._task import Record

_SWEEP: Final = 300
"""The maximum number of tasks that one claim moves for each effect of time."""
_IN_VAIN: Final = 256
"""The maximum number of blocked limit queues and expired tasks that one claim examines after that."""


def _lease(row: Row) -> Lease:
    record, due, attempts = msgspec.structs.replace(row.record), row.due or 0.0, row.attempts
    if attempts is None:
        return Lease(record, row.epoch, due, Counts())
    return Lease(record, row.epoch, due, msgspec.structs.replace(attempts.counts), attempts.checkpoint)


class Engine(EngineAdmin):
    """All operations on the tasks of one queue."""

    def __init__(self, row_store: RowStore) -> None:
        super().__init__(row_store)
        self.repair: Callable[[float], bool] | None = None
        """Looks for damage when a claim has found nothing. Returns whether it has changed anything."""

    # Producing

    def add(self, now: float, records: Sequence[Record], bound: Bound | None) -> list[Added]:
        """See `Store.add`."""
        for record in records:
            check_record(record)
        self._check_open()
        there = {
            task_id: row.record.nonce
            for task_id, row in self.remove_expired([record.id for record in records], now).items()
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
        if self.row_store.closed:
            raise queue_closed()

    def _outcome(self, record: Record, bound: Bound | None, there: dict[str, str], now: float) -> Added:
        nonce = there.get(record.id)
        if nonce is not None:
            return Added("added" if nonce and nonce == record.nonce else "duplicate", record.id)
        if record.unique is not None:
            unique_holder = self.row_store.unique_holder(record.unique, now)
            if unique_holder is not None:
                return Added("duplicate", unique_holder)
        sizes = self.row_store.sizes
        if bound is None or sizes[PENDING] + sizes[SCHEDULED] + sizes[PARKED] < bound.most:
            return Added("added", record.id)
        last = self.row_store.last() if bound.shed else None
        if last is None or order_of(last)[:2] <= (record.priority, record.deadline):
            return Added("full", record.id)
        self.apply(last, Transition(DEAD_LETTER, reason="shed"), now)
        return Added("added", record.id)

    def _insert(self, record: Record, now: float) -> None:
        record = msgspec.structs.replace(record)
        row = self.row_store.new(record)
        row.turn = self.row_store.fair_queue.turn_of_new(record)
        due = record.due
        if record.delay > 0:
            due = (due or now) + record.delay
        if due > now:
            row.state, row.due = SCHEDULED, due
        self.row_store.sizes[row.state] += 1
        if record.unique is not None:
            self.row_store.hold_unique(
                record.unique, record.id, inf if record.unique_for is None else now + record.unique_for
            )
        if record.limits and row.state == PENDING:
            limit_queue = self.limit_queues.limit_queue_of(row)
            row.limit_queue = limit_queue.id
            self.row_store.insert(row)
            self.limit_queues.entered(limit_queue, row, now)
        else:
            self.row_store.insert(row)

    # Working

    def exchange(self, now: float, finishes: Sequence[Finish], claim: Claim | None) -> Exchange:
        """See `Store.exchange`."""
        check_exchange(finishes, claim)
        accepted: list[str] = []
        if finishes:
            rows = self.row_store.rows([finish.id for finish in finishes])
            accepted = [self._settle(finish, rows.get(finish.id), now) for finish in finishes]
        if claim is None:
            return Exchange(accepted, [])
        leases, wake_at = self._serve_claim(claim, now)
        return Exchange(accepted, leases, wake_at)

    def _settle(self, finish: Finish, row: Row | None, now: float) -> str:
        if row is None:
            return ""
        if row.state != IN_FLIGHT or row.epoch != finish.epoch:
            return "" if is_expired(row, now) else repeated_finish(row, finish) or ""
        kind, attempt = finish.kind, finish.attempt
        if row.damage is not None and not (kind == "done" and row.damage.part == "attempts"):
            self.dead_letter_corrupt(row, row.damage, now)
            return STATES[DEAD_LETTER]
        if attempt is None and kind not in ("done", "unknown"):
            attempt = Attempt(kind, row.worker, now)
        before, row.attempts = row.attempts, count(row.attempts, kind, attempt)
        transition = transition_of(row, kind, finish.delay, now)
        if (
            transition.state in (COMPLETED, CANCELLED)
            and row.attempts is not None
            and row.attempts.checkpoint is not None
        ):
            row.attempts = msgspec.structs.replace(row.attempts, checkpoint=None)
        if row.attempts is not before:
            self.row_store.save_attempts(row)
        row.last_finished_epoch, row.last_finish = row.epoch, encode_finish(kind, transition.state)
        row.result = finish.result if kind == "done" else None
        self.apply(row, transition, now)
        if kind == "rate_limited" and finish.pause_key is not None:
            self.pause_limit(now, finish.pause_key, finish.delay)
        return STATES[transition.state]

    def _serve_claim(self, claim: Claim, now: float) -> tuple[list[Lease], float]:
        """Return the leases, and the next time at which a task may be claimable."""
        again = self.row_store.claimed(claim.nonce)
        if again is not None:
            return self._repeat_claim(claim, again, now), self.row_store.next_due()
        unfinished = self._sweep_due(now)
        given: list[Row] = []
        if not self.row_store.paused and claim.most > 0:
            unfinished |= self._pick(claim, now, given)
            if given:
                self.row_store.remember(claim.nonce, given, now + claim.lease)
            elif not unfinished and self.repair is not None:
                unfinished = self.repair(now)
        self.row_store.fair_queue.settle(self.row_store.sizes[PENDING])
        return [_lease(row) for row in given], now if unfinished else self.row_store.next_due()

    def _repeat_claim(self, claim: Claim, given: Sequence[tuple[Row, int]], now: float) -> list[Lease]:
        held, until = (IN_FLIGHT, claim.worker), now + claim.lease
        rows = [
            row for row, epoch in given if (row.state, row.worker) == held and row.epoch == epoch and row.damage is None
        ]
        for row in rows:
            row.due = max(row.due or 0.0, until)
            self.row_store.save(row)
        self.row_store.remember(claim.nonce, rows, until)
        return [_lease(row) for row in rows]

    def _sweep_due(self, now: float) -> bool:
        """Apply the effects of time. Return whether some may be left."""
        row_store = self.row_store
        crashed = row_store.due(IN_FLIGHT, now, _SWEEP)
        for row in crashed:
            self.crash(row, now)
        woken = row_store.due(SCHEDULED, now, _SWEEP)
        for row in woken:
            self.make_pending(row, now)
        expired = row_store.expired(now, _SWEEP)
        for row in expired:
            self.expire(row, now)
        opened = row_store.limit_states_due(now, _SWEEP)
        for limit_state in opened:
            self.limit_queues.settle(limit_state.key, now)
        row_store.forget(now, _SWEEP)
        return max(len(crashed), len(woken), len(expired), len(opened)) == _SWEEP

    def crash(self, row: Row, now: float) -> None:
        """End an attempt whose lease has expired."""
        if row.damage is not None:
            self.dead_letter_corrupt(row, row.damage, now)
            return
        attempt = Attempt(CRASH, row.worker, now, error="the lease ran out")
        row.attempts = count(row.attempts, CRASH, attempt)
        self.row_store.save_attempts(row)
        self.apply(row, transition_of(row, CRASH, 0.0, now), now)

    def _pick(self, claim: Claim, now: float, given: list[Row]) -> bool:
        """Lease the next tasks. Return whether it stopped before it had examined all claimable tasks."""
        row_store, in_vain = self.row_store, 0
        plain = row_store.iter_ready(claim.most)
        row, limit_queue = next(plain, None), row_store.first_limit_queue("")
        while (row is not None or limit_queue is not None) and in_vain < _IN_VAIN:
            if (
                limit_queue is not None
                and limit_queue.first_order is not None
                and (row is None or limit_queue.first_order < order_of(row))
            ):
                given_one = self._lease_first(limit_queue, claim, now, given)
                limit_queue = row_store.first_limit_queue("")
            elif row is not None:
                given_one = self._lease_row(row, claim, now, given)
                row = None
            else:  # a limit queue without a first task, which no step leaves behind
                given_one = self._lease_first(cast("LimitQueue", limit_queue), claim, now, given)
                limit_queue = row_store.first_limit_queue("")
            in_vain += not given_one
            if len(given) == claim.most:
                return False
            row = next(plain, None) if row is None else row
        return in_vain == _IN_VAIN

    def _lease_first(self, limit_queue: LimitQueue, claim: Claim, now: float, given: list[Row]) -> bool:
        row = self.row_store.first_ready(limit_queue)
        if row is None:  # its tasks are missing, which no step causes
            self.row_store.drop_limit_queue(limit_queue)
            return False
        if limit_queue.first_order != order_of(row) and row.damage is None:  # which no step causes, either
            limit_queue.first_order = order_of(row)
            self.row_store.save_limit_queue(limit_queue)
        if row.record.deadline > now and row.damage is None:
            if self.limit_queues.refused(limit_queue, row, now):
                return False
            self.limit_queues.start(row, now)
        return self._lease_row(row, claim, now, given)

    def _lease_row(self, row: Row, claim: Claim, now: float, given: list[Row]) -> bool:
        # there are more of these than `_sweep` handles at once
        if row.damage is not None or row.record.deadline <= now:
            self.expire(row, now)
            return False
        if row.limit_queue <= 0 and row.record.limits:  # another program has changed the row
            self.move(row, PENDING, now)
            return False
        row.epoch += 1
        row.worker = claim.worker
        self.row_store.fair_queue.started(row)
        self.move(row, IN_FLIGHT, now, now + claim.lease)
        given.append(row)
        return True

    def beat(self, now: float, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        """See `Store.beat`."""
        check_beat(lease)
        rows = self.row_store.rows([task_id for task_id, _ in leases])
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
                self.row_store.save(row)
        return answer

    def save_progress(
        self, now: float, task_id: str, epoch: int, progress: bytes | None, checkpoint: bytes | None
    ) -> bool:
        """See `Store.save`."""
        row = self.row_store.rows([task_id]).get(task_id)
        if row is None or row.state != IN_FLIGHT or row.epoch != epoch or row.damage is not None:
            return False
        row.attempts = AttemptHistory() if row.attempts is None else msgspec.structs.replace(row.attempts)
        if progress is not None:
            row.attempts.progress = progress
        if checkpoint is not None:
            row.attempts.checkpoint = checkpoint
        self.row_store.save_attempts(row)
        return True

    def fire(self, now: float, name: str, due: float, next_due: float) -> bool:
        """See `Store.fire`."""
        schedule = self.row_store.schedule(name)
        if schedule is None or schedule.due != due or due == inf:  # an unreadable schedule is never due
            return False
        self._check_open()
        record = msgspec.structs.replace(schedule.record, id=f"{schedule.record.id}@{due:.3f}", nonce="", created=now)
        self.add(now, [record], None)
        self.row_store.save_schedule(msgspec.structs.replace(schedule, due=next_due))
        return True
