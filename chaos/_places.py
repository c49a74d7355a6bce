"""The place that stores the queue of a storm, and the faults of that place."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Protocol

from chaos._verdict import Trouble
from cuelight.tasks import SQLiteStore, Store

__all__ = ["Place", "SQLitePlace"]


class Place(Protocol):
    """The place that stores a queue.

    Attributes:
        address: the path of a file or a URL, for the processes.
        kinds: the possible faults, with their weights in the draw.
        troubles: the times in which it was unreliable, and the data that it forgot in them.
        extras: further options for the processes.
    """

    address: str
    kinds: dict[str, int]
    troubles: list[Trouble]
    extras: dict[str, str]

    def store(self) -> Store:
        """The queue's store, for an observer."""
        ...

    def can_freeze(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the process can be frozen now without blocking others."""
        ...

    def strike(self, kind: str, random: Random) -> bool:
        """Cause a fault. False if it is in trouble already."""
        ...

    def go_on(self) -> None:
        """End the faults that are due to end."""
        ...

    def heal(self) -> None:
        """End all faults at once."""
        ...

    def close(self) -> None:
        """Release its resources."""
        ...


class SQLitePlace:
    """A queue in a file."""

    def __init__(self, folder: Path, queue: str) -> None:
        self._path, self._queue = folder / "queue.db", queue
        self.address = str(self._path)
        self.kinds: dict[str, int] = {}
        self.troubles: list[Trouble] = []
        self.extras: dict[str, str] = {}

    def store(self) -> Store:
        return SQLiteStore(self._path, queue=self._queue)

    def can_freeze(self, process: subprocess.Popen[bytes]) -> bool:
        """Not during a commit: SQLite would make all others wait as long as the process is frozen."""
        with closing(sqlite3.connect(self._path, timeout=0.5, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
        return True

    def strike(self, kind: str, random: Random) -> bool:
        raise ValueError(f"{kind!r}: nothing can be done to a file but to its processes")

    def go_on(self) -> None:
        """Nothing to do: a file has no faults."""

    def heal(self) -> None:
        """Nothing to do: a file has no faults."""

    def close(self) -> None:
        """Nothing to do: the file is deleted with its folder."""


def wait_for(what: str, condition: object, timeout: float = 10.0) -> None:
    """Wait for an action of another process.

    Raises:
        TimeoutError: it did not happen.
    """
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)
