"""The owners of locks: threads, tasks of either library, and actors (for as long as an incarnation lives)."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from asyncio import events as _events
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cuelight.actors import Cell, current_cell, name_of
from cuelight.mailbox import asyncio_task, has_ended, running_task, source_location

if TYPE_CHECKING:
    from types import FrameType

    from cuelight.coordination._lock_state import CodeLocation

_running_asyncio: Final = _events._get_running_loop
_modules: Final = sys.modules
_handling: Final = current_cell.get
_getframe: Final = sys._getframe

_OURS: Final = (__file__.rpartition(os.sep)[0], contextlib.__file__)
_is_ours: Final[dict[str, bool]] = {}


class _Sentinel:
    """An object in the thread-local storage of a thread, so that it is freed when the thread ends."""

    __slots__ = ("__weakref__",)


class ThreadOwner:
    """A thread as an owner. Not identified by its number, which a new thread may get after this one has ended."""

    __slots__ = ("_thread", "ended", "ident", "when_ended")

    def __init__(self) -> None:
        thread = threading.current_thread()
        self._thread = weakref.ref(thread)
        self.ident = thread.ident
        self.ended = False
        self.when_ended: Callable[[Any], object] | None = None

    def end(self) -> None:
        """Mark the thread as ended."""
        self.ended = True
        callback = self.when_ended
        if callback is not None:
            callback(self)

    def location(self) -> str | None:
        """The current place of the thread, as `file:line`."""
        frame = None if self.ended or self.ident is None else sys._current_frames().get(self.ident)
        return None if frame is None else _format_frame(_outside(frame))

    def __str__(self) -> str:
        thread = self._thread()
        return f"thread {thread.name if thread is not None else self.ident!r}"


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.owner = ThreadOwner()
        self.sentinel = _Sentinel()
        weakref.finalize(self.sentinel, self.owner.end).atexit = False


this_thread: Final = _ThisThread()
"""Thread-local: `this_thread.owner` is the running thread as an owner."""


def current_owner() -> Any:
    """The owner that runs this code: the actor in its handler, otherwise the task, otherwise the thread."""
    loop = _running_asyncio()
    if loop is not None:
        task = asyncio_task(loop)
    elif "trio" in _modules:
        task = running_task()
    else:
        return this_thread.owner
    cell = _handling()
    if cell is not None and (task is not None or loop is not None) and cell.runs(task):
        return cell
    return this_thread.owner if task is None else task  # the owner of a loop's callback is the thread


def plain_task() -> Any:
    """The running task, if it is the owner that runs this code; None in handlers of actors and outside of tasks."""
    return running_task() if _handling() is None else None


def owner_ended(owner: Any) -> bool:
    """Whether an owner has ended, so that it will never release its locks."""
    if isinstance(owner, ThreadOwner):
        return owner.ended
    if isinstance(owner, Cell):
        return owner.dead
    return has_ended(owner)


def describe(owner: Any) -> str:
    """An owner in words."""
    name = name_of(owner)
    return f"actor {name}" if isinstance(owner, Cell) else name


def owner_location(owner: Any) -> str | None:
    """The current place of an owner, as `file:line`, if it can be determined."""
    if isinstance(owner, ThreadOwner):
        return owner.location()
    return None if isinstance(owner, Cell) else source_location(owner)


def format_location(place: CodeLocation) -> str | None:
    """A place as `file:line`."""
    if not isinstance(place, tuple):
        return place
    code, instruction = place
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    return f"{code.co_filename}:{line or code.co_firstlineno}"


def raw_caller_location(depth: int) -> CodeLocation:
    """The place found by `caller_location`, in less time; in the form that `format_location` takes.

    Args:
        depth: the number of callers to skip. They must be functions of this package.
    """
    frame: FrameType = _getframe(depth)
    if _is_ours.get(frame.f_code.co_filename) is not False:
        outside = _outside(frame)
        return None if outside is None else (outside.f_code, outside.f_lasti)
    return frame.f_code, frame.f_lasti


def caller_location() -> str | None:
    """The place of the code that called into this package, as `file:line`."""
    return _format_frame(_outside(sys._getframe(1)))


def _outside(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        file = frame.f_code.co_filename
        ours = _is_ours.get(file)
        if ours is None:
            ours = _is_ours[file] = file.startswith(_OURS)
        if not ours:
            break
        frame = frame.f_back
    return frame


def _format_frame(frame: FrameType | None) -> str | None:
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
