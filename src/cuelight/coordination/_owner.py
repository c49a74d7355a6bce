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

    from cuelight.coordination._lock_state import Place

_running_asyncio: Final = _events._get_running_loop
_modules: Final = sys.modules
_handling: Final = current_cell.get
_getframe: Final = sys._getframe

_OURS: Final = (__file__.rpartition(os.sep)[0], contextlib.__file__)
_is_ours: Final[dict[str, bool]] = {}


class _Sentinel:
    """An object in the thread-local storage of a thread, so that it is freed when the thread ends."""

    __slots__ = ("__weakref__",)


class ThreadParty:
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
        tell = self.when_ended
        if tell is not None:
            tell(self)

    def place(self) -> str | None:
        """The current place of the thread, as `file:line`."""
        frame = None if self.ended or self.ident is None else sys._current_frames().get(self.ident)
        return None if frame is None else _show(_outside(frame))

    def __str__(self) -> str:
        thread = self._thread()
        return f"thread {thread.name if thread is not None else self.ident!r}"


class _Here(threading.local):
    def __init__(self) -> None:
        self.me = ThreadParty()
        self.sentinel = _Sentinel()
        weakref.finalize(self.sentinel, self.me.end).atexit = False


here: Final = _Here()
"""Thread-local: `here.me` is the running thread as an owner."""


def whoever() -> Any:
    """The owner that runs this code: the actor in its handler, otherwise the task, otherwise the thread."""
    loop = _running_asyncio()
    if loop is not None:
        task = asyncio_task(loop)
    elif "trio" in _modules:
        task = running_task()
    else:
        return here.me
    cell = _handling()
    if cell is not None and (task is not None or loop is not None) and cell.runs(task):
        return cell
    return here.me if task is None else task  # the owner of a loop's callback is the thread


def plain_task() -> Any:
    """The running task, if it is the owner that runs this code; None in handlers of actors and outside of tasks."""
    return running_task() if _handling() is None else None


def party_ended(party: Any) -> bool:
    """Whether an owner has ended, so that it will never release its locks."""
    if isinstance(party, ThreadParty):
        return party.ended
    if isinstance(party, Cell):
        return party.dead
    return has_ended(party)


def describe(party: Any) -> str:
    """An owner in words."""
    name = name_of(party)
    return f"actor {name}" if isinstance(party, Cell) else name


def place_now(party: Any) -> str | None:
    """The current place of an owner, as `file:line`, if it can be determined."""
    if isinstance(party, ThreadParty):
        return party.place()
    return None if isinstance(party, Cell) else source_location(party)


def show_place(place: Place) -> str | None:
    """A place as `file:line`."""
    if not isinstance(place, tuple):
        return place
    code, instruction = place
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    return f"{code.co_filename}:{line or code.co_firstlineno}"


def caller_place(depth: int) -> Place:
    """The place found by `my_place`, in less time; in the form that `show_place` takes.

    Args:
        depth: the number of callers to skip. They must be functions of this package.
    """
    frame: FrameType = _getframe(depth)
    if _is_ours.get(frame.f_code.co_filename) is not False:
        outside = _outside(frame)
        return None if outside is None else (outside.f_code, outside.f_lasti)
    return frame.f_code, frame.f_lasti


def my_place() -> str | None:
    """The place of the code that called into this package, as `file:line`."""
    return _show(_outside(sys._getframe(1)))


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


def _show(frame: FrameType | None) -> str | None:
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
