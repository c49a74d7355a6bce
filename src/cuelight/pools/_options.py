"""The options of a pool, and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cuelight._text import safe_repr
from cuelight.pools._processes._executor import ProcessExecutor
from cuelight.pools._processes._start import check_executable
from cuelight.pools._threads._executor import ThreadExecutor

if TYPE_CHECKING:
    from cuelight.pools._functions import Kind
    from cuelight.pools._threads._executor import Executor


class Default:
    """The type of `DEFAULT`: use the value of the pool."""

    def __repr__(self) -> str:
        return "the pool's"


DEFAULT: Final = Default()


def check_whole(what: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`.

    Raises:
        ValueError: the value is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what}={safe_repr(value)}: give a whole number, {least} or more")
    return value


def check_priority(priority: Any) -> int:
    """Return a priority as a plain `int`, because tasks are compared by it.

    Raises:
        TypeError: the priority is not a whole number.
    """
    if not isinstance(priority, int):
        raise TypeError(f"priority={safe_repr(priority)}: give a whole number; smaller ones go first")
    return int.__int__(priority)


def check_text(what: str, text: Any) -> str:
    """Return a text as a plain `str`.

    Raises:
        TypeError: the value is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}={safe_repr(text)}: give a string")
    return str.__str__(text)


def check_restarts(restarts: Any) -> float:
    """Return a number of allowed restarts: a whole number of at least 0, or infinity.

    Raises:
        ValueError: the value is neither.
    """
    return restarts if restarts == math.inf else check_whole("max_restarts", restarts, 0)


def check_timeout(timeout: Any) -> float | None:
    """Return a time-out in seconds, or None for no limit.

    Raises:
        ValueError: the value is not None, and not a number above 0.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give more than 0 seconds, or None for no limit")
    return None if timeout == math.inf else float(timeout)


class PoolOptions(msgspec.Struct, frozen=True):
    """The options of an `AsyncWorkerPool`, described there."""

    max_workers: int
    kind: Kind | None
    timeout: float | None
    max_pending: int
    retries: int
    max_crashes: int
    max_restarts: int
    keep_metrics: int
    make_executor: Callable[[str], Executor]

    def __post_init__(self) -> None:
        for what, least in {
            "max_workers": 1,
            "max_pending": 1,
            "retries": 0,
            "max_crashes": 1,
            "keep_metrics": 0,
        }.items():
            check_whole(what, getattr(self, what), least)
        if self.kind not in (None, "thread", "process"):
            raise ValueError(
                f"kind={safe_repr(self.kind)}: give 'thread', 'process', or None for async and plain functions"
            )
        check_restarts(self.max_restarts)
        check_timeout(self.timeout)


def make_executor(kind: Kind | None, executable: Any = None) -> Callable[[str], Executor]:
    """Return the factory of the executors of workers.

    Raises:
        TypeError: the executable is not a path.
        ValueError: there is no such file, or `kind` is not "process".
    """
    if executable is None:
        return ProcessExecutor if kind == "process" else ThreadExecutor
    if kind != "process":
        raise ValueError(f"executable={safe_repr(executable)} is for worker processes: give kind='process', too")
    return partial(ProcessExecutor, executable=check_executable(executable))


# The options of a blocking pool, with checks.


@dataclass
class WorkerPoolConfig:
    """The options of a `WorkerPool`.

    Attributes:
        max_workers: maximum number of threads. They start when there is work.
        task_timeout_seconds: seconds that one attempt may run; `math.inf` for no limit.
        max_retries: maximum number of attempts after the first. Attempts that took too long count.
        backoff_base_seconds: seconds before the first retry. The delay doubles with each retry.
        backoff_max_seconds: maximum delay before a retry, in seconds.
        enable_instrumentation: whether to log each task with the logger "cuelight.pools" and to keep its metrics. A
            task is logged when it completes (debug), is tried again (info) or fails (warning, with its traceback).
    """

    max_workers: int = 50
    task_timeout_seconds: float = 180.0
    max_retries: int = 3
    backoff_base_seconds: float = 1.0
    backoff_max_seconds: float = 60.0
    enable_instrumentation: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is invalid; the message says which.
        """
        for field, least in {"max_workers": 1, "max_retries": 0}.items():
            count: Any = getattr(self, field)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"WorkerPoolConfig({field}={safe_repr(count)}): give a whole number, {least} or more")
        for field in ("backoff_base_seconds", "backoff_max_seconds"):
            delay: Any = getattr(self, field)
            if not _is_number(delay) or not 0 <= delay < math.inf:
                raise ValueError(f"WorkerPoolConfig({field}={safe_repr(delay)}): give seconds, 0 or more")
        if not _is_number(self.task_timeout_seconds) or not self.task_timeout_seconds > 0:
            raise ValueError(
                f"WorkerPoolConfig(task_timeout_seconds={safe_repr(self.task_timeout_seconds)}): give more than 0 "
                f"seconds, or math.inf for no time-out"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
