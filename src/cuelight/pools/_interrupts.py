"""Ctrl-C comes at a bad moment: it is held back until a short step is over.

Python raises `KeyboardInterrupt` in the main thread wherever that is, also in the middle of `threading.Thread.start`,
which is not made for it: the new thread may never begin, or the exception may become a `RuntimeError`. Steps that are
rare and that must be done whole are done with `InterruptsHeld`. All others can be interrupted.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["InterruptsHeld"]


class InterruptsHeld:
    """For the time of a block SIGINT does nothing; at its end the handler of the program is called if it came.

    It is for blocks that take milliseconds at most. Elsewhere than in the main thread it does nothing: signals do not
    interrupt other threads.
    """

    __slots__ = ("_frame", "_handler", "_held")

    def __init__(self) -> None:
        self._handler: Any = None
        self._held = False
        self._frame: FrameType | None = None

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            try:
                signal.signal(signal.SIGINT, self._hold)
            except ValueError:  # the main thread of a subinterpreter
                self._handler = None

    def _hold(self, _number: int, frame: FrameType | None) -> None:
        self._held, self._frame = True, frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handler, self._handler = self._handler, None
        if handler is None:
            return
        signal.signal(signal.SIGINT, handler)
        frame, self._frame = self._frame, None
        if self._held:
            handler(signal.SIGINT, frame)
