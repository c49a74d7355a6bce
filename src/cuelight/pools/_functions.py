"""The policy of retries, and functions that look at or wrap a task's function. Pure functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from types import CoroutineType, FunctionType
from typing import Any, Final, Literal

from cuelight._text import safe_repr, safe_str
from cuelight.errors import RateLimited, TaskQuarantined, WorkerDied
from cuelight.pools._failures import is_a, is_final, rate_limit_delay

Kind = Literal["thread", "process"]
"""The kind of worker that runs plain functions. Async functions always run in the event loop."""

_NAME_LENGTH: Final = 200


class Attempts:
    """Counts of the attempts of one task that were followed by another attempt.

    Attributes:
        errors: attempts that raised or took too long.
        crashes: attempts whose worker died.
        elapsed_ms: milliseconds that all these attempts ran.
        delay: seconds until the next attempt, if the last one was rate limited; None if the next one begins at once.
    """

    __slots__ = ("crashes", "delay", "elapsed_ms", "errors")

    def __init__(self) -> None:
        self.errors = self.crashes = 0
        self.elapsed_ms = 0.0
        self.delay: float | None = None


def retry_or_error(attempts: Attempts, error: Exception, *, retries: int, max_crashes: int) -> Exception | None:
    """Return the final error of the task, or count the attempt and return None if the task is tried again."""
    attempts.delay = None
    if is_a(error, RateLimited):
        attempts.delay = rate_limit_delay(error)  # type: ignore[arg-type]  # checked by its type
        return None
    if is_a(error, WorkerDied):
        crashes = attempts.crashes + 1
        if crashes >= max_crashes:
            quarantined = TaskQuarantined(
                f"{crashes} workers died under this task, as many as max_crashes allows; the last: {safe_str(error)}"
            )
            quarantined.__cause__ = error
            return quarantined
        attempts.crashes = crashes
        return None
    if attempts.errors >= retries or is_final(error):
        return error
    attempts.errors += 1
    return None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether the function returns a coroutine, as far as this can be seen without a call."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class PendingCoroutine:
    """A coroutine that a plain function has returned in a thread, as `lambda: fetch(url)` does.

    The event loop awaits the coroutine. If the call was cancelled meanwhile, so that nobody awaits it, it is closed.

    Make this object before the coroutine: the garbage collector runs the finalizers of a cycle by age, and the
    finalizer of a coroutine warns that the coroutine was never awaited.
    """

    __slots__ = ("_coroutine",)

    def __init__(self) -> None:
        self._coroutine: CoroutineType[Any, Any, Any] | None = None

    def holding(self, coroutine: Any) -> PendingCoroutine:
        self._coroutine = coroutine
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, self._coroutine = self._coroutine, None
        assert coroutine is not None  # noqa: S101 - it is awaited once
        return coroutine.__await__()

    def __del__(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()


def wrap_coroutines(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function: if it returns a coroutine, the wrapper returns that as `PendingCoroutine`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        holder = PendingCoroutine()
        value: Any = function(*args, **kwargs)
        return holder.holding(value) if type(value) is CoroutineType else value

    call.wrapped_function = function  # type: ignore[attr-defined]  # so that its name is looked up only on demand
    return call


def wrap_coroutine(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A faster `wrap_coroutines` for functions of one argument."""
    spare: list[PendingCoroutine] = []  # most calls return no coroutine, so their holder can be used again

    def call(item: Any) -> Any:
        try:
            holder = spare.pop()
        except IndexError:
            holder = PendingCoroutine()
        value: Any = function(item)
        if type(value) is CoroutineType:
            return holder.holding(value)
        spare.append(holder)
        return value

    call.wrapped_function = function  # type: ignore[attr-defined]
    return call


_made: tuple[Any, Any] = wrap_coroutines(len), wrap_coroutine(len)
_WRAPPERS: Final = frozenset(made.__code__ for made in _made)


def unwrapped(function: Any) -> Any:
    """The function without `functools.partial` and without the wrappers of this module."""
    inner = function
    while True:
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif type(inner) is FunctionType and inner.__code__ in _WRAPPERS:
            inner = inner.__dict__["wrapped_function"]
        else:
            return inner


def name_of(function: Callable[..., Any]) -> str:
    """The readable name of a function. Never raises, although the function may be an object of any type."""
    if type(function) is FunctionType and function.__code__ not in _WRAPPERS:
        return function.__qualname__
    try:
        inner: Any = unwrapped(function)
        name: object = getattr(inner, "__qualname__", None) or type(inner).__qualname__
        return safe_str(name, _NAME_LENGTH)
    except Exception:
        return "a function"


def check_kind(function: Callable[..., Any], kind: Kind | None) -> bool:
    """Check the function, and return whether it runs in the event loop.

    Raises:
        TypeError: it cannot be called, or is async although the pool runs plain functions only.
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
