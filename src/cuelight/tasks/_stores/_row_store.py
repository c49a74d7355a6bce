"""The interface between the rules of a store and the place where its rows are: memory, or SQL tables.

A row store is used by one thread at a time, within one atomic step. Its results are current, and include changes that
were saved earlier in the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cuelight.tasks._stores._fair_queue import FairQueue
from cuelight.tasks._stores._protocol import Query, Schedule
from cuelight.tasks._stores._rows import LimitQueue, LimitState, Row
from cuelight.tasks._task import Record


class RowStore(Protocol):
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
    def fair_queue(self) -> FairQueue:
        """The turns of tenants."""
        ...

    # Tasks

    def new(self, record: Record) -> Row:
        """Return a row with the next sequence. It is in the row store once it is inserted."""
        ...

    def insert(self, row: Row) -> None:
        """Add a new row to the row store."""
        ...

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        """Return tasks by their ids. Payloads and results are only included on request."""
        ...

    def save(self, row: Row) -> None:
        """Write everything except for the record and the attempts."""
        ...

    def save_attempts(self, row: Row) -> None: ...

    def save_record(self, row: Row) -> None:
        """Write the record, which must include its payload."""
        ...

    def save_corrupt(self, row: Row) -> None:
        """Write the remaining changes of a damaged task that has become a dead letter and was saved."""
        ...

    def delete(self, row: Row) -> None: ...

    def iter_ready(self, hint: int) -> Iterator[Row]:
        """Iterate over pending tasks without limits, in the order of claims, with payloads.

        Before the next row is requested, the last one must have been saved in another state. The caller will use about
        `hint` rows.
        """
        ...

    def first_ready(self, limit_queue: LimitQueue) -> Row | None:
        """Return the first task in a limit queue, with its payload."""
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

    def count_expired(self, now: float) -> tuple[int, int]:
        """Return the numbers of stored completed and cancelled tasks whose time ended before now."""
        ...

    def next_due(self) -> float:
        """Return the next time of an event: the end of a delay or a lease, a deadline, or the opening of a limit."""
        ...

    # Limits

    def limit_queue(self, limit_queue: int) -> LimitQueue | None:
        """Return a limit queue; None if it does not exist. No step leaves a reference to a missing one behind."""
        ...

    def limit_queue_of(self, keys: tuple[str, ...]) -> LimitQueue:
        """Return the limit queue for a set of limits. Create it if it does not exist."""
        ...

    def save_limit_queue(self, limit_queue: LimitQueue) -> None:
        """Write a limit queue, whose head must not be None."""
        ...

    def drop_limit_queue(self, limit_queue: LimitQueue) -> None: ...

    def first_limit_queue(self, waits_on: str) -> LimitQueue | None:
        """Return the first of the limit queues that wait on this limit; "" means those that wait on none."""
        ...

    def limit_state(self, key: str) -> LimitState:
        """Return a limit. Create it if it does not exist."""
        ...

    def running(self) -> dict[str, int]:
        """Return the number of tasks in flight per key of a limit, recounted if the stored numbers may be wrong."""
        ...

    def save_limit_state(self, limit_state: LimitState) -> None: ...

    def drop_limit_state(self, limit_state: LimitState) -> None: ...

    def limit_states_due(self, now: float, most: int) -> list[LimitState]:
        """Return limits whose `due` is not after now."""
        ...

    # Unique keys, claims, schedules

    def unique_holder(self, key: str, now: float) -> str | None:
        """Return the task that holds a unique key now."""
        ...

    def hold_unique(self, key: str, task_id: str, until: float) -> None:
        """Let a task hold a unique key until a time; `math.inf` means until `release_unique`."""
        ...

    def release_unique(self, key: str, task_id: str) -> None:
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
