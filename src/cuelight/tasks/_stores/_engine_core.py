"""The basic operations on tasks in a store, from which all steps are made."""

from __future__ import annotations

from collections.abc import Sequence

from cuelight._dead_letters._attempt import Attempt
from cuelight.tasks._stores._limits import LimitQueues
from cuelight.tasks._stores._row_store import RowStore
from cuelight.tasks._stores._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    IN_FLIGHT,
    PENDING,
    AttemptHistory,
    Damage,
    Row,
)
from cuelight.tasks._stores._transitions import Transition


class EngineCore:
    """The basic operations of an engine."""

    def __init__(self, row_store: RowStore) -> None:
        self.row_store = row_store
        self.limit_queues = LimitQueues(row_store)

    def move(self, row: Row, state: int, now: float, due: float | None = None) -> None:
        """Move a task to another state, and update its limits and its limit queue."""
        row_store, old, left_queue = self.row_store, row.state, row.limit_queue
        row_store.sizes[old] -= 1
        row_store.sizes[state] += 1
        row.state, row.due, row.limit_queue = state, due, 0
        limits = row.record.limits
        if limits and state == PENDING:
            limit_queue = self.limit_queues.limit_queue_of(row)
            row.limit_queue = limit_queue.id
            row_store.save(row)
            self.limit_queues.entered(limit_queue, row, now)
        else:
            row_store.save(row)
        if left_queue > 0 and old == PENDING:
            self.limit_queues.left(left_queue, row, now)
        if limits and old == IN_FLIGHT:
            self.limit_queues.ended(row, now)

    def apply(self, row: Row, transition: Transition, now: float) -> None:
        """Apply a transition to a task."""
        if transition.state <= IN_FLIGHT:
            self.move(row, transition.state, now, transition.due or None)
            return
        row.ended, row.reason, row.cancelling = now, transition.reason, False
        if row.record.unique is not None and row.record.unique_for is None:
            self.row_store.release_unique(row.record.unique, row.record.id)
        self.move(row, transition.state, now, None if transition.state == DEAD_LETTER else now + row.record.result_ttl)

    def expire(self, row: Row, now: float) -> None:
        """Give up a task whose deadline passed before it was started."""
        if row.damage is not None:
            self.dead_letter_corrupt(row, row.damage, now)
        else:
            self.apply(row, Transition(DEAD_LETTER, reason="expired"), now)

    def make_pending(self, row: Row, now: float) -> None:
        """Make a task pending whose delay is over."""
        if row.damage is not None:
            self.dead_letter_corrupt(row, row.damage, now)
        else:
            self.move(row, PENDING, now)

    def dead_letter_corrupt(self, row: Row, damage: Damage, now: float) -> None:
        """Make a dead letter of a task that is partly unreadable, with the readable parts."""
        held = row.state == IN_FLIGHT and damage.part == "record"
        checkpoint = None if row.attempts is None else row.attempts.checkpoint
        attempt = Attempt("undecodable", row.worker, now, error=damage.why)
        row.attempts = AttemptHistory(history=(attempt,), checkpoint=checkpoint)
        row.result = damage.raw
        row.epoch = max(row.epoch, int(now))  # greater than all previous epochs, even if the stored one is unreadable
        if damage.unplaced:
            row.ended, row.reason, row.due = now, "undecodable", None
            self.row_store.save(row)
        else:
            self.apply(row, Transition(DEAD_LETTER, reason="undecodable"), now)
        self.row_store.save_attempts(row)
        self.row_store.save_corrupt(row)
        if held:  # its limits are unknown
            self.limit_queues.recount(now)

    def remove(self, row: Row) -> None:
        """Delete a task that has ended."""
        self.row_store.sizes[row.state] -= 1
        self.row_store.delete(row)

    def known(self, ids: Sequence[str], now: float, *, payload: bool = False) -> dict[str, Row]:
        """Return tasks by their ids, without those whose time to live is over and that were not removed yet."""
        rows = self.row_store.rows(ids, payload=payload)
        return {task_id: row for task_id, row in rows.items() if not is_expired(row, now)}

    def remove_expired(self, ids: Sequence[str], now: float) -> dict[str, Row]:
        """Like `known`, and remove the tasks whose time to live is over."""
        rows = self.row_store.rows(ids)
        for task_id, row in list(rows.items()):
            if is_expired(row, now):
                self.remove(rows.pop(task_id))
            elif row.damage is not None and row.damage.unplaced:
                self.dead_letter_corrupt(row, row.damage, now)
        return rows


def is_expired(row: Row, now: float) -> bool:
    """Whether a task has ended and its time to live is over."""
    return row.state in (COMPLETED, CANCELLED) and row.due is not None and row.due < now
