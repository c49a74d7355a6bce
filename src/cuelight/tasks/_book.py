"""The seam between the rules of a store and where it keeps its rows: memory, or tables.

A book is used by one thread at a time, within one atomic step. What it returns is as of now, with all that was saved
in the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cuelight.tasks._rows import Gate, Lane, Row
from cuelight.tasks._store import Query, Record, Schedule
from cuelight.tasks._turns import Turns

__all__ = ["Book"]


class Book(Protocol):
    """The rows of one queue.

    Attributes:
        sizes: how many tasks are in each state; whoever changes the state of a row counts it here.
        paused: no task is claimed.
        closed: no task is added.
        changed: something was written in this step; whoever begins a step clears it.
    """

    sizes: list[int]
    paused: bool
    closed: bool
    changed: bool

    @property
    def turns(self) -> Turns:
        """Of tenants."""
        ...

    # Tasks

    def new(self, record: Record) -> Row:
        """A row with the next sequence; it is in the book once it is saved."""
        ...

    def insert(self, row: Row) -> None:
        """Put a new row into the book."""
        ...

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        """Tasks by their ids. Payloads, and results, are there only if asked for."""
        ...

    def save(self, row: Row) -> None:
        """Write everything but the record and the story."""
        ...

    def save_story(self, row: Row) -> None:
        """Write the story."""
        ...

    def save_record(self, row: Row) -> None:
        """Write the record, which must have its payload."""
        ...

    def condemned(self, row: Row) -> None:
        """A damaged task has become a dead letter, and was saved: write what else has changed of it."""
        ...

    def delete(self, row: Row) -> None:
        """Forget a task."""
        ...

    def heads(self, hint: int) -> Iterator[Row]:
        """Pending tasks without limits, in their order, with payloads. Before the next is asked for, the last must
        have been saved in another state. About `hint` will be asked for.
        """
        ...

    def head(self, lane: Lane) -> Row | None:
        """The first task in a lane, with its payload."""
        ...

    def due(self, state: int, now: float, most: int) -> list[Row]:
        """Tasks in a state whose `due` is not after now, the earliest first."""
        ...

    def expired(self, now: float, most: int) -> list[Row]:
        """Waiting tasks whose deadline is not after now."""
        ...

    def last(self) -> Row | None:
        """The waiting task that is the last in the order of claims."""
        ...

    def parked(self, types: Sequence[str]) -> list[Row]:
        """Parked tasks of these types, by sequence."""
        ...

    def find(self, query: Query, now: float) -> list[Row]:
        """Tasks that fulfil a query, with payloads, by sequence; without results whose time ended before now."""
        ...

    def over(self, now: float) -> tuple[int, int]:
        """How many completed and how many cancelled tasks are there still though their time ended before now."""
        ...

    def next_due(self) -> float:
        """When time next brings something: the end of a delay or a lease, a deadline, a limit that opens."""
        ...

    # Limits

    def lane(self, lane: int) -> Lane | None:
        """A lane; None if it is not there, which no step leaves behind."""
        ...

    def lane_of(self, keys: tuple[str, ...]) -> Lane:
        """The lane for a set of limits; made if it is not there."""
        ...

    def save_lane(self, lane: Lane) -> None:
        """Write it; its head is not None."""
        ...

    def drop_lane(self, lane: Lane) -> None:
        """Forget it."""
        ...

    def first_lane(self, waits_on: str) -> Lane | None:
        """Of the lanes that wait on a limit ("": on none) the one with the first head."""
        ...

    def gate(self, key: str) -> Gate:
        """A limit; a new one if it is not there."""
        ...

    def running(self) -> dict[str, int]:
        """How many tasks are in flight, by the keys of their limits: counted anew, where that may be wrong."""
        ...

    def save_gate(self, gate: Gate) -> None:
        """Write it."""
        ...

    def drop_gate(self, gate: Gate) -> None:
        """Forget it."""
        ...

    def gates_due(self, now: float, most: int) -> list[Gate]:
        """Limits whose `due` is not after now."""
        ...

    # Unique keys, claims, schedules

    def holder(self, key: str, now: float) -> str | None:
        """The task that holds a unique key now."""
        ...

    def hold(self, key: str, task_id: str, until: float) -> None:
        """Let a task hold a unique key; `math.inf`: until it lets go."""
        ...

    def let_go(self, key: str, task_id: str) -> None:
        """Free a unique key, if this task holds it without an end."""
        ...

    def claimed(self, nonce: str) -> list[tuple[Row, int]] | None:
        """What a claim with this nonce was answered, with payloads and the epochs of then; None if there was none."""
        ...

    def remember(self, nonce: str, rows: Sequence[Row], until: float) -> None:
        """Keep the answer to a claim: these rows, and their epochs."""
        ...

    def forget(self, now: float, most: int) -> None:
        """Drop completed and cancelled tasks, unique keys and answers whose time ended before now."""
        ...

    def schedules(self) -> list[Schedule]:
        """All periodic work, by due time."""
        ...

    def schedule(self, name: str) -> Schedule | None:
        """One of them."""
        ...

    def save_schedule(self, schedule: Schedule) -> None:
        """Write it."""
        ...

    def drop_schedule(self, name: str) -> None:
        """Forget it."""
        ...

    def save_queue(self) -> None:
        """Write `paused` and `closed`; `sizes` are written at the end of the step anyway."""
        ...
