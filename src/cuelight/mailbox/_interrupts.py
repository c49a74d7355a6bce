"""Ctrl-C on trio: which code it must not stop in the middle.

Trio's handler of SIGINT raises `KeyboardInterrupt` wherever the main thread is, in any task that is not trio's own. In
the middle of bookkeeping that costs a task that is never started, or a waiter that is never woken. But trio knows code
that is protected, and looks at the frames when a signal comes: while protected code runs it delivers the interrupt at
the next checkpoint of the main task instead. So all code of this library is registered there, once, when trio is first
used; a call or a message costs nothing.

Code that blocks its thread must stay interruptible, and so must the functions of users that run in a task of ours.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import cache, cached_property, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeVar, cast

__all__ = ["hold_interrupts", "interruptible", "run_interruptible"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PACKAGE: Final = "cuelight"

BLOCKING: Final = frozenset(
    {
        "cuelight.mailbox._threads",
        "cuelight.pools._blocking_map",
        "cuelight.pools._board",
        "cuelight.pools._interrupts",
        "cuelight.pools._process_call",
        "cuelight.pools._thread_crew",
        "cuelight.pools._thread_helpers",
        "cuelight.pools._thread_state",
        "cuelight.pools._thread_worker",
        "cuelight.pools._timekeeper",
        "cuelight.pools._worker_pool",
        "cuelight.redis._client._blocking",
        "cuelight.redis._locks._thread",
        "cuelight.supervision._blocking",
        "cuelight.tasks._blocking",
        "cuelight.tasks._blocking_queue",
    }
)
"""Modules whose functions block the thread that calls them. They expect an interrupt at any moment."""

_interruptible: Final[set[CodeType]] = set()
_held: Final[set[str]] = set()  # modules whose code trio knows
_modules = 0  # how many modules of whatever package there were then


class _Coded:
    """What trio takes in the place of a function."""

    def __init__(self, code: CodeType) -> None:
        self.__code__ = code


def interruptible(function: F) -> F:
    """Let an interrupt be raised in this function, and in what it calls that is not protected itself."""
    _interruptible.add(function.__code__)
    return function


@interruptible
async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def run_interruptible(awaitable: Awaitable[T]) -> T:
    """Await what a function of a user has returned. On trio interrupts may be raised in it, as in any code of users."""
    try:
        return await _await(awaitable)
    except BaseException:
        close = getattr(awaitable, "close", None)  # the interrupt may have come before it began
        if close is not None:
            close()
        raise


def hold_interrupts() -> None:
    """Have trio, which was imported, hold interrupts back while code of the modules runs that are loaded by now."""
    global _modules  # noqa: PLW0603 - so that it is cheap to ask again
    count = len(sys.modules)
    if count == _modules:
        return
    lowlevel: Any = sys.modules["trio"].lowlevel
    whole = True
    for name, module in tuple(sys.modules.items()):
        if name in _held or not (name == PACKAGE or name.startswith(f"{PACKAGE}.")):
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            whole = False  # another thread is importing it
            continue
        protected = name not in BLOCKING
        for code in _codes_of(module):
            protect = protected and code not in _interruptible
            (lowlevel.enable_ki_protection if protect else lowlevel.disable_ki_protection)(_Coded(code))
        _held.add(name)
    if whole:
        _modules = count


_LOOKED_INTO: Final[set[Any]] = {
    CellType,
    MethodType,
    cached_property,
    classmethod,
    dict,
    frozenset,
    list,
    partial,
    property,
    set,
    staticmethod,
    tuple,
    type(cache(len)),
}


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """All code of the functions that a module has defined."""
    home = vars(module)
    seen: dict[int, Any] = {}
    # Copied in one step: another thread may add to the module.
    todo: list[Any] = [value for name, value in tuple(home.items()) if name != "__builtins__"]
    while todo:
        value: Any = todo.pop()
        kind = cast("Any", type(value))
        if kind is FunctionType:
            if id(value) in seen:
                continue
            if value.__globals__ is home:
                yield from _with_nested(value.__code__)
            todo.extend((value.__closure__, value.__dict__, value.__defaults__, value.__kwdefaults__))
        elif kind in _LOOKED_INTO:
            if id(value) in seen:
                continue
            todo.extend(gc.get_referents(value))
        elif issubclass(kind, type) and value.__module__ == module.__name__ and id(value) not in seen:
            todo.extend(value.__dict__.values())
        else:
            continue
        seen[id(value)] = value


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
