"""Claims: they apply the effects of time, and then lease the next tasks in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import msgspec

from cuelight.tasks._rows import (
    IN_FLIGHT,
    PENDING,
    SCHEDULED,
    Lane,
    Row,
    order_of,
)
from cuelight.tasks._store import Claim, Lease
from cuelight.tasks._task import Attempt, Counts
from cuelight.tasks._transitions import CRASH, count, fate_of

if TYPE_CHECKING:
    from cuelight.tasks._engine import Engine

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
