"""Whether the files that a connection to SQLite has open are still those at their path.

SQLite goes on to write to a file that was deleted, and nobody finds what it wrote. So the writer asks here within each
transaction, after it has the lock and before it writes: two calls of `stat`, 3 µs.

1. A file that is not there any more: nothing is acknowledged until it is back.
2. Another file in its place, which was renamed to its name: the connection is closed and that one is opened.
3. A log (`-wal`) that is not there any more, or another one: what it had is written to the database, and that is opened
   anew.
4. A file that was cut short: refused.

A file that is written over in place (`cp` onto it) is not noticed for certain.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from urllib.parse import quote

from cuelight._log import get_log
from cuelight.errors import StoreRefused, StoreUnavailable

__all__ = ["Moved", "OpenFile", "gone", "make_private", "uri_of"]

log = get_log("cuelight.tasks")

_Identity = tuple[int, int]


class Moved(Exception):
    """Another file is at the path, or the log is not there: the file must be opened anew."""


class OpenFile:
    """The files of one connection."""

    def __init__(self, path: str) -> None:
        """Remember which files there are, now that the connection has opened all of them."""
        self._path = path
        self._raw, self._log = os.fsencode(path), os.fsencode(path) + b"-wal"
        there = os.stat(self._raw)
        self._file: _Identity = (there.st_dev, there.st_ino)
        self._size = there.st_size
        self._log_file = _identity(self._log)  # None where SQLite cannot have one
        self._cut_to = -1

    def check(self) -> None:
        """Refuse to go on if they are others now.

        Raises:
            Moved: the file must be opened anew.
            StoreUnavailable: the file is not there.
            StoreRefused: it was cut short.
        """
        try:
            there = os.stat(self._raw)
        except OSError as error:
            raise gone(self._path) from error
        if (there.st_dev, there.st_ino) != self._file:
            raise Moved("another file is in its place")
        if self._log_file is not None and _identity(self._log) != self._log_file:
            raise Moved("its -wal file was removed or replaced")
        if there.st_size < self._size:
            self._check_size(there.st_size)
        self._size = there.st_size

    def is_moved(self) -> bool:
        """Whether the next step has to see to it."""
        return _identity(self._raw) != self._file

    def _check_size(self, size: int) -> None:
        """Tell a file that was cut short from one that was vacuumed."""
        if size != self._cut_to and size > 0 and _is_whole(self._path):
            return
        self._cut_to = size
        raise StoreRefused(
            f"SQLiteStore({self._path!r}): the file was cut from {self._size} to {size} bytes while it was open: "
            "restore it from a backup, by renaming that to this name"
        )

    def leave(self, connection: sqlite3.Connection) -> None:
        """Write what the log has to the file that the connection has open, also if that has another name now.

        A log that stays beside another file would be taken for a log of that one.
        """
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if _identity(self._raw) == self._file or self._log_file is None:
            return
        connection.execute("BEGIN IMMEDIATE")  # who else has the old file open comes here one after the other
        if _identity(self._log) == self._log_file:
            kept = f"{self._path}.replaced-{self._file[1]}-wal"
            if busy:
                os.replace(self._log, os.fsencode(kept))
                log.error(
                    "SQLiteStore(%r): the -wal file of the file that was replaced is kept as %r", self._path, kept
                )
            else:
                os.remove(self._log)
            try:
                os.remove(self._raw + b"-shm")
            except OSError:
                pass
        connection.execute("ROLLBACK")


def gone(path: str) -> StoreUnavailable:
    """The error for a file that is not there any more."""
    return StoreUnavailable(
        f"SQLiteStore({path!r}): the file was deleted or renamed while it was open: put it back under this name, or "
        "close the store and open it again, which makes a new file"
    )


def _identity(path: bytes) -> _Identity | None:
    try:
        there = os.stat(path)
    except OSError:
        return None
    return (there.st_dev, there.st_ino)


def _is_whole(path: str) -> bool:
    """Whether SQLite finds nothing wrong with a file. Slow; by a connection of its own, which has no page in memory."""
    try:
        with closing(sqlite3.connect(uri_of(path, "ro"), uri=True, timeout=1.0)) as fresh:
            return bool(fresh.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


def uri_of(path: str, mode: str) -> str:
    """A path as SQLite takes it, whatever bytes are in it."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


def make_private(path: str) -> None:
    """Make a file that only this user may read, if there is none; SQLite gives its other files the same rights.

    Nobody else of this process may open the file meanwhile: to close a file ends all locks that a process has on it.
    """
    try:
        made = os.open(os.fsencode(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return  # it is there, or SQLite says why it cannot be made
    os.close(made)
