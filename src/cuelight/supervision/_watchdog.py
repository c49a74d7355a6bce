"""Reports handlers that run too long, with their stack. It uses a thread: a blocked loop cannot report itself."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors._reply import StreamSlot
from cuelight.mailbox import awaited_by

if TYPE_CHECKING:
    from cuelight.actors import ActorRuntime
    from cuelight.actors._dispatcher import BusyCell

log = get_log("cuelight.slow")

FEED = StreamSlot.feed.__code__


class Watchdog:
    """Checks the running handlers twice in each warning period. It uses real time, also under a virtual clock."""

    def __init__(self, runtime: ActorRuntime, slow_after: float) -> None:
        """Set up a watchdog.

        Args:
            runtime: the runtime whose handlers are watched.
            slow_after: seconds that a handler may run before it is reported, once.

        Raises:
            ValueError: `slow_after` is not more than 0.
        """
        if not slow_after > 0:
            raise ValueError(f"slow_after={slow_after!r}: give more than 0 seconds, or None")
        self._runtime = runtime
        self._slow_after = slow_after
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop_thread = 0
        self._observed: dict[BusyCell, ObservedHandler] = {}

    def start(self) -> None:
        """Start to watch the loop of the current thread."""
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="cuelight watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self._slow_after / 2):
            try:
                self.check(time.monotonic())
            except BaseException:
                log.exception("an internal error of Cuelight in looking for slow handlers; please report it")

    def check(self, now: float) -> None:
        """Compare the running handlers with those of the last check, and report the slow ones."""
        seen: dict[BusyCell, ObservedHandler] = {}
        for cell in self._runtime.busy_cells():
            running = cell.running
            before = self._observed.get(cell)
            if before is None or before.handled != cell.handled or before.running is not running:
                before = ObservedHandler(cell.handled, running, now)
            seen[cell] = before
            if not before.reported and now - before.since >= self._slow_after:
                before.reported = True
                self._report(cell, now - before.since)
        self._observed = seen

    def _report(self, cell: BusyCell, seconds: float) -> None:
        running = cell.running
        message = safe_repr(None if running is None else cell.content(running))
        log.warning(
            "%s has been handling %s for %.1f s, and %d messages wait (slow_after=%g). Its stack:\n%s",
            cell.path,
            message,
            seconds,
            len(cell),
            self._slow_after,
            self._where(cell),
        )

    def _where(self, cell: BusyCell) -> str:
        if self._runtime.turning is cell or getattr(getattr(cell, "coroutine", None), "cr_running", False):
            # The handler blocks the loop now, so the loop's thread is executing its code.
            frame = sys._current_frames().get(self._loop_thread)
            return "".join(traceback.format_stack(frame)) if frame is not None else "(the thread has ended)"
        return "".join(awaiting(getattr(cell, "coroutine", None)))


class ObservedHandler:
    """The message that a cell was handling at the last check, and the time when it was first seen."""

    __slots__ = ("handled", "reported", "running", "since")

    def __init__(self, handled: int, running: Any, since: float) -> None:
        self.handled, self.running, self.since = handled, running, since
        self.reported = False


def awaiting(coroutine: Any) -> list[str]:
    """Return the stack of a suspended coroutine: one line for each await, outermost first."""
    lines: list[str] = []
    at = coroutine
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n')
        if code is FEED:  # the awaited object does not reveal the generator that it belongs to
            at = frame.f_locals["chunks"]
            continue
        at = awaited_by(at) or getattr(at, "ag_await", None)
    return lines or ["  (not awaiting anything that can be shown)\n"]
