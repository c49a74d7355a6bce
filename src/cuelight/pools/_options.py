"""The options of a pool, checked where they are given."""

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

__all__ = [
    "DEFAULT",
    "Default",
    "PoolOptions",
    "check_priority",
    "check_text",
    "check_timeout",
    "check_whole",
    "make_executor",
]


class Default:
    """Stands for: as the pool has it."""

    def __repr__(self) -> str:
        return "the pool's"


DEFAULT: Final = Default()


def check_whole(what: str, value: Any, least: int) -> int:
    """A whole number from `least` up.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what}={safe_repr(value)}: give a whole number, {least} or more")
    return value


def check_priority(priority: Any) -> int:
    """A priority, as a plain number: tasks are compared by it.

    Raises:
        TypeError: it is no whole number.
    """
    if not isinstance(priority, int):
        raise TypeError(f"priority={safe_repr(priority)}: give a whole number; smaller ones go first")
    return int.__int__(priority)


def check_text(what: str, text: Any) -> str:
    """A text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}={safe_repr(text)}: give a string")
    return str.__str__(text)


def check_timeout(timeout: Any) -> float | None:
    """Seconds, or None for no limit.

    Raises:
        ValueError: it is neither.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give more than 0 seconds, or None for no limit")
    return None if timeout == math.inf else float(timeout)


class PoolOptions(msgspec.Struct, frozen=True):
    """How a pool works; see `AsyncWorkerPool`."""

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
        check_timeout(self.timeout)


def make_executor(kind: Kind | None, executable: Any = None) -> Callable[[str], Executor]:
    """What makes the executor of a worker.

    Raises:
        TypeError: the executable is no path.
        ValueError: there is no such file, or no process for it.
    """
    if executable is None:
        return ProcessExecutor if kind == "process" else ThreadExecutor
    if kind != "process":
        raise ValueError(f"executable={safe_repr(executable)} is for worker processes: give kind='process', too")
    return partial(ProcessExecutor, executable=check_executable(executable))
