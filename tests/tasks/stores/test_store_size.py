"""What a claim costs does not depend on how many tasks there are, nor on how many are held back by a limit.

Counted in steps of SQLite's machine, in pages and in heap entries, not in time: they are the same on every machine.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuelight.tasks import Claim, Finish, Lease, Limit, MemoryStore, Record, SQLiteStore, Store
from cuelight.tasks._stores._sqlite import _statements as statements
from helpers.stores import START, HandClock

BATCH = 1000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # nothing here depends on the loop


@pytest.fixture
def many(stress: bool) -> int:
    return 1_000_000 if stress else 50_000


def connection_of(store: SQLiteStore) -> sqlite3.Connection:
    assert store._writer is not None
    assert store._writer._connection is not None
    return store._writer._connection


async def fill(store: Store, many: int, prefix: str = "", **fields: Any) -> None:
    for start in range(0, many, BATCH):
        await store.add([Record(id=f"{prefix}{n}", type="t", **fields) for n in range(start, start + BATCH)])


def chunks(leases: list[Lease]) -> Iterator[Finish]:
    for lease in leases:
        yield Finish(lease.record.id, lease.epoch)


async def drain(store: Store, nonce: str, most: int = BATCH) -> int:
    """Claim and finish all; how many there were."""
    finishes: list[Finish] = []
    total = turn = 0
    while True:
        turn += 1
        exchange = await store.exchange(finishes, Claim("w", f"{nonce}{turn}", most, 60.0))
        finishes = list(chunks(exchange.leases))
        total += len(finishes)
        if not finishes:
            return total


class Steps:
    """How many steps SQLite's machine makes, in hundreds."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.made = 0
        connection.set_progress_handler(self._count, 100)

    def _count(self) -> int:
        self.made += 1
        return 0


async def test_a_claim_costs_the_same_whatever_a_limit_holds_back(tmp_path: Path, many: int) -> None:
    """Each task is held back by one limit, or by one of two, or free."""
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF", clock=HandClock())
    await store.open()
    one = Limit("one", max_concurrent=2)
    slow = Limit("slow", rate=0.001, burst=1.0)
    costs: list[list[int]] = []
    running: list[Lease] = []
    for size in (BATCH, many):
        steps = Steps(connection_of(store))
        await fill(store, size, f"{size}-one-", limits=(one,))
        await fill(store, size, f"{size}-both-", limits=(one, slow), priority=1)
        costs.append([])
        for turn in range(5):
            await store.add([Record(id=f"{size}-free-{turn}", type="t", priority=3)])
            before = steps.made
            finishes = list(chunks(running))
            running = (await store.exchange(finishes, Claim("w", f"{size}-{turn}", 3, 60.0))).leases
            costs[-1].append(steps.made - before)
            assert {lease.record.id for lease in running} >= {f"{size}-free-{turn}"}
            assert len(running) <= 3
    assert max(costs[1]) <= 2 * max(costs[0]) + 5, costs
    await store.close()


async def test_a_claim_costs_the_same_however_many_tasks_wait(tmp_path: Path, many: int) -> None:
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF", clock=HandClock())
    await store.open()
    costs: list[int] = []
    for size in (BATCH, many):
        await fill(store, size, f"{size}-ready-")
        await fill(store, size, f"{size}-later-", delay=60.0, deadline=START + 90)
        keys = [Record(id=f"{size}-{n}", type="t", unique=f"{size}-{n}", unique_for=500.0) for n in range(size)]
        await store.add(keys)
        steps = Steps(connection_of(store))
        exchange = await store.exchange([], Claim("w", f"{size}", 10, 60.0))
        assert len(exchange.leases) == 10
        await store.exchange(list(chunks(exchange.leases)))
        costs.append(steps.made)
    assert costs[1] <= 2 * costs[0] + 5, costs
    await store.close()


async def test_the_file_and_the_memory_of_a_busy_queue_stay_flat(tmp_path: Path, many: int) -> None:
    clock = HandClock()
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF", clock=clock)
    await store.open()
    pages: list[int] = []
    for turn in range(3):
        await fill(store, many // 5, f"{turn}-", result_ttl=1.0)
        assert await drain(store, f"{turn}-") == many // 5
        clock.advance(100)
        while connection_of(store).execute("SELECT count(*) FROM tasks").fetchone() != (0,):
            await store.exchange([], Claim("w", "", 0, 60.0))
        assert (await store.size()).completed == 0
        pages.append(connection_of(store).execute("PRAGMA page_count").fetchone()[0])
    assert pages[2] <= pages[0] * 1.1, pages
    assert connection_of(store).execute("SELECT count(*) FROM bodies").fetchone() == (0,)
    await store.close()


async def test_the_heaps_of_the_memory_store_hold_no_more_than_its_tasks(many: int) -> None:
    clock = HandClock()
    store = MemoryStore(clock=clock)
    rows = store._row_store
    few = many // 5
    await fill(store, few, result_ttl=1.0, deadline=START + 10_000, limits=(Limit("k", max_concurrent=5000),))
    assert await drain(store, "") == few
    for turn in range(50):  # one task that is beaten and tried again for ever
        if turn == 0:
            await store.add([Record(id="again", type="t", deadline=START + 1e6, limits=(Limit("k", rate=1e6),))])
        for attempt in range(50):
            (lease,) = (await store.exchange([], Claim("w", f"{turn}-{attempt}", 1, 60.0))).leases
            store.beat("w", [("again", lease.epoch)], 60.0 - attempt / 10)
            await store.exchange([Finish("again", lease.epoch, "released")])
        clock.advance(61)
    while (await store.size()).completed:
        await store.exchange([], Claim("w", "", 0, 60.0))
    heaps = {
        "deadlines": rows._deadlines,
        "gates": rows._limit_states_due,
        "claims": rows._claim_ends,
        **{f"due {state}": heap for state, heap in rows._due.items()},
        **{f"lane {lane}": heap for lane, heap in rows._limit_queue_tasks.items()},
        **{f"lanes {key}": heap for key, heap in rows._limit_queues_by_wait.items()},
    }
    assert {name: len(heap.entries) for name, heap in heaps.items() if len(heap.entries) > 1500} == {}
    assert len(rows._tasks) == 1
    assert len(rows._by_sequence) <= 1100


_QUERIES = {
    name: text
    for name, text in vars(statements).items()
    if name[0].isupper() and isinstance(text, str) and re.match(r"(SELECT|DELETE|UPDATE)\b.*(\?)", text, re.DOTALL)
}


async def test_no_question_is_answered_by_looking_at_all_tasks(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "tasks.db", synchronous="OFF")
    await store.open()
    connection = connection_of(store)
    connection.execute(statements.MAKE_LAST)
    assert len(_QUERIES) >= 14
    for name, text in _QUERIES.items():
        plan = _plan(connection, text, [1] * text.count("?"))
        for line in plan:
            assert not re.match(r"SCAN (?!value|json_each)", line) or "CONSTANT" in line, (name, plan)
            assert "TEMP B-TREE" not in line, (name, plan)
    await store.close()


def _plan(connection: sqlite3.Connection, text: str, values: list[int]) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", values)]


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_million_tasks(kind: str, tmp_path: Path, stress: bool) -> None:
    """The speed of what is nearly always done: adding and draining, by hundreds."""
    store: Store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "tasks.db")
    await store.open()
    many = 1_000_000 if stress else 10_000

    async def add() -> None:
        for start in range(0, many, 100):
            await store.add([Record(id=f"{n}", type="t", payload=bytes(100)) for n in range(start, start + 100)])

    async def all_of_it() -> None:
        assert await drain(store, "", 100) == many

    await _timed(f"{kind}: added", many, add)
    await _timed(f"{kind}: drained", many, all_of_it)
    assert (await store.size()).completed == many
    await store.close()


async def _timed(what: str, many: int, run: Callable[[], Any]) -> None:
    began = time.perf_counter()
    await run()
    print(f"{what}: {many / (time.perf_counter() - began):,.0f} tasks/s")
