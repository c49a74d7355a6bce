"""The time limit of a caller, as it reaches a store: of a file that is locked, of a server that is silent."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight.errors import StoreUnavailable
from cuelight.redis import RedisStore
from cuelight.tasks import Claim, Finish, MemoryStore, Query, Record, Schedule, SQLiteStore, Store, Task, TaskQueue
from cuelight.tasks._stores._step_timeout import LEAST, step_timeout, time_for_step
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy

A = Record(id="a", type="t")
STEPS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "add": lambda store: store.add([A]),
    "exchange": lambda store: store.exchange([Finish("a", 1)], Claim("w", "n", 1, 15.0)),
    "save": lambda store: store.save("a", 1, progress=b"p"),
    "cancel": lambda store: store.cancel(["a"]),
    "unpark": lambda store: store.unpark(["t"]),
    "control": lambda store: store.control(paused=True),
    "set_limit": lambda store: store.set_limit(None, "k"),
    "pause_limit": lambda store: store.pause_limit("k", 1.0),
    "put_schedule": lambda store: store.put_schedule(Schedule(name="s", spec="every 1.0", due=1.0, record=A)),
    "remove_schedule": lambda store: store.remove_schedule("s"),
    "fire": lambda store: store.fire("s", 1.0, 2.0),
    "replay": lambda store: store.replay(["a"]),
    "edit": lambda store: store.edit("a", b""),
    "purge": lambda store: store.purge(["a"]),
    "beat": lambda store: anyio.to_thread.run_sync(store.beat, "w", [("a", 1)], 15.0),
}
READS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "schedules": lambda store: store.schedules(),
    "get": lambda store: store.get(["a"]),
    "size": lambda store: store.size(),
    "find": lambda store: store.find(Query()),
    "open": lambda store: store.open(),
}


@contextmanager
def locked(path: Path) -> Generator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@asynccontextmanager
async def silent_server(prefix: str) -> AsyncGenerator[RedisStore]:
    """A store that has waited for nothing yet, and whose server says nothing any more."""
    with TcpProxy(shared_server().port) as proxy:
        store = RedisStore(f"{proxy.url}?socket_timeout=60&socket_connect_timeout=60", prefix=prefix)
        await store.open()
        proxy.silence()
        yield store
        proxy.heal()
        await store.close()


async def refused_in_time(step: Callable[[Store], Awaitable[object]], store: Store) -> None:
    with step_timeout(0.15), pytest.raises(StoreUnavailable, match=r"within 0\.15 s"):
        await step(store)


async def test_a_step_that_finds_the_file_locked_takes_no_longer_than_its_caller_allows(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF", busy_timeout=60.0)
    await store.open()
    with locked(tmp_path / "tasks.db"):
        async with anyio.create_task_group() as group:
            for step in STEPS.values():
                group.start_soon(refused_in_time, step, store)
    size = await store.size()
    assert (size.pending, size.paused) == (0, False), "who has given up has nothing done behind their back"
    await store.close()


async def test_who_gives_up_while_the_file_is_locked_does_not_keep_others_from_waiting(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF", busy_timeout=60.0)
    await store.open()
    async with anyio.create_task_group() as group:
        with locked(tmp_path / "tasks.db"):
            group.start_soon(store.add, [Record(id="patient", type="t")])
            await refused_in_time(STEPS["add"], store)
    assert [one is not None for one in await store.get(["patient", "a"])] == [True, False]
    await store.close()


async def test_a_step_to_a_silent_server_takes_no_longer_than_its_caller_allows(tmp_path: Path) -> None:
    async with silent_server(str(tmp_path)) as store, anyio.create_task_group() as group:
        for name, step in (STEPS | READS).items():
            if name != "beat":  # it blocks, for as long as the client does
                group.start_soon(refused_in_time, step, store)


async def test_waiting_for_a_change_of_a_silent_server_takes_no_longer_than_its_time(tmp_path: Path) -> None:
    async with silent_server(str(tmp_path)) as store:
        await store.changed(store.version(), 0.05)  # which may say that something has changed
        with step_timeout(0.15), pytest.raises(StoreUnavailable, match=r"begin to listen .* in 0\.15 s"):
            await store.changed(store.version(), 60.0)


class Noting(MemoryStore):
    """Notes how long each step may take; fails if that is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float | None] = []
        self.away = False

    async def _note(self) -> None:
        self.seen.append(time_for_step())
        if self.away:
            await anyio.sleep(1.0)
            raise StoreUnavailable("away")

    async def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        await self._note()
        return await super()._step(step, *args)

    async def add(self, records: Any, bound: Any = None) -> Any:
        await self._note()
        return await super().add(records, bound)

    async def exchange(self, finishes: Any, claim: Any = None) -> Any:
        await self._note()
        return await super().exchange(finishes, claim)


async def test_the_retry_timeout_of_a_queue_reaches_its_store() -> None:
    store = Noting()
    async with TaskQueue(store, retry_timeout=4.0) as queue:
        calls: list[Callable[[], Awaitable[object]]] = [
            queue.size,
            partial(queue.enqueue, Task(task_id="a")),
            queue.dequeue,
            partial(queue.cancel, "a"),
            queue.pause,
            queue.schedules,
        ]
        for call in calls:
            store.seen.clear()
            await call()
            assert store.seen == [4.0]
    assert time_for_step() is None


async def test_each_further_attempt_has_what_is_left_of_the_patience() -> None:
    store = Noting()
    async with TaskQueue(store, retry_timeout=1.5) as queue:
        await queue.ready()
        store.away = True
        with pytest.raises(StoreUnavailable):
            await queue.size()
        first, second = store.seen
        assert first == 1.5
        assert second is not None
        assert LEAST <= second < 0.5


async def test_without_patience_a_store_is_asked_once() -> None:
    store = Noting()
    async with TaskQueue(store, retry_timeout=0) as queue:
        await queue.size()
        assert store.seen == [LEAST]
