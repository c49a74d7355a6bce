"""What the log says of an attempt that failed, in words and as fields of the record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from cuelight._log import Log
    from cuelight.tasks._store import Lease
    from cuelight.tasks._task import Counts, Task

__all__ = ["QUIET", "Failure"]

QUIET: Final = frozenset({"released", "rate_limited", "cancelled"})
"""Ends that are no failures of a task."""


class Failure(msgspec.Struct, frozen=True):
    """An attempt that failed, until the store has said what becomes of its task.

    Attributes:
        task_id: of the task.
        task_type: under which type it was sent.
        task_name: the name of the function.
        attempt: which attempt it was, from 1.
    """

    task_id: str
    task_type: str
    task_name: str
    attempt: int

    @classmethod
    def of_task(cls, task: Task) -> Failure:
        """The failure of a task that was dequeued by hand, before it was counted."""
        return cls(task.task_id, task.task_type, task.task_type, _attempt(task.counts))

    @classmethod
    def of(cls, lease: Lease, name: str) -> Failure:
        """The failure of a leased task that the function `name` was called for."""
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
        """Log it: as a warning if it is tried again, as an error otherwise.

        Args:
            log: where.
            worker: who ran it.
            queue: the name of the queue.
            kind: how it ended.
            state: the state of the task now.
            text: what was raised, and where.
            error: the exception itself, to be shown with its traceback.
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
