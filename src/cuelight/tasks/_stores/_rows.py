"""The rows of a store: tasks, limits, and limit queues of tasks that wait for the same limits."""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight.tasks._stores._protocol import Snapshot
from cuelight.tasks._task import Limit, Record

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
"""The maximum number of attempts in a history; older ones are dropped."""

Order = tuple[int, float, float, int]
"""(priority, deadline, turn, sequence): tasks are claimed in this order."""


class AttemptHistory(msgspec.Struct, array_like=True):
    """The results of previous attempts. Most tasks have no attempts."""

    counts: Counts = msgspec.field(default_factory=Counts)
    history: tuple[Attempt, ...] = ()
    checkpoint: bytes | None = None
    progress: bytes | None = None


class Damage(msgspec.Struct, frozen=True):
    """The unreadable part of a task, in a store in which rows may be damaged.

    Attributes:
        part: "record", "attempts" or "row".
        why: a sentence without the name of the task.
        raw: the unreadable bytes.
        renamed: whether its id was not valid text, so that it got another one.
        unplaced: whether its state is invalid, so that it is counted in no state.
    """

    part: str
    why: str
    raw: bytes = b""
    renamed: bool = False
    unplaced: bool = False


class Row(msgspec.Struct, eq=False):
    """A task in a store.

    Attributes:
        limit_queue: the queue of its limits, while it is pending; 0 or less for all other tasks.
        due: the end of its delay, its lease or its time to live; None in the other states.
        last_finished_epoch: the epoch of the last attempt that was settled by a finish.
        last_finish: the kind of that finish and the resulting state; see `encode_finish`.
        attempts: None for a task without previous attempts.
        turn: its turn among tasks of equal priority and deadline; see `_fair_queue.py`.
        damage: the unreadable part. The other fields have the readable values, or defaults.
    """

    seq: int
    record: Record
    state: int = PENDING
    limit_queue: int = 0
    due: float | None = None
    epoch: int = 0
    worker: str = ""
    last_finished_epoch: int = 0
    last_finish: int = 0
    ended: float = 0.0
    reason: str = ""
    cancelling: bool = False
    attempts: AttemptHistory | None = None
    result: bytes | None = None
    turn: float = 0.0
    damage: Damage | None = None


class LimitQueue(msgspec.Struct, eq=False):
    """The pending tasks with the same set of limits, in their order. Tasks without limits are in no limit queue.

    Attributes:
        keys: the keys of the limits, sorted.
        waits_on: the limit that rejected its first task; "" while the limit queue is runnable.
        first_order: the order of its first task; None only before the first task was added.
    """

    id: int
    keys: tuple[str, ...]
    waits_on: str = ""
    first_order: Order | None = None


class LimitState(msgspec.Struct, eq=False):
    """A limit in use.

    Attributes:
        running: the number of tasks in flight with this key.
        tat: the theoretical arrival time of GCRA: when all tasks started so far are paid off.
        closed: no task is started before this time.
        override: replaces the limits of the tasks.
        waiting: whether a limit queue may wait here.
        due: when to check again: its first limit queue may then be runnable, or, if none waits, this can be dropped.
    """

    key: str
    running: int = 0
    tat: float = 0.0
    closed: float = 0.0
    override: Limit | None = None
    waiting: bool = False
    due: float | None = None


def order_of(row: Row) -> Order:
    """The position of a task in the order of claims."""
    return (row.record.priority, row.record.deadline, row.turn, row.seq)


def snapshot(row: Row) -> Snapshot:
    """A snapshot of a row for callers. It shares no mutable data with the row."""
    attempts = row.attempts or AttemptHistory()
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
        counts=msgspec.structs.replace(attempts.counts),
        history=attempts.history,
        checkpoint=attempts.checkpoint,
        progress=attempts.progress,
        result=row.result,
    )
