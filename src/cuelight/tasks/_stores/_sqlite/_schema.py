"""The tables of the SQLite store, the opening of a file, and the conversion of SQLite's errors.

A task is one small row in `tasks`, which changes with each step, and one row in `bodies`, which does not. For each
query of a claim, a partial index contains exactly the rows that can match: `tasks_ready` contains pending tasks,
`tasks_due` those that wait for a time, and so on. The numbers of states are those of `_rows.py`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from cuelight._text import safe_str
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.tasks._stores._sqlite._file import make_private, uri_of

SYNCHRONOUS: Final = ("FULL", "NORMAL", "EXTRA", "OFF")
_OLDEST: Final = (3, 37, 0)  # the first version with STRICT tables
_APPLICATION: Final = 0x43554531  # "CUE1"; distinguishes the file from those of other applications

_opening: Final = threading.Lock()  # a fork waits for it, so that no child inherits it locked by a thread of the parent
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)

SCRIPTS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE file (one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL) STRICT""",
        """INSERT INTO file VALUES (1, 0)""",
        """CREATE TABLE queues (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            paused INTEGER NOT NULL DEFAULT 0, closed INTEGER NOT NULL DEFAULT 0,
            pending INTEGER NOT NULL DEFAULT 0, scheduled INTEGER NOT NULL DEFAULT 0,
            parked INTEGER NOT NULL DEFAULT 0, in_flight INTEGER NOT NULL DEFAULT 0,
            completed INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
            dead_letter INTEGER NOT NULL DEFAULT 0
        ) STRICT""",
        # lane: for a pending task; -queue for a task without limits. due, deadline, ended: seconds since the epoch.
        """CREATE TABLE tasks (
            seq INTEGER PRIMARY KEY, queue INTEGER NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL,
            state INTEGER NOT NULL, lane INTEGER NOT NULL, priority INTEGER NOT NULL, deadline REAL NOT NULL,
            due REAL, epoch INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '',
            settled INTEGER NOT NULL DEFAULT 0, step INTEGER NOT NULL DEFAULT 0, ended REAL NOT NULL DEFAULT 0,
            reason TEXT NOT NULL DEFAULT '', cancelling INTEGER NOT NULL DEFAULT 0, result BLOB
        ) STRICT""",
        """CREATE UNIQUE INDEX tasks_id ON tasks (queue, id)""",
        """CREATE INDEX tasks_ready ON tasks (lane, priority, deadline, seq) WHERE state = 0""",
        """CREATE INDEX tasks_due ON tasks (queue, state, due) WHERE due IS NOT NULL""",
        """CREATE INDEX tasks_deadline ON tasks (queue, deadline) WHERE state < 3 AND deadline < 9e999""",
        """CREATE INDEX tasks_stuck ON tasks (queue, state, seq) WHERE state = 2 OR state = 6""",
        # The record as msgpack without its payload, and the payload: not rewritten while a task is processed.
        """CREATE TABLE bodies (seq INTEGER PRIMARY KEY, meta BLOB NOT NULL, payload BLOB NOT NULL) STRICT""",
        # The results of previous attempts, as msgpack; most tasks have no row here.
        """CREATE TABLE stories (seq INTEGER PRIMARY KEY, story BLOB NOT NULL) STRICT""",
        """CREATE TABLE lanes (
            id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, keys TEXT NOT NULL, waits_on TEXT NOT NULL DEFAULT '',
            priority INTEGER, deadline REAL, seq INTEGER
        ) STRICT""",
        """CREATE UNIQUE INDEX lanes_keys ON lanes (queue, keys)""",
        """CREATE INDEX lanes_first ON lanes (queue, waits_on, priority, deadline, seq)""",
        """CREATE TABLE gates (
            queue INTEGER NOT NULL, key TEXT NOT NULL, running INTEGER NOT NULL, tat REAL NOT NULL,
            closed REAL NOT NULL, override BLOB, waiting INTEGER NOT NULL, due REAL, PRIMARY KEY (queue, key)
        ) STRICT, WITHOUT ROWID""",
        """CREATE INDEX gates_due ON gates (queue, due) WHERE due IS NOT NULL""",
        """CREATE TABLE uniques (
            queue INTEGER NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (queue, key)
        ) STRICT, WITHOUT ROWID""",
        """CREATE INDEX uniques_until ON uniques (queue, until) WHERE until < 9e999""",
        """CREATE TABLE claims (
            queue INTEGER NOT NULL, nonce TEXT NOT NULL, until REAL NOT NULL, leases BLOB NOT NULL,
            PRIMARY KEY (queue, nonce)
        ) STRICT""",
        """CREATE INDEX claims_until ON claims (queue, until)""",
        """CREATE TABLE schedules (
            queue INTEGER NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, due REAL NOT NULL, record BLOB NOT NULL,
            PRIMARY KEY (queue, name)
        ) STRICT, WITHOUT ROWID""",
    ),
    (  # turns of tenants; a turn of 0 uses no bytes
        """ALTER TABLE tasks ADD COLUMN turn REAL NOT NULL DEFAULT 0""",
        """ALTER TABLE lanes ADD COLUMN turn REAL DEFAULT 0""",
        """ALTER TABLE queues ADD COLUMN floor REAL NOT NULL DEFAULT 0""",
        """ALTER TABLE queues ADD COLUMN top REAL NOT NULL DEFAULT 0""",
        """ALTER TABLE queues ADD COLUMN lines TEXT""",
        """DROP INDEX tasks_ready""",
        """CREATE INDEX tasks_ready ON tasks (lane, priority, deadline, turn, seq) WHERE state = 0""",
        """DROP INDEX IF EXISTS tasks_last""",
        """DROP INDEX lanes_first""",
        """CREATE INDEX lanes_first ON lanes (queue, waits_on, priority, deadline, turn, seq)""",
        """CREATE TABLE turns (
            queue INTEGER NOT NULL, line TEXT NOT NULL, tenant TEXT NOT NULL, until REAL NOT NULL,
            PRIMARY KEY (queue, line, tenant)
        ) STRICT, WITHOUT ROWID""",
        """CREATE INDEX turns_until ON turns (queue, line, until)""",
    ),
)
"""The migrations of a file from each version to the next. A released script never changes; new ones are appended."""


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Open the file at an absolute path, or create it. The caller must handle waits for locks; see `is_busy`.

    Raises:
        FileNotFoundError: its directory does not exist.
        IsADirectoryError: the path is a directory.
        PermissionError: the file is not readable or not writable.
        ValueError: the file is not a database, or belongs to another application.
        RuntimeError: the SQLite library of this Python is too old.
        sqlite3.OperationalError: another process has the lock at the moment.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise RuntimeError(
            f"SQLiteStore({path!r}): this Python has SQLite {sqlite3.sqlite_version}, and the store needs {needed}; "
            "use a newer build of Python"
        )
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"SQLiteStore({path!r}): there is no folder {folder!r}; make it first")
    if os.path.isdir(path):
        raise IsADirectoryError(f"SQLiteStore({path!r}): this is a folder; name a file in it")
    with _opening:
        make_private(path)
        return _connect(path, synchronous)


def _connect(path: str, synchronous: str) -> sqlite3.Connection:
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            uri_of(path, "rwc"),
            uri=True,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,  # opened and used in the writer's thread; closed there, or never
            cached_statements=256,
        )
        _check_owner(connection, path)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA cache_size = -32000")  # at most 32 MB
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA wal_autocheckpoint = 2000")  # pages
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if is_busy(error):
            raise
        raise _not_usable(error, path) from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    if owner == _APPLICATION:
        return
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != 0 or tables:
        raise ValueError(f"SQLiteStore({path!r}): this database belongs to something else; give the queue its own file")


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Migrate the file to the version of this library, in a transaction that the caller has begun.

    Raises:
        ValueError: the file has a newer version.
    """
    version = version_of(connection)
    if version > len(SCRIPTS):
        raise ValueError(too_new(version, path))
    for script in SCRIPTS[version:]:
        for statement in script:
            connection.execute(statement)
    if version < len(SCRIPTS):
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(SCRIPTS)}")


def version_of(connection: sqlite3.Connection) -> int:
    """The number of scripts that have run on the file."""
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


def too_new(version: int, path: str) -> str:
    """The error message for a file that a newer release has migrated."""
    return (
        f"SQLiteStore({path!r}): the file has version {version}, and this release of cuelight knows versions up to "
        f"{len(SCRIPTS)}; use the release that wrote it, or a newer one"
    )


def queue_number(connection: sqlite3.Connection, name: str, path: str) -> int:
    """Return the number of a queue. Create it if it does not exist, in a transaction that the caller has begun.

    Raises:
        StoreRefused: there are tasks of a missing queue, which may be this one.
    """
    find = "SELECT id FROM queues WHERE name = ?"
    found = connection.execute(find, (name,)).fetchone()
    if found is None:
        for owner in orphaned(connection.execute):
            raise StoreRefused(
                f"SQLiteStore({path!r}, queue={name!r}): the file has tasks of queue {owner}, and another "
                "program has removed its name from the table `queues`: put it back, or delete these tasks"
            )
        connection.execute("INSERT INTO queues (name) VALUES (?)", (name,))
        found = connection.execute(find, (name,)).fetchone()
    number: int = found[0]
    return number


def orphaned(run: Callable[..., sqlite3.Cursor]) -> Iterator[int]:
    """Iterate over the numbers of missing queues that have tasks. No step leaves such tasks behind."""
    owner = -inf
    while True:
        (owner,) = run("SELECT min(queue) FROM tasks WHERE queue > ?", (owner,)).fetchone()
        if owner is None:
            return
        if run("SELECT 1 FROM queues WHERE id = ?", (owner,)).fetchone() is None:
            yield owner


def is_busy(error: BaseException) -> bool:
    """Whether another process has the lock, so that a retry makes sense."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # without the extended error code


def _not_usable(error: sqlite3.Error, path: str) -> Exception:
    where = f"SQLiteStore({path!r})"
    match _code(error):
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return ValueError(f"{where}: this file is not a SQLite database, or is damaged: {error}")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_AUTH:
            return PermissionError(f"{where}: {error}; this user must be allowed to write the file and its folder")
        case _:
            return unavailable(error, path)


def unavailable(error: BaseException, path: str) -> StoreUnavailable | StoreRefused:
    """The error for a step that failed, with advice."""
    match _code(error):
        case sqlite3.SQLITE_ERROR:  # a table, a column or an index is missing
            return StoreRefused(
                f"SQLiteStore({path!r}): {safe_str(error)}: another program has changed the tables of the file; "
                "restore them from a backup, or give the queue a new file"
            )
        case sqlite3.SQLITE_FULL:
            advice = "the disk is full; make room, then try again"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            advice = "the file must not be written; give this user the right to write it and its folder"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            advice = "the file is damaged; restore it from a backup, or save what `sqlite3 FILE .recover` finds"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            advice = "another process holds its lock; look for one that keeps a transaction open"
        case _:
            advice = "see the cause; the same step may be tried again"
    return StoreUnavailable(f"SQLiteStore({path!r}): {safe_str(error)}: {advice}")
