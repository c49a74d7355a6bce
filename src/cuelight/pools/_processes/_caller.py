"""A worker process for a thread that blocks while it waits."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final

from cuelight.pools._failures import without_our_frame
from cuelight.pools._processes._executor import ProcessAnswer, encode_checked_call, death_error
from cuelight.pools._processes._link import WorkerProcess
from cuelight.pools._threads._executor import full_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools._threads._executor import Outcome

_CLOSE: Final = 5.0  # seconds that an idle process may take to end before it is killed


class ProcessCaller:
    """Runs one call at a time in a process that starts with the first call. A `ProcessExecutor` without an event loop.

    Attributes:
        killed: whether `kill` was called. No call begins until this is set to False again.
    """

    def __init__(self, name: str, executable: str | None = None) -> None:
        self.name = name
        self._executable = executable
        self.killed = False
        self._link: WorkerProcess | None = None

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Call the function in the process, and block until it has returned or raised, or the process has died."""
        try:
            frame = encode_checked_call(function, args, kwargs)
            answer = self._exchange(frame)
            if answer.death is not None and not answer.begun and not self.killed:
                answer = self._exchange(frame)  # the process died before it began the call
        except BaseException as error:
            return False, without_our_frame(error)  # there is no process, or the call could not be pickled
        return answer.outcomes[0] if answer.outcomes else (False, death_error(self.name, answer, full_name(function)))

    def kill(self) -> None:
        """Kill the process, and so end its current call, if any. May be called from any thread."""
        self.killed = True
        link = self._link
        if link is not None:
            link.kill()

    def close(self) -> None:
        """End the process. Call this only between calls."""
        link, self._link = self._link, None
        if link is not None:
            link.close_writing()
            _poll(link, select.POLLIN, _CLOSE)  # the socket is readable once the process has closed its end
            link.kill()
            link.wait()
            link.close()

    def _exchange(self, frame: bytes) -> ProcessAnswer:
        if self._link is None:
            self._link = WorkerProcess(self._executable)
        link = self._link
        try:
            if self.killed:
                raise EOFError
            link.begin(frame)
            while not link.send():
                _poll(link, select.POLLOUT)
            while (kind := link.receive()) is None:
                _poll(link, select.POLLIN)
            return ProcessAnswer.of(link, kind)
        except (EOFError, OSError):
            self._link = None
            link.kill()
            link.wait()
            answer = ProcessAnswer.of_dead(link)
            link.close()
            return answer


def _poll(link: WorkerProcess, event: int, limit: float | None = None) -> None:
    poll = select.poll()
    poll.register(link, event)
    poll.poll(None if limit is None else limit * 1000)
