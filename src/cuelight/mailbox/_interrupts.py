"""Ctrl-C on trio: protect the library's code from a `KeyboardInterrupt` in the middle of its bookkeeping.

Trio's handler of SIGINT raises `KeyboardInterrupt` at any point of the main thread, in any task that is not trio's own.
In the middle of bookkeeping that could leave a task that is never started, or a waiter that is never woken. Trio keeps
a register of protected code and looks at the frames when a signal arrives: while protected code runs, it delivers the
interrupt at the next checkpoint of the main task instead. So all code of this library is registered once, when trio is
first used. This costs nothing per call or message.

Code that blocks its thread must stay interruptible, and so must users' functions that run in the library's tasks.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import cache, cached_property, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PACKAGE: Final = "cuelight"

BLOCKING: Final = frozenset(
    {
        "cuelight.mailbox._thread_channel",
        "cuelight.pools._maps._blocking",
        "cuelight._blocking_proxy",
        "cuelight.pools._threads._job_table",
        "cuelight.pools._interrupts",
        "cuelight.pools._processes._caller",
        "cuelight.pools._threads._pool",
        "cuelight.pools._threads._extra_threads",
        "cuelight.pools._threads._state",
        "cuelight.pools._threads._worker",
        "cuelight.pools._threads._timer",
        "cuelight.pools._worker_pool",
        "cuelight.redis._client._blocking",
        "cuelight.redis._locks._renewal",
        "cuelight.supervision._blocking_system",
        "cuelight.tasks._queue._blocking",
    }
)
"""Modules whose functions block the calling thread. They expect an interrupt at any moment."""

_interruptible: Final[set[CodeType]] = set()
_protected_modules: Final[set[str]] = set()  # modules whose code is registered with trio
_modules = 0  # the length of `sys.modules` at the last complete registration


class _Coded:
    """An object with a code object, which trio accepts like a function."""

    def __init__(self, code: CodeType) -> None:
        self.__code__ = code


def interruptible(function: F) -> F:
    """Let an interrupt be raised in this function, and in the unprotected code that it calls."""
    _interruptible.add(function.__code__)
    return function


@interruptible
async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def run_interruptible(awaitable: Awaitable[T]) -> T:
    """Await the result of a user's function. On trio, interrupts may be raised in it, as in any code of users."""
    try:
        return await _await(awaitable)
    except BaseException:
        close = getattr(awaitable, "close", None)  # the interrupt may have arrived before it began
        if close is not None:
            close()
        raise


def hold_interrupts() -> None:
    """Register the modules loaded so far, so that trio holds interrupts back in their code. Trio must be imported."""
    global _modules  # noqa: PLW0603 - makes repeated calls cheap
    count = len(sys.modules)
    if count == _modules:
        return
    lowlevel: Any = sys.modules["trio"].lowlevel
    whole = True
    for name, module in tuple(sys.modules.items()):
        if name in _protected_modules or not (name == PACKAGE or name.startswith(f"{PACKAGE}.")):
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            whole = False  # another thread is still importing it
            continue
        protected = name not in BLOCKING
        for code in _codes_of(module):
            protect = protected and code not in _interruptible
            (lowlevel.enable_ki_protection if protect else lowlevel.disable_ki_protection)(_Coded(code))
        _protected_modules.add(name)
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
    """Yield the code of every function that is defined in a module."""
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
