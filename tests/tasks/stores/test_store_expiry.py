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
from helpers.stores import Desk, HandClock, entries

SEES: dict[str, Callable[[Desk], Awaitable[object]]] = {
    "get": lambda desk: desk.state("a"),
    "find": lambda desk: desk.store.find(Query()),
    "find completed": lambda desk: desk.store.find(Query(state="completed")),
    "size": lambda desk: desk.store.size(),
    "cancel": lambda desk: desk.store.cancel(["a"]),
    "replay": lambda desk: desk.store.replay(["a"]),
    "edit": lambda desk: desk.store.edit("a", b""),
    "purge": lambda desk: desk.store.purge(["a"]),
    "finish": lambda desk: desk.store.exchange([Finish("a", 1)]),
    "save": lambda desk: desk.store.save("a", 1, progress=b""),
}


@pytest.mark.parametrize("name", SEES)
async def test_a_result_ends_with_its_time_for_whoever_looks(desk: Desk, clock: HandClock, name: str) -> None:
    never_there = await SEES[name](desk)
    await desk.add("a", result_ttl=60.0)
    (lease,) = await desk.claim()
    assert await desk.finish(lease, result=b"42") == "completed"
    clock.advance(60)
    assert await desk.state("a") == "completed"
    clock.advance(0.001)
    assert await SEES[name](desk) == never_there
    assert (await desk.store.size()).completed == 0


@pytest.mark.parametrize("end", ["completed", "cancelled"])
async def test_an_identity_is_free_when_its_time_is_over_though_nobody_claims(
    desk: Desk, clock: HandClock, end: str
) -> None:
    await desk.add("a", result_ttl=60.0, unique="u", payload=b"first")
    (lease,) = await desk.claim()
    await desk.store.save("a", lease.epoch, progress=b"p")
    if end == "cancelled":
        await desk.store.cancel(["a"])
    assert await desk.finish(lease, result=b"42") in {"completed", "cancelled"}
    clock.advance(60)
    assert await desk.add("a") == ["duplicate"]
    clock.advance(0.001)
    assert await desk.add("a", "a", payload=b"second") == ["added", "duplicate"]
    again = await desk.snapshot("a")
    assert (again.record.payload, again.epoch, again.result, again.progress) == (b"second", 0, None, None)
    assert (again.state, again.sequence) == ("pending", 2)
    size = await desk.store.size()
    assert (size.pending, size.completed, size.cancelled) == (1, 0, 0)
    assert await desk.claim_ids() == ["a"]


async def test_a_unique_key_is_free_when_its_time_is_over_though_nobody_claims(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", unique="u", unique_for=60.0, result_ttl=0.0)
    (lease,) = await desk.claim()
    await desk.finish(lease)
    clock.advance(59.999)
    assert await desk.add("b", unique="u") == ["duplicate"]
    clock.advance(0.001)
    assert await desk.add("b", unique="u") == ["added"]


async def test_results_whose_time_is_over_hide_no_others(desk: Desk, clock: HandClock) -> None:
    for number in range(30):
        await desk.add(f"over{number}", result_ttl=10.0)
        await desk.add(f"kept{number}", result_ttl=1000.0)
    leases = await desk.claim(60)
    await desk.store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases])
    clock.advance(11)
    found = [one.record.id for one in await desk.store.find(Query(state="completed", limit=20))]
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
    desk: Desk, clock: HandClock, tmp_path: Path
) -> None:
    ids = [f"t{number}" for number in range(2500)]
    await desk.add(*ids, delay=1000.0, result_ttl=10.0)
    await desk.store.cancel(ids)
    clock.advance(11)

    async def looked_at() -> bool:
        size = await desk.store.size()
        assert size.cancelled == 0
        await desk.store.find(Query(limit=1000))
        return await _left(desk.store, tmp_path) <= 6  # the answers to three steps that cancelled them

    await until(looked_at)
