"""Pure functions that convert the exception of an attempt to a `Finish`. They raise only `KeyboardInterrupt`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cuelight._dead_letters._attempt import Attempt, error_text, traceback_text
from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import RateLimited, Rejected, control_error
from cuelight.supervision import Backoff
from cuelight.tasks._stores._protocol import Finish

if TYPE_CHECKING:
    from cuelight._dead_letters._attempt import Counts
    from cuelight._log import Log
    from cuelight.tasks._stores._protocol import Lease
    from cuelight.tasks._task import Task


log = get_log("cuelight.tasks")

LONGEST_DELAY: Final = 366 * 86400.0
"""Seconds. If a service says "never", the task is tried again after a year."""

RETRIES: Final = Backoff(minimum=1.0, maximum=300.0, jitter=0.2)
"""The delays before failed tasks are tried again: 1, 2, 4 ... 300 seconds."""

MISMATCH: Final = "mismatch"
"""The kind of an attempt whose arguments did not fit. The store treats it as "released"."""


class Released(Exception):
    """The worker gave the task back, because it was shut down or did not start the task in time."""


def kind_of(error: Exception) -> tuple[str, Exception]:
    """The kind of an attempt that raised this exception, and the exception to report.

    A group that contains only `Rejected`, or only `RateLimited`, is replaced by its first member.
    """
    control = control_error(error, RateLimited, Rejected)
    if isinstance(control, Rejected):
        return "rejected", control
    if isinstance(control, RateLimited):
        return "rate_limited", control
    return "error", error


def pause_of(error: BaseException) -> tuple[float, str | None]:
    """The seconds and the limit for which `RateLimited` pauses. A subclass may have invalid values for them."""
    given: Any = error
    try:
        seconds, key = float(given.retry_after), given.key
    except KeyboardInterrupt:
        raise
    except BaseException:  # any error means that the default is used
        return RETRIES.minimum, None
    return (min(seconds, LONGEST_DELAY) if seconds >= 0 else RETRIES.minimum), key if type(key) is str and key else None


def failed_finish(
    lease: Lease,
    kind: str,
    error: BaseException,
    *,
    worker: str,
    at: float,
    elapsed: float,
    backoff: Backoff,
    jitter: float,
    delay: float = 0.0,
    where: BaseException | None = None,
) -> Finish:
    """The finish of an attempt that did not succeed.

    Args:
        lease: the lease of the attempt.
        kind: how it ended; see `Attempt.kind`.
        error: the exception that it raised, or the reason why it was cancelled.
        worker: the identifier of the worker.
        at: when it ended, in seconds since the epoch.
        elapsed: how long it ran, in seconds.
        backoff: the delays before errors and time-outs are tried again.
        jitter: a random number in [0, 1).
        delay: seconds before the task is tried again, for other kinds.
        where: the exception whose traceback is stored; `error` by default.
    """
    pause_key = None
    if kind == "rate_limited":
        delay, pause_key = pause_of(error)
    elif kind in {"error", "timeout"}:
        delay = _delay_of(backoff, lease.counts.errors + lease.counts.timeouts, jitter)
    attempt = Attempt(kind, worker, at, elapsed, error_text(error), traceback_text(error if where is None else where))
    finish = "released" if kind == MISMATCH else kind
    return Finish(lease.record.id, lease.epoch, finish, delay=delay, attempt=attempt, pause_key=pause_key)


def _delay_of(backoff: Backoff, failures: int, jitter: float) -> float:
    """A delay. `backoff` may be an instance of a user's class."""
    try:
        delay = float(backoff.delay(failures, jitter))
        if 0 <= delay <= LONGEST_DELAY:
            return delay
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any error means that the default is used
        failed: BaseException = error
    else:
        failed = ValueError(f"delay() returned {safe_repr(delay)}, which is not a valid number of seconds")
    log.error("%s failed: the default back-off is used", safe_repr(backoff), error=failed, kind="backoff")
    return RETRIES.delay(failures, jitter)


# The log messages for failed attempts, and the fields of their log records.


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
