"""Delay of Ctrl-C until a short step is over.

Python raises `KeyboardInterrupt` anywhere in the main thread, also inside `threading.Thread.start`, which cannot
handle it: the new thread may never begin, or the exception may become a `RuntimeError`. Rare steps that must not be
interrupted use `InterruptsHeld`. All other steps can be interrupted.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class InterruptsHeld:
    """Holds SIGINT back during a block. If the signal came, the handler of the program is called at the end.

    Use it for blocks that take milliseconds at most. In other threads than the main thread it does nothing, because
    signals do not interrupt them.
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
