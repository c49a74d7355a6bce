"""Conversion of exceptions that a task's function raised to errors of the task.

These functions look only at the type of an exception, because `isinstance` reads `__class__`, which may run user code.
"""

from __future__ import annotations

import asyncio
import math
import sys
from pickle import PicklingError
from typing import Any, Final

import anyio

from cuelight._text import describe_error
from cuelight.errors import RateLimited, Rejected, TaskFailed, UnexpectedCancellation, control_error, ends_the_program
from cuelight.mailbox import running_task

LONGEST_DELAY: Final = 366 * 86400.0
"""Longest delay in seconds: a rate limit without an end is tried again after a year."""

_TRACEBACK: Final[Any] = BaseException.__dict__["__traceback__"]  # not an attribute of the same name of a subclass


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the type of an exception is one of these types, or a subclass of one."""
    return issubclass(type(error), kinds)


def as_failure(name: str, error: BaseException) -> Exception:
    """The error of a task whose function raised `error`.

    An exception group that holds only `Rejected`, or only `RateLimited`, becomes this exception. An error that is not
    an `Exception` would end the reader of the result. So it becomes the cause of an `Exception`:
    `UnexpectedCancellation` for a cancellation, `TaskFailed` for anything else.

    Args:
        name: the name of the task or of its function.
        error: the raised exception; not a cancellation of the task itself.
    """
    control = control_error(error, Rejected, RateLimited)
    if control is not None:
        return control
    if is_a(error, Exception):
        return error  # type: ignore[return-value]  # checked by its type
    failure: Exception
    if control_error(error, *_cancellations()) is not None:
        failure = UnexpectedCancellation(
            f"{name} awaited something that was cancelled by somebody else ({describe_error(error)}); "
            f"nobody cancelled the task"
        )
    else:
        failure = TaskFailed(f"{name} raised {describe_error(error)}")
    failure.__cause__ = error
    return failure


def _cancellations() -> tuple[type[BaseException], ...]:
    """The cancellation classes of asyncio and trio: a function may raise that of the other event loop."""
    trio = sys.modules.get("trio")
    found: Any = getattr(trio, "Cancelled", None)
    return (asyncio.CancelledError,) if found is None else (asyncio.CancelledError, found)


def is_final(error: BaseException) -> bool:
    """Whether no other attempt should follow: the task rejected itself, or tried to end the program."""
    if is_a(error, Rejected, PicklingError):
        return True
    cause = error.__cause__ if type(error) is TaskFailed else error
    return cause is not None and ends_the_program(cause)


def is_cancelled() -> bool:
    """Whether a cancel scope of the pool, of the actor, or around them has cancelled the running task."""
    return anyio.current_effective_deadline() == -math.inf


def split_cancellation(
    raised: BaseException, cancelled: type[BaseException]
) -> tuple[BaseException | None, BaseException | None]:
    """Split an exception, which may be a group, into its cancellation and the rest; either may be None."""
    if is_a(raised, cancelled):
        return raised, None
    if not is_a(raised, BaseExceptionGroup):
        return None, raised
    group: Any = raised
    try:
        return group.split(cancelled)  # type: ignore[no-any-return]
    except Exception:  # the group is of a user's class, whose methods `split` calls
        return None, raised


def forget_cancellation() -> None:
    """Reset asyncio's count of cancellations: the finished work has cancelled the running task, which goes on."""
    task = running_task()
    if isinstance(task, asyncio.Task):
        while task.cancelling():
            task.uncancel()


def rate_limit_delay(error: RateLimited) -> float:
    """The delay in seconds of a `RateLimited`. In a subclass `retry_after` may be any object."""
    try:
        delay = float(error.retry_after)
    except Exception:
        return 0.0
    return min(max(delay, 0.0), LONGEST_DELAY) if not math.isnan(delay) else 0.0


def without_our_frame(error: BaseException) -> BaseException:
    """Remove the frame that caught the exception from its traceback, because frame and exception form a cycle."""
    trace = _TRACEBACK.__get__(error)
    if trace is not None:
        _TRACEBACK.__set__(error, trace.tb_next)
    return error
