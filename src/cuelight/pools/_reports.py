"""The log record of a task that has failed for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight._text import describe_error, type_name

if TYPE_CHECKING:
    from cuelight.pools._results import TaskResult

log = get_log("cuelight.pools")


def report_failure(pool: str, result: TaskResult[Any], task_type: str, retries: int) -> None:
    """Log a failure with its traceback. Details for programs are attributes of the log record.

    Failures of the same type of task with the same type of exception are counted together, see `cuelight._log`.
    """
    error = result.error
    assert error is not None  # noqa: S101 - the caller looked
    log.warning(
        "%s: the task %s (%s, %s) failed after %d retries: %s",
        pool,
        result.task_name,
        task_type,
        result.task_id,
        retries,
        describe_error(error, 500),
        error=error,
        kind=("task failed", pool, task_type, type_name(error)),
        extra={
            "pool": pool,
            "task_id": result.task_id,
            "task_name": result.task_name,
            "task_type": task_type,
            "worker_id": result.worker_id,
            "retries": retries,
            "attempt": retries + 1,
        },
    )
