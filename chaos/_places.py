"""Where the queue of a storm is kept, and what can be done to that place itself."""

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
    """Where a queue is kept.

    Attributes:
        address: what its processes are given: the path of a file or a URL.
        kinds: what can be done to it, and how often one is drawn against the others.
        troubles: when it was not to be relied on, and what it forgot in those times.
        extras: what its processes are told besides.
    """

    address: str
    kinds: dict[str, int]
    troubles: list[Trouble]
    extras: dict[str, str]

    def store(self) -> Store:
        """The queue, for whoever watches it."""
        ...

    def can_freeze(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether a process that stands still holds up nobody else."""
        ...

    def strike(self, kind: str, random: Random) -> bool:
        """Do something bad. False: not now, it is in trouble already."""
        ...

    def go_on(self) -> None:
        """Do what is due by now: end what was begun."""
        ...

    def heal(self) -> None:
        """End everything bad at once."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class SQLitePlace:
    """A file."""

    def __init__(self, folder: Path, queue: str) -> None:
        self._path, self._queue = folder / "queue.db", queue
        self.address = str(self._path)
        self.kinds: dict[str, int] = {}
        self.troubles: list[Trouble] = []
        self.extras: dict[str, str] = {}

    def store(self) -> Store:
        return SQLiteStore(self._path, queue=self._queue)

    def can_freeze(self, process: subprocess.Popen[bytes]) -> bool:
        """Not in the midst of a commit: SQLite has everybody else wait for that process, as long as it stands still."""
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
        """A file is in no trouble."""

    def heal(self) -> None:
        """A file is in no trouble."""

    def close(self) -> None:
        """The folder goes with its block."""


def wait_for(what: str, condition: object, timeout: float = 10.0) -> None:
    """Wait for something that another process does.

    Raises:
        TimeoutError: it does not.
    """
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)
