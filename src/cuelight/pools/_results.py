"""Results, metrics and totals, for every kind of pool and for task workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr
from cuelight.errors import TaskCancelled, ends_the_program
from cuelight.pools._failures import is_a
from cuelight.pools._functions import is_async

if TYPE_CHECKING:
    from cuelight.pools._threads._executor import Executor


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


# The metrics of a pool: totals, and metrics of the last tasks.


COMPLETED = TaskStatus.COMPLETED

MetricRow = tuple[str, int, int, str, TaskStatus, float, float, str, int, str | None]
"""The record of a task: identifier, number of the first item, count, name, status, end, milliseconds, worker, retries
and the text of its error.

A row with a count above 0 records this number of items of a map, which were done together. It is a plain tuple,
because most items have a row of their own. It holds no result and no traceback, which may be large.
"""


class PoolMetrics:
    """Totals over all groups of a pool, and a row for each of the last tasks.

    Attributes:
        totals: the counts. The pool fills in the current values (workers, pending).
        add_row: adds a row.
    """

    def __init__(self, keep: int) -> None:
        self.totals = PoolStats()
        self._keep = keep
        self._executors: dict[int, Executor] = {}  # by identity, because users may define equality of executors
        self._rows: deque[MetricRow] = deque(maxlen=keep)
        self.add_row = self._rows.append

    def record(self, result: TaskResult[Any], retries: int = 0) -> None:
        """Record the end of a task."""
        totals, error = self.totals, result.error
        text = None
        if error is None:
            status = TaskStatus.COMPLETED
            totals.completed += 1
        else:
            text = describe_error(error)
            if is_a(error, TaskCancelled):
                status = TaskStatus.CANCELLED
                totals.cancelled += 1
            else:
                status = TaskStatus.FAILED
                totals.failed += 1
        ms = result.elapsed_ms
        totals.total_elapsed_ms += ms
        self._rows.append(
            (result.task_id, 0, 0, result.task_name, status, result.timestamp, ms, result.worker_id, retries, text)
        )

    def record_many(  # noqa: PLR0917 - the columns of a row
        self, task_id: str, first: int, items: int, name: str, ended: float, ms: float, worker: str
    ) -> None:
        """Record that consecutive items of a map have succeeded."""
        totals = self.totals
        totals.completed += items
        totals.total_elapsed_ms += ms * items
        self.add_row((task_id, first, items, name, COMPLETED, ended, ms, worker, 0, None))

    def executor_started(self, executor: Executor) -> None:
        """Record a new executor."""
        self._executors[id(executor)] = executor

    def executor_closed(self, executor: Executor) -> None:
        """Forget an executor, unless threads that it has abandoned still run: those are counted until they end."""
        if not _count(executor, "abandoned") and self._executors.pop(id(executor), None) is not None:
            self.totals.replaced += _count(executor, "replaced")

    def stats(self) -> PoolStats:
        executors = list(self._executors.values())
        return replace(
            self.totals,
            abandoned=sum(_count(executor, "abandoned") for executor in executors),
            replaced=self.totals.replaced + sum(_count(executor, "replaced") for executor in executors),
        )

    def metrics(self) -> dict[str, TaskMetrics]:
        """Metrics of the last tasks, the latest last."""
        latest_first: list[TaskMetrics] = []
        for task_id, first, items, name, status, ended, ms, worker, retries, error in reversed(self._rows):
            names = [f"{task_id}-{first + at}" for at in range(items)] or [task_id]
            latest_first += [
                TaskMetrics(one, name, status, ended - ms / 1000, ended, ms, retries, worker or None, error)
                for one in reversed(names)
            ]
            if len(latest_first) >= self._keep:
                break
        return {line.task_id: line for line in reversed(latest_first[: self._keep])}


def _count(executor: Executor, name: str) -> int:
    """A counter of an executor; 0 if a user's executor has no valid one."""
    try:
        return int(getattr(executor, name))
    except Exception:
        return 0


# The progress of a map, reported to a callback or shown as a bar.


Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the number of items done, and the number of all items (None if it is not known)."""

log = get_log("cuelight.pools")


class Reporter:
    """Counts finished items, and reports them."""

    def __init__(self, progress: Progress | bool, total: int | None, name: str) -> None:
        """Set the reporter up.

        Args:
            progress: a callback, or True for a bar.
            total: number of all items, if it is known.
            name: label of the bar.

        Raises:
            ModuleNotFoundError: `progress` is True, and tqdm is not installed.
            TypeError: `progress` is neither a plain callback nor True.
        """
        self._done, self._total = 0, total
        self._bar: Any = None
        if progress is True:
            try:
                from tqdm import tqdm  # noqa: PLC0415 - an extra
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "progress=True shows a bar with tqdm, which is not installed: install cuelight[progress], "
                    "or give a callback, progress=lambda done, total: ...",
                    name=error.name,
                ) from error
            self._bar = tqdm(total=total, desc=name)
            self._tell: Progress = lambda done, total: self._bar.update()  # noqa: ARG005
        elif callable(progress) and not is_async(progress):
            self._tell = progress
        else:
            raise TypeError(f"progress={safe_repr(progress)}: give a plain callback (done, total), or True for a bar")

    def advance(self, items: int = 1) -> None:
        """Count finished items, and report each of them."""
        for _ in range(items):
            self._done += 1
            self._tell(self._done, self._total)

    def close(self) -> None:
        """Close the bar. Errors are logged, because no caller is left to handle them."""
        if self._bar is not None:
            try:
                self._bar.close()
            except BaseException as error:
                log.exception("a progress bar could not be closed")
                if ends_the_program(error):
                    raise
