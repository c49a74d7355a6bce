"""Tasks, and the values that they consist of."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Any, Final, NamedTuple, Self

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight._text import safe_repr
from cuelight.coordination import RateLimitConfig
from cuelight.pools import TaskStatus

LIGHTEST: Final = 0.001
HEAVIEST: Final = 1000.0
"""Bounds of tenant weights: a float that sums up a billion turns of `LIGHTEST` still changes by one of `HEAVIEST`."""


class TaskPriority(IntEnum):
    """The urgency of a task. Smaller values are claimed first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4


class Limit(msgspec.Struct, frozen=True):
    """A limit that is enforced when a task is claimed. A task beyond it waits, without using a worker or an attempt.

    All tasks of a queue that have a limit with the same key share it, in all workers and processes.

    Attributes:
        key: the limited resource: "openai", "user:7".
        max_concurrent: the maximum number of running tasks with this key; None for no limit.
        rate: the total cost that may be started per window of `per` seconds; None for no limit.
        per: the length of the window, in seconds.
        burst: the total cost that may be started at once after an idle period; None for `rate`.
        cost: the cost of this task: 1 request, 1500 tokens.
    """

    key: str
    max_concurrent: int | None = None
    rate: float | None = None
    per: float = 1.0
    burst: float | None = None
    cost: float = 1.0

    def __post_init__(self) -> None:
        key: Any = self.key
        if not isinstance(key, str):
            raise TypeError(f"Limit(key={safe_repr(key)}): give a string, such as 'openai' or 'user:7'")
        if not key:
            raise ValueError("Limit(key=''): give the limit a key, such as 'openai' or 'user:7'")
        most_at_once: Any = self.max_concurrent
        if most_at_once is not None and not isinstance(most_at_once, int):
            raise TypeError(f"Limit({key!r}, max_concurrent={safe_repr(most_at_once)}): give a whole number, or None")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"Limit({self.key!r}, max_concurrent={self.max_concurrent!r}): give 1 or more, or None")
        amounts: dict[str, Any] = {"rate": self.rate, "per": self.per, "burst": self.burst, "cost": self.cost}
        for name, value in amounts.items():
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"Limit({key!r}, {name}={safe_repr(value)}): give a number")
            if name == "cost":
                continue
            if value is not None and not 0 < value < inf:
                raise ValueError(f"Limit({self.key!r}, {name}={value!r}): give more than 0")
        most = next((amount for amount in (self.burst, self.rate) if amount is not None), inf)
        if not 0 <= self.cost <= most:
            raise ValueError(f"Limit({self.key!r}, cost={self.cost!r}): give 0 to {most:g}, or it would wait forever")

    @classmethod
    def from_config(
        cls, key: str, config: RateLimitConfig, *, max_concurrent: int | None = None, cost: float = 1.0
    ) -> Self:
        """Return the limit that an `AsyncTokenBucket` with this configuration enforces, for a whole queue.

        It applies to all workers of the queue together.

        Args:
            key: the limited resource.
            config: the rate and the burst.
            max_concurrent: the maximum number of running tasks with this key; None for no limit.
            cost: the cost of this task.

        Raises:
            TypeError: `config` is not a `RateLimitConfig`.
            ValueError: as for `Limit(...)`.
        """
        if not isinstance(config, RateLimitConfig):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(
                f"{safe_repr(config)}: give a RateLimitConfig, such as RateLimitConfig(100, window_seconds=60)"
            )
        return cls(key, max_concurrent, config.max_requests, config.window_seconds, config.burst_size, cost)


_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """A random UUID (version 4), made in half of the time that `uuid.uuid4` takes."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"


@dataclass(slots=True)
class Task:
    """One task for a `TaskQueue`.

    Attributes:
        task_id: the identifier; a queue accepts each only once. A random UUID by default.
        task_type: selects the function or handler that runs the task.
        payload: the input. It comes back unchanged: None, bool, int of 64 bits, float, str, bytes, bytearray, datetime,
            date, time, timedelta, UUID, Decimal, and list, tuple, set, frozenset and dict of these, nested at most 100
            levels deep. Other types are rejected.
        priority: more urgent tasks are claimed first.
        deadline: the latest time for a start, in seconds since the epoch; None or 0 for no deadline. Among tasks of
            equal priority, the one with the earliest deadline is claimed first.
        max_retries: the number of failures after which the task becomes a dead letter (at least one).
        retry_count: the number of failures so far.
        status: the state of the task.
        created_at: when the object was created, in seconds since the epoch.
        delay: seconds after `enqueue` before which the task does not run.
        timeout: the maximum duration of one attempt, in seconds; None for no limit.
        max_timeouts: the number of time-outs after which the task becomes a dead letter.
        max_crashes: the number of worker crashes after which the task becomes a dead letter ("quarantined").
        unique: while another task with this key is unfinished (or within `unique_for`), this task is a duplicate.
        unique_for: seconds after `enqueue` during which `unique` applies; None: until the task is finished.
        limits: enforced when the task is claimed.
        result_ttl: seconds for which the result is kept, and the identifier stays in use.
        tenant: the tenant that the task belongs to. Tasks of equal priority and deadline are taken from the tenants in
            turn, however many tasks each has. All tasks without a tenant count as one more tenant.
        tenant_weight: the number of tasks of this tenant per task of a tenant with weight 1; 0.001 to 1000.
        counts: attempts that did not succeed, by how they ended.
        history: the latest of these attempts, oldest first.
        checkpoint: the state that the last attempt saved.
    """

    task_id: str = field(default_factory=_new_id)
    task_type: str = ""
    payload: Any = None
    priority: TaskPriority = TaskPriority.NORMAL
    deadline: float | None = None
    max_retries: int = 3
    retry_count: int = 0
    status: TaskStatus = TaskStatus.PENDING
    created_at: float = field(default_factory=time.time)
    delay: float = 0.0
    timeout: float | None = None
    max_timeouts: int = 3
    max_crashes: int = 3
    unique: str | None = None
    unique_for: float | None = None
    limits: tuple[Limit, ...] = ()
    result_ttl: float = 3600.0
    tenant: str | None = None
    tenant_weight: float = 1.0
    counts: Counts = field(default_factory=Counts)
    history: tuple[Attempt, ...] = ()
    checkpoint: Any = None


class _ClaimOrder(NamedTuple):
    priority: int
    deadline: float
    turn: float
    sequence: int
    task_id: str


class QueueEntry(_ClaimOrder):
    """The position of a task in a queue: entries are claimed in the order in which they compare.

    `MemoryStore` keeps them in its heaps; the other stores use the same order.

    Attributes:
        priority: smaller first.
        deadline: earlier first, in seconds since the epoch; `math.inf` for none.
        turn: among tasks of equal priority and deadline, the turn of the tenant; 0 without tenants.
        sequence: the order of arrival.
        task_id: the identifier of the task.
    """

    __slots__ = ()

    def __new__(cls, priority: int, deadline: float, sequence: int, task_id: str = "", turn: float = 0.0) -> Self:
        """Create an entry."""
        return super().__new__(cls, priority, deadline, turn, sequence, task_id)


# A task in the form in which a store gets it.


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A task that a producer adds to a store. Payloads and results are opaque bytes.

    Attributes:
        id: the identifier, unique in the queue.
        nonce: made by the producer for this one enqueue. If a task with the same id and the same nonce exists, this is
            a repetition of that enqueue, whose answer was lost: the outcome is "added", and nothing changes.
        limits: the limits, each with a different key.
        due: the earliest time for a claim, in seconds since the epoch; 0 for at once.
        delay: seconds from now, by the clock of the store; added to `due` if both are given.
        deadline: seconds since the epoch; `math.inf` for none.
        tenant: the tenant that the task belongs to. All tasks with None count as one more tenant.
        weight: the number of turns of its tenant for each turn of a tenant with weight 1; 1 without a tenant.
    """

    id: str
    type: str
    nonce: str = ""
    payload: bytes = b""
    priority: int = 2
    deadline: float = inf
    due: float = 0.0
    delay: float = 0.0
    created: float = 0.0
    max_retries: int = 3
    max_timeouts: int = 3
    max_crashes: int = 3
    timeout: float | None = None
    unique: str | None = None
    unique_for: float | None = None
    limits: tuple[Limit, ...] = ()
    result_ttl: float = 3600.0
    tenant: str | None = None
    weight: float = 1.0
