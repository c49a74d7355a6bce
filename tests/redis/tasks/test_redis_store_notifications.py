"""Who waits for a change is told by those who make it, in other processes too: another store stands for one."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from cuelight.redis import RedisClient, RedisStore
from cuelight.redis._tasks import _notifications
from cuelight.tasks import Claim, Exchange, Finish, Limit, Record
from helpers.redis_servers import shared_server


@pytest.fixture
async def here(prefix: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(shared_server().url, prefix=prefix)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def there(prefix: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(shared_server().url, prefix=prefix)
    await store.open()
    yield store
    await store.close()


async def claim(store: RedisStore, nonce: str, most: int = 1) -> Exchange:
    return await store.exchange([], Claim(f"worker {id(store)}", nonce, most, 15.0))


async def starving(store: RedisStore) -> int:
    """Until a store has found nothing to claim, and heard of nothing else since: the version of then."""
    while True:
        since = store.version()
        assert (await claim(store, uuid.uuid4().hex, 3)).leases == []
        if store.version() == since:
            return since


async def commands(client: RedisClient, name: str) -> int:
    """How often a command was called on the server."""
    for line in (await client.execute("INFO", "commandstats")).decode().splitlines():
        if f"cmdstat_{name}:" in line:
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


class Waiting:
    """A wait in the background, for what comes after `since`."""

    def __init__(self) -> None:
        self.ended = anyio.Event()

    async def run(self, store: RedisStore, since: int, timeout: float = 20.0) -> None:
        await store.changed(since, timeout)
        self.ended.set()


async def _subscribers(client: RedisClient, store: RedisStore) -> int:
    reply = await client.execute("PUBSUB", "NUMSUB", store._channel)
    return msgspec.convert(reply[1], int)


async def hears(client: RedisClient, store: RedisStore, loops: int = 1) -> None:
    """Until the server has said to a store that it listens, and a mark is set."""
    with anyio.fail_after(10):
        while True:
            marks = await client.execute("HMGET", store._keys[0], "hungry", "watched")
            if b"1" in marks and await _subscribers(client, store) >= loops:
                return
            await anyio.sleep(0.001)


async def test_a_task_that_another_store_adds_wakes_who_has_found_nothing(
    here: RedisStore, there: RedisStore, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 60.0)  # it was told, and did not look
    for turn in range(5):
        since = await starving(here)
        waiting = Waiting()
        async with anyio.create_task_group() as group:
            group.start_soon(waiting.run, here, since)
            await hears(client, here)
            await there.add([Record(id=f"{turn}", type="t")])
            with anyio.fail_after(5):
                await waiting.ended.wait()
        (lease,) = (await claim(here, f"again {turn}")).leases
        assert lease.record.id == f"{turn}"


async def test_every_change_of_another_store_wakes_who_has_read_something(
    here: RedisStore, there: RedisStore, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 60.0)
    await there.add([Record(id="a", type="t")])
    changes: list[Any] = [
        lambda: claim(there, "n"),
        lambda: there.save("a", 1, progress=b"1"),
        lambda: there.save("a", 1, progress=b"2"),
        lambda: there.cancel(["a"]),
        lambda: there.exchange([Finish("a", 1, "cancelled")]),
        lambda: there.purge(["a"]),
        lambda: there.control(paused=True),
        lambda: there.add([Record(id="b", type="t")]),
    ]
    for change in changes:
        await here.size()  # it knows of the change before
        since = here.version()
        await here.get(["a"])
        waiting = Waiting()
        async with anyio.create_task_group() as group:
            group.start_soon(waiting.run, here, since)
            await hears(client, here)
            await change()
            with anyio.fail_after(5):
                await waiting.ended.wait()


async def test_a_change_between_reading_and_waiting_is_not_missed(
    here: RedisStore, there: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 60.0)
    since = here.version()
    assert await here.get(["a"]) == [None]
    await there.add([Record(id="a", type="t")])
    with anyio.fail_after(5):
        await here.changed(since, 60)
    since = here.version()
    await here.size()
    assert (await claim(here, "1", 2)).leases != []
    await here.changed(since, 60)  # its own, of what was read before
    since = here.version()
    assert (await claim(here, "2")).leases == []
    await there.add([Record(id="b", type="t")])
    with anyio.fail_after(5):
        await here.changed(since, 60)


async def test_what_others_finish_does_not_wake_who_looks_for_work(
    here: RedisStore, there: RedisStore, client: RedisClient
) -> None:
    await there.add([Record(id=f"{number}", type="t") for number in range(20)])
    leases = (await claim(there, "all", 20)).leases
    since = await starving(here)
    async with anyio.create_task_group() as group:
        waiting = Waiting()
        group.start_soon(waiting.run, here, since)
        await hears(client, here)
        published = await commands(client, "publish")
        for lease in leases:
            await there.exchange([Finish(lease.record.id, lease.epoch)])
        assert not waiting.ended.is_set()
        assert here.version() == since
        assert await commands(client, "publish") == published
        await there.add([Record(id="more", type="t")])
        with anyio.fail_after(5):
            await waiting.ended.wait()
        assert await commands(client, "publish") == published + 1


@pytest.mark.parametrize("what", ["place", "resume", "limit", "unpark", "sooner"])
async def test_whatever_may_make_a_task_claimable_wakes_who_looks_for_work(
    here: RedisStore, there: RedisStore, client: RedisClient, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 60.0)
    one = (Limit("k", max_concurrent=1),)
    await there.add([Record(id="a", type="t", limits=one), Record(id="b", type="t", limits=one)])
    (lease,) = (await claim(there, "one", 2)).leases
    if what == "resume":
        await there.control(paused=True)
    if what == "unpark":
        await there.exchange([Finish("a", lease.epoch, "unknown")])
        await claim(there, "two", 2)
    since = await starving(here)
    changes: dict[str, Any] = {
        "place": lambda: there.exchange([Finish("a", lease.epoch)]),
        "resume": lambda: there.control(paused=False),
        "limit": lambda: there.set_limit(Limit("k", max_concurrent=2), "k"),
        "unpark": lambda: there.unpark(["t"]),
        "sooner": lambda: anyio.to_thread.run_sync(there.beat, f"worker {id(there)}", [("a", lease.epoch)], 0.5),
    }
    async with anyio.create_task_group() as group:
        waiting = Waiting()
        group.start_soon(waiting.run, here, since)
        await hears(client, here)
        await changes[what]()
        with anyio.fail_after(5):
            await waiting.ended.wait()


async def test_a_lost_notification_costs_a_second(here: RedisStore, there: RedisStore, client: RedisClient) -> None:
    since = await starving(here)
    async with anyio.create_task_group() as group:
        waiting = Waiting()
        group.start_soon(waiting.run, here, since)
        await hears(client, here)
        there._channel = "nobody listens here"
        await there.add([Record(id="a", type="t")])
        with anyio.fail_after(5):
            await waiting.ended.wait()
    assert [lease.record.id for lease in (await claim(here, "m")).leases] == ["a"]


async def test_waiting_asks_the_server_once_a_second(here: RedisStore, client: RedisClient) -> None:
    since = await starving(here)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(here.changed, since, 2.5)
        await hears(client, here)
        before = await commands(client, "evalsha")
        await anyio.sleep(2.2)
        assert await commands(client, "evalsha") - before <= 3
        group.cancel_scope.cancel()


async def test_a_queue_that_was_emptied_by_force_is_noticed(
    here: RedisStore, there: RedisStore, client: RedisClient
) -> None:
    """Its counters begin again, as after a restart of a server that keeps nothing."""
    for number in range(10):
        await here.add([Record(id=f"{number}", type="t")])
    since = here.version()
    await here.size()
    async with anyio.create_task_group() as group:
        waiting = Waiting()
        group.start_soon(waiting.run, here, since)
        await hears(client, here)
        await client.execute("DEL", *here._keys)
        await there.add([Record(id="new", type="t")])
        with anyio.fail_after(5):
            await waiting.ended.wait()
    since = here.version()
    assert [lease.record.id for lease in (await claim(here, "n", 2)).leases] == ["new"]


async def test_stores_of_several_loops_are_told(here: RedisStore, there: RedisStore, client: RedisClient) -> None:
    await here.size()
    since = here.version()
    await here.size()
    ended: list[str] = []

    async def wait(backend: str) -> None:
        await here.changed(since, 20.0)
        ended.append(backend)

    async def elsewhere(backend: str) -> None:
        await anyio.to_thread.run_sync(lambda: anyio.run(wait, backend, backend=backend))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for backend in ("asyncio", "trio"):
                group.start_soon(elsewhere, backend)
            await hears(client, here, loops=2)
            await there.add([Record(id="a", type="t")])
    assert sorted(ended) == ["asyncio", "trio"]


async def test_an_idle_worker_begins_at_once(here: RedisStore, there: RedisStore, client: RedisClient) -> None:
    """The time from adding to claiming, with a server, two connections and one loop between: some milliseconds."""
    took: list[float] = []
    for turn in range(30):
        since = await starving(here)
        async with anyio.create_task_group() as group:
            waiting = Waiting()
            group.start_soon(waiting.run, here, since)
            await hears(client, here)
            began = time.perf_counter()
            await there.add([Record(id=f"{turn}", type="t")])
            await waiting.ended.wait()
            assert len((await claim(here, f"m{turn}")).leases) == 1
            took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 0.1
