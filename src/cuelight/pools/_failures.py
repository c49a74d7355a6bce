"""The error of a piece of work for what its function raised.

They look at the type of an exception alone: `isinstance` asks an object for its `__class__`, which is code of users.
"""

from __future__ import annotations

import asyncio
import math
import sys
from pickle import PicklingError
from typing import Any, Final

import anyio

from cuelight._text import describe_error
from cuelight.errors import (
    RateLimited,
    Rejected,
    TaskFailed,
    UnexpectedCancellation,
    control_error,
    ends_the_program,
)
from cuelight.mailbox import running_task

__all__ = [
    "LONGEST_DELAY",
    "as_failure",
    "forget_cancellation",
    "is_a",
    "is_final",
    "rate_limit_delay",
    "split_cancellation",
    "told_to_end",
    "without_our_frame",
]

LONGEST_DELAY: Final = 366 * 86400.0
"""Seconds: a service that says "never" is asked again after a year."""

_TRACEBACK: Final[Any] = BaseException.__dict__["__traceback__"]  # not what a subclass made of it


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the type of an exception is one of these, or a subclass of one."""
    return issubclass(type(error), kinds)


def as_failure(name: str, error: BaseException) -> Exception:
    """The error of a task whose function raised `error`.

    An exception group that holds only `Rejected`, or only `RateLimited`, is that. What is no `Exception` becomes the
    cause of one, because it would end the reader of the result: `UnexpectedCancellation` for a cancellation,
    `TaskFailed` for anything else.

    Args:
        name: the name of the task or of its function.
        error: what was raised; not a cancellation of the task itself.
    """
    control = control_error(error, Rejected, RateLimited)
    if control is not None:
        return control
    if is_a(error, Exception):
        return error  # type: ignore[return-value]  # looked at by its type
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
    """The cancellations of both event loops: a function may raise that of the other."""
    trio = sys.modules.get("trio")
    found: Any = getattr(trio, "Cancelled", None)
    return (asyncio.CancelledError,) if found is None else (asyncio.CancelledError, found)


def is_final(error: BaseException) -> bool:
    """Whether another attempt makes no sense: the task refused itself, or wanted to end the program."""
    if is_a(error, Rejected, PicklingError):
        return True
    cause = error.__cause__ if type(error) is TaskFailed else error
    return cause is not None and ends_the_program(cause)


def told_to_end() -> bool:
    """Whether the running task was cancelled by the scope of its pool or of its actor, or by one around it."""
    return anyio.current_effective_deadline() == -math.inf


def split_cancellation(
    raised: BaseException, cancelled: type[BaseException]
) -> tuple[BaseException | None, BaseException | None]:
    """The cancellation in an exception, and what else is in it, in case it is a group."""
    if is_a(raised, cancelled):
        return raised, None
    if not is_a(raised, BaseExceptionGroup):
        return None, raised
    group: Any = raised
    try:
        return group.split(cancelled)  # type: ignore[no-any-return]
    except Exception:  # the group is of a class of users, which takes part in that
        return None, raised


def forget_cancellation() -> None:
    """The running task goes on although it was cancelled, by the work that it has done: asyncio counts that."""
    task = running_task()
    if isinstance(task, asyncio.Task):
        while task.cancelling():
            task.uncancel()


def rate_limit_delay(error: RateLimited) -> float:
    """Seconds that a `RateLimited` asks for. A subclass may have made anything of `retry_after`."""
    try:
        delay = float(error.retry_after)
    except Exception:
        return 0.0
    return min(max(delay, 0.0), LONGEST_DELAY) if not math.isnan(delay) else 0.0


def without_our_frame(error: BaseException) -> BaseException:
    """The exception, with a traceback that begins below the frame that caught it: that frame holds it, a circle."""
    trace = _TRACEBACK.__get__(error)
    if trace is not None:
        _TRACEBACK.__set__(error, trace.tb_next)
    return error
