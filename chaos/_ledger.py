"""Events that all processes write to one file. The death of a process cannot damage it.

A line is written by one `write` to a file opened for appending. So lines of several processes do not mix, and a process
that is killed leaves a whole line or none.
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
        pid: the writing process.
        what: "given" (its enqueue was acknowledged), "begun", "ended", "accepted" (its completion was) or "refused";
            for a lock "got", "sure" (held for certain at that time), "lost", "written" or "stale" (a rejected write).
        task: the identity of the task, or the holder of the lock.
        epoch: the epoch of the attempt, 0 for "given"; for a lock the fence.
    """

    at: float
    pid: int
    what: str
    task: str
    epoch: int


class Ledger:
    """The file of events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()

    def write(self, what: str, task: str, epoch: int = 0, at: float | None = None) -> None:
        """Add a line, with the current time by default."""
        os.write(self._file, f"{time.time() if at is None else at:.6f} {self._pid} {what} {task} {epoch}\n".encode())

    def events(self) -> list[Event]:
        """All lines, in the order of writing."""
        found: list[Event] = []
        for line in self.path.read_text().splitlines():
            at, pid, what, task, epoch = line.split()
            found.append(Event(float(at), int(pid), what, task, int(epoch)))
        return found
