"""What follows from an attempt: the policy of retries, and how a function is to be called. Pure functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from types import CoroutineType, FunctionType
from typing import Any, Final, Literal

from cuelight._text import safe_repr, safe_str
from cuelight.errors import RateLimited, TaskQuarantined, WorkerDied
from cuelight.pools._failures import is_a, is_final, rate_limit_delay

__all__ = [
    "Kind",
    "Tries",
    "Unawaited",
    "check_kind",
    "holding_coroutine",
    "holding_coroutines",
    "is_async",
    "name_of",
    "verdict",
    "what_is_called",
]

Kind = Literal["thread", "process"]
"""What runs plain functions; async functions always run in the loop."""

_NAME_LENGTH: Final = 200


class Tries:
    """The attempts of one task after which it was tried again.

    Attributes:
        errors: those that raised or took too long.
        crashes: those whose worker died.
        elapsed_ms: milliseconds that all of them ran.
        delay: seconds until the next one, if the last one was told to come later; None if it comes at once.
    """

    __slots__ = ("crashes", "delay", "elapsed_ms", "errors")

    def __init__(self) -> None:
        self.errors = self.crashes = 0
        self.elapsed_ms = 0.0
        self.delay: float | None = None


def verdict(tries: Tries, error: Exception, *, retries: int, max_crashes: int) -> Exception | None:
    """Returns the error that the task ends with, or None, counted, if it is to be tried again."""
    tries.delay = None
    if is_a(error, RateLimited):
        tries.delay = rate_limit_delay(error)  # type: ignore[arg-type]  # looked at by its type
        return None
    if is_a(error, WorkerDied):
        crashes = tries.crashes + 1
        if crashes >= max_crashes:
            quarantined = TaskQuarantined(
                f"{crashes} workers died under this task, as many as max_crashes allows; the last: {safe_str(error)}"
            )
            quarantined.__cause__ = error
            return quarantined
        tries.crashes = crashes
        return None
    if tries.errors >= retries or is_final(error):
        return error
    tries.errors += 1
    return None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine, as far as can be seen without a call."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class Unawaited:
    """A coroutine that a plain function has returned in a thread, as `lambda: fetch(url)` does.

    It is awaited in the loop. If nobody takes it, because the call was cancelled meanwhile, it is closed.

    It must be made before the coroutine: the garbage collector runs the finalizers of a cycle by age, and that of a
    coroutine warns that it was never awaited.
    """

    __slots__ = ("_coroutine",)

    def __init__(self) -> None:
        self._coroutine: CoroutineType[Any, Any, Any] | None = None

    def holding(self, coroutine: Any) -> Unawaited:
        """Itself, with the coroutine."""
        self._coroutine = coroutine
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, self._coroutine = self._coroutine, None
        assert coroutine is not None  # noqa: S101 - it is awaited once
        return coroutine.__await__()

    def __del__(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()


def holding_coroutines(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but a coroutine that it returns comes as `Unawaited`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        holder = Unawaited()
        value: Any = function(*args, **kwargs)
        return holder.holding(value) if type(value) is CoroutineType else value

    call.held_function = function  # type: ignore[attr-defined]  # its name is looked up when somebody asks
    return call


def holding_coroutine(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As `holding_coroutines`, for a function of one argument, in less time."""
    spare: list[Unawaited] = []  # most functions return no coroutine, and need no holder of their own

    def call(item: Any) -> Any:
        try:
            holder = spare.pop()
        except IndexError:
            holder = Unawaited()
        value: Any = function(item)
        if type(value) is CoroutineType:
            return holder.holding(value)
        spare.append(holder)
        return value

    call.held_function = function  # type: ignore[attr-defined]
    return call


_made: tuple[Any, Any] = holding_coroutines(len), holding_coroutine(len)
_HOLDING: Final = frozenset(made.__code__ for made in _made)


def what_is_called(function: Any) -> Any:
    """The function itself, without `functools.partial` and what was wrapped around it here."""
    inner = function
    while True:
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif type(inner) is FunctionType and inner.__code__ in _HOLDING:
            inner = inner.__dict__["held_function"]
        else:
            return inner


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, for people. Never raises: the function may be an object of any kind."""
    if type(function) is FunctionType and function.__code__ not in _HOLDING:
        return function.__qualname__
    try:
        inner: Any = what_is_called(function)
        name: object = getattr(inner, "__qualname__", None) or type(inner).__qualname__
        return safe_str(name, _NAME_LENGTH)
    except Exception:
        return "a function"


def check_kind(function: Callable[..., Any], kind: Kind | None) -> bool:
    """Whether the function runs in the loop.

    Raises:
        TypeError: it cannot be called, or is async and the pool runs plain functions only.
    """
    if not callable(function):
        raise TypeError(f"{safe_repr(function)} cannot be called: give a function, and its arguments after it")
    in_loop = is_async(function)
    if in_loop and kind is not None:
        raise TypeError(
            f"{name_of(function)} is an async function, and this pool runs plain functions (kind={kind!r}): "
            f"give it to a pool without kind"
        )
    return in_loop
