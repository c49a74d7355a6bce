"""One task of a blocking pool: what is known of it, and what is made of that for others."""

from __future__ import annotations

import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from cuelight._text import describe_error
from cuelight.errors import RateLimited, Rejected, TaskFailed
from cuelight.pools._results import TaskMetrics, TaskResult, TaskStatus

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

__all__ = ["Job", "as_failure", "retry_delay"]


class Job:
    """A task. Everything about it changes under the lock of its pool; once `ended` is set nothing changes any more.

    Attributes:
        sequence: its place among its like; it keeps that when it is tried again.
        kept: whether `wait_for_all` and the metrics know it.
        began: when its first attempt began, in seconds since the epoch; 0 before.
        ended: when it ended, likewise; None before.
        ran: seconds that its attempts ran.
        waiters: batons of those who wait for it.
    """

    __slots__ = (
        "args",
        "began",
        "context",
        "ended",
        "error",
        "function",
        "id",
        "kept",
        "kwargs",
        "name",
        "outcome",
        "priority",
        "ran",
        "result",
        "retries",
        "sequence",
        "status",
        "waiters",
        "worker",
    )

    def __init__(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], priority: int
    ) -> None:
        self.name, self.function, self.args, self.kwargs, self.priority = name, function, args, kwargs, priority
        self.id = ""
        self.sequence = 0
        self.kept = True
        self.context = copy_context()
        self.status = TaskStatus.PENDING
        self.result: Any = None
        self.error: Exception | None = None
        self.began, self.ran = 0.0, 0.0
        self.ended: float | None = None
        self.retries = 0
        self.worker: str | None = None
        self.waiters: tuple[threading.Lock, ...] = ()
        self.outcome: TaskResult[Any] | None = None

    def attempt(self) -> tuple[bool, Any]:
        """Call the function in this thread; whether it returned, and what it returned or raised."""
        try:
            # An attempt that was left behind may still be inside of the context.
            context = self.context.copy() if self.retries else self.context
            return True, context.run(self.function, *self.args, **self.kwargs)
        except BaseException as error:
            trace = error.__traceback__
            if trace is not None:
                error.__traceback__ = trace.tb_next  # our own frame holds the error: a circle
            return False, error

    def end(self) -> None:
        """Nothing changes any more, and nothing of the call is kept."""
        self.ended = time.time()
        del self.function, self.args, self.kwargs, self.context

    def taken_result(self) -> TaskResult[Any]:
        """The outcome of a task that has ended."""
        if self.outcome is None:
            metrics = self.metrics()
            self.outcome = TaskResult(
                task_id=self.id,
                success=self.status is TaskStatus.COMPLETED,
                result=self.result,
                error=self.error,
                elapsed_ms=metrics.execution_time_ms,
                task_name=self.name,
                worker_id=self.worker or "",
                timestamp=self.ended or 0.0,
                metrics=metrics,
            )
        return self.outcome

    def metrics(self) -> TaskMetrics:
        """How it runs, or ran; a copy."""
        error = self.error
        return TaskMetrics(
            task_id=self.id,
            task_name=self.name,
            status=self.status,
            start_time=self.began,
            end_time=self.ended,
            execution_time_ms=self.ran * 1000,
            retries_used=self.retries,
            worker_id=self.worker,
            error_message=None if error is None else describe_error(error),
        )


def as_failure(name: str, error: BaseException) -> Exception:
    """The error of a task for this one: what ends programs must not end the pool, nor whoever reads the result."""
    if isinstance(error, Exception):
        return error
    failure = TaskFailed(f"the task {name!r} raised {describe_error(error)}")
    failure.__cause__ = error
    return failure


def retry_delay(error: BaseException, retries: int, most: int, base: float, maximum: float) -> float | None:
    """Seconds before the next attempt; None if the task is to be given up.

    `min(maximum, base * 2**retries)`, without jitter, so that a run can be repeated.

    Args:
        error: how the attempt ended.
        retries: attempts after the first so far.
        most: how many there may be.
        base: seconds before the first retry.
        maximum: seconds at most.
    """
    if isinstance(error, RateLimited):
        return error.retry_after
    if retries >= most or not isinstance(error, Exception) or isinstance(error, Rejected):
        return None
    from pickle import PicklingError  # noqa: PLC0415 - only failures need it

    if isinstance(error, PicklingError):  # another attempt would end in the same way
        return None
    # 2.0**1024 overflows; no delay needs so many doublings.
    return min(maximum, base * 2.0 ** min(retries, 1000)) if base else 0.0
