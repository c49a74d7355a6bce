"""A worker process for a thread that blocks while it waits."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final

from cuelight.pools._failures import without_our_frame
from cuelight.pools._processes._executor import ProcessAnswer, death_error, encode_checked_call
from cuelight.pools._processes._worker_process import WorkerProcess
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
        self._process: WorkerProcess | None = None

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
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process. Call this only between calls."""
        process, self._process = self._process, None
        if process is not None:
            process.close_writing()
            _poll(process, select.POLLIN, _CLOSE)  # the socket is readable once the process has closed its end
            process.kill()
            process.wait()
            process.close()

    def _exchange(self, frame: bytes) -> ProcessAnswer:
        if self._process is None:
            self._process = WorkerProcess(self._executable)
        process = self._process
        try:
            if self.killed:
                raise EOFError
            process.begin(frame)
            while not process.send():
                _poll(process, select.POLLOUT)
            while (kind := process.receive()) is None:
                _poll(process, select.POLLIN)
            return ProcessAnswer.of(process, kind)
        except (EOFError, OSError):
            self._process = None
            process.kill()
            process.wait()
            answer = ProcessAnswer.of_dead(process)
            process.close()
            return answer


def _poll(process: WorkerProcess, event: int, limit: float | None = None) -> None:
    poll = select.poll()
    poll.register(process, event)
    poll.poll(None if limit is None else limit * 1000)
