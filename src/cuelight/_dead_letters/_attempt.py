"""Attempts that did not succeed, and the texts about their exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import msgspec

from cuelight._text import error_lines, format_traceback

_ERROR_LENGTH: Final = 2000
_TRACEBACK_LENGTH: Final = 8000


class Counts(msgspec.Struct):
    """The numbers of attempts that did not succeed, by how they ended. Each kind has a separate budget.

    Attributes:
        errors: the task raised an exception; equal to `Task.retry_count`.
        timeouts: it ran longer than its time-out.
        crashes: its worker died, or lost its lease.
        rate_limited: it raised `RateLimited`; there is no maximum.
        released: its worker gave it back unstarted, was shut down, or had no matching function; there is no maximum.
    """

    errors: int = 0
    timeouts: int = 0
    crashes: int = 0
    rate_limited: int = 0
    released: int = 0


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that did not succeed.

    Attributes:
        kind: "error", "timeout", "crash", "rate_limited", "released", "rejected", "undecodable", "cancelled", or
            "mismatch" if the arguments did not fit the worker's function.
        worker: the identifier of the worker.
        at: when it ended, in seconds since the epoch.
        elapsed: how long it ran, in seconds.
        error: the type and the message of the exception.
        traceback: the traceback of the exception.
    """

    kind: str
    worker: str = ""
    at: float = 0.0
    elapsed: float = 0.0
    error: str = ""
    traceback: str = ""


def attempt_of(error: BaseException | str, *, worker: str = "", at: float = 0.0) -> Attempt:
    """An exception, or its text, as a failed attempt."""
    given: Any = error
    if issubclass(type(error), str):  # `isinstance` asks an exception for its `__class__`, which may raise
        return Attempt(kind="error", worker=worker, at=at, error=given)
    return Attempt(kind="error", worker=worker, at=at, error=error_text(given), traceback=traceback_text(given))


def last_failure(history: Sequence[Attempt]) -> tuple[str, str]:
    """The error and the traceback of the last attempt that has an error."""
    return next(((attempt.error, attempt.traceback) for attempt in reversed(history) if attempt.error), ("", ""))


def error_text(error: BaseException) -> str:
    """The type and message of an exception, and of the members of a group, in characters that every store accepts."""
    return _clipped("\n".join(error_lines(error)), _ERROR_LENGTH)


def traceback_text(error: BaseException) -> str:
    """The shortened traceback of an exception, without the frames of the worker."""
    at = error.__traceback__
    # The first frames are the worker's and do not help to understand the task.
    while at is not None and at.tb_next is not None and _is_ours(at):
        at = at.tb_next
    return "" if at is None else _clipped(format_traceback(error, start=at), _TRACEBACK_LENGTH)


def _is_ours(at: TracebackType) -> bool:
    module = at.tb_frame.f_globals.get("__name__")
    return type(module) is str and module.startswith("cuelight.")


def _clipped(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n... {len(text) - most} characters ...\n{text[-(most // 2) :]}"
