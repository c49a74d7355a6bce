"""What became of one piece of work, for every kind of pool and for task workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from cuelight._text import safe_repr

__all__ = ["PoolStats", "Shared", "TaskMetrics", "TaskResult", "TaskStatus", "successes"]

R = TypeVar("R")


class TaskStatus(StrEnum):
    """Where a task is in its life.

    Attributes:
        PENDING: it waits for a worker.
        SCHEDULED: it waits for its time: it was delayed, or is to be tried again.
        IN_FLIGHT: a worker has it.
        PARKED: no worker knows its type.
        COMPLETED: it succeeded.
        FAILED: it was given up, in a pool.
        CANCELLED: it was cancelled before it completed.
        DEAD_LETTER: it was given up, in a task queue, and can be looked at and replayed.
    """

    PENDING = "pending"
    SCHEDULED = "scheduled"
    IN_FLIGHT = "in_flight"
    PARKED = "parked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"


@dataclass(slots=True)
class TaskMetrics:
    """How one task ran.

    Attributes:
        task_id: its identifier.
        task_name: its name, for people.
        status: where it is.
        start_time: when its first attempt began, in seconds since the epoch; 0 before that.
        end_time: when it ended, in seconds since the epoch; None before that.
        execution_time_ms: milliseconds that its attempts ran, without what it waited between them.
        retries_used: attempts after the first.
        worker_id: who ran it last.
        error_message: the last error.
    """

    task_id: str
    task_name: str = ""
    status: TaskStatus = TaskStatus.PENDING
    start_time: float = 0.0
    end_time: float | None = None
    execution_time_ms: float = 0.0
    retries_used: int = 0
    worker_id: str | None = None
    error_message: str | None = None


class Shared(NamedTuple):
    """What the results of consecutive items of a map have in common."""

    task_id: str
    elapsed_ms: float
    task_name: str
    worker_id: str
    timestamp: float


class _Item:
    """The slots of a result that has only been told which item of which chunk it is of."""

    __slots__ = ("_index", "_shared")

    _index: int
    _shared: Shared


@dataclass(slots=True, init=False, repr=False)
class TaskResult(_Item, Generic[R]):
    """The outcome of one task: a result or an error, never both.

    Attributes:
        task_id: its identifier.
        success: whether it succeeded.
        result: what it returned; None if it failed.
        error: the exception that it raised; None if it succeeded.
        elapsed_ms: milliseconds that it ran.
        task_name: its name, for people.
        worker_id: who ran it.
        timestamp: when it ended, in seconds since the epoch.
        metrics: how it ran, where the pool keeps that.
        duration_ms: the same as `elapsed_ms`.
    """

    task_id: str
    success: bool
    result: R | None
    error: Exception | None
    elapsed_ms: float
    task_name: str
    worker_id: str
    timestamp: float
    metrics: TaskMetrics | None
    duration_ms: float = field(init=False)

    def __init__(  # noqa: PLR0917 - made for each task: keywords would cost more than the rest
        self,
        task_id: str,
        success: bool = False,
        result: R | None = None,
        error: Exception | None = None,
        elapsed_ms: float | None = None,
        task_name: str = "",
        worker_id: str = "",
        timestamp: float | None = None,
        metrics: TaskMetrics | None = None,
        *,
        duration_ms: float | None = None,
    ) -> None:
        """Make a result.

        Args:
            task_id: its identifier.
            success: whether it succeeded.
            result: what it returned.
            error: the exception that it raised.
            elapsed_ms: milliseconds that it ran; 0 by default.
            task_name: its name, for people.
            worker_id: who ran it.
            timestamp: when it ended, in seconds since the epoch; now by default.
            metrics: how it ran.
            duration_ms: another name of `elapsed_ms`.

        Raises:
            ValueError: `elapsed_ms` and `duration_ms` were given, and differ.
        """
        if elapsed_ms is None or duration_ms is not None:
            elapsed_ms = _milliseconds(elapsed_ms, duration_ms)
        self.task_id = task_id
        self.success = success
        self.result = result
        self.error = error
        self.elapsed_ms = elapsed_ms
        self.task_name = task_name
        self.worker_id = worker_id
        self.timestamp = time.time() if timestamp is None else timestamp
        self.metrics = metrics

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What has not been written down yet; see `successes`."""
            if name not in _LATER:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            shared = _Item._shared.__get__(self)  # raises AttributeError if it is no such result
            if name == "task_id":
                value = f"{shared.task_id}-{self._index}"
            else:
                value = None if name == "metrics" else getattr(shared, _LATER[name])
            setattr(self, name, value)
            return value

        def __getstate__(self) -> tuple[None, dict[str, Any]]:
            return None, {one.name: getattr(self, one.name) for one in fields(self) if one.name != "duration_ms"}

    def unwrap(self) -> R:
        """What it returned.

        Raises:
            Exception: the task failed: its own error.
        """
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # R may be None itself

    def __repr__(self) -> str:
        shown = {one.name: getattr(self, one.name) for one in fields(self)}
        parts = [f"{name}={safe_repr(value)}" for name, value in shown.items() if name != "duration_ms"]
        return f"TaskResult({', '.join(parts)})"


def _milliseconds(elapsed_ms: float | None, duration_ms: float | None) -> float:
    if elapsed_ms is None:
        return 0.0 if duration_ms is None else duration_ms
    if duration_ms is not None and duration_ms != elapsed_ms:
        raise ValueError(
            f"elapsed_ms={elapsed_ms!r} and duration_ms={duration_ms!r} are two names of one value: give one of them"
        )
    return elapsed_ms


TaskResult.duration_ms = TaskResult.elapsed_ms  # type: ignore[misc]  # one slot under two names

_LATER: Final = {
    "task_id": "task_id",
    "elapsed_ms": "elapsed_ms",
    "duration_ms": "elapsed_ms",
    "task_name": "task_name",
    "worker_id": "worker_id",
    "timestamp": "timestamp",
    "metrics": "",
}
_make: Final[Any] = object.__new__


def successes(first: int, values: Iterable[R], shared: Shared) -> list[TaskResult[R]]:
    """The results of consecutive items of a map that have all succeeded.

    Only what differs is written down; everything else when somebody looks at it. That takes a third of the time.

    Args:
        first: the number of the first item.
        values: what the function returned for each.
        shared: what they have in common; its `task_id` is that of the map.
    """
    results: list[TaskResult[R]] = []
    add, make = results.append, _make
    cls: Any = TaskResult
    for index, value in enumerate(values, first):
        result = make(cls)
        result.success = True
        result.result = value
        result.error = None
        result._index = index
        result._shared = shared
        add(result)
    return results


@dataclass(slots=True)
class PoolStats:
    """Totals of a pool.

    Attributes:
        submitted: tasks given to it.
        completed: tasks that succeeded.
        failed: tasks that ended with an error.
        cancelled: tasks that were cancelled.
        total_elapsed_ms: milliseconds that all tasks ran, added up.
        workers: workers that it has now.
        busy: workers that run something now.
        pending: tasks that wait for a worker now.
        abandoned: threads that were left behind because a time-out cannot stop them, and that still run.
        replaced: workers that died and were replaced.
    """

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    total_elapsed_ms: float = 0.0
    cancelled: int = 0
    workers: int = 0
    busy: int = 0
    pending: int = 0
    abandoned: int = 0
    replaced: int = 0
