"""The interface between the rules of a store and the place where its rows are: memory, or SQL tables.

A book is used by one thread at a time, within one atomic step. Its results are current, and include changes that were
saved earlier in the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cuelight.tasks._stores._fair_queue import Turns
from cuelight.tasks._stores._protocol import Query, Schedule
from cuelight.tasks._stores._rows import Gate, Lane, Row
from cuelight.tasks._task import Record


class Book(Protocol):
    """The rows of one queue.

    Attributes:
        sizes: the number of tasks in each state. Code that changes the state of a row must update it.
        paused: whether no task may be claimed.
        closed: whether no task may be added.
        changed: whether anything was written in this step. The code that begins a step resets it.
    """

    sizes: list[int]
    paused: bool
    closed: bool
    changed: bool

    @property
    def turns(self) -> Turns:
        """The turns of tenants."""
        ...

    # Tasks

    def new(self, record: Record) -> Row:
        """Return a row with the next sequence. It is in the book once it is inserted."""
        ...

    def insert(self, row: Row) -> None:
        """Add a new row to the book."""
        ...

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        """Return tasks by their ids. Payloads and results are only included on request."""
        ...

    def save(self, row: Row) -> None:
        """Write everything except for the record and the story."""
        ...

    def save_story(self, row: Row) -> None: ...

    def save_record(self, row: Row) -> None:
        """Write the record, which must include its payload."""
        ...

    def condemned(self, row: Row) -> None:
        """Write the remaining changes of a damaged task that has become a dead letter and was saved."""
        ...

    def delete(self, row: Row) -> None: ...

    def heads(self, hint: int) -> Iterator[Row]:
        """Iterate over pending tasks without limits, in the order of claims, with payloads.

        Before the next row is requested, the last one must have been saved in another state. The caller will use about
        `hint` rows.
        """
        ...

    def head(self, lane: Lane) -> Row | None:
        """Return the first task in a lane, with its payload."""
        ...

    def due(self, state: int, now: float, most: int) -> list[Row]:
        """Return tasks in a state whose `due` is not after now, the earliest first."""
        ...

    def expired(self, now: float, most: int) -> list[Row]:
        """Return waiting tasks whose deadline is not after now."""
        ...

    def last(self) -> Row | None:
        """Return the waiting task that is the last in the order of claims."""
        ...

    def parked(self, types: Sequence[str]) -> list[Row]:
        """Return parked tasks of these types, by sequence."""
        ...

    def find(self, query: Query, now: float) -> list[Row]:
        """Return tasks that match a query, with payloads, by sequence, without results whose time ended before now."""
        ...

    def over(self, now: float) -> tuple[int, int]:
        """Return the numbers of stored completed and cancelled tasks whose time ended before now."""
        ...

    def next_due(self) -> float:
        """Return the next time of an event: the end of a delay or a lease, a deadline, or the opening of a limit."""
        ...

    # Limits

    def lane(self, lane: int) -> Lane | None:
        """Return a lane; None if it does not exist. No step leaves a reference to a missing lane behind."""
        ...

    def lane_of(self, keys: tuple[str, ...]) -> Lane:
        """Return the lane for a set of limits. Create it if it does not exist."""
        ...

    def save_lane(self, lane: Lane) -> None:
        """Write a lane, whose head must not be None."""
        ...

    def drop_lane(self, lane: Lane) -> None: ...

    def first_lane(self, waits_on: str) -> Lane | None:
        """Return the lane with the first head among those that wait on this limit; "" means lanes that wait on none."""
        ...

    def gate(self, key: str) -> Gate:
        """Return a limit. Create it if it does not exist."""
        ...

    def running(self) -> dict[str, int]:
        """Return the number of tasks in flight per key of a limit, recounted if the stored numbers may be wrong."""
        ...

    def save_gate(self, gate: Gate) -> None: ...

    def drop_gate(self, gate: Gate) -> None: ...

    def gates_due(self, now: float, most: int) -> list[Gate]:
        """Return limits whose `due` is not after now."""
        ...

    # Unique keys, claims, schedules

    def holder(self, key: str, now: float) -> str | None:
        """Return the task that holds a unique key now."""
        ...

    def hold(self, key: str, task_id: str, until: float) -> None:
        """Let a task hold a unique key until a time; `math.inf` means until `let_go`."""
        ...

    def let_go(self, key: str, task_id: str) -> None:
        """Free a unique key if this task holds it without an end."""
        ...

    def claimed(self, nonce: str) -> list[tuple[Row, int]] | None:
        """Return the answer to an earlier claim with this nonce, as rows with payloads and old epochs, or None."""
        ...

    def remember(self, nonce: str, rows: Sequence[Row], until: float) -> None:
        """Store the answer to a claim: these rows and their epochs."""
        ...

    def forget(self, now: float, most: int) -> None:
        """Delete completed and cancelled tasks, unique keys and answers whose time ended before now."""
        ...

    def schedules(self) -> list[Schedule]:
        """Return all schedules, sorted by due time."""
        ...

    def schedule(self, name: str) -> Schedule | None: ...

    def save_schedule(self, schedule: Schedule) -> None: ...

    def drop_schedule(self, name: str) -> None: ...

    def save_queue(self) -> None:
        """Write `paused` and `closed`. `sizes` is written at the end of each step."""
        ...
