"""`SQLiteStore`: a store in a SQLite file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight._text import safe_repr
from cuelight.errors import PoolClosed, StoreUnavailable
from cuelight.mailbox._backend import yield_now
from cuelight.tasks._stores._checks import check_text
from cuelight.tasks._stores._protocol import (
    Added,
    Beat,
    Bound,
    Claim,
    Exchange,
    Finish,
    Query,
    Schedule,
    Size,
    Snapshot,
)
from cuelight.tasks._stores._step_timeout import time_for_step
from cuelight.tasks._stores._support import MonotonicWallClock, VersionNotifier
from cuelight.tasks._task import Limit, Record

if TYPE_CHECKING:
    from cuelight.tasks._stores._sqlite._writer import StoreCall, Writer

_BUSY: Final = 10.0
_SPARE: Final = 1.0
"""Seconds that a transaction may take after it has got the lock."""


_opening = threading.Lock()
"""Held by any store while it creates its writer. A fork must not wait for it: its holder may wait for the fork."""


def _forget_other_process() -> None:
    """Replace the lock in a forked process: the thread that held it may exist only in the parent."""
    global _opening  # noqa: PLW0603
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_process)


def _new_call(step: str, args: tuple[Any, ...] = (), *, reads: bool = False, blocking: bool = False) -> StoreCall:
    from cuelight.tasks._stores._sqlite._writer import StoreCall  # noqa: PLC0415 - sqlite3 is only loaded if such a store is used

    return StoreCall(step, args, reads=reads, blocking=blocking)


def _absolute(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"SQLiteStore({safe_repr(path)}): give the path of a file") from None
    if not text or text == ":memory:" or text.startswith("file:"):
        raise ValueError(f"SQLiteStore({text!r}): give the path of a file; without one use MemoryStore()")
    if "\0" in text:
        raise ValueError(f"SQLiteStore({text!r}): a path has no NUL characters")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"SQLiteStore({text!r}): this is no path: {error.reason}") from None
    return os.path.abspath(text)


class SQLiteStore:
    """Keeps the tasks of one queue in a SQLite file, which other queues and other processes may share.

    Acknowledged operations are on the disk: nothing is lost if all processes are killed, and with `synchronous="FULL"`
    nothing is lost in a power failure. All operations that wait at the same time are committed together.

    If a call is cancelled while it waits, it may still take effect, completely or not at all. The same call may then be
    repeated: records and claims have a nonce, and finishes have an epoch.

    Before each operation, the store checks whether the open file was deleted or replaced, so that it never acknowledges
    an operation on a file without a name. If another file was renamed to the path, the store continues with that file.

    The file must be on a local disk, because locks of network file systems are not reliable. A store that was opened
    before a `fork` belongs to the parent process; the child must `open` it again.
    """

    durable = True
    overlap = 1

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        queue: str = "default",
        synchronous: str = "FULL",
        busy_timeout: float = _BUSY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up the store. The file is not accessed before `open`.

        Args:
            path: the file; a relative path is resolved now, in the current directory. A missing file is created,
                readable by the current user only; a missing directory is not created.
            queue: the name of the queue in the file.
            synchronous: "FULL" syncs the disk before each acknowledgement. "NORMAL" may lose the latest operations in a
                power failure, but not if a process is killed. "EXTRA" and "OFF" are those of SQLite.
            busy_timeout: seconds to wait for locks of other processes before `StoreUnavailable` is raised.
            clock: returns seconds since the epoch. It is called in a thread of the store.

        Raises:
            ValueError: an argument has an invalid value.
            TypeError: `path` is not a path, or `queue` is not a string.
        """
        self._path = _absolute(path)
        check_text(f"SQLiteStore({self._path!r})", queue=queue)
        from cuelight.tasks._stores._sqlite._schema import SYNCHRONOUS  # noqa: PLC0415 - as above

        if synchronous not in SYNCHRONOUS:
            raise ValueError(f"SQLiteStore(synchronous={synchronous!r}): give one of {', '.join(SYNCHRONOUS)}")
        if not busy_timeout >= 0:
            raise ValueError(f"SQLiteStore(busy_timeout={busy_timeout!r}): give seconds, 0 or more")
        self._queue, self._synchronous, self._busy_timeout = queue, synchronous, busy_timeout
        self._clock = MonotonicWallClock(clock)
        self._notifier = VersionNotifier(self._check_for_changes)
        self._writer: Writer | None = None

    def __repr__(self) -> str:
        return f"SQLiteStore({self._path!r}, queue={self._queue!r})"

    def now(self) -> float:
        """The current time, in seconds since the epoch; see `MonotonicWallClock`."""
        return self._clock()

    async def open(self) -> None:
        """Open the file, or create it. A checkpoint.

        Raises:
            FileNotFoundError: its directory does not exist.
            PermissionError: it is not readable or not writable.
            ValueError: it is not a database, belongs to another application, or has a newer version than this library.
            StoreUnavailable: other processes held its lock for too long, or the disk failed.
        """
        call = _new_call("size", reads=True)
        with _opening:
            writer = self._writer
            if writer is not None and writer.pid != os.getpid():
                writer.abandon()
                writer, self._notifier = None, VersionNotifier(self._check_for_changes)
            if writer is None or not writer.submit(call):
                self._writer = self._started(call)
        await self._answer(call)

    def _started(self, call: StoreCall) -> Writer:
        from cuelight.tasks._stores._sqlite._writer import Writer  # noqa: PLC0415 - as above

        writer = Writer(
            self._path,
            self._queue,
            synchronous=self._synchronous,
            busy_timeout=self._busy_timeout,
            clock=self._clock,
            notifier=self._notifier,
        )
        writer.submit(call)  # before it starts, so that this call gets the error if it fails at once
        writer.start()
        return writer

    async def close(self) -> None:
        """Commit pending operations and close the file. A checkpoint.

        If the call is cancelled, closing continues in the background.
        """
        writer = self._writer
        if writer is None or writer.ended or writer.pid != os.getpid():
            await yield_now()
            return
        call = _new_call(writer.CLOSE)
        if writer.submit(call):
            await call.answer()
        else:
            await yield_now()  # another caller has just closed it
        writer.join()
        self._notifier.notify()

    def _check_for_changes(self) -> None:
        if self._writer is not None:
            self._writer.check_for_changes()

    def _running(self) -> Writer:
        writer = self._writer
        if writer is None:
            raise PoolClosed(f"{self!r} is not open: await open() first")
        if writer.pid != os.getpid():
            raise PoolClosed(f"{self!r} was opened in process {writer.pid} before a fork: await open() in this one")
        return writer

    async def _step(self, step: str, *args: Any, reads: bool = False) -> Any:
        call = _new_call(step, args, reads=reads)
        self._submit(call)
        return await self._answer(call)

    def _submit(self, call: StoreCall) -> None:
        if not self._running().submit(call):
            raise PoolClosed(f"{self!r} is closed: open() it again")

    async def _answer(self, call: StoreCall) -> Any:
        """Return the answer to a call, or raise an error if it takes longer than the caller allows."""
        seconds = time_for_step()
        if seconds is None or seconds > self._busy_timeout + _SPARE:  # the writer gives up earlier
            return await call.answer()
        with anyio.move_on_after(seconds):
            return await call.answer()
        raise self._late(seconds)

    def _late(self, seconds: float) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self!r}: there was no answer within {seconds:g} s: another process holds its lock, or the disk is slow"
        )

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        added: list[Added] = await self._step("add", records, bound)
        return added

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        exchange: Exchange = await self._step("exchange", finishes, claim)
        return exchange

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        call = _new_call("beat", (worker, leases, lease), reads=lease is None, blocking=True)
        self._submit(call)
        seconds = time_for_step()
        if not call.wait_blocking(seconds):
            raise self._late(seconds or 0.0)
        beat: Beat = call.outcome()
        return beat

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        saved: bool = await self._step("save_progress", task_id, epoch, progress, checkpoint)
        return saved

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        outcomes: list[str] = await self._step("cancel", ids)
        return outcomes

    async def unpark(self, types: Sequence[str]) -> int:
        number: int = await self._step("unpark", types)
        return number

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        await self._step("control", paused, closed)

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        await self._step("set_limit", limit, key)

    async def pause_limit(self, key: str, seconds: float) -> None:
        await self._step("pause_limit", key, seconds)

    async def put_schedule(self, schedule: Schedule) -> None:
        await self._step("put_schedule", schedule)

    async def remove_schedule(self, name: str) -> bool:
        removed: bool = await self._step("remove_schedule", name)
        return removed

    async def schedules(self) -> list[Schedule]:
        schedules: list[Schedule] = await self._step("schedules", reads=True)
        return schedules

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        fired: bool = await self._step("fire", name, due, next_due)
        return fired

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        snapshots: list[Snapshot | None] = await self._step("get", ids, reads=True)
        return snapshots

    async def size(self) -> Size:
        size: Size = await self._step("size", reads=True)
        return size

    async def find(self, query: Query) -> list[Snapshot]:
        snapshots: list[Snapshot] = await self._step("find", query, reads=True)
        return snapshots

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        replayed: list[bool] = await self._step("replay", ids)
        return replayed

    async def edit(self, task_id: str, payload: bytes) -> bool:
        edited: bool = await self._step("edit", task_id, payload)
        return edited

    async def purge(self, ids: Sequence[str]) -> int:
        number: int = await self._step("purge", ids)
        return number

    def version(self) -> int:
        return self._notifier.version

    async def changed(self, since: int, timeout: float) -> None:
        if self._running().ended:
            raise PoolClosed(f"{self!r} is closed: open() it again")
        await self._notifier.wait(since, timeout)
