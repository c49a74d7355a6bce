"""The seam under the task queue: what a store keeps, and the transitions that it makes.

A store keeps the tasks of one queue. Each method is one atomic step: it takes effect wholly or not at all, and what it
returns is what happened. Times are seconds since the epoch, by the clock of the store alone.

The invariants, which `tests/tasks/stores/test_store_model.py` asserts in the same words for every store:

1. A task is in exactly one state: pending, scheduled, in_flight, parked, completed, cancelled or dead_letter.
   A pending task may wait for one of its limits; it is pending all the same.
2. A task that was added is never lost: it leaves the store only when its time to live is over after it was completed
   or cancelled, or when its dead letter is purged. Once its time is over no step sees it any more.
3. Each claim of a task raises its epoch by one. A step that carries another epoch than the task's, or for a task that
   is not in flight, is refused and changes nothing. The same step made again with the same epoch is accepted again
   and changes nothing: an answer may get lost.
4. At most one lease of a task is valid at a time; when it runs out the task has crashed once. It has run out when a
   claim finds it so: until then its holder may still renew it or finish, because nobody else can have the task.
5. Tasks are claimed in the order of (priority, deadline, turn, sequence) among those that may run. A task keeps its
   turn and its sequence when it is tried again. A task may not run while a more urgent one waits for the same limit.
   Turns are those of `_turns.py`: tenants share by weight, and where nobody has a tenant all turns are alike.
6. A limit is never exceeded: tasks in flight with its key are at most `max_concurrent`, and what was started in any
   time of t seconds costs at most `burst + t * rate / per`. A task with several limits takes all or none.
   A limit that is overridden holds for what starts after that; a task that costs more than the new burst starts when
   all before it is paid off.
7. A task whose deadline has come is not claimed: it is dead-lettered as "expired".
8. Whatever cannot be read costs only itself. A task of which a part cannot be read is a dead letter, "undecodable",
   with what is left of it: the part that cannot be read is its payload or its result. Of a limit, what can be found is
   found out again. Periodic work is shown with the spec "undecodable", and is due never.
9. A task is dead-lettered when errors reach `max(1, max_retries)`, timeouts `max(1, max_timeouts)`, or crashes
   `max(1, max_crashes)` ("quarantined").
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol

import msgspec

from cuelight.tasks._record import Record
from cuelight.tasks._task import Attempt, Counts, Limit

__all__ = [
    "Added",
    "Beat",
    "Bound",
    "Claim",
    "Exchange",
    "Finish",
    "Lease",
    "Query",
    "Record",
    "Schedule",
    "Size",
    "Snapshot",
    "Store",
]


class Bound(msgspec.Struct, frozen=True):
    """How much a queue may hold: pending, scheduled and parked tasks.

    Attributes:
        most: the number.
        shed: make room for a more urgent task: the last in the order of claims is dead-lettered as "shed". A task that
            would itself be the last is "full".
    """

    most: int
    shed: bool = False


class Added(msgspec.Struct, frozen=True):
    """What became of one record.

    Attributes:
        outcome: "added", "duplicate" (of its id, or of its unique key) or "full".
        id: the task that is there now: its own, or that which holds the unique key.
    """

    outcome: str
    id: str


class Claim(msgspec.Struct, frozen=True):
    """A wish for work.

    Attributes:
        worker: who asks; unique among all workers.
        nonce: made by the worker for this one claim. A claim with a nonce that was answered before is the same claim
            again (its answer was lost): it returns the same leases, as far as they are valid, and they last from now
            on. That is remembered for the time of a lease, and of claims that were given something.
        most: how many tasks; 0 to do what time has brought and learn `wake_at`.
        lease: seconds for which they are leased.
    """

    worker: str
    nonce: str
    most: int
    lease: float


class Lease(msgspec.Struct):
    """A task that was claimed.

    Attributes:
        record: the task.
        epoch: the fencing token: every step about this attempt carries it.
        expires: until when, in seconds since the epoch by the clock of the store.
        counts: attempts that failed before.
        checkpoint: what an attempt before has saved; None if nothing.
    """

    record: Record
    epoch: int
    expires: float
    counts: Counts
    checkpoint: bytes | None = None


class Finish(msgspec.Struct, frozen=True):
    """How an attempt ended.

    Attributes:
        id: the task.
        epoch: of the lease.
        kind: "done" completes it. "error" and "timeout" count and are tried again after `delay`, or dead-lettered when
            the budget is spent. "crash" (its process died) likewise, at once. "rate_limited" and "released" count and
            are tried again after `delay`, always. "rejected" dead-letters it at once, and so does "undecodable": its
            payload cannot be read. "cancelled" ends it as cancelled. "unknown" parks it.
        result: for "done".
        delay: seconds before it is tried again.
        attempt: for the history, which keeps the last 20; None for "done" and "unknown". The store makes one of the
            kind, the worker and the time where it is missing.
        pause_key: with "rate_limited": the limit that is closed for `delay` seconds for all tasks.

    A task that somebody wants cancelled is not tried again, however its attempt ended: it ends as cancelled, or "done".
    """

    id: str
    epoch: int
    kind: str = "done"
    result: bytes | None = None
    delay: float = 0.0
    attempt: Attempt | None = None
    pause_key: str | None = None


class Exchange(msgspec.Struct):
    """The answer to one exchange.

    Attributes:
        accepted: for each finish what became of its task: its new state ("completed", "scheduled", "pending",
            "dead_letter", "cancelled", "parked"), or "" if it was refused as stale. A finish that is made again is
            answered as before, until the next attempt is settled or the task is forgotten.
        leases: what was claimed, in the order of claims.
        wake_at: when something may be claimable, or a deadline comes, without anybody doing anything (a delay, a lease,
            a rate), in seconds since the epoch; `math.inf` for never, and without a claim. Not after now when the claim
            had to leave work for the next one; tasks that could go now and were not asked for do not count.
    """

    accepted: list[str]
    leases: list[Lease]
    wake_at: float = inf


class Beat(msgspec.Struct):
    """The answer to one heartbeat.

    Attributes:
        lost: leases that are no longer this worker's: (id, epoch).
        cancelled: tasks that somebody wants cancelled, whose leases are still this worker's: (id, epoch).
    """

    lost: list[tuple[str, int]]
    cancelled: list[tuple[str, int]]


class Schedule(msgspec.Struct, kw_only=True):
    """Periodic work.

    Attributes:
        name: unique in the queue.
        spec: opaque to the store: a period or a cron line.
        due: when it fires next, in seconds since the epoch.
        record: the task that it makes; its id gets "@" and the due time appended, its `created` is when it fires. The
            id is the name, with a mark after it when the clock was set back.
    """

    name: str
    spec: str
    due: float
    record: Record


class Snapshot(msgspec.Struct, kw_only=True):
    """A task as it is now.

    Attributes:
        state: see `Invariants` above.
        sequence: its place among its like.
        worker: who has it, or had it last.
        due: when its delay or its lease ends, or when its result is forgotten, in seconds since the epoch.
        reason: why it is a dead letter: "errors", "timeouts", "quarantined", "expired", "rejected", "shed" or
            "undecodable".
        ended: when it was completed, cancelled or dead-lettered, in seconds since the epoch; 0 before that.
        cancelling: somebody wants it cancelled.
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
    """How many tasks are in each state, and whether the queue is paused or closed to new tasks."""

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
    """Which tasks; all conditions must hold. Sorted by sequence.

    Attributes:
        state: one state.
        type: one task type.
        reason: of dead letters.
        ended_before: that ended before, in seconds since the epoch.
        after: whose sequence is greater: the cursor.
        limit: at most so many.
    """

    state: str | None = None
    type: str | None = None
    reason: str | None = None
    ended_before: float | None = None
    after: int = 0
    limit: int = 100


class Store(Protocol):
    """Where the tasks of one queue are kept.

    All methods may be called from any event loop of any thread once `open` has returned. They raise
    `StoreUnavailable` when the outcome is unknown (the same call may be made again, see the nonces) and `PoolClosed`
    after `close`.

    A caller may limit how long a step takes, see `_step_timeout.py`. A store that waits for something outside of this
    process raises `StoreUnavailable` when that time is over.
    """

    durable: bool
    """Whether what was acknowledged survives `kill -9` of every process."""
    overlap: int
    """How many exchanges of a worker may be under way: 2 where each is a round trip, 1 where they only queue up."""

    def now(self) -> float:
        """The clock of the store, in seconds since the epoch."""
        ...

    async def open(self) -> None:
        """Make or open what is kept. May be called again."""
        ...

    async def close(self) -> None:
        """Write what is under way and let go. May be called again."""
        ...

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        """Take records; one outcome for each. A closed queue raises `PoolClosed`, and nothing is added.

        Raises:
            ValueError: a record has no id, two limits with one key, or a time that is no number; nothing is added.
        """
        ...

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        """Settle attempts and claim more work, in one step.

        A claim first does what time has brought: scheduled tasks that are due become pending, leases that ran out are
        crashes, expired tasks are dead-lettered, forgotten results are removed; each at most some hundreds at a time.
        The attempts that are settled in the same exchange come before that. A paused queue gives no leases.

        Raises:
            ValueError: the kind or the delay of a finish, or the length of a lease, is none; nothing is done.
        """
        ...

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        """Renew leases for `lease` seconds from now, or only look (None). Blocks: for a thread beside the loop."""
        ...

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        """Keep the progress or the checkpoint of a running attempt. False if it is stale."""
        ...

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel tasks. For each: "cancelled", "cancelling" (in flight: its worker will learn of it at its next beat),
        "finished" (completed, or a dead letter) or "unknown".
        """
        ...

    async def unpark(self, types: Sequence[str]) -> int:
        """Make parked tasks of these types pending. Returns how many."""
        ...

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        """Pause or resume claims; close or open the queue to new tasks."""
        ...

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        """Override a limit, but for its cost, for all tasks with this key; None goes back to the tasks' own."""
        ...

    async def pause_limit(self, key: str, seconds: float) -> None:
        """Start no task with this limit for so long. A longer pause is not shortened; 0 ends it."""
        ...

    async def put_schedule(self, schedule: Schedule) -> None:
        """Keep periodic work in place of what has its name. With the same `spec` the due time stays as it is there."""
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Forget periodic work."""
        ...

    async def schedules(self) -> list[Schedule]:
        """All periodic work, by due time."""
        ...

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        """Add the task of a schedule that is still due at `due`, and set when next. True for one caller only.

        It is added whatever a bound says, unless its unique key is taken. A closed queue raises `PoolClosed`, and the
        schedule stays as it is.
        """
        ...

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        """Tasks as they are now."""
        ...

    async def size(self) -> Size:
        """How many tasks are in each state."""
        ...

    async def find(self, query: Query) -> list[Snapshot]:
        """Tasks that fulfil a query."""
        ...

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        """Make dead letters pending again, with all budgets anew. False: it is no dead letter.

        The sequence, the history and the checkpoint are kept. A deadline that has come is dropped. Its unique key is
        taken again if it is free.
        """
        ...

    async def edit(self, task_id: str, payload: bytes) -> bool:
        """Change the payload of a dead letter, or of a task that was never claimed. False: it is neither."""
        ...

    async def purge(self, ids: Sequence[str]) -> int:
        """Forget dead letters, completed and cancelled tasks for good. Returns how many."""
        ...

    def version(self) -> int:
        """A number that changes when anything may have."""
        ...

    async def changed(self, since: int, timeout: float) -> None:
        """Wait until `version()` may differ from `since`, at most `timeout` seconds. A checkpoint.

        Changes that other processes made count; they may take some milliseconds to be seen. A claim that finds nothing
        is no change. `close` wakes all who wait.
        """
        ...
