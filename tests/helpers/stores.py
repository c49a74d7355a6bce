"""Stores for tests: a clock that is moved by hand, short words for the steps, and a store that fails on purpose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, cast

from msgspec.structs import replace

from cuelight.errors import StoreUnavailable
from cuelight.redis._tasks import RedisStore
from cuelight.tasks import (
    Added,
    Bound,
    Claim,
    Exchange,
    Finish,
    Lease,
    MemoryStore,
    Record,
    Snapshot,
    SQLiteStore,
    Store,
)
from helpers.redis_servers import shared_server

START: Final = 1_000_000.0


class HandClock:
    """A clock that stands still until it is moved. Any thread may read it."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


MakeStore = Callable[[Path, Callable[[], float]], Store]


def _in_memory(folder: Path, clock: Callable[[], float]) -> Store:
    return MemoryStore(clock=clock)


def _in_sqlite(folder: Path, clock: Callable[[], float]) -> Store:
    # Without syncs the disk has what was written as far as these tests can see: they do not cut the power.
    return SQLiteStore(folder / "tasks.db", synchronous="OFF", clock=clock)


def _in_redis(folder: Path, clock: Callable[[], float]) -> Store:
    return RedisStore(shared_server().url, str(folder), prefix="contract", clock=clock)


STORES: Final[dict[str, MakeStore]] = {"memory": _in_memory, "sqlite": _in_sqlite, "redis": _in_redis}
"""Every store: `STORES[name](folder, clock)`."""


async def entries(store: RedisStore) -> int:
    """How many fields and members the keys of a queue have, but for those that say how the queue is."""
    number = 0
    for key in store._keys[1:]:
        kind = await store._server.execute("TYPE", key)
        if kind != b"none":
            number += await store._server.execute("HLEN" if kind == b"hash" else "ZCARD", key)
    return number


class Driver:
    """A store, its clock, and short words for what producers and workers do."""

    def __init__(self, store: Store, clock: HandClock) -> None:
        self.store, self.clock = store, clock
        self._nonces = count(1)

    def nonce(self) -> str:
        return f"nonce-{next(self._nonces)}"

    async def add(self, *ids: str, bound: Bound | None = None, **fields: Any) -> list[str]:
        """Add tasks; the outcomes."""
        records = [replace(Record(id=task_id, type="t", nonce=self.nonce()), **fields) for task_id in ids]
        added: list[Added] = await self.store.add(records, bound)
        return [one.outcome for one in added]

    async def claim(self, most: int = 1, worker: str = "w", lease: float = 15.0) -> list[Lease]:
        return (await self.exchange([], most, worker, lease)).leases

    async def claim_ids(self, most: int = 100, worker: str = "w") -> list[str]:
        return [lease.record.id for lease in await self.claim(most, worker)]

    async def exchange(
        self, finishes: Sequence[Finish], most: int = 1, worker: str = "w", lease: float = 15.0
    ) -> Exchange:
        return await self.store.exchange(finishes, Claim(worker, self.nonce(), most, lease))

    async def wake_at(self) -> float:
        return (await self.exchange([], 0)).wake_at

    async def finish(self, lease: Lease, kind: str = "done", **fields: Any) -> str:
        """Settle an attempt; the state of the task, or "" if that was refused."""
        finish = Finish(lease.record.id, lease.epoch, kind, **fields)
        return (await self.store.exchange([finish])).accepted[0]

    async def snapshot(self, task_id: str) -> Snapshot:
        (there,) = await self.store.get([task_id])
        assert there is not None, f"{task_id} is not in the store"
        return there

    async def state(self, task_id: str) -> str:
        (there,) = await self.store.get([task_id])
        return "" if there is None else there.state


class Faulty:
    """A store of which one call fails with `StoreUnavailable`: before it takes effect, or after it, its answer lost.

    Attributes:
        calls: how many calls were made so far, of those that a store may lose.
        store: itself, as type checkers know a store.
    """

    _SAFE: Final = ("now", "open", "close", "version", "changed")

    def __init__(self, store: Store, fails_at: int, *, after: bool) -> None:
        self._store, self._fails_at, self._after = store, fails_at, after
        self.calls = 0
        self.durable, self.overlap = store.durable, store.overlap
        self.store = cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in self._SAFE:
            return method
        if not inspect.iscoroutinefunction(method):
            return self._blocking(name, method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            fails = self._count()
            if fails and not self._after:
                raise StoreUnavailable(f"{name}: not made, on purpose")
            answer = await method(*args, **kwargs)
            if fails:
                raise StoreUnavailable(f"{name}: made, and its answer lost on purpose")
            return answer

        return call

    def _blocking(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fails = self._count()
            if fails and not self._after:
                raise StoreUnavailable(f"{name}: not made, on purpose")
            answer = method(*args, **kwargs)
            if fails:
                raise StoreUnavailable(f"{name}: made, and its answer lost on purpose")
            return answer

        return call

    def _count(self) -> bool:
        self.calls += 1
        return self.calls == self._fails_at
