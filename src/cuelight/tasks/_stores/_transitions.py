"""The rules for the ends of attempts: the new state of the task. Independent of the store."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight.tasks._stores._checks import KINDS
from cuelight.tasks._stores._protocol import Finish
from cuelight.tasks._stores._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    HISTORY,
    PARKED,
    PENDING,
    SCHEDULED,
    STATES,
    Row,
    Story,
)

CRASH: Final = "crash"
_GIVEN_UP: Final = ("rejected", "undecodable")
_RETRIED_ALWAYS: Final = ("rate_limited", "released")
_COUNTED: Final = {
    "error": "errors",
    "timeout": "timeouts",
    CRASH: "crashes",
    "rate_limited": "rate_limited",
    "released": "released",
}
_SPENT: Final = {"error": "errors", "timeout": "timeouts", CRASH: "quarantined"}


class Fate(NamedTuple):
    """The new state of a task, the end of its delay (0 for none), and the reason if it becomes a dead letter."""

    state: int
    due: float = 0.0
    reason: str = ""


def count(story: Story | None, kind: str, attempt: Attempt | None) -> Story | None:
    """The story after one more attempt that did not succeed."""
    if attempt is None and kind not in _COUNTED:
        return story
    story = Story() if story is None else msgspec.structs.replace(story)
    if kind in _COUNTED:
        counts = msgspec.structs.replace(story.counts)
        setattr(counts, _COUNTED[kind], getattr(counts, _COUNTED[kind]) + 1)
        story.counts = counts
    if attempt is not None:
        story.history = (*story.history, attempt)[-HISTORY:]
    return story


def fate_of(row: Row, kind: str, delay: float, now: float) -> Fate:
    """The fate of a task whose attempt ended in this way. The attempt must have been counted already."""
    if kind == "done":
        return Fate(COMPLETED)
    if row.cancelling or kind == "cancelled":
        return Fate(CANCELLED)
    if kind in _GIVEN_UP:
        return Fate(DEAD_LETTER, reason=kind)
    if kind == "unknown":
        return Fate(PARKED)
    if kind not in _RETRIED_ALWAYS and _spent(row, kind):
        return Fate(DEAD_LETTER, reason=_SPENT[kind])
    if kind == CRASH or delay == 0:
        return Fate(PENDING)
    return Fate(SCHEDULED, due=now + delay)


def _spent(row: Row, kind: str) -> bool:
    counts = Counts() if row.story is None else row.story.counts
    budgets = {
        "error": (counts.errors, row.record.max_retries),
        "timeout": (counts.timeouts, row.record.max_timeouts),
        CRASH: (counts.crashes, row.record.max_crashes),
    }
    spent, budget = budgets[kind]
    return spent >= max(1, budget)


def step_of(kind: str, state: int) -> int:
    """A number for the kind of a finish and the resulting state, to recognize a repetition of the finish."""
    return KINDS.index(kind) * len(STATES) + state


def settled_before(row: Row, finish: Finish) -> str | None:
    """The state after the same finish was applied earlier; None if it was not."""
    if row.settled != finish.epoch or row.settled == 0:
        return None
    kind, state = divmod(row.step, len(STATES))
    return STATES[state] if KINDS[kind] == finish.kind else None
