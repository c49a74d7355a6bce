"""What follows from how an attempt ended: pure functions from an exception to a `Finish`."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

from cuelight.errors import RateLimited, Rejected, TaskCancelled, TaskTimedOut, WorkerDied
from cuelight.tasks._store import Finish
from cuelight.tasks._task import Attempt

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.supervision import Backoff
    from cuelight.tasks._store import Lease

__all__ = ["Released", "failure", "kind_of", "said", "trace_of"]

LONGEST_DELAY: Final = 366 * 86400.0
"""Seconds: a service that says "never" is asked again after a year."""

ERROR_LENGTH: Final = 2000
TRACEBACK_LENGTH: Final = 8000


class Released(Exception):
    """The worker gave the task back: it was shut down, or did not come to start it."""


_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (RateLimited, "rate_limited"),
    (Rejected, "rejected"),
    (TaskTimedOut, "timeout"),
    (TaskCancelled, "cancelled"),
    (WorkerDied, "crash"),
    (Released, "released"),
)


def kind_of(error: BaseException) -> str:
    """The kind of an attempt that ended with this error."""
    return next((kind for cause, kind in _KINDS if isinstance(error, cause)), "error")


def failure(
    lease: Lease,
    error: BaseException,
    *,
    worker: str,
    at: float,
    elapsed: float,
    backoff: Backoff,
    jitter: float,
    where: BaseException | None = None,
) -> Finish:
    """How to finish an attempt that did not succeed.

    Args:
        lease: of the attempt.
        error: how it ended.
        worker: who ran it.
        at: when it ended, in seconds since the epoch.
        elapsed: seconds that it ran.
        backoff: the delays before errors and time-outs are tried again.
        jitter: a random number in [0, 1).
        where: the exception whose traceback to keep; `error` by default.
    """
    kind = kind_of(error)
    delay, pause_key = 0.0, None
    if isinstance(error, RateLimited):
        delay, pause_key = min(error.retry_after, LONGEST_DELAY), error.key
    elif kind in {"error", "timeout"}:
        delay = backoff.delay(lease.counts.errors + lease.counts.timeouts, jitter)
    attempt = Attempt(kind, worker, at, elapsed, said(error), trace_of(error if where is None else where))
    return Finish(lease.record.id, lease.epoch, kind, delay=delay, attempt=attempt, pause_key=pause_key)


def said(error: BaseException) -> str:
    """The type and the message of an exception, in characters that every store takes."""
    try:
        text = "".join(traceback.format_exception_only(error)).strip()
    except Exception:
        text = type(error).__name__
    return _clipped(text, ERROR_LENGTH)


def trace_of(error: BaseException) -> str:
    """Where an exception was raised, from the task on: without the frames of the worker, and clipped."""
    at = error.__traceback__
    # The frames of the worker, which come first, say nothing of the task.
    while at is not None and at.tb_next is not None and _is_ours(at):
        at = at.tb_next
    try:
        lines = [] if at is None else traceback.format_exception(type(error), error, at)
    except Exception:  # an exception may be as broken as any other code
        return ""
    return _clipped("".join(lines), TRACEBACK_LENGTH)


def _is_ours(at: TracebackType) -> bool:
    return str(at.tb_frame.f_globals.get("__name__", "")).startswith("cuelight.")


def _clipped(text: str, most: int) -> str:
    # Half a surrogate pair, as file names may have, cannot be stored.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n... {len(text) - most} characters ...\n{text[-(most // 2) :]}"
