"""Tasks on asyncio and on trio: the running task, its loop, whether a task has ended, and where it is.

A loop is identified by an object: on asyncio the loop itself, on trio the root task of the run. All functions may be
called from any thread, unless they say otherwise.
"""

# Tasks and loops belong to either library, so annotations could say no more than Any.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
from asyncio import events as _events
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Final
from weakref import WeakKeyDictionary

from cuelight.mailbox._interrupts import hold_interrupts

if sys.version_info >= (3, 12):
    asyncio_task: Callable[[Any], Any] = asyncio.current_task
else:  # before 3.12 it is a slow function around this
    _current: Any = asyncio.tasks
    asyncio_task = _current._current_tasks.get
"""Returns the task that the given asyncio loop runs now, or None."""


class _LastTask(threading.local):
    task: Any = None  # the last trio task seen in this thread; the token of its run is in `_tokens`


_last_task = _LastTask()
_probe: Callable[[], bool] | None = None
_library: Any = None
_tokens: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()  # the tokens of trio runs, by root task
_watched: Final[dict[Any, dict[Any, Callable[[Any], object]]]] = {}  # by root task: watched tasks, callbacks


def running_task() -> Any:
    """Return the task that runs in this thread, or None outside of tasks."""
    loop = _events._get_running_loop()
    if loop is not None:
        return asyncio_task(loop)
    if not in_trio_task():
        return None
    lowlevel = sys.modules["trio"].lowlevel
    task = lowlevel.current_task()
    if task is not _last_task.task:
        hold_interrupts()
        _tokens[lowlevel.current_root_task()] = lowlevel.current_trio_token()
        _last_task.task = task
    return task


def in_trio_task() -> bool:
    """Return whether a trio task runs in this thread."""
    global _probe, _library  # noqa: PLW0603 - looked up once
    if _probe is None:
        _library = getattr(sys.modules.get("sniffio"), "thread_local", None)
        _probe = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
        if _probe is None:  # not imported, or not completely
            return False
    # Trio announces itself through sniffio. In a thread without trio, asking sniffio takes a tenth of the time.
    return (_library is None or _library.name == "trio") and _probe()


def running_loop() -> Any:
    """Return the loop that runs in this thread, or None."""
    loop = _events._get_running_loop()
    if loop is not None:
        return loop
    lowlevel = _trio_lowlevel()
    return lowlevel.current_root_task() if lowlevel is not None and lowlevel.in_trio_run() else None


def loop_of(task: Any) -> Any:
    """Return the loop of a task, or None if the object is not a task."""
    if isinstance(task, asyncio.Future):
        return task.get_loop()
    if not _is_trio(task):
        return None
    while task.parent_nursery is not None:
        task = task.parent_nursery.parent_task
    return task


def _trio_lowlevel() -> Any:
    """Return `trio.lowlevel`, or None if trio is not imported or another thread is still importing it."""
    return getattr(sys.modules.get("trio"), "lowlevel", None)


def _is_trio(task: Any) -> bool:
    lowlevel = _trio_lowlevel()
    return lowlevel is not None and isinstance(task, lowlevel.Task)


def coroutine_of(task: Any) -> Any:
    """Return the coroutine that a task runs, or None if the object is not a task."""
    if isinstance(task, asyncio.Task):
        return task.get_coro()
    return task.coro if _is_trio(task) else None


def has_ended(task: Any) -> bool:
    """Return whether a task has ended, or will never run again because its loop is closed."""
    if isinstance(task, asyncio.Future):
        return task.done() or task.get_loop().is_closed()
    return _is_trio(task) and inspect.getcoroutinestate(task.coro) == inspect.CORO_CLOSED


def source_location(task: Any) -> str | None:
    """Return the innermost frame of a task's coroutines as `file:line`, or None if it is unknown."""
    step, frame = coroutine_of(task), None
    while step is not None:
        frame = frame_of(step) or frame
        step = awaited_by(step)
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def frame_of(step: Any) -> FrameType | None:
    """Return the frame of a coroutine or generator, or None if it has none or has ended."""
    return getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None)


def awaited_by(step: Any) -> Any:
    """Return the coroutine or generator that a coroutine or generator awaits, or None if it is the innermost one."""
    awaited = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
    if type(awaited) is _Wrapper:
        return next(iter(gc.get_referents(awaited)), None)  # it has no attribute for the wrapped coroutine
    frame = frame_of(step)
    if awaited is None and frame is not None:
        find = drivers.get(frame.f_code)
        return None if find is None else find(frame.f_locals)
    return awaited


async def _coroutine() -> None:
    """A coroutine from which `_wrapper_type` gets the type of the object that `__await__` returns."""


def _wrapper_type() -> type[Any]:
    coroutine = _coroutine()
    try:
        return type(coroutine.__await__())
    finally:
        coroutine.close()


_Wrapper: Final = _wrapper_type()

drivers: Final[dict[CodeType, Callable[[Mapping[str, Any]], Any]]] = {}
"""For code that advances a coroutine by hand instead of awaiting it: finds that coroutine in the local variables."""


def call_in_loop(loop: Any, function: Callable[..., object], *args: object) -> bool:
    """Run `function(*args)` soon in a loop. Return whether that loop still lives."""
    try:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.call_soon_threadsafe(function, *args)
        else:
            _tokens[loop].run_sync_soon(function, *args)
    except (RuntimeError, KeyError):  # closed, or a trio run that has ended or never called `running_task`
        return False
    return True


def when_task_ends(task: Any, call: Callable[[Any], object]) -> bool:
    """Have `call(task)` called in the loop of a task when the task ends; once for each task.

    Returns:
        Whether its loop still lives.
    """
    loop = loop_of(task)
    watch = task.add_done_callback if isinstance(task, asyncio.Future) else _watch_trio
    args = (call,) if isinstance(task, asyncio.Future) else (loop, task, call)
    if running_loop() is loop:
        watch(*args)
        return True
    return call_in_loop(loop, watch, *args)


def _watch_trio(root: Any, task: Any, call: Callable[[Any], object]) -> None:
    if has_ended(task):
        call(task)
        return
    watched = _watched.get(root)
    if watched is None:
        watched = _watched[root] = {}
        lowlevel = sys.modules["trio"].lowlevel
        lowlevel.add_instrument(_ends_instrument(root, watched))
    watched[task] = call


def _ends_instrument(root: Any, watched: dict[Any, Callable[[Any], object]]) -> Any:
    """Make an instrument that watches for the ends of tasks.

    It is installed only while a task is watched, because it adds a cost to every task that ends.
    """
    trio = sys.modules["trio"]

    class Ends(trio.abc.Instrument):  # type: ignore[misc, name-defined, unused-ignore]
        def task_exited(self, task: Any) -> None:
            call = watched.pop(task, None)
            if not watched and _watched.pop(root, None) is not None:
                trio.lowlevel.remove_instrument(self)
            if call is not None:
                call(task)

        def after_run(self) -> None:
            _watched.pop(root, None)

    return Ends()
