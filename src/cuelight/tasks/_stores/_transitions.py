"""The rules for the virtual finishes of attempts: the new state of the task. Independent of the store."""

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
    AttemptHistory,
    Row,
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


class Transition(NamedTuple):
    """The new state of a task, the end of its delay (0 for none), and the reason if it becomes a dead letter."""

    state: int
    due: float = 0.0
    reason: str = ""


def count(attempts: AttemptHistory | None, kind: str, attempt: Attempt | None) -> AttemptHistory | None:
    """The attempts after one more attempt that did not succeed."""
    if attempt is None and kind not in _COUNTED:
        return attempts
    attempts = AttemptHistory() if attempts is None else msgspec.structs.replace(attempts)
    if kind in _COUNTED:
        counts = msgspec.structs.replace(attempts.counts)
        setattr(counts, _COUNTED[kind], getattr(counts, _COUNTED[kind]) + 1)
        attempts.counts = counts
    if attempt is not None:
        attempts.history = (*attempts.history, attempt)[-HISTORY:]
    return attempts


def transition_of(row: Row, kind: str, delay: float, now: float) -> Transition:
    """The transition of a task whose attempt ended in this way. The attempt must have been counted already."""
    if kind == "done":
        return Transition(COMPLETED)
    if row.cancelling or kind == "cancelled":
        return Transition(CANCELLED)
    if kind in _GIVEN_UP:
        return Transition(DEAD_LETTER, reason=kind)
    if kind == "unknown":
        return Transition(PARKED)
    if kind not in _RETRIED_ALWAYS and _spent(row, kind):
        return Transition(DEAD_LETTER, reason=_SPENT[kind])
    if kind == CRASH or delay == 0:
        return Transition(PENDING)
    return Transition(SCHEDULED, due=now + delay)


def _spent(row: Row, kind: str) -> bool:
    counts = Counts() if row.attempts is None else row.attempts.counts
    budgets = {
        "error": (counts.errors, row.record.max_retries),
        "timeout": (counts.timeouts, row.record.max_timeouts),
        CRASH: (counts.crashes, row.record.max_crashes),
    }
    spent, budget = budgets[kind]
    return spent >= max(1, budget)


def encode_finish(kind: str, state: int) -> int:
    """A number for the kind of a finish and the resulting state, to recognize a repetition of the finish."""
    return KINDS.index(kind) * len(STATES) + state


def repeated_finish(row: Row, finish: Finish) -> str | None:
    """The state after the same finish was applied earlier; None if it was not."""
    if row.last_finished_epoch != finish.epoch or row.last_finished_epoch == 0:
        return None
    kind, state = divmod(row.last_finish, len(STATES))
    return STATES[state] if KINDS[kind] == finish.kind else None
