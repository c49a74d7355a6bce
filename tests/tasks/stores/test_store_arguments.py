"""What stores are given: many tasks at once, and what makes no sense."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cuelight.tasks import (
    Attempt,
    Finish,
    Limit,
    Record,
    Schedule,
    Store,
    Task,
    TaskQueue,
)
from helpers.stores import Driver

HALF = "\ud800"


async def test_many_tasks_are_cancelled_in_one_call(store: Store) -> None:
    async with TaskQueue(store, heartbeat="loop") as queue:
        await queue.enqueue_many([Task(task_id=f"t{number}", task_type="t") for number in range(5)])
        running = await queue.dequeue()
        assert running is not None
        outcomes = await queue.cancel(iter(["t0", "t1", "t2", "nobody", "t1"]))
        assert outcomes == {"t0": "cancelling", "t1": "cancelled", "t2": "cancelled", "nobody": "unknown"}
        assert await queue.cancel(["t0", "t1"]) == {"t0": "cancelling", "t1": "cancelled"}
        assert await queue.cancel("t3") == "cancelled"
        assert await queue.cancel([]) == {}
        assert (await queue.size()).cancelled == 3
        await queue.ack(running)


async def test_very_many_tasks_are_cancelled_replayed_and_purged(driver: Driver) -> None:
    ids = [f"t{number}" for number in range(2345)]
    await driver.store.add([Record(id=task_id, type="t") for task_id in ids])
    leases = await driver.claim(1000)
    await driver.store.exchange([Finish(lease.record.id, lease.epoch, "rejected") for lease in leases])
    assert [one is not None for one in await driver.store.get([*ids, "nobody"])] == [True] * 2345 + [False]
    outcomes = await driver.store.cancel([*ids, "nobody"])
    assert outcomes == ["finished"] * 1000 + ["cancelled"] * 1345 + ["unknown"]
    assert await driver.store.replay(ids) == [True] * 1000 + [False] * 1345
    assert await driver.store.purge(ids) == 1345
    assert (await driver.store.size()).pending == 1000


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("abc", r"'abc': give a list of identifiers, such as \['abc'\]"),
        (["a", 5], "5 is not a task identifier: give strings"),
        ([["a", "b"]], r"\['a', 'b'\] is not a task identifier"),
        ([None], "None is not a task identifier"),
    ],
)
async def test_what_is_no_identifier_of_a_task_is_refused_by_name(driver: Driver, ids: Any, message: str) -> None:
    await driver.add("a", "b", "c")
    for step in (driver.store.cancel, driver.store.get, driver.store.replay, driver.store.purge):
        with pytest.raises(TypeError, match=message):
            await step(ids)
    assert (await driver.store.size()).pending == 3


async def test_a_queue_refuses_what_is_no_identifier(store: Store) -> None:
    async with TaskQueue(store, heartbeat="loop") as queue:
        wrong: Any = Task(task_id="a")
        for call in (queue.cancel, queue.purge):
            with pytest.raises(TypeError, match="give the identifier of a task, or a list of them"):
                await call(wrong)
            with pytest.raises(TypeError, match="is not a task identifier"):
                await call([wrong])


async def test_a_text_that_is_no_text_is_refused_where_it_is_given(driver: Driver) -> None:
    good = Record(id="a", type="t")
    for record in (
        replace(good, id=HALF),
        replace(good, type=HALF),
        replace(good, nonce=HALF),
        replace(good, unique=HALF),
        replace(good, tenant=HALF),
        replace(good, limits=(Limit(HALF),)),
    ):
        with pytest.raises(ValueError, match=r"'\\ud800'"):
            await driver.store.add([good, record])
    store = driver.store
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.cancel([HALF]),
        lambda: store.get([HALF]),
        lambda: store.set_limit(None, HALF),
        lambda: store.pause_limit(HALF, 1.0),
        lambda: store.put_schedule(Schedule(name=HALF, spec="every 1.0", due=1.0, record=good)),
        lambda: store.put_schedule(Schedule(name="s", spec=HALF, due=1.0, record=good)),
        lambda: store.exchange([Finish("a", 1, "error", attempt=Attempt("error", error=HALF))]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'\\ud800'"):
            await call()
    assert (await store.size()).pending == 0


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**80])
async def test_a_number_that_is_too_large_is_refused_where_it_is_given(driver: Driver, number: int) -> None:
    with pytest.raises(ValueError, match=r"give numbers below 2\*\*53"):
        await driver.add("a", "b", priority=number)
    assert await driver.state("a") == ""


@pytest.mark.parametrize("due", [float("nan"), float("inf"), 1e300])
async def test_periodic_work_that_is_due_at_no_time_is_refused(driver: Driver, due: float) -> None:
    with pytest.raises(ValueError, match="give seconds since the epoch"):
        await driver.store.put_schedule(Schedule(name="s", spec="every 1.0", due=due, record=Record(id="a", type="t")))
