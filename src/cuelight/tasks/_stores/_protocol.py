"""The interface of stores: the stored data and the operations.

A store keeps the tasks of one queue. Each method is one atomic step: it takes effect completely or not at all, and
returns its actual outcome. All times are seconds since the epoch, by the clock of the store.

Invariants, tested in `tests/tasks/stores/test_store_model.py` for every store:

1. A task is in exactly one state: pending, scheduled, in_flight, parked, completed, cancelled or dead_letter. A pending
   task may wait for one of its limits; its state is still pending.
2. A task that was added is never lost. It leaves the store only when it was completed or cancelled and its time to live
   is over, or when its dead letter is purged. After its time to live, no step returns it.
3. Each claim of a task increments its epoch. A step with another epoch than the task's, or for a task that is not in
   flight, is rejected and changes nothing. A repetition of a step with the same epoch is accepted and changes nothing,
   because an answer may be lost.
4. At most one lease of a task is valid at a time. When its time is over, the task has crashed once. The lease only ends
   when a claim notices that: until then, its holder may still renew it or finish, because no other worker can have the
   task.
5. Among tasks that may run, the claim order is (priority, deadline, turn, sequence). A task keeps its turn and its
   sequence when it is tried again. A task may not run while a more urgent one waits for the same limit. Turns are those
   of `_fair_queue.py`: tenants share by weight, and without tenants all turns are equal.
6. A limit is never exceeded: at most `max_concurrent` tasks with its key are in flight, and the tasks started in any
   period of t seconds cost at most `burst + t * rate / per`. A task with several limits uses all of them or none. An
   override applies to tasks that start after it. A task that costs more than the new burst starts when all earlier
   costs are paid off.
7. A task whose deadline has passed is not claimed: it becomes a dead letter with the reason "expired".
8. Unreadable data only affects the object to which it belongs. A partly unreadable task becomes a dead letter with the
   reason "undecodable", with the readable parts; the unreadable part is its payload or its result. For an unreadable
   limit, the values that can be determined are determined again. An unreadable schedule has the spec "undecodable" and
   is never due.
9. A task becomes a dead letter when its errors reach `max(1, max_retries)`, its timeouts `max(1, max_timeouts)`, or its
   crashes `max(1, max_crashes)` ("quarantined").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight.tasks._task import Limit, Record


class Bound(msgspec.Struct, frozen=True):
    """The maximum number of pending, scheduled and parked tasks of a queue.

    Attributes:
        most: the maximum.
        shed: whether a more urgent task replaces the last one in the order of claims, which becomes a dead letter with
            the reason "shed". If the new task would be the last one, its outcome is "full".
    """

    most: int
    shed: bool = False


class Added(msgspec.Struct, frozen=True):
    """The outcome for one record.

    Attributes:
        outcome: "added", "duplicate" (the id or the unique key is already used) or "full".
        id: the id of the stored task: the record's own, or that of the holder of the unique key.
    """

    outcome: str
    id: str


class Claim(msgspec.Struct, frozen=True):
    """A request for tasks.

    Attributes:
        worker: the name of the worker, unique among all workers.
        nonce: made by the worker for this claim. A repeated nonce means that the answer was lost: the store returns the
            same leases again, as far as they are still valid, and renews them. The store remembers the nonce for the
            length of a lease, if the claim returned leases.
        most: the maximum number of tasks; 0 only applies the effects of time and returns `wake_at`.
        lease: the length of the leases, in seconds.
        on_hand_over: if the claim returns no task, a store may call this later with one, in
            the loop of the claim, before the next claim of the worker is answered. Such a lease is short. The next
            claim confirms it, and is made at once.
        confirmed: the leases of the worker that were handed over and have not ended, (id, epoch). They are renewed.
            A lease that was handed over and is not confirmed is returned by the next claim if it is still valid.
            Otherwise the task becomes pending again when the lease is over, which counts as no crash.
    """

    worker: str
    nonce: str
    most: int
    lease: float
    on_hand_over: Callable[[Lease], object] | None = None
    confirmed: tuple[tuple[str, int], ...] = ()


class Lease(msgspec.Struct):
    """A claimed task.

    Attributes:
        record: the task.
        epoch: the fencing token, which is part of every step for this attempt.
        expires: the end of the lease, in seconds since the epoch by the clock of the store.
        counts: the failed attempts before this one.
        checkpoint: the checkpoint of an earlier attempt; None if there is none.
    """

    record: Record
    epoch: int
    expires: float
    counts: Counts
    checkpoint: bytes | None = None


class Finish(msgspec.Struct, frozen=True):
    """The end of an attempt.

    If a task is being cancelled, it is not tried again, however its attempt ends: it becomes cancelled, or "done"
    completes it.

    Attributes:
        id: the task.
        epoch: the epoch of the lease.
        kind: "done" completes the task. "error" and "timeout" are counted; the task is tried again after `delay`, or
            becomes a dead letter if the budget is used up. "crash" (its process died) is the same, without a delay.
            "rate_limited" and "released" are counted, and the task is always tried again after `delay`. "rejected"
            makes it a dead letter at once, and so does "undecodable", for an unreadable payload. "cancelled" cancels
            it. "unknown" parks it.
        result: the result for "done".
        delay: seconds before the task is tried again.
        attempt: the entry for the history, which contains the last 20; None for "done" and "unknown". If it is missing,
            the store creates one from the kind, the worker and the time.
        pause_key: for "rate_limited": the limit that is closed for `delay` seconds for all tasks.
    """

    id: str
    epoch: int
    kind: str = "done"
    result: bytes | None = None
    delay: float = 0.0
    attempt: Attempt | None = None
    pause_key: str | None = None


class Exchange(msgspec.Struct):
    """The answer to an exchange.

    Attributes:
        accepted: the new state of the task for each finish ("completed", "scheduled", "pending", "dead_letter",
            "cancelled", "parked"), or "" if the finish was rejected as outdated. A repeated finish gets the same
            answer, until the next attempt is settled or the task is deleted.
        leases: the claimed tasks, in the order of claims.
        wake_at: when a task may become claimable, or a deadline passes, without a call (because of a delay, a lease or
            a rate), in seconds since the epoch; `math.inf` for never, and if there was no claim. A time that is not
            after now means that this claim left work for the next one; claimable tasks beyond `most` do not count.
        waits: whether the store may hand over a task to the worker, until the worker makes its next claim.
    """

    accepted: list[str]
    leases: list[Lease]
    wake_at: float = inf
    waits: bool = False


class Beat(msgspec.Struct):
    """The answer to a heartbeat.

    Attributes:
        lost: leases that this worker does not have any more: (id, epoch).
        cancelled: leases of this worker whose tasks are being cancelled: (id, epoch).
    """

    lost: list[tuple[str, int]]
    cancelled: list[tuple[str, int]]


class Schedule(msgspec.Struct, kw_only=True):
    """Periodic work.

    Attributes:
        name: unique in the queue.
        spec: a period or a cron line; opaque to the store.
        due: the next due time, in seconds since the epoch.
        record: the task to add. Its id gets "@" and the due time appended, and its `created` is the time of firing. The
            id is the name, followed by a mark if the clock was set back.
    """

    name: str
    spec: str
    due: float
    record: Record


class Snapshot(msgspec.Struct, kw_only=True):
    """A task in its current state.

    Attributes:
        state: see the invariants of this module.
        sequence: the order of arrival.
        worker: the worker that has the task, or had it last.
        due: the end of its delay or its lease, or the time at which its result is deleted, in seconds since the epoch.
        reason: the reason for a dead letter: "errors", "timeouts", "quarantined", "expired", "rejected", "shed" or
            "undecodable".
        ended: when it was completed, was cancelled or became a dead letter, in seconds since the epoch; 0 before that.
        cancelling: whether its cancellation was requested.
    """

    record: Record
    state: str
    sequence: int
    epoch: int
    worker: str = ""
    due: float = 0.0
    reason: str = ""
    ended: float = 0.0
    cancelling: bool = False
    counts: Counts
    history: tuple[Attempt, ...] = ()
    checkpoint: bytes | None = None
    progress: bytes | None = None
    result: bytes | None = None


class Size(msgspec.Struct):
    """The number of tasks in each state, and whether the queue is paused or closed to new tasks."""

    pending: int = 0
    scheduled: int = 0
    in_flight: int = 0
    parked: int = 0
    completed: int = 0
    cancelled: int = 0
    dead_letter: int = 0
    paused: bool = False
    closed: bool = False


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on tasks, all of which must be true. Results are sorted by sequence.

    Attributes:
        state: the state.
        type: the task type.
        reason: the reason, for dead letters.
        ended_before: an upper bound of the end time, which is excluded, in seconds since the epoch.
        after: a lower bound of the sequence, which is excluded: the cursor.
        limit: the maximum number of tasks.
    """

    state: str | None = None
    type: str | None = None
    reason: str | None = None
    ended_before: float | None = None
    after: int = 0
    limit: int = 100


class Store(Protocol):
    """A store of the tasks of one queue.

    After `open` has returned, all methods may be called from any event loop in any thread. They raise
    `StoreUnavailable` if the outcome is unknown (the same call may then be repeated, because of the nonces) and
    `PoolClosed` after `close`.

    A caller may limit the time for a step, see `_step_timeout.py`. A store that waits for something outside this
    process raises `StoreUnavailable` when that time is over.
    """

    durable: bool
    """Whether acknowledged operations survive `kill -9` of every process."""
    overlap: int
    """The number of exchanges that a worker may run at once: 2 if each is a round trip, 1 if they would only queue."""

    def now(self) -> float:
        """Return the time by the clock of the store, in seconds since the epoch."""
        ...

    async def open(self) -> None:
        """Create or open the stored data. May be called repeatedly."""
        ...

    async def close(self) -> None:
        """Complete pending writes and release all resources. May be called repeatedly."""
        ...

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        """Add records and return one outcome for each. A closed queue raises `PoolClosed`, and nothing is added.

        Raises:
            ValueError: a record has no id, two limits with the same key, or NaN as a time; nothing is added.
        """
        ...

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        """Settle attempts and claim more tasks, in one step.

        A claim first applies the effects of time: due scheduled tasks become pending, expired leases count as crashes,
        tasks whose deadline has passed become dead letters, and old results are deleted; at most some hundreds of each.
        The finishes of the same exchange are applied before that. A paused queue returns no leases.

        Raises:
            ValueError: the kind or the delay of a finish, or the length of the lease, is invalid; nothing is done.
        """
        ...

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        """Renew leases for `lease` seconds from now, or only check them if it is None.

        Blocks; meant for a thread other than that of the event loop.
        """
        ...

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        """Store the progress or the checkpoint of a running attempt. Return False if its lease is lost."""
        ...

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel tasks.

        Returns:
            For each task: "cancelled", "cancelling" (in flight: its worker will learn of it with its next beat),
            "finished" (completed, or a dead letter) or "unknown".
        """
        ...

    async def unpark(self, types: Sequence[str]) -> int:
        """Make parked tasks of these types pending. Return their number."""
        ...

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        """Pause or resume claims; close the queue to new tasks or open it."""
        ...

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        """Override a limit, except for the cost, for all tasks with this key; None removes the override."""
        ...

    async def pause_limit(self, key: str, seconds: float) -> None:
        """Start no task with this limit for `seconds`. A longer pause is not shortened; 0 ends it."""
        ...

    async def put_schedule(self, schedule: Schedule) -> None:
        """Add or replace the schedule with this name. If the `spec` is the same, the stored due time is kept."""
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Remove a schedule. Return whether it existed."""
        ...

    async def schedules(self) -> list[Schedule]:
        """Return all schedules, sorted by due time."""
        ...

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        """Add the task of a schedule that is still due at `due`, and set its next due time. True for one caller only.

        The task is added without regard to a bound, unless its unique key is already used. A closed queue raises
        `PoolClosed`, and the schedule does not change.
        """
        ...

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        """Return the current state of tasks; None for tasks that do not exist."""
        ...

    async def size(self) -> Size:
        """Return the number of tasks in each state."""
        ...

    async def find(self, query: Query) -> list[Snapshot]:
        """Return the tasks that match a query."""
        ...

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        """Make dead letters pending again, with reset budgets. False for tasks that are not dead letters.

        The sequence, the history and the checkpoint are kept. A deadline that has passed is removed. The task takes its
        unique key again if it is free.
        """
        ...

    async def edit(self, task_id: str, payload: bytes) -> bool:
        """Change the payload of a dead letter or of a task that was never claimed. False for other tasks."""
        ...

    async def purge(self, ids: Sequence[str]) -> int:
        """Delete dead letters, completed and cancelled tasks permanently. Return their number."""
        ...

    def version(self) -> int:
        """Return a number that changes when anything may have changed."""
        ...

    async def changed(self, since: int, timeout: float) -> None:
        """Wait until `version()` may differ from `since`, for at most `timeout` seconds. A checkpoint.

        Changes by other processes count, too, but may be noticed some milliseconds later. A claim that finds nothing is
        not a change. `close` wakes all waiters.
        """
        ...
