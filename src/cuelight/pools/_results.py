"""Results, metrics and totals, for every kind of pool and for task workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from cuelight._text import safe_repr

R = TypeVar("R")


class TaskStatus(StrEnum):
    """The status of a task.

    Attributes:
        PENDING: it waits for a worker.
        SCHEDULED: it waits for its time: it was delayed, or will be tried again.
        IN_FLIGHT: a worker has it.
        PARKED: no worker knows its type.
        COMPLETED: it succeeded.
        FAILED: it has failed for good, in a pool.
        CANCELLED: it was cancelled before it completed.
        DEAD_LETTER: it has failed for good, in a task queue, and can be inspected and replayed.
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
    """The metrics of one task.

    Attributes:
        task_id: its identifier.
        task_name: its readable name.
        status: its current status.
        start_time: time when its first attempt began, in seconds since the epoch; 0 before that.
        end_time: time when it ended, in seconds since the epoch; None before that.
        execution_time_ms: milliseconds that its attempts ran, without the waits between them.
        retries_used: number of attempts after the first.
        worker_id: identifier of the worker that ran it last.
        error_message: description of the last error.
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
    """The common fields of the results of consecutive items of a map."""

    task_id: str
    elapsed_ms: float
    task_name: str
    worker_id: str
    timestamp: float


class _Item:
    """The slots of a result that computes its other fields on first access; see `successes`."""

    __slots__ = ("_index", "_shared")

    _index: int
    _shared: Shared


@dataclass(slots=True, init=False, repr=False)
class TaskResult(_Item, Generic[R]):
    """The outcome of one task: a result or an error, never both.

    Attributes:
        task_id: the identifier of the task.
        success: whether the task succeeded.
        result: the returned value; None if the task failed.
        error: the exception that the task raised; None if it succeeded.
        elapsed_ms: milliseconds that the task ran.
        task_name: the readable name of the task.
        worker_id: identifier of the worker that ran the task.
        timestamp: time when the task ended, in seconds since the epoch.
        metrics: the metrics of the task, if the pool keeps them.
        duration_ms: another name of `elapsed_ms`.
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
            task_id: the identifier of the task.
            success: whether the task succeeded.
            result: the returned value.
            error: the exception that the task raised.
            elapsed_ms: milliseconds that the task ran; 0 by default.
            task_name: the readable name of the task.
            worker_id: identifier of the worker that ran the task.
            timestamp: time when the task ended, in seconds since the epoch; now by default.
            metrics: the metrics of the task.
            duration_ms: another name of `elapsed_ms`.

        Raises:
            ValueError: both `elapsed_ms` and `duration_ms` were given, and differ.
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
            """Compute and store a field that is not stored yet; see `successes`."""
            if name not in _LATER:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            shared = _Item._shared.__get__(self)  # raises AttributeError if `successes` did not make this result
            if name == "task_id":
                value = f"{shared.task_id}-{self._index}"
            else:
                value = None if name == "metrics" else getattr(shared, _LATER[name])
            setattr(self, name, value)
            return value

        def __getstate__(self) -> tuple[None, dict[str, Any]]:
            return None, {one.name: getattr(self, one.name) for one in fields(self) if one.name != "duration_ms"}

    def unwrap(self) -> R:
        """Return the value that the task returned.

        Raises:
            Exception: the error of the task, if it failed.
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
    """Make the results of consecutive items of a map that have all succeeded.

    Only the fields that differ are stored; the other fields are computed on first access. This takes a third of the
    time.

    Args:
        first: the number of the first item.
        values: the returned values.
        shared: the common fields; its `task_id` is that of the map.
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
    """Totals and current numbers of a pool.

    Attributes:
        submitted: number of submitted tasks.
        completed: number of tasks that succeeded.
        failed: number of tasks that ended with an error.
        cancelled: number of cancelled tasks.
        total_elapsed_ms: total run time of all tasks, in milliseconds.
        workers: current number of workers.
        busy: number of workers that run a task now.
        pending: number of tasks that wait for a worker now.
        abandoned: number of threads that were abandoned, because a time-out cannot stop them, and that still run.
        replaced: number of workers that died and were replaced.
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
