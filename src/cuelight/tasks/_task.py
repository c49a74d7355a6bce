"""What a task is, to those who give tasks and to those who run them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Any, Final, NamedTuple, Self

import msgspec

from cuelight._text import safe_repr
from cuelight.coordination import RateLimitConfig
from cuelight.pools import TaskStatus

__all__ = ["HEAVIEST", "LIGHTEST", "Attempt", "Counts", "Limit", "QueueEntry", "Task", "TaskPriority"]


LIGHTEST: Final = 0.001
HEAVIEST: Final = 1000.0
"""Weights of tenants: a billion tasks of the lightest, and a turn of the heaviest still counts."""


class TaskPriority(IntEnum):
    """How urgent a task is; the smaller goes first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4


class Limit(msgspec.Struct, frozen=True):
    """A limit that is enforced when a task is claimed: a task beyond it waits, holds no worker and burns no attempt.

    All tasks of a queue whose limits have the same key share it, across workers and processes.

    Attributes:
        key: what is limited: "openai", "user:7".
        max_concurrent: tasks with this key that may run at once; None for any number.
        rate: how much may be started per window of `per` seconds; None for any amount.
        per: the window, in seconds.
        burst: how much may be started at once after a quiet time; None for as much as `rate`.
        cost: what this task takes of `rate`: 1 request, 1500 tokens.
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
            raise ValueError(f"Limit({self.key!r}, cost={self.cost!r}): give 0 to {most:g}, or it would wait for ever")

    @classmethod
    def from_config(
        cls, key: str, config: RateLimitConfig, *, max_concurrent: int | None = None, cost: float = 1.0
    ) -> Self:
        """The limit that an `AsyncTokenBucket` with this configuration keeps, for all workers of a queue together.

        Args:
            key: what is limited.
            config: how much per window, and at once.
            max_concurrent: tasks with this key that may run at once; None for any number.
            cost: what this task takes of it.

        Raises:
            TypeError: the configuration is no `RateLimitConfig`.
            ValueError: as `Limit(...)` does.
        """
        if not isinstance(config, RateLimitConfig):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(
                f"{safe_repr(config)}: give a RateLimitConfig, such as RateLimitConfig(100, window_seconds=60)"
            )
        return cls(key, max_concurrent, config.max_requests, config.window_seconds, config.burst_size, cost)


class Counts(msgspec.Struct):
    """Attempts that did not succeed, by how they ended. Each kind has a budget of its own.

    Attributes:
        errors: the task raised an exception; `Task.retry_count` is this.
        timeouts: it ran longer than its time-out.
        crashes: its worker died, or lost its lease.
        rate_limited: it was told to come back later; never too often.
        released: its worker gave it back unstarted, was shut down, or had no function that fits; never too often.
    """

    errors: int = 0
    timeouts: int = 0
    crashes: int = 0
    rate_limited: int = 0
    released: int = 0


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that did not succeed.

    Attributes:
        kind: "error", "timeout", "crash", "rate_limited", "released", "rejected", "undecodable", "cancelled" or
            "mismatch": the arguments did not fit the function that the worker has.
        worker: who ran it.
        at: when it ended, in seconds since the epoch.
        elapsed: seconds that it ran.
        error: type and message of the exception.
        traceback: where it was raised.
    """

    kind: str
    worker: str = ""
    at: float = 0.0
    elapsed: float = 0.0
    error: str = ""
    traceback: str = ""


_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """A random UUID (version 4), made in half of the time that `uuid.uuid4` takes."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"


@dataclass(slots=True)
class Task:
    """One task for a `TaskQueue`.

    Attributes:
        task_id: its identity; a queue takes each only once. A random UUID by default.
        task_type: which function or handler runs it.
        payload: what to work on. It comes back as it was: None, bool, int of 64 bits, float, str, bytes, bytearray,
            datetime, date, time, timedelta, UUID, Decimal, and list, tuple, set, frozenset and dict of these, nested at
            most 100 levels deep. Other types are refused.
        priority: the most urgent goes first.
        deadline: when it is too late to start it, in seconds since the epoch; None or 0 for never. Among tasks of one
            priority the earliest deadline goes first.
        max_retries: it is dead-lettered when it has failed so often (at least once).
        retry_count: how often it has failed.
        status: where it is.
        created_at: when it was made, in seconds since the epoch.
        delay: seconds from `enqueue` on before which it is not run.
        timeout: seconds that one attempt may run; None for as long as it takes.
        max_timeouts: it is dead-lettered when so many attempts timed out.
        max_crashes: it is dead-lettered ("quarantined") when so many workers died under it.
        unique: while another task with this key is unfinished (or within `unique_for`), it counts as a duplicate.
        unique_for: seconds from `enqueue` on that `unique` holds; None: until the task is finished.
        limits: enforced when it is claimed.
        result_ttl: seconds that its result, and the memory of its identity, are kept.
        tenant: on whose behalf: tasks of equal priority and deadline are taken from tenants in turn, however many each
            has. Tasks without one are a tenant of their own.
        tenant_weight: how many of its tasks are taken for one of a tenant with weight 1; 0.001 to 1000.
        counts: attempts that did not succeed, by how they ended.
        history: the last of these attempts, oldest first.
        checkpoint: what the last attempt saved to go on from.
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


class _Place(NamedTuple):
    priority: int
    deadline: float
    turn: float
    sequence: int
    task_id: str


class QueueEntry(_Place):
    """The place of a task in a queue: entries are claimed in the order in which they compare.

    `MemoryStore` has them in its heaps; the other stores have the same order.

    Attributes:
        priority: the smaller first.
        deadline: the earlier first, in seconds since the epoch; `math.inf` for none.
        turn: among tasks of equal priority and deadline, the turn of the tenant; 0 without tenants.
        sequence: the order of arrival.
        task_id: whose place it is.
    """

    __slots__ = ()

    def __new__(cls, priority: int, deadline: float, sequence: int, task_id: str = "", turn: float = 0.0) -> Self:
        """Make an entry."""
        return super().__new__(cls, priority, deadline, turn, sequence, task_id)
