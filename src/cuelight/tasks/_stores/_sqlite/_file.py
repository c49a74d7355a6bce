"""Checks whether the files that a SQLite connection has open are still the files at their path.

SQLite continues to write to a deleted file, whose contents are then lost. Therefore the writer calls `check` in each
transaction, after it has got the lock and before it writes: two calls of `stat`, 3 µs.

1. If the file does not exist any more, nothing is acknowledged until it is back.
2. If another file was renamed to its name, the connection is closed and the new file is opened.
3. If the log (`-wal`) was removed or replaced, its contents are written to the database, which is then opened again.
4. If the file was truncated, the store raises an error.

A file that is overwritten in place (`cp` onto it) is not always detected.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from urllib.parse import quote

from cuelight._log import get_log
from cuelight.errors import StoreRefused, StoreUnavailable

log = get_log("cuelight.tasks")

_Identity = tuple[int, int]


class FileMoved(Exception):
    """The file must be opened again, because another file is at the path, or the log is missing."""


class OpenFile:
    """The files of one connection."""

    def __init__(self, path: str) -> None:
        """Record the identities of the files, after the connection has opened all of them."""
        self._path = path
        self._raw, self._log = os.fsencode(path), os.fsencode(path) + b"-wal"
        there = os.stat(self._raw)
        self._file: _Identity = (there.st_dev, there.st_ino)
        self._size = there.st_size
        self._log_file = _identity(self._log)  # None if SQLite cannot use one
        self._truncated_to = -1

    def check(self) -> None:
        """Raise an error if the files have changed.

        Raises:
            FileMoved: the file must be opened again.
            StoreUnavailable: the file does not exist.
            StoreRefused: the file was truncated.
        """
        try:
            there = os.stat(self._raw)
        except OSError as error:
            raise gone(self._path) from error
        if (there.st_dev, there.st_ino) != self._file:
            raise FileMoved("another file is in its place")
        if self._log_file is not None and _identity(self._log) != self._log_file:
            raise FileMoved("its -wal file was removed or replaced")
        if there.st_size < self._size:
            self._check_size(there.st_size)
        self._size = there.st_size

    def is_moved(self) -> bool:
        """Whether the next step must handle a change."""
        return _identity(self._raw) != self._file

    def _check_size(self, size: int) -> None:
        """Distinguish a truncated file from a vacuumed one."""
        if size != self._truncated_to and size > 0 and _is_whole(self._path):
            return
        self._truncated_to = size
        raise StoreRefused(
            f"SQLiteStore({self._path!r}): the file was cut from {self._size} to {size} bytes while it was open: "
            "restore it from a backup, by renaming that to this name"
        )

    def detach(self, connection: sqlite3.Connection) -> None:
        """Write the contents of the log to the file that the connection has open, even if it has another name now.

        If the log stayed beside another file, SQLite would use it as the log of that file.
        """
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if _identity(self._raw) == self._file or self._log_file is None:
            return
        connection.execute("BEGIN IMMEDIATE")  # serializes this part with other processes that have the old file open
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
    """The error for a file that does not exist any more."""
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
    """Whether SQLite finds no error in a file. Slow. Uses a new connection, which has no cached pages."""
    try:
        with closing(sqlite3.connect(uri_of(path, "ro"), uri=True, timeout=1.0)) as fresh:
            return bool(fresh.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


def uri_of(path: str, mode: str) -> str:
    """A path as a URI for SQLite, whatever bytes it contains."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


def make_private(path: str) -> None:
    """Create a missing file with access for this user only. SQLite gives its other files the same permissions.

    No other thread of this process may have the file open in the meantime: closing a file releases all locks that the
    process has on it.
    """
    try:
        made = os.open(os.fsencode(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return  # it exists, or SQLite will report why it cannot be created
    os.close(made)
