"""One task of a blocking pool: what is known of it, and what is made of that for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight._text import describe_error
from cuelight.errors import RateLimited
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._failures import is_a, is_final, rate_limit_delay, without_our_frame
from cuelight.pools._results import TaskMetrics, TaskResult, TaskStatus

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextvars import Context

    from cuelight.pools._thread_worker import Worker

__all__ = ["Job", "retry_delay"]


class Job:
    """A task. Everything about it changes under the lock of its pool; once `ended` is set nothing changes any more.

    Attributes:
        sequence: its place among its like; it keeps that when it is tried again.
        kept: whether `wait_for_all` and the metrics know it.
        listed: whether it is in the heap of what waits for a thread.
        began: when its first attempt began, in seconds since the epoch; 0 before.
        ended: when it ended, likewise; None before.
        ran: seconds that its attempts ran.
        runner: the thread that runs it now.
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
        "listed",
        "name",
        "outcome",
        "priority",
        "ran",
        "result",
        "retries",
        "runner",
        "sequence",
        "status",
        "waiters",
        "worker",
    )

    def __init__(  # noqa: PLR0917 - made for each task
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        priority: int,
        context: Context,
    ) -> None:
        self.name, self.function, self.args, self.kwargs, self.priority = name, function, args, kwargs, priority
        self.context = context
        self.id = ""
        self.sequence = 0
        self.kept = True
        self.listed = False
        self.status = TaskStatus.PENDING
        self.result: Any = None
        self.error: Exception | None = None
        self.began, self.ran = 0.0, 0.0
        self.ended: float | None = None
        self.retries = 0
        self.runner: Worker | None = None
        self.worker: str | None = None
        self.waiters: tuple[threading.Lock, ...] = ()
        self.outcome: TaskResult[Any] | None = None

    def attempt(self) -> tuple[bool, Any]:
        """Call the function in this thread; whether it returned, and what it returned or raised."""
        try:
            # A copy: the next attempt begins with the context as it was, and this one may be left behind inside of it.
            return True, self.context.copy().run(self.function, *self.args, **self.kwargs)
        except BaseException as error:
            return False, without_our_frame(error)

    def let_go(self) -> object:
        """Keep nothing of the call of a task that has ended.

        Returns:
            Values to drop outside of the lock, because dropping them may run code of users.
        """
        spent = self.function, self.args, self.kwargs, self.context
        del self.function, self.args, self.kwargs, self.context
        return spent

    def call(self) -> FailedCall:
        """What a dead letter keeps of it, while it has not ended."""
        return FailedCall(self.function, self.args, self.kwargs, self.name, self.priority)

    def taken_result(self, *, metrics: bool = True) -> TaskResult[Any]:
        """The outcome of a task that has ended.

        Args:
            metrics: whether it has metrics.
        """
        if self.outcome is None:
            self.outcome = TaskResult(
                task_id=self.id,
                success=self.status is TaskStatus.COMPLETED,
                result=self.result,
                error=self.error,
                elapsed_ms=self.ran * 1000,
                task_name=self.name,
                worker_id=self.worker or "",
                timestamp=self.ended or 0.0,
                metrics=self.metrics() if metrics else None,
            )
        return self.outcome

    def metrics(self) -> TaskMetrics:
        """How it runs, or ran. Not under the lock, for the text of an error is code of users."""
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


def retry_delay(error: Exception, retries: int, most: int, base: float, maximum: float) -> float | None:
    """Seconds before the next attempt; None if the task is to be given up.

    `min(maximum, base * 2**retries)`, without jitter, so that a run can be repeated.

    Args:
        error: how the attempt ended.
        retries: attempts after the first so far.
        most: how many there may be.
        base: seconds before the first retry.
        maximum: seconds at most.
    """
    if is_a(error, RateLimited):
        return rate_limit_delay(error)  # type: ignore[arg-type]  # looked at by its type
    if retries >= most or is_final(error):
        return None
    # 2.0**1024 overflows; no delay needs so many doublings.
    return min(maximum, base * 2.0 ** min(retries, 1000)) if base else 0.0
