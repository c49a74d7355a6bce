"""The ledger of a pool: totals, and metrics of the last tasks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cuelight._text import describe_error
from cuelight.errors import TaskCancelled
from cuelight.pools._failures import is_a
from cuelight.pools._results import PoolStats, TaskMetrics, TaskResult, TaskStatus

if TYPE_CHECKING:
    from cuelight.pools._executor import Executor

COMPLETED = TaskStatus.COMPLETED

Line = tuple[str, int, int, str, TaskStatus, float, float, str, int, str | None]
"""The record of a task: identifier, number of the first item, count, name, status, end, milliseconds, worker, retries
and the text of its error.

A line with a count above 0 records this number of items of a map, which were done together. It is a plain tuple,
because most items have a line of their own. It holds no result and no traceback, which may be large.
"""


class Ledger:
    """Totals over all crews of a pool, and a line for each of the last tasks.

    Attributes:
        totals: the counts. The pool fills in the current values (workers, pending).
        note: adds a line.
    """

    def __init__(self, keep: int) -> None:
        self.totals = PoolStats()
        self._keep = keep
        self._executors: dict[int, Executor] = {}  # by identity, because users may define equality of executors
        self._lines: deque[Line] = deque(maxlen=keep)
        self.note = self._lines.append

    def enter(self, result: TaskResult[Any], retries: int = 0) -> None:
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
        self._lines.append(
            (result.task_id, 0, 0, result.task_name, status, result.timestamp, ms, result.worker_id, retries, text)
        )

    def enter_many(  # noqa: PLR0917 - the columns of a line
        self, task_id: str, first: int, items: int, name: str, ended: float, ms: float, worker: str
    ) -> None:
        """Record that consecutive items of a map have succeeded."""
        totals = self.totals
        totals.completed += items
        totals.total_elapsed_ms += ms * items
        self.note((task_id, first, items, name, COMPLETED, ended, ms, worker, 0, None))

    def hired(self, executor: Executor) -> None:
        """Record a new executor."""
        self._executors[id(executor)] = executor

    def retired(self, executor: Executor) -> None:
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
        for task_id, first, items, name, status, ended, ms, worker, retries, error in reversed(self._lines):
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
