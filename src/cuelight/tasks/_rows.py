"""What a store keeps of a task, of a limit, and of the tasks that wait behind the same limits."""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

from cuelight.tasks._store import Record, Snapshot
from cuelight.tasks._task import Attempt, Counts, Limit

__all__ = [
    "CANCELLED",
    "COMPLETED",
    "DEAD_LETTER",
    "HISTORY",
    "IN_FLIGHT",
    "PARKED",
    "PENDING",
    "SCHEDULED",
    "STATES",
    "Damage",
    "Gate",
    "Lane",
    "Order",
    "Row",
    "Story",
    "order_of",
    "snapshot",
]

# Waiting states come before IN_FLIGHT, final ones after it.
PENDING: Final = 0
SCHEDULED: Final = 1
PARKED: Final = 2
IN_FLIGHT: Final = 3
COMPLETED: Final = 4
CANCELLED: Final = 5
DEAD_LETTER: Final = 6
STATES: Final = ("pending", "scheduled", "parked", "in_flight", "completed", "cancelled", "dead_letter")

HISTORY: Final = 20
"""Attempts that are remembered; older ones are forgotten."""

Order = tuple[int, float, float, int]
"""(priority, deadline, turn, sequence): tasks are claimed in this order."""


class Story(msgspec.Struct, array_like=True):
    """What attempts have left behind; most tasks have none."""

    counts: Counts = msgspec.field(default_factory=Counts)
    history: tuple[Attempt, ...] = ()
    checkpoint: bytes | None = None
    progress: bytes | None = None


class Damage(msgspec.Struct, frozen=True):
    """What of a task cannot be read, where a row may be damaged.

    Attributes:
        part: "record", "story" or "row".
        why: a sentence without the name of the task.
        raw: what is there.
        renamed: its id was no text, so that it has another one now.
        unplaced: its state is none, so that it is counted nowhere.
    """

    part: str
    why: str
    raw: bytes = b""
    renamed: bool = False
    unplaced: bool = False


class Row(msgspec.Struct, eq=False):
    """A task in a store.

    Attributes:
        lane: in which lane it is pending; 0 or less for tasks without limits, and for tasks that are not pending.
        due: when its delay, its lease or its time to live ends; None in the other states.
        settled: the epoch of the last attempt that was settled by a finish.
        step: what that finish was and what became of it, see `Settled`.
        story: None for a task to which nothing has happened.
        turn: when it is its turn among tasks of its priority and deadline, see `_turns.py`.
        damage: what of it cannot be read; the rest is as far as it can be, with defaults.
    """

    seq: int
    record: Record
    state: int = PENDING
    lane: int = 0
    due: float | None = None
    epoch: int = 0
    worker: str = ""
    settled: int = 0
    step: int = 0
    ended: float = 0.0
    reason: str = ""
    cancelling: bool = False
    story: Story | None = None
    result: bytes | None = None
    turn: float = 0.0
    damage: Damage | None = None


class Lane(msgspec.Struct, eq=False):
    """The pending tasks with the same set of limits, in their order. Tasks without limits are in no lane.

    Attributes:
        keys: of the limits, sorted.
        waits_on: the limit that did not admit its first task; "" while it may be asked for work.
        head: the order of its first task; None only before the first has come.
    """

    id: int
    keys: tuple[str, ...]
    waits_on: str = ""
    head: Order | None = None


class Gate(msgspec.Struct, eq=False):
    """A limit in use.

    Attributes:
        running: tasks in flight with this key.
        tat: the theoretical arrival time of GCRA: when what was started so far has been paid off.
        closed: no task is started before that time.
        override: replaces the limits of the tasks.
        waiting: a lane may wait here.
        due: when to look again: its first lane may go then, or, if none waits, it can be forgotten.
    """

    key: str
    running: int = 0
    tat: float = 0.0
    closed: float = 0.0
    override: Limit | None = None
    waiting: bool = False
    due: float | None = None


def order_of(row: Row) -> Order:
    """Its place in the order of claims."""
    return (row.record.priority, row.record.deadline, row.turn, row.seq)


def snapshot(row: Row) -> Snapshot:
    """What others may see of it; it shares nothing that can be changed."""
    story = row.story or Story()
    return Snapshot(
        record=msgspec.structs.replace(row.record),
        state=STATES[row.state],
        sequence=row.seq,
        epoch=row.epoch,
        worker=row.worker,
        due=0.0 if row.due is None or row.due == inf else row.due,
        reason=row.reason,
        ended=row.ended,
        cancelling=bool(row.cancelling),
        counts=msgspec.structs.replace(story.counts),
        history=story.history,
        checkpoint=story.checkpoint,
        progress=story.progress,
        result=row.result,
    )
