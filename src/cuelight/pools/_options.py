"""The options of a pool, and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cuelight._text import safe_repr
from cuelight.pools._process_start import check_executable
from cuelight.pools._processes import ProcessExecutor
from cuelight.pools._threads import ThreadExecutor

if TYPE_CHECKING:
    from cuelight.pools._attempts import Kind
    from cuelight.pools._executor import Executor


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
