"""The writer of a SQLite store, step by step in the thread of a test: ends, forks, moved files, failed calls."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolClosed, StoreRefused, StoreUnavailable
from cuelight.mailbox._backend import current_backend
from cuelight.tasks import Record, SQLiteStore
from cuelight.tasks._stores._sqlite import _schema as schema
from cuelight.tasks._stores._sqlite import _writer as writers
from cuelight.tasks._stores._sqlite._file import FileMoved, OpenFile
from cuelight.tasks._stores._sqlite._writer import StoreCall, Writer
from cuelight.tasks._stores._support import MonotonicWallClock, VersionNotifier
from helpers import Backend, run_on

A = Record(id="a", type="t")


def writer_of(path: Path) -> Writer:
    """A writer whose thread is never started."""
    return Writer(
        str(path),
        "default",
        synchronous="OFF",
        busy_timeout=0.0,
        clock=MonotonicWallClock(time.time),
        notifier=VersionNotifier(),
    )


@pytest.fixture
def writer(tmp_path: Path) -> Generator[Writer]:
    """One that has its file open."""
    writer = writer_of(tmp_path / "tasks.db")
    with writer._in_use:
        writer._open()
    yield writer
    writer._end(PoolClosed("the test is over"), [])


def serve(writer: Writer, step: str, *args: Any) -> Any:
    """What a call is answered."""
    call = StoreCall(step, args, blocking=True)
    with writer._in_use:
        writer._serve([call])
    assert call.wait_blocking(0)
    return call.outcome()


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> Any:
        raise error

    return function


# Answers.


def test_an_answer_for_a_loop_that_has_ended_holds_up_no_other(backend: Backend) -> None:
    async def call() -> StoreCall:
        return StoreCall("size")

    blocking = StoreCall("size", blocking=True)
    writers._wake_callers([run_on(backend, call), blocking])
    assert blocking.wait_blocking(0)


def test_a_change_wakes_nobody_in_a_loop_that_has_ended(backend: Backend) -> None:
    changes = VersionNotifier()

    async def enrol() -> None:
        changes._waiters[current_backend().waiter()] = (current_backend(), 0)

    run_on(backend, enrol)
    changes.notify()
    assert (changes.version, changes.waiting) == (2, 0)


def test_a_writer_that_ends_answers_what_is_left_with_its_error_and_closers_without(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "tasks.db")
    step, closer = StoreCall("size", blocking=True), StoreCall(Writer.CLOSE, blocking=True)
    assert writer.submit(step)
    writer.check_for_changes()
    assert writer.submit(closer)
    writer._end(PoolClosed("it is closed"), [])
    assert step.wait_blocking(0)
    assert closer.wait_blocking(0)
    assert closer.outcome() is None
    with pytest.raises(PoolClosed, match=r"^it is closed$"):
        step.outcome()
    assert not writer.submit(StoreCall("size", blocking=True))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OverflowError("int too large"), ValueError, "a value cannot be stored: int too large"),
        (
            UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
            ValueError,
            "a value cannot be stored: .*surrogates",
        ),
        (sqlite3.IntegrityError("twice"), StoreRefused, "the step cannot be made: twice"),
        (sqlite3.OperationalError("odd"), StoreUnavailable, "odd: see the cause"),
        (writers._Busy("locked"), StoreUnavailable, "locked: another process holds its lock"),
    ],
)
def test_an_error_of_sqlite_is_told_as_one_of_ours_with_its_cause(
    error: Exception, kind: type[Exception], text: str
) -> None:
    told = writers._for_caller(error, "tasks.db")
    assert type(told) is kind
    assert told.__cause__ is error
    with pytest.raises(kind, match=rf"^SQLiteStore\('tasks\.db'\): {text}"):
        raise told


def test_any_other_error_of_a_step_is_told_as_it_is() -> None:
    error = LookupError("of a clock")
    assert writers._for_caller(error, "tasks.db") is error


def test_a_step_that_fails_after_it_has_written_is_rolled_back(writer: Writer) -> None:
    connection, book = writer._connection, writer._row_store
    assert connection is not None
    assert book is not None

    def half(now: float) -> None:
        connection.execute("INSERT INTO queues (name) VALUES ('half')")
        book.changed = True
        raise ValueError("in the middle")

    steps: Any = SimpleNamespace(half=half)
    writer._engine = steps
    with pytest.raises(ValueError, match=r"^in the middle$"):
        serve(writer, "half")
    assert connection.execute("SELECT name FROM queues").fetchall() == [("default",)]
    assert not connection.in_transaction


# Opening.


def test_opening_goes_on_when_the_process_was_forked_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(tmp_path / "tasks.db")
    opened: list[bool] = []

    def open_file() -> None:
        opened.append(True)
        if len(opened) == 1:
            raise FileMoved("this process was forked")

    monkeypatch.setattr(writer, "_open_file", open_file)
    writer._open()
    assert len(opened) == 2


def test_a_transaction_that_sqlite_has_ended_itself_is_not_rolled_back_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sqlite3.OperationalError("database or disk is full")

    def migrate(connection: sqlite3.Connection, path: str) -> None:
        connection.execute("ROLLBACK")
        raise full

    monkeypatch.setattr(writers, "migrate", migrate)
    writer = writer_of(tmp_path / "tasks.db")
    with writer._in_use, pytest.raises(sqlite3.OperationalError) as caught:
        writer._open()
    assert caught.value is full
    writer._end(full, [])


def test_a_wait_for_another_process_ends_when_this_one_was_forked(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "tasks.db")
    writer._busy_timeout = 10.0

    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        writer._forks += 1

    with (
        pytest.MonkeyPatch.context() as patch,
        writer._in_use,
        pytest.raises(FileMoved, match="this process was forked"),
    ):
        patch.setattr(time, "sleep", nap)
        writer._with_retries(raises(locked))
    assert len(naps) == 1


def test_a_file_that_is_replaced_whenever_it_is_opened_is_unavailable(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer._close_connection()
    with monkeypatch.context() as patch:
        patch.setattr(OpenFile, "check", raises(FileMoved("another file is in its place")))
        with pytest.raises(StoreUnavailable, match="another file is in its place, time and again"):
            serve(writer, "size")
    assert writer._connection is None
    assert serve(writer, "size").pending == 0


def test_a_file_that_is_locked_while_it_is_opened_again_is_unavailable(writer: Writer, tmp_path: Path) -> None:
    writer._close_connection()
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked by another process for 0 s"):
            serve(writer, "size")
    assert serve(writer, "size").pending == 0


# Looks at what other processes did.


def test_a_look_without_an_open_file_says_that_there_may_be_changes(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "tasks.db")
    writer._check_if_open()
    assert writer._notifier.version == 2


def test_a_look_at_a_file_of_a_newer_release_leaves_the_error_to_the_next_step(writer: Writer, tmp_path: Path) -> None:
    serve(writer, "size")
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute("PRAGMA user_version = 99")
    before = writer._notifier.version
    writer._check_if_open()
    assert writer._notifier.version == before
    with pytest.raises(StoreRefused, match="the file has version 99"):
        serve(writer, "size")


def test_a_look_at_a_file_that_was_moved_says_that_there_may_be_changes(writer: Writer, tmp_path: Path) -> None:
    serve(writer, "size")
    writer._check_if_open()
    before = writer._notifier.version
    (tmp_path / "tasks.db").rename(tmp_path / "other.db")
    writer._check_if_open()
    assert writer._notifier.version == before + 1


# Forks.


def test_a_fork_waits_no_longer_than_it_may_for_a_writer(writer: Writer) -> None:
    with writer._in_use:
        assert not writer.hold_for_fork(time.monotonic())
    assert writer._connection is not None


def test_a_writer_goes_on_after_a_fork_with_the_file_opened_again(writer: Writer) -> None:
    serve(writer, "add", [A], None)
    assert writer.hold_for_fork(time.monotonic())
    assert writer._connection is None
    writer.release_after_fork()
    call = StoreCall("size", blocking=True)
    with writer._in_use:
        writer._switch_file(FileMoved("this process was forked"), [call])
    assert call.wait_blocking(0)
    assert call.outcome().pending == 1


def test_the_child_of_a_fork_has_no_writers_and_no_locks_of_them(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_writers", {writer})
    monkeypatch.setattr(writers, "_paused_for_fork", [])
    writers._before_fork()
    assert writers._paused_for_fork == [writer]
    assert writer._in_use.locked()
    writers._in_child()
    assert (writers._writers, writers._paused_for_fork) == (set(), [])
    assert not writer._in_use.locked()


async def test_a_store_that_another_process_opened_has_to_be_opened_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_abandoned", [])
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF")
    await store.open()
    await store.add([A])
    old = store._writer
    assert old is not None
    old.pid = -1  # as it is in the child of a fork
    with pytest.raises(PoolClosed, match=r"was opened in process -1 before a fork: await open\(\) in this one"):
        await store.size()
    await store.close()  # leaves alone what belongs to the parent
    assert not old.ended
    await store.open()
    assert store._writer is not old
    assert (await store.size()).pending == 1
    await store.close()
    assert writers._abandoned == [(old._connection, old._row_store, old._engine)]
    closer = StoreCall(Writer.CLOSE)
    assert old.submit(closer)
    await closer.answer()
    old.join()


async def test_a_store_that_is_closed_meanwhile_by_another_task_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF")
    store._check_for_changes()  # nothing is open that could look
    await store.open()
    writer = store._writer
    assert writer is not None
    closer = StoreCall(Writer.CLOSE)
    assert writer.submit(closer)
    await closer.answer()
    writer.join()
    writer.ended = False  # as it was when the store looked

    def never(call: StoreCall) -> bool:
        return bool(call.abandoned)

    monkeypatch.setattr(writer, "submit", never)
    before = store.version()
    await store.close()
    assert store.version() == before + 1


# Errors of SQLite, and what they mean.


def error_with(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("it says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (sqlite3.SQLITE_ERROR, StoreRefused, "another program has changed the tables"),
        (sqlite3.SQLITE_FULL, StoreUnavailable, "the disk is full; make room"),
        (sqlite3.SQLITE_READONLY, StoreUnavailable, "the file must not be written"),
        (sqlite3.SQLITE_CORRUPT, StoreUnavailable, "the file is damaged"),
        (sqlite3.SQLITE_LOCKED, StoreUnavailable, "another process holds its lock"),
        (sqlite3.SQLITE_IOERR_READ, StoreUnavailable, "see the cause; the same step may be tried again"),
    ],
)
def test_an_error_code_of_a_step_is_told_with_a_way_out(code: int, kind: type[Exception], text: str) -> None:
    told = schema.unavailable(error_with(code), "tasks.db")
    assert type(told) is kind
    assert str(told).startswith(f"SQLiteStore('tasks.db'): it says: {text}")


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (sqlite3.SQLITE_NOTADB, ValueError, "not a SQLite database, or is damaged: it says"),
        (sqlite3.SQLITE_CANTOPEN, PermissionError, "it says; this user must be allowed to write the file"),
        (sqlite3.SQLITE_IOERR, StoreUnavailable, "it says: see the cause"),
    ],
)
def test_an_error_code_of_opening_is_told_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], text: str
) -> None:
    error = error_with(code)
    monkeypatch.setattr(sqlite3, "connect", raises(error))
    with pytest.raises(kind, match=text) as caught:
        schema._connect(str(tmp_path / "tasks.db"), "OFF")
    assert caught.value.__cause__ is error


def test_a_file_that_another_process_holds_while_it_is_opened_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            schema.connect(str(path), "OFF")
        assert schema.is_busy(caught.value)


def test_an_interrupt_while_a_file_is_opened_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "connect", raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        schema._connect(os.fspath(tmp_path / "tasks.db"), "OFF")


def test_a_store_that_is_opened_while_the_process_forks_comes_to_sqlite_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched:
        """Says when another thread wants the lock."""

        def __init__(self) -> None:
            self.lock = threading.RLock()
            self.wanted = threading.Event()

        def acquire(self) -> None:
            self.lock.acquire()

        def release(self) -> None:
            self.lock.release()

        def __enter__(self) -> None:
            self.wanted.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    watched = Watched()
    monkeypatch.setattr(writers, "_fork_lock", watched)
    monkeypatch.setattr(writers, "_writers", set[Writer]())
    monkeypatch.setattr(writers, "_paused_for_fork", [])
    path = tmp_path / "tasks.db"

    async def open_and_close() -> None:
        store = SQLiteStore(path, synchronous="OFF")
        await store.open()
        await store.close()

    writers._before_fork()
    opener = threading.Thread(target=anyio.run, args=(open_and_close,))
    opener.start()
    assert watched.wanted.wait(10)
    assert not writers._writers
    assert not path.exists()
    writers._after_fork()
    opener.join(10)
    assert not opener.is_alive()
    assert path.exists()
