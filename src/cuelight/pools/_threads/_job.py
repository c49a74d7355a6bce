"""One task of a blocking pool, and its result and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from cuelight._text import describe_error
from cuelight.errors import RateLimited
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._failures import is_a, is_final, rate_limit_delay, without_our_frame
from cuelight.pools._results import TaskMetrics, TaskResult, TaskStatus

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextvars import Context


class JobThread(Protocol):
    """What a task uses of the thread that runs it."""

    lock_owner: Any
    """Its identity in the graph of waits; None before it runs."""


class Job:
    """A task. Its fields change only under the lock of its pool. Once `ended` is set, nothing changes any more.

    Attributes:
        sequence: its position among tasks of the same priority, which it keeps when it is tried again.
        kept: whether `wait_for_all` and the metrics include it.
        listed: whether it is in the heap of tasks that wait for a thread.
        began: time when its first attempt began, in seconds since the epoch; 0 before that.
        ended: time when it ended, in seconds since the epoch; None before that.
        run_seconds: seconds that its attempts ran.
        runner: the thread that runs it now.
        waiters: held locks on which threads wait, one for each of the threads that wait for it.
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
        "result",
        "retries",
        "run_seconds",
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
        self.began, self.run_seconds = 0.0, 0.0
        self.ended: float | None = None
        self.retries = 0
        self.runner: JobThread | None = None
        self.worker: str | None = None
        self.waiters: tuple[threading.Lock, ...] = ()
        self.outcome: TaskResult[Any] | None = None

    def attempt(self) -> tuple[bool, Any]:
        """Call the function in this thread. Returns (True, the value) or (False, the exception)."""
        try:
            # A copy: the next attempt begins with the original context, and this one may be abandoned inside the copy.
            return True, self.context.copy().run(self.function, *self.args, **self.kwargs)
        except BaseException as error:
            return False, without_our_frame(error)

    def let_go(self) -> object:
        """Release function, arguments and context of a task that has ended.

        Returns:
            Values to drop outside of the lock, because dropping them may run user code.
        """
        discarded = self.function, self.args, self.kwargs, self.context
        del self.function, self.args, self.kwargs, self.context
        return discarded

    def call(self) -> FailedCall:
        """The payload of its dead letter. Call it before the task ends."""
        return FailedCall(self.function, self.args, self.kwargs, self.name, self.priority)

    def make_result(self, *, metrics: bool = True) -> TaskResult[Any]:
        """The result of a task that has ended.

        Args:
            metrics: whether the result includes metrics.
        """
        if self.outcome is None:
            self.outcome = TaskResult(
                task_id=self.id,
                success=self.status is TaskStatus.COMPLETED,
                result=self.result,
                error=self.error,
                elapsed_ms=self.run_seconds * 1000,
                task_name=self.name,
                worker_id=self.worker or "",
                timestamp=self.ended or 0.0,
                metrics=self.metrics() if metrics else None,
            )
        return self.outcome

    def metrics(self) -> TaskMetrics:
        """Its metrics. Call this without the lock, because describing an error runs user code."""
        error = self.error
        return TaskMetrics(
            task_id=self.id,
            task_name=self.name,
            status=self.status,
            start_time=self.began,
            end_time=self.ended,
            execution_time_ms=self.run_seconds * 1000,
            retries_used=self.retries,
            worker_id=self.worker,
            error_message=None if error is None else describe_error(error),
        )


def retry_delay(error: Exception, retries: int, most: int, base: float, maximum: float) -> float | None:
    """Seconds before the next attempt; None if there is none.

    The delay is `min(maximum, base * 2**retries)`, without jitter, so that a run can be repeated.

    Args:
        error: the error of the last attempt.
        retries: number of retries so far.
        most: maximum number of retries.
        base: seconds before the first retry.
        maximum: maximum delay in seconds.
    """
    if is_a(error, RateLimited):
        return rate_limit_delay(error)  # type: ignore[arg-type]  # checked by its type
    if retries >= most or is_final(error):
        return None
    # 2.0**1024 overflows; no delay needs as many doublings.
    return min(maximum, base * 2.0 ** min(retries, 1000)) if base else 0.0
