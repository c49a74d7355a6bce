"""What happened, written by every process to one file that nobody's death can spoil.

A line is written by one `write` to a file that was opened to append, so that lines of several processes do not mix and
a process that is killed leaves a whole line or none.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Event", "Ledger"]


@dataclass(frozen=True)
class Event:
    """One line.

    Attributes:
        at: seconds since the epoch.
        pid: who wrote it.
        what: "given" (its enqueue was acknowledged), "begun", "ended", "accepted" (its completion was) or "refused";
            of a lock "got", "sure" (to have it at that time), "lost", "written" or "stale" (a write that was refused).
        task: the identity of the task, or who holds the lock.
        epoch: of the attempt, 0 for "given"; of a lock the fence.
    """

    at: float
    pid: int
    what: str
    task: str
    epoch: int


class Ledger:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()

    def write(self, what: str, task: str, epoch: int = 0, at: float | None = None) -> None:
        """Add a line, of now or of the time that is given."""
        os.write(self._file, f"{time.time() if at is None else at:.6f} {self._pid} {what} {task} {epoch}\n".encode())

    def events(self) -> list[Event]:
        """All lines, in the order in which they were written."""
        found: list[Event] = []
        for line in self.path.read_text().splitlines():
            at, pid, what, task, epoch = line.split()
            found.append(Event(float(at), int(pid), what, task, int(epoch)))
        return found
