"""The log messages for failed attempts, and the fields of their log records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from cuelight._log import Log
    from cuelight.tasks._store import Lease
    from cuelight.tasks._task import Counts, Task

QUIET: Final = frozenset({"released", "rate_limited", "cancelled"})
"""Kinds of attempts that did not succeed, but are not failures of the task."""


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt that is logged once the store has answered with the next state of its task.

    Attributes:
        task_id: the identifier of the task.
        task_type: the type under which the task was sent.
        task_name: the name of the function.
        attempt: the number of the attempt, from 1.
    """

    task_id: str
    task_type: str
    task_name: str
    attempt: int

    @classmethod
    def of_task(cls, task: Task) -> Failure:
        """The failure of a task that was dequeued by hand, before the attempt is counted."""
        return cls(task.task_id, task.task_type, task.task_type, _attempt(task.counts))

    @classmethod
    def of(cls, lease: Lease, name: str) -> Failure:
        """The failure of a leased task for which the function `name` was called."""
        return cls(lease.record.id, lease.record.type, name, _attempt(lease.counts))

    def report(
        self,
        log: Log,
        *,
        worker: str,
        queue: str,
        kind: str,
        state: str,
        text: str = "",
        error: BaseException | None = None,
    ) -> None:
        """Log the failure: as a warning if the task will be tried again, otherwise as an error.

        Args:
            log: the log.
            worker: the identifier of the worker.
            queue: the name of the queue.
            kind: how the attempt ended.
            state: the new state of the task.
            text: the error and the traceback as text.
            error: the exception, to be logged with its traceback.
        """
        extra: dict[str, Any] = {**msgspec.structs.asdict(self), "worker_id": worker, "queue": queue}
        log.log(
            logging.WARNING if state in {"pending", "scheduled"} else logging.ERROR,
            "%s: %s of %s (type %s, id %s) in attempt %d, now %s%s",
            worker,
            kind,
            self.task_name or "a task",
            self.task_type or "none",
            self.task_id,
            self.attempt,
            state,
            f": {text}" if text else "",
            error=error,
            kind=("task", self.task_type, kind),
            extra=extra,
        )


def _attempt(counts: Counts) -> int:
    return 1 + counts.errors + counts.timeouts + counts.crashes
