"""The thread that owns the connection of a SQLite store.

All steps go through one queue. The steps that wait at the end of a commit go into the next transaction together, so
that one sync of the disk serves all of them.

Invariants:

1. A submitted step is answered once, with a result or an error, even if the thread ends.
2. An answer is given after the commit.
3. If a step fails, it and the other steps of its transaction are repeated separately, so that no step makes another
   one fail.
4. The wait for other processes has a deadline.
5. A fork waits until the threads are between two transactions, and closes their files, which the next step opens again.
   Otherwise, a child that inherits a file of SQLite would believe that it has its parent's locks. A child that inherits
   a mutex of SQLite, held by a thread that exists only in the parent, would wait forever. No writer starts during a
   fork.
"""

from __future__ import annotations

import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.errors import CuelightError, PoolClosed, StoreRefused, StoreUnavailable
from cuelight.mailbox._backend import Backend, Waiter, current_backend
from cuelight.mailbox._interrupts import interruptible
from cuelight.tasks._stores._engine import Engine
from cuelight.tasks._stores._sqlite import _schema as schema
from cuelight.tasks._stores._sqlite._columns import is_invalid_text, readable_text
from cuelight.tasks._stores._sqlite._file import FileMoved, OpenFile, gone
from cuelight.tasks._stores._sqlite._repair import FileRepair
from cuelight.tasks._stores._sqlite._row_store import SQLiteRowStore
from cuelight.tasks._stores._sqlite._schema import (
    connect,
    is_busy,
    migrate,
    queue_number,
    too_new,
    unavailable,
    version_of,
)
from cuelight.tasks._stores._support import MonotonicWallClock, VersionNotifier

log = get_log("cuelight.tasks")

_POLL: Final = 0.005  # seconds between two checks for changes of other processes, while callers wait for changes
_GROUP: Final = 256  # steps in one transaction
_PAUSES: Final = (0.0002, 0.001, 0.004)  # seconds between attempts to get the lock, times a random factor
_WRONG_STEP: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InterfaceError)
_writers: set[Writer] = set()
_paused_for_fork: list[Writer] = []
_fork_lock: Final = threading.RLock()
"""Held during a fork, and while a writer is registered.

If a writer used SQLite during a fork, the child would inherit locks of SQLite's memory and of the file, which it could
never acquire.
"""

_FORK: Final = 1.0  # seconds that a fork waits for all stores
_abandoned: list[object] = []  # objects of a parent process: closing them here would change its files


class _Busy(Exception):
    """Another process has held the lock for longer than `busy_timeout`."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class StoreCall:
    """One step, and the destination of its answer: a task in an event loop, or a thread."""

    __slots__ = ("_backend", "_thread", "_woken", "abandoned", "args", "error", "reads", "result", "step")

    def __init__(self, step: str, args: tuple[Any, ...] = (), *, reads: bool = False, blocking: bool = False) -> None:
        self.step, self.args, self.reads = step, args, reads
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = 0 if blocking else threading.get_ident()
        self._backend: Backend | None = None if blocking else current_backend()
        self._woken: threading.Event | Waiter = threading.Event() if self._backend is None else self._backend.waiter()

    async def answer(self) -> Any:
        """Wait for the answer. If the wait is cancelled, the step may still take effect."""
        try:
            await self._woken  # type: ignore[misc]
        except BaseException:
            self.abandoned = True
            raise
        return self.outcome()

    @interruptible
    def wait_blocking(self, timeout: float | None) -> bool:
        """Block until there is an answer. Return False if the time is over before that."""
        event: Any = self._woken
        self.abandoned = not event.wait(timeout)
        return not self.abandoned

    def outcome(self) -> Any:
        """Return the result, or raise the error, once there is an answer."""
        if self.error is not None:
            raise self.error
        return self.result


def _wake_callers(calls: Sequence[StoreCall]) -> None:
    """Wake the waiters of answered calls, with one wake-up per event loop."""
    loops: dict[int, tuple[Backend, list[Waiter]]] = {}
    for call in calls:
        if call._backend is None:
            call._woken.set()  # type: ignore[union-attr]
        else:
            loops.setdefault(call._thread, (call._backend, []))[1].append(call._woken)  # type: ignore[arg-type]
    for backend, waiters in loops.values():
        try:
            backend.call_threadsafe(_wake, waiters)
        except RuntimeError:
            pass  # the waiters ended with the loop


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()


class Writer:
    """The thread, from `start` until a `CLOSE` call was answered or opening failed."""

    CLOSE: Final = "close"

    def __init__(
        self,
        path: str,
        queue_name: str,
        *,
        synchronous: str,
        busy_timeout: float,
        clock: MonotonicWallClock,
        notifier: VersionNotifier,
    ) -> None:
        self.pid = os.getpid()
        self._path, self._queue_name, self._synchronous = path, queue_name, synchronous
        self._busy_timeout, self._clock, self._notifier = busy_timeout, clock, notifier
        self._calls: queue.SimpleQueue[StoreCall | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.ended = False
        self._in_use = threading.Lock()  # held while the thread may be inside SQLite
        self._forks = 0
        self._connection: sqlite3.Connection | None = None
        self._row_store: SQLiteRowStore | None = None
        self._engine: Engine | None = None
        self._files: OpenFile | None = None
        self._data_version = 0
        self._thread = threading.Thread(
            target=self._work, name=f"cuelight store {readable_text(os.fsencode(path))}", daemon=True
        )

    def start(self) -> None:
        """Start the thread. Waits for the end of a fork."""
        with _fork_lock:
            _writers.add(self)
        self._thread.start()

    def submit(self, call: StoreCall) -> bool:
        """Accept a step. Return False if the thread has ended, so that there will be no answer."""
        with self._lock:
            if not self.ended:
                self._calls.put(call)
            return not self.ended

    def check_for_changes(self) -> None:
        """Check for changes of other processes, because a caller waits for changes."""
        self._calls.put(None)

    def abandon(self) -> None:
        """Forget the writer in a child process: it belongs to the parent."""
        _abandoned.append((self._connection, self._row_store, self._engine))

    def join(self) -> None:
        """Wait for the end of the thread, which has answered its last call."""
        self._thread.join()

    # In the thread

    def _work(self) -> None:
        error: Exception = PoolClosed(f"SQLiteStore({self._path!r}) is closed: open() it again")
        closers: list[StoreCall] = []
        try:
            with self._in_use:
                self._open()
            while not closers:
                calls = self._next_calls()
                closers = [call for call in calls if call.step == self.CLOSE]
                with self._in_use:
                    self._serve([call for call in calls if call.step != self.CLOSE and not call.abandoned])
        except Exception as failure:  # there is no caller, so the pending steps get it
            error = failure
        finally:
            self._end(error, closers)

    def hold_for_fork(self, deadline: float) -> bool:
        """Keep the thread out of SQLite and close its file. Return False if it stays inside for too long.

        Called in the thread that forks. `release_after_fork` lets the writer continue.
        """
        if not self._in_use.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._forks += 1
        self._close_connection()
        return True

    def release_after_fork(self) -> None:
        """Let the thread go on, after `hold_for_fork`."""
        self._in_use.release()

    def _open(self) -> None:
        while True:
            try:
                self._open_file()
            except FileMoved:  # a fork has closed the file during a wait for another process
                continue
            return

    def _open_file(self) -> None:
        connection = self._with_retries(lambda: connect(self._path, self._synchronous))
        self._connection = connection
        self._with_retries(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            migrate(connection, self._path)
            number = queue_number(connection, self._queue_name, self._path)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._files = OpenFile(self._path)
        self._data_version = 0
        self._row_store = SQLiteRowStore(connection, number, f"SQLiteStore({self._path!r}, queue={self._queue_name!r})")
        self._engine = Engine(self._row_store)
        self._engine.repair = FileRepair(connection, number, self._row_store, self._engine).repair_if_due

    def _with_retries(self, step: Callable[[], Any]) -> Any:
        """Run a step that may find the file locked by another process, and repeat it until the deadline."""
        deadline = time.monotonic() + self._busy_timeout
        pauses = 0
        while True:
            try:
                return step()
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise unavailable(error, self._path) from error
                if time.monotonic() >= deadline:
                    raise _Busy(f"locked by another process for {self._busy_timeout:g} s") from error
            # Without a random factor, waiting processes would retry at the same moments.
            forks = self._forks
            self._in_use.release()
            try:
                time.sleep(_PAUSES[min(pauses // 4, len(_PAUSES) - 1)] * random.uniform(0.5, 1.5))  # noqa: S311
            finally:
                self._in_use.acquire()
            if self._forks != forks:
                raise FileMoved("this process was forked")
            pauses += 1

    def _next_calls(self) -> list[StoreCall]:
        """Wait for at least one step and return all waiting steps.

        In the meantime, check for changes of other processes if a caller waits for changes.
        """
        calls: list[StoreCall] = []
        while not calls:
            try:
                call = self._calls.get(timeout=_POLL) if self._notifier.waiting else self._calls.get()
            except queue.Empty:
                call = None
            if call is None:
                self._check_if_open()
            else:
                calls.append(call)
            while len(calls) < _GROUP and not self._calls.empty():
                call = self._calls.get_nowait()
                if call is not None:
                    calls.append(call)
        return calls

    def _check_other_processes(self) -> None:
        assert self._connection is not None  # noqa: S101 - the file was opened before the first call
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            release = version_of(self._connection)
            if release > len(schema.SCRIPTS):
                raise StoreRefused(too_new(release, self._path))
            self._data_version = version
            self._notifier.notify()

    def _check_if_open(self) -> None:
        with self._in_use:
            if self._connection is None or self._files is None:
                self._notifier.notify()  # closed by a fork: the next step opens the file again
                return
            try:
                self._check_other_processes()
            except (sqlite3.Error, StoreRefused):
                pass  # there is no caller that could get the error; the next step will get it
        if self._files.is_moved():
            self._notifier.notify()

    def _serve(self, calls: list[StoreCall]) -> None:
        if not calls:
            return
        try:
            if self._connection is None:
                self._open_again()
            self._transaction(calls)
        except (_Busy, StoreUnavailable) as error:
            for call in calls:
                call.error = _for_caller(error, self._path)
        except FileMoved as moved:
            self._switch_file(moved, calls)
            return
        except BaseException as error:  # a clock may raise any exception, which the caller gets
            if self._reads_garbled_text(error):
                self._serve(calls)
                return
            if len(calls) == 1:
                calls[0].error = _for_caller(error, self._path)
            else:
                for call in calls:
                    call.result = call.error = None
                    self._serve([call])
                return
        _wake_callers(calls)

    def _switch_file(self, moved: FileMoved, calls: list[StoreCall]) -> None:
        """Serve the calls with the file that is at the path now."""
        if self._connection is not None:
            log.error("SQLiteStore(%r) is opened anew while it is used: %s", self._path, moved, kind="moved")
            self._close_connection(moved=True)
        self._serve(calls)

    def _close_connection(self, *, moved: bool = False) -> None:
        """Close the file. If another file is at the path, first write the contents of the log to the old file."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if self._files is not None and (moved or self._files.is_moved()):
                self._files.detach(connection)
        except (sqlite3.Error, OSError) as error:
            log.error("SQLiteStore(%r): what the old file had cannot be written to it", self._path, error=error)  # noqa: TRY400
        finally:
            connection.close()

    def _open_again(self) -> None:
        """Open the file that is at the path now.

        Raises:
            StoreUnavailable: another process had the lock for too long, or the file was replaced again.
            StoreRefused: the file cannot be used.
        """
        if not os.path.exists(self._path):
            raise gone(self._path)
        try:
            self._open()
            assert self._files is not None  # noqa: S101 - `_open` sets it
            self._files.check()
        except FileMoved as moved:
            self._close_connection()
            raise StoreUnavailable(f"SQLiteStore({self._path!r}): {moved}, time and again") from moved
        except Exception as error:
            self._close_connection()
            if isinstance(error, CuelightError | _Busy):
                raise
            raise StoreRefused(safe_str(error)) from error

    def _reads_garbled_text(self, error: BaseException) -> bool:
        """Whether a text in the file is not valid Unicode. If so, such texts are now read in a printable form."""
        connection = self._connection
        if connection is None or connection.text_factory is readable_text or not is_invalid_text(error):
            return False
        connection.text_factory = readable_text
        return True

    def _transaction(self, calls: list[StoreCall]) -> None:
        connection, row_store, engine, files = self._connection, self._row_store, self._engine, self._files
        assert connection and row_store and engine and files  # noqa: PT018, S101
        begin = "BEGIN" if all(call.reads for call in calls) else "BEGIN IMMEDIATE"
        try:
            self._with_retries(lambda: connection.execute(begin))
        except CuelightError:
            files.check()  # a changed file may be the reason
            raise
        changed = False
        try:
            files.check()
            self._check_other_processes()
            row_store.begin()
            now = self._clock()
            for call in calls:
                if call.abandoned:  # its caller gave up while another process had the lock
                    continue
                row_store.changed = False
                try:
                    call.result = getattr(engine, call.step)(now, *call.args)
                except (CuelightError, ValueError, TypeError) as error:
                    if row_store.changed:
                        raise
                    call.error = error  # rejected, and nothing was written
                changed |= row_store.changed
            row_store.end()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if changed:
            self._notifier.notify()
        if row_store.stale:  # found by a read, which must not write
            row_store.stale = False
            self._calls.put(StoreCall("forget", blocking=True))

    def _end(self, error: Exception, closers: list[StoreCall]) -> None:
        with self._lock:
            self.ended = True
        with self._in_use:
            self._close_connection()
        _writers.discard(self)
        left: list[StoreCall] = []
        while not self._calls.empty():
            call = self._calls.get_nowait()
            if call is not None:
                left.append(call)
        for call in left:
            if call.step == self.CLOSE:
                closers.append(call)
            else:
                call.error = _for_caller(error, self._path)
        _wake_callers([*(call for call in left if call.step != self.CLOSE), *closers])


def _before_fork() -> None:
    _fork_lock.acquire()
    deadline = time.monotonic() + _FORK
    _paused_for_fork.extend(writer for writer in list(_writers) if writer.hold_for_fork(deadline))


def _after_fork() -> None:
    while _paused_for_fork:
        _paused_for_fork.pop().release_after_fork()
    _fork_lock.release()


def _in_child() -> None:
    _after_fork()
    _writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _for_caller(error: BaseException, path: str) -> BaseException:
    """The error for the caller.

    It is `StoreUnavailable` for a problem with the file, and `StoreRefused` or `ValueError` for a step or value that
    SQLite rejects.
    """
    if isinstance(error, UnicodeEncodeError | OverflowError):
        wrapped: Exception = ValueError(f"SQLiteStore({path!r}): a value cannot be stored: {safe_str(error)}")
    elif isinstance(error, _WRONG_STEP):
        wrapped = StoreRefused(f"SQLiteStore({path!r}): the step cannot be made: {safe_str(error)}")
    elif isinstance(error, sqlite3.Error | _Busy):
        wrapped = unavailable(error, path)
    else:
        return error
    wrapped.__cause__ = error
    return wrapped
