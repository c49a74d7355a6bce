"""Results, identities and unique keys end at their time, for whoever looks, though nobody claims any more."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from cuelight.redis import RedisStore
from cuelight.tasks import Finish, MemoryStore, Query, SQLiteStore, Store
from helpers.redis_servers import until
from helpers.stores import Driver, HandClock, entries

SEES: dict[str, Callable[[Driver], Awaitable[object]]] = {
    "get": lambda driver: driver.state("a"),
    "find": lambda driver: driver.store.find(Query()),
    "find completed": lambda driver: driver.store.find(Query(state="completed")),
    "size": lambda driver: driver.store.size(),
    "cancel": lambda driver: driver.store.cancel(["a"]),
    "replay": lambda driver: driver.store.replay(["a"]),
    "edit": lambda driver: driver.store.edit("a", b""),
    "purge": lambda driver: driver.store.purge(["a"]),
    "finish": lambda driver: driver.store.exchange([Finish("a", 1)]),
    "save": lambda driver: driver.store.save("a", 1, progress=b""),
}


@pytest.mark.parametrize("name", SEES)
async def test_a_result_ends_with_its_time_for_whoever_looks(driver: Driver, clock: HandClock, name: str) -> None:
    never_there = await SEES[name](driver)
    await driver.add("a", result_ttl=60.0)
    (lease,) = await driver.claim()
    assert await driver.finish(lease, result=b"42") == "completed"
    clock.advance(60)
    assert await driver.state("a") == "completed"
    clock.advance(0.001)
    assert await SEES[name](driver) == never_there
    assert (await driver.store.size()).completed == 0


@pytest.mark.parametrize("end", ["completed", "cancelled"])
async def test_an_identity_is_free_when_its_time_is_over_though_nobody_claims(
    driver: Driver, clock: HandClock, end: str
) -> None:
    await driver.add("a", result_ttl=60.0, unique="u", payload=b"first")
    (lease,) = await driver.claim()
    await driver.store.save("a", lease.epoch, progress=b"p")
    if end == "cancelled":
        await driver.store.cancel(["a"])
    assert await driver.finish(lease, result=b"42") in {"completed", "cancelled"}
    clock.advance(60)
    assert await driver.add("a") == ["duplicate"]
    clock.advance(0.001)
    assert await driver.add("a", "a", payload=b"second") == ["added", "duplicate"]
    again = await driver.snapshot("a")
    assert (again.record.payload, again.epoch, again.result, again.progress) == (b"second", 0, None, None)
    assert (again.state, again.sequence) == ("pending", 2)
    size = await driver.store.size()
    assert (size.pending, size.completed, size.cancelled) == (1, 0, 0)
    assert await driver.claim_ids() == ["a"]


async def test_a_unique_key_is_free_when_its_time_is_over_though_nobody_claims(
    driver: Driver, clock: HandClock
) -> None:
    await driver.add("a", unique="u", unique_for=60.0, result_ttl=0.0)
    (lease,) = await driver.claim()
    await driver.finish(lease)
    clock.advance(59.999)
    assert await driver.add("b", unique="u") == ["duplicate"]
    clock.advance(0.001)
    assert await driver.add("b", unique="u") == ["added"]


async def test_results_whose_time_is_over_hide_no_others(driver: Driver, clock: HandClock) -> None:
    for number in range(30):
        await driver.add(f"over{number}", result_ttl=10.0)
        await driver.add(f"kept{number}", result_ttl=1000.0)
    leases = await driver.claim(60)
    await driver.store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases])
    clock.advance(11)
    found = [one.record.id for one in await driver.store.find(Query(state="completed", limit=20))]
    assert found == [f"kept{number}" for number in range(20)]


async def _left(store: Store, folder: Path) -> int:
    """What is kept of tasks."""
    if isinstance(store, RedisStore):
        return await entries(store)
    if isinstance(store, SQLiteStore):
        with closing(sqlite3.connect(folder / "tasks.db")) as file:
            tables = ("tasks", "bodies", "stories", "uniques")
            return sum(int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in tables)
    assert isinstance(store, MemoryStore)
    return len(store._row_store._tasks)


async def test_what_nobody_claims_from_forgets_its_results_when_it_is_looked_at(
    driver: Driver, clock: HandClock, tmp_path: Path
) -> None:
    ids = [f"t{number}" for number in range(2500)]
    await driver.add(*ids, delay=1000.0, result_ttl=10.0)
    await driver.store.cancel(ids)
    clock.advance(11)

    async def looked_at() -> bool:
        size = await driver.store.size()
        assert size.cancelled == 0
        await driver.store.find(Query(limit=1000))
        return await _left(driver.store, tmp_path) <= 6  # the answers to three steps that cancelled them

    await until(looked_at)
