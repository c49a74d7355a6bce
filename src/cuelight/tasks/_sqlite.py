"""The store that keeps tasks in a file."""

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
from cuelight.tasks._changes import Changes
from cuelight.tasks._checks import check_text
from cuelight.tasks._clock import SteadyClock
from cuelight.tasks._step_timeout import time_for_step
from cuelight.tasks._store import Added, Beat, Bound, Claim, Exchange, Finish, Query, Record, Schedule, Size, Snapshot
from cuelight.tasks._task import Limit

if TYPE_CHECKING:
    from cuelight.tasks._sqlite_writer import Call, Writer

__all__ = ["SQLiteStore"]

_BUSY: Final = 10.0
_SPARE: Final = 1.0
"""Seconds that a transaction may take after it has the lock."""


_opening = threading.Lock()
"""Of all stores, while one gets its writer. A fork must not wait for it: its holder may wait for the fork to end."""


def _forget_other_process() -> None:
    """This process was forked: the lock may be held by a thread that is not here."""
    global _opening  # noqa: PLW0603
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_process)


def _call(step: str, args: tuple[Any, ...] = (), *, reads: bool = False, blocking: bool = False) -> Call:
    from cuelight.tasks._sqlite_writer import Call  # noqa: PLC0415 - sqlite3 is loaded by those who have such a store

    return Call(step, args, reads=reads, blocking=blocking)


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

    What was acknowledged is on the disk: nothing is lost when every process is killed, and with `synchronous="FULL"`
    nothing when the power fails. All steps that wait are committed together.

    A call that is cancelled while it waits may take effect all the same, wholly or not at all. The same call may then
    be made again: records and claims carry a nonce, and finishes an epoch.

    A file that is deleted or replaced while it is open is noticed before the next step: nothing is acknowledged that
    goes to a file without a name. If another file is renamed to its name, the store goes on with that one.

    The file must be on a local disk: locks of network file systems cannot be trusted. A store that was opened before a
    `fork` belongs to the parent process; the child has to `open` it again.
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
        """Name the file; nothing happens before `open`.

        Args:
            path: the file; a relative path is looked up from the folder that is current now. The file is made if it is
                not there, for this user alone; its folder is not.
            queue: which queue in it.
            synchronous: "FULL" syncs the disk before each acknowledgement. "NORMAL" may lose the last of them when the
                power fails, not when a process is killed. "EXTRA" and "OFF" are those of SQLite.
            busy_timeout: seconds to wait for other processes before `StoreUnavailable`.
            clock: seconds since the epoch. It is asked in a thread of the store.

        Raises:
            ValueError: an argument is none of those.
            TypeError: the path or the name of the queue is no path or text.
        """
        self._path = _absolute(path)
        check_text(f"SQLiteStore({self._path!r})", queue=queue)
        from cuelight.tasks._sqlite_schema import SYNCHRONOUS  # noqa: PLC0415 - as above

        if synchronous not in SYNCHRONOUS:
            raise ValueError(f"SQLiteStore(synchronous={synchronous!r}): give one of {', '.join(SYNCHRONOUS)}")
        if not busy_timeout >= 0:
            raise ValueError(f"SQLiteStore(busy_timeout={busy_timeout!r}): give seconds, 0 or more")
        self._queue, self._synchronous, self._busy_timeout = queue, synchronous, busy_timeout
        self._clock = SteadyClock(clock)
        self._changes = Changes(self._poke)
        self._writer: Writer | None = None

    def __repr__(self) -> str:
        return f"SQLiteStore({self._path!r}, queue={self._queue!r})"

    def now(self) -> float:
        """The clock, in seconds since the epoch; see `SteadyClock`."""
        return self._clock()

    async def open(self) -> None:
        """Open the file, or make it. A checkpoint.

        Raises:
            FileNotFoundError: its folder is not there.
            PermissionError: it must not be read or written.
            ValueError: it is no database, one of something else, or of a newer version of this library.
            StoreUnavailable: other processes held it for too long, or the disk failed.
        """
        call = _call("size", reads=True)
        with _opening:
            writer = self._writer
            if writer is not None and writer.pid != os.getpid():
                writer.abandon()
                writer, self._changes = None, Changes(self._poke)
            if writer is None or not writer.take(call):
                self._writer = self._started(call)
        await self._answer(call)

    def _started(self, call: Call) -> Writer:
        from cuelight.tasks._sqlite_writer import Writer  # noqa: PLC0415 - as above

        writer = Writer(
            self._path,
            self._queue,
            synchronous=self._synchronous,
            busy_timeout=self._busy_timeout,
            clock=self._clock,
            changes=self._changes,
        )
        writer.take(call)  # before it starts: should it fail at once, this is who learns of it
        writer.start()
        return writer

    async def close(self) -> None:
        """Commit what is under way, and close the file. A checkpoint; cancelled, it goes on by itself."""
        writer = self._writer
        if writer is None or writer.ended or writer.pid != os.getpid():
            await yield_now()
            return
        call = _call(writer.CLOSE)
        if writer.take(call):
            await call.answer()
        else:
            await yield_now()  # somebody else has closed it just now
        writer.join()
        self._changes.notify()

    def _poke(self) -> None:
        if self._writer is not None:
            self._writer.poke()

    def _running(self) -> Writer:
        writer = self._writer
        if writer is None:
            raise PoolClosed(f"{self!r} is not open: await open() first")
        if writer.pid != os.getpid():
            raise PoolClosed(f"{self!r} was opened in process {writer.pid} before a fork: await open() in this one")
        return writer

    async def _step(self, step: str, *args: Any, reads: bool = False) -> Any:
        call = _call(step, args, reads=reads)
        self._submit(call)
        return await self._answer(call)

    def _submit(self, call: Call) -> None:
        if not self._running().take(call):
            raise PoolClosed(f"{self!r} is closed: open() it again")

    async def _answer(self, call: Call) -> Any:
        """The answer to a call, or an error when it has taken longer than the caller allows."""
        seconds = time_for_step()
        if seconds is None or seconds > self._busy_timeout + _SPARE:  # the writer gives up sooner
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
        call = _call("beat", (worker, leases, lease), reads=lease is None, blocking=True)
        self._submit(call)
        seconds = time_for_step()
        if not call.wait_blocking(seconds):
            raise self._late(seconds or 0.0)
        beat: Beat = call.outcome()
        return beat

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        saved: bool = await self._step("keep", task_id, epoch, progress, checkpoint)
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
        return self._changes.version

    async def changed(self, since: int, timeout: float) -> None:
        if self._running().ended:
            raise PoolClosed(f"{self!r} is closed: open() it again")
        await self._changes.wait(since, timeout)
