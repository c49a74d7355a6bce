"""What code of users may do wherever the library calls it, and the register of the places where it does.

A test module for a part of the library has one function for each place, marked with `@covers(...)`, and runs it with
each case. `test_inventory.py` compares the register with the public signatures, so that no new place is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel

F = TypeVar("F", bound=Callable[..., Any])

COVERED: Final[dict[str, str]] = {}
"""Where the library calls code of users, as `Actor.pipe_to_self(to_message)`, and the test that covers it."""


def covers(*places: str) -> Callable[[F], F]:
    """Enter the places that a function covers into the register."""

    def enter(function: F) -> F:
        for place in places:
            COVERED[place] = f"{function.__module__}.{function.__name__}"
        return function

    return enter


class Odd(BaseException):
    """No `Exception`, and nothing that ends programs."""


class Unprintable(Exception):
    """Raises when somebody wants to read it, hash it, compare it or test its truth."""

    def __str__(self) -> NoReturn:
        raise ValueError("this error cannot be printed")

    __repr__ = __str__
    __bool__ = __str__

    def __eq__(self, other: object) -> NoReturn:
        raise ValueError("this error cannot be compared")

    def __hash__(self) -> NoReturn:
        raise ValueError("this error cannot be hashed")


class Unpicklable(Exception):
    """Cannot leave its process."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("this error cannot be pickled")


class Case:
    """One thing that code of users does.

    Attributes:
        name: of the case.
        raises: whether it raises, in a function and in a coroutine alike.
        ends_the_program: whether it is meant to end more than the piece of work.
        suspends: whether it only makes sense in a coroutine.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], BaseException] | None = None,
        *,
        ends_the_program: bool = False,
        suspends: bool = False,
    ) -> None:
        self.name = name
        self.raises = make is not None
        self.ends_the_program, self.suspends = ends_the_program, suspends
        self._make = make

    def __repr__(self) -> str:
        return self.name

    def error(self) -> BaseException:
        """A new exception of this case."""
        assert self._make is not None
        return self._make()

    def act(self) -> None:
        """What a function does."""
        if self._make is not None:
            raise self._make()
        if self.name == "blocks":
            time.sleep(0.01)

    async def act_async(self) -> None:
        """What a coroutine does."""
        if self.name == "never returns":
            await anyio.sleep_forever()
        elif self.name == "swallows cancellations":
            await _swallow(3)
        else:
            self.act()


async def _swallow(times: int) -> None:
    """Go on after so many cancellations, as `except:` around an await does."""
    for _ in range(times):
        try:
            await anyio.sleep_forever()
        except BaseException:
            pass


class _Stray:
    """A cancellation that is meant for nobody who runs now: of the loop that runs."""

    error: BaseException = asyncio.CancelledError()


async def catch_a_stray_cancellation() -> None:
    """Make the case "CancelledError" one of the running loop. Call it at the beginning of a test."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException as error:
            _Stray.error = error.with_traceback(None)
            raise


def _recursion() -> BaseException:
    def fall() -> None:
        fall()

    try:
        fall()
    except RecursionError as error:
        return error.with_traceback(None)
    raise AssertionError


def _deep_group() -> BaseException:
    group: Any = ValueError("inside")
    for _ in range(2_000):
        group = ExceptionGroup("deep", [group])
    return group  # type: ignore[no-any-return]


CASES: Final[dict[str, Case]] = {
    case.name: case
    for case in (
        Case("Exception", lambda: ValueError("no such row")),
        Case("BaseException", lambda: Odd("odd")),
        Case("KeyboardInterrupt", KeyboardInterrupt, ends_the_program=True),
        Case("SystemExit", lambda: SystemExit(3), ends_the_program=True),
        Case("GeneratorExit", GeneratorExit),
        Case("StopIteration", lambda: StopIteration("stop")),
        Case("StopAsyncIteration", lambda: StopAsyncIteration("stop")),
        Case("RecursionError", _recursion),
        Case("MemoryError", MemoryError),
        Case("CancelledError", lambda: _Stray.error),
        Case("TimeoutError", lambda: TimeoutError("late")),
        Case("ExceptionGroup", lambda: ExceptionGroup("several", [ValueError("a"), TypeError("b")])),
        Case("nested groups", lambda: BaseExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("a")]), Odd()])),
        Case("deep groups", _deep_group),
        Case("a group with SystemExit", lambda: BaseExceptionGroup("several", [SystemExit(3)]), ends_the_program=True),
        Case("unprintable", Unprintable),
        Case("unpicklable", lambda: Unpicklable("stays here")),
        Case("long text", lambda: ValueError("x" * 1_000_000)),
        Case("half a surrogate pair", lambda: ValueError("caf\udce9")),
        Case("blocks"),
        Case("never returns", suspends=True),
        Case("swallows cancellations", suspends=True),
    )
}

RAISING: Final = [case for case in CASES.values() if case.raises]
"""The cases that raise: for functions that are called."""

NEVER: Final = [case for case in CASES.values() if case.suspends]
"""The cases that are about coroutines."""

CALLED: Final = [*RAISING, CASES["blocks"]]
"""The cases of functions."""

AWAITED: Final = [*CALLED, *NEVER]
"""The cases of coroutines."""


def is_of(case: Case, raised: BaseException) -> bool:
    """Whether an exception is that of the case; Python itself makes a RuntimeError of some in coroutines."""
    if not case.raises:
        return False
    kind = type(case.error())
    return type(raised) is kind or (kind in {StopIteration, StopAsyncIteration} and type(raised) is RuntimeError)


@contextmanager
def comes_out(case: Case) -> Generator[None]:
    """What the case raises comes out of the block, and nothing else does."""
    try:
        yield
    except BaseException as raised:
        if not is_of(case, raised):
            raise
    else:
        if case.raises:
            raise AssertionError(f"nothing came out of {case}")


class ProgressBar:
    """Stands for that of tqdm, and does what the case does in one of its methods."""

    def __init__(self, case: Case, where: str, **_: Any) -> None:
        self.case, self.where = case, where

    def update(self) -> None:
        if self.where == "update":
            self.case.act()

    def close(self) -> None:
        if self.where == "close":
            self.case.act()
