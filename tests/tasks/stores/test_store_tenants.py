"""Tenants share a queue by their weights, in every store."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cuelight.redis._tasks import RedisStore
from cuelight.tasks import Bound, Claim, Finish, Limit, MemoryStore, Record, SQLiteStore, Store, Task
from cuelight.tasks._codec import record_of
from cuelight.tasks._stores._sqlite import _schema as schema
from helpers.stores import START, STORES, Driver, HandClock


def untyped(value: Any) -> Any:
    return value


async def fill(driver: Driver, tenant: str | None, number: int, weight: float = 1.0, **fields: Any) -> None:
    ids = [f"{tenant or 'nobody'}{index}" for index in range(number)]
    await driver.add(*ids, tenant=tenant, weight=weight, **fields)


def shares(ids: list[str]) -> str:
    """Of whom the tasks are, in their order."""
    return "".join(task_id[0] for task_id in ids)


async def ends_kept(store: Store) -> int:
    """How many ends of tenants a store has."""
    if isinstance(store, MemoryStore):
        return len(store._row_store.fair_queue._finishes)
    if isinstance(store, SQLiteStore):
        assert store._writer is not None
        assert store._writer._connection is not None
        number: int = store._writer._connection.execute("SELECT count(*) FROM turns").fetchone()[0]
        return number
    assert isinstance(store, RedisStore)
    return int(await store._server.execute("ZCARD", store._keys[18]))


async def test_few_tasks_of_a_tenant_do_not_wait_for_many_of_another(driver: Driver) -> None:
    await fill(driver, "big", 1000)
    await fill(driver, "small", 10)
    first = await driver.claim_ids(20)
    assert shares(first) == "bs" * 10
    assert [task_id for task_id in first if task_id[0] == "s"] == [f"small{index}" for index in range(10)]


async def test_who_comes_while_others_wait_is_next_but_not_ahead_of_his_share(driver: Driver) -> None:
    await fill(driver, "big", 100)
    assert len(await driver.claim_ids(50)) == 50
    await fill(driver, "new", 5)
    assert shares(await driver.claim_ids(9)) == "nbnbnbnbn"


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_a_tenant_who_sends_one_by_one_has_his_share_and_no_more(driver: Driver, weight: float) -> None:
    await fill(driver, "big", 100)
    seen = "o"
    for number in range(40):  # he sends the next when the last was begun
        if seen[-1] == "o":
            await driver.add(f"one{number}", tenant="one", weight=weight)
        seen += shares(await driver.claim_ids(1))
    assert abs(seen[1:].count("o") - 40 * weight / (1 + weight)) <= 1


async def test_tenants_share_by_their_weights(driver: Driver) -> None:
    await fill(driver, "heavy", 300, 3.0)
    await fill(driver, "light", 300)
    first = shares(await driver.claim_ids(200))
    assert first.count("h") == 150
    for end in range(4, 200, 4):
        assert abs(first[:end].count("h") - 0.75 * end) <= 2


async def test_tasks_of_nobody_are_a_tenant_too(driver: Driver) -> None:
    await fill(driver, "a", 1)
    await fill(driver, None, 50)
    await fill(driver, "b", 50)
    assert shares(await driver.claim_ids(41)) == "anb" + "nb" * 19


async def test_without_tenants_the_order_is_that_of_arrival_and_nothing_is_kept(driver: Driver) -> None:
    await fill(driver, None, 30)
    await driver.add("urgent", priority=0)
    assert await driver.claim_ids(40) == ["urgent", *(f"nobody{index}" for index in range(30))]
    assert await ends_kept(driver.store) == 0


async def test_priority_and_deadline_come_before_the_turn(driver: Driver) -> None:
    await fill(driver, "big", 20)
    await driver.add("small", tenant="small")
    await driver.add("big-soon", "big-soon2", tenant="big", deadline=START + 50)
    await driver.add("big-high", "big-high2", tenant="big", priority=1)
    assert await driver.claim_ids(6) == ["big-high", "big-high2", "big-soon", "big-soon2", "big0", "small"]


async def test_urgent_work_does_not_turn_the_time_of_the_rest_on(driver: Driver) -> None:
    await fill(driver, "big", 100)
    await driver.add(*(f"urgent{index}" for index in range(50)), tenant="big", priority=0)
    assert len(await driver.claim_ids(50)) == 50
    await driver.add("small", tenant="small")
    assert await driver.claim_ids(2) == ["big0", "small"]


async def test_a_task_that_is_tried_again_keeps_its_turn(driver: Driver) -> None:
    await fill(driver, "a", 10)
    await fill(driver, "b", 10)
    (first,) = await driver.claim()
    assert await driver.claim_ids(8) == ["b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4"]
    assert await driver.finish(first, "error") == "pending"
    assert await driver.claim_ids(2) == ["a0", "b4"]


async def test_a_late_retry_is_not_behind_those_who_came_after_a_quiet_time(driver: Driver, clock: HandClock) -> None:
    await fill(driver, "a", 30)
    leases = await driver.claim(30)
    assert await driver.finish(leases[29], "error", delay=5.0) == "scheduled"
    await driver.store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases[:29]])
    await fill(driver, "b", 5)
    clock.advance(6.0)
    assert await driver.claim_ids(2) == ["a29", "b0"]


async def test_a_tenant_is_held_by_its_limit_and_others_go_on(driver: Driver) -> None:
    await driver.add(*(f"a{index}" for index in range(5)), tenant="a", limits=(Limit("a", max_concurrent=1),))
    await driver.add(*(f"b{index}" for index in range(5)), tenant="b", limits=(Limit("b", max_concurrent=2),))
    await fill(driver, "c", 3)
    (a, *others) = await driver.claim(10)
    assert [lease.record.id for lease in others] == ["b0", "c0", "b1", "c1", "c2"]
    await driver.finish(a)
    assert await driver.claim_ids() == ["a1"]


async def test_the_last_turn_is_shed_first(driver: Driver) -> None:
    await fill(driver, "big", 10)
    await fill(driver, "small", 2)
    assert await driver.add("vip", priority=0, bound=Bound(12, shed=True)) == ["added"]
    assert await driver.state("big9") == "dead_letter"
    assert shares(await driver.claim_ids(5)) == "vbsbs"


async def test_a_replayed_task_that_lost_its_deadline_is_not_behind(driver: Driver, clock: HandClock) -> None:
    await fill(driver, "a", 10)
    await fill(driver, "late", 20, deadline=START + 5)
    clock.advance(6.0)
    assert await driver.claim_ids(1) == ["a0"]
    assert await driver.store.replay(["late19"]) == [True]
    assert await driver.claim_ids(2) == ["late19", "a1"]


async def test_what_is_kept_of_tenants_is_bounded(driver: Driver) -> None:
    await fill(driver, "x", 500)
    for number in range(400):
        await driver.add(f"t{number}", tenant=f"tenant-{number}")
        assert len(await driver.claim(2)) == 2
    assert await ends_kept(driver.store) <= 130
    while await driver.claim(500):
        pass
    assert await ends_kept(driver.store) == 0


@pytest.mark.parametrize("name", ["sqlite", "redis"])
async def test_turns_outlive_the_store(name: str, tmp_path: Path, clock: HandClock) -> None:
    first = STORES[name](tmp_path, clock)
    await first.open()
    driver = Driver(first, clock)
    await fill(driver, "a", 20)
    assert len(await driver.claim(10)) == 10
    await first.close()
    second = STORES[name](tmp_path, clock)
    await second.open()
    driver = Driver(second, clock)
    await driver.add("late-a", tenant="a")
    await driver.add(*(f"b{index}" for index in range(3)), tenant="b")
    exchange = await second.exchange([], Claim("w", "after the restart", 14, 15.0))
    assert [lease.record.id for lease in exchange.leases][-1] == "late-a"
    assert shares([lease.record.id for lease in exchange.leases]) == "bababa" + "a" * 7 + "l"
    await second.close()


async def test_a_file_from_before_tenants_opens_and_keeps_its_order(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "tasks.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for statement in schema.SCRIPTS[0]:
            old.execute(statement)
        old.execute("PRAGMA application_id = 0x43554531")
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO queues (id, name, pending) VALUES (1, 'default', 3)")
        old.execute("INSERT INTO lanes VALUES (1, 1, '[\"k\"]', '', 2, 9e999, 2)")
        old.execute("UPDATE file SET sequence = 3")
        for seq, lane in ((1, -1), (2, 1), (3, -1)):
            record = Record(id="", type="t", limits=(Limit("k", max_concurrent=1),) if lane > 0 else ())
            old.execute(
                "INSERT INTO tasks (seq, queue, id, type, state, lane, priority, deadline) "
                "VALUES (?, 1, ?, 't', 0, ?, 2, 9e999)",
                (seq, f"old{seq}", lane),
            )
            old.execute("INSERT INTO bodies VALUES (?, ?, x'')", (seq, msgspec.msgpack.encode(record)))
    store = SQLiteStore(path, synchronous="OFF", clock=clock)
    await store.open()
    driver = Driver(store, clock)
    await fill(driver, "a", 2)
    await fill(driver, "b", 2)
    assert await driver.claim_ids() == ["old1", "old2", "old3", "a0", "b0", "a1", "b1"]
    await store.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tenant": "a", "weight": 0.0}, "weight=0.0.: give 0.001 to 1000"),
        ({"tenant": "a", "weight": inf}, "give 0.001 to 1000"),
        ({"tenant": "a", "weight": float("nan")}, "give 0.001 to 1000"),
        ({"weight": 2.0}, "tenant=None, weight=2.0.: give 1 without a tenant"),
    ],
)
async def test_weights_that_mean_nothing_are_refused(driver: Driver, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await driver.add("a", **fields)
    assert (await driver.store.size()).pending == 0


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (lambda: Task(tenant=""), ValueError, "tenant='': give it some characters"),
        (lambda: Task(tenant=untyped(7)), TypeError, "tenant=7: give a string"),
        (lambda: Task(tenant_weight=2.0), ValueError, "tenant_weight=2.0 without tenant: give the tenant"),
        (lambda: Task(tenant="a", tenant_weight=0), ValueError, "tenant_weight=0: give 0.001 to 1000"),
        (
            lambda: Task(tenant="a", tenant_weight=untyped("2")),
            TypeError,
            "tenant_weight='2': give a number, 0.001 to 1000",
        ),
        (lambda: Task(tenant="a", tenant_weight=True), TypeError, "tenant_weight=True: give a number"),
    ],
)
def test_tenants_that_mean_nothing_are_refused_at_the_producer(
    task: Callable[[], Task], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        record_of(task(), "")
