"""`MemoryStore`: a store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cuelight.errors import PoolClosed
from cuelight.mailbox._backend import yield_now
from cuelight.tasks._changes import Changes
from cuelight.tasks._clock import SteadyClock
from cuelight.tasks._engine import Engine
from cuelight.tasks._memory_book import MemoryBook
from cuelight.tasks._record import Record
from cuelight.tasks._store import Added, Beat, Bound, Claim, Exchange, Finish, Query, Schedule, Size, Snapshot
from cuelight.tasks._task import Limit

R = TypeVar("R")


class MemoryStore:
    """Keeps the tasks of one queue in memory. They do not survive the process.

    It may be used from several event loops and threads at the same time. No operation suspends, so an operation that is
    cancelled before it began has no effect, and every other operation is complete. After `close`, `open` continues with
    the same tasks.
    """

    durable = False
    overlap = 1

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Create an empty store, which can be used at once.

        Args:
            clock: returns seconds since the epoch. It is called in the thread that calls the store.
        """
        self._clock = SteadyClock(clock)
        self._lock = threading.Lock()
        self._book = MemoryBook()
        self._engine = Engine(self._book)
        self._changes = Changes()
        self._closed = False

    def now(self) -> float:
        """The current time, in seconds since the epoch; see `SteadyClock`."""
        return self._clock()

    async def open(self) -> None:
        """Work again after `close`. A checkpoint."""
        await yield_now()
        self._closed = False

    async def close(self) -> None:
        """Reject all later calls with `PoolClosed`. A checkpoint."""
        await yield_now()
        self._closed = True
        self._changes.notify()

    def _do(self, step: Callable[..., R], *args: Any) -> R:
        book = self._book
        with self._lock:
            if self._closed:
                self._check_open()
            book.changed = False
            answer = step(self._clock(), *args)
            changed = book.changed
        if changed:
            self._changes.notify()
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the store is closed: open() it again, or make another")

    async def _step(self, step: Callable[..., R], *args: Any) -> R:
        await yield_now()
        return self._do(step, *args)

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        await yield_now()
        return self._do(self._engine.add, records, bound)

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        await yield_now()
        return self._do(self._engine.exchange, finishes, claim)

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        return self._do(self._engine.beat, worker, leases, lease)

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        return await self._step(self._engine.keep, task_id, epoch, progress, checkpoint)

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        return await self._step(self._engine.cancel, ids)

    async def unpark(self, types: Sequence[str]) -> int:
        return await self._step(self._engine.unpark, types)

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        await self._step(self._engine.control, paused, closed)

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        await self._step(self._engine.set_limit, limit, key)

    async def pause_limit(self, key: str, seconds: float) -> None:
        await self._step(self._engine.pause_limit, key, seconds)

    async def put_schedule(self, schedule: Schedule) -> None:
        await self._step(self._engine.put_schedule, schedule)

    async def remove_schedule(self, name: str) -> bool:
        return await self._step(self._engine.remove_schedule, name)

    async def schedules(self) -> list[Schedule]:
        return await self._step(self._engine.schedules)

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        return await self._step(self._engine.fire, name, due, next_due)

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        return await self._step(self._engine.get, ids)

    async def size(self) -> Size:
        return await self._step(self._engine.size)

    async def find(self, query: Query) -> list[Snapshot]:
        return await self._step(self._engine.find, query)

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        return await self._step(self._engine.replay, ids)

    async def edit(self, task_id: str, payload: bytes) -> bool:
        return await self._step(self._engine.edit, task_id, payload)

    async def purge(self, ids: Sequence[str]) -> int:
        return await self._step(self._engine.purge, ids)

    def version(self) -> int:
        return self._changes.version

    async def changed(self, since: int, timeout: float) -> None:
        self._check_open()
        await self._changes.wait(since, timeout)
