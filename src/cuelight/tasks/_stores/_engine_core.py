"""The basic operations on tasks in a store, from which all steps are made."""

from __future__ import annotations

from collections.abc import Sequence

from cuelight._dead_letters._attempt import Attempt
from cuelight.tasks._stores._limits import Lanes
from cuelight.tasks._stores._row_store import Book
from cuelight.tasks._stores._rows import CANCELLED, COMPLETED, DEAD_LETTER, IN_FLIGHT, PENDING, Damage, Row, Story
from cuelight.tasks._stores._transitions import Fate


class EngineCore:
    """The basic operations of an engine."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.lanes = Lanes(book)

    def shift(self, row: Row, state: int, now: float, due: float | None = None) -> None:
        """Move a task to another state, and update its limits and its lane."""
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
        """Apply a fate to a task."""
        if fate.state <= IN_FLIGHT:
            self.shift(row, fate.state, now, fate.due or None)
            return
        row.ended, row.reason, row.cancelling = now, fate.reason, False
        if row.record.unique is not None and row.record.unique_for is None:
            self.book.let_go(row.record.unique, row.record.id)
        self.shift(row, fate.state, now, None if fate.state == DEAD_LETTER else now + row.record.result_ttl)

    def expire(self, row: Row, now: float) -> None:
        """Give up a task whose deadline passed before it was started."""
        if row.damage is not None:
            self.condemn(row, row.damage, now)
        else:
            self.apply(row, Fate(DEAD_LETTER, reason="expired"), now)

    def wake(self, row: Row, now: float) -> None:
        """Make a task pending whose delay is over."""
        if row.damage is not None:
            self.condemn(row, row.damage, now)
        else:
            self.shift(row, PENDING, now)

    def condemn(self, row: Row, damage: Damage, now: float) -> None:
        """Make a dead letter of a task that is partly unreadable, with the readable parts."""
        held = row.state == IN_FLIGHT and damage.part == "record"
        checkpoint = None if row.story is None else row.story.checkpoint
        attempt = Attempt("undecodable", row.worker, now, error=damage.why)
        row.story = Story(history=(attempt,), checkpoint=checkpoint)
        row.result = damage.raw
        row.epoch = max(row.epoch, int(now))  # greater than all previous epochs, even if the stored one is unreadable
        if damage.unplaced:
            row.ended, row.reason, row.due = now, "undecodable", None
            self.book.save(row)
        else:
            self.apply(row, Fate(DEAD_LETTER, reason="undecodable"), now)
        self.book.save_story(row)
        self.book.condemned(row)
        if held:  # its limits are unknown
            self.lanes.recount(now)

    def remove(self, row: Row) -> None:
        """Delete a task that has ended."""
        self.book.sizes[row.state] -= 1
        self.book.delete(row)

    def known(self, ids: Sequence[str], now: float, *, payload: bool = False) -> dict[str, Row]:
        """Return tasks by their ids, without those whose time to live is over and that were not removed yet."""
        rows = self.book.rows(ids, payload=payload)
        return {task_id: row for task_id, row in rows.items() if not is_over(row, now)}

    def remove_over(self, ids: Sequence[str], now: float) -> dict[str, Row]:
        """Like `known`, and remove the tasks whose time to live is over."""
        rows = self.book.rows(ids)
        for task_id, row in list(rows.items()):
            if is_over(row, now):
                self.remove(rows.pop(task_id))
            elif row.damage is not None and row.damage.unplaced:
                self.condemn(row, row.damage, now)
        return rows


def is_over(row: Row, now: float) -> bool:
    """Whether a task has ended and its time to live is over."""
    return row.state in (COMPLETED, CANCELLED) and row.due is not None and row.due < now
