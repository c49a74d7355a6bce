"""A store that is away: each call of a long story fails once, before or after it took effect, and nothing changes.

On a virtual clock, so that waiting for the store takes no time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest

from cuelight.errors import PoolClosed, StoreUnavailable
from cuelight.tasks import Limit, MemoryStore, Task, TaskPriority, TaskQueue, task
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend
from helpers.task_queues import FlakyStore, flaky


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


def flaky_store() -> tuple[FlakyStore, Any]:
    return flaky(MemoryStore(clock=anyio.current_time))


@task(name="double")
async def double(number: int) -> int:
    return 2 * number


async def story(queue: TaskQueue, seen: list[object]) -> None:
    """All that a queue can do, with what came of it."""
    seen.append(await queue.enqueue(Task(task_id="a", max_retries=1)))
    seen.append(await queue.enqueue(Task(task_id="a")))
    seen.append(await queue.enqueue_many([Task(task_id="b", delay=5.0), Task(task_id="c"), Task(task_id="c")]))
    for _ in range(2):
        found = await queue.dequeue()
        assert found is not None
        seen.append((found.task_id, found.retry_count))
        seen.append(await queue.ack(found, "done") if found.task_id == "c" else await queue.nack(found, "no luck"))
    found = await queue.dequeue(10.0)
    assert found is not None
    seen.append(found.task_id)
    seen.append(await queue.nack(found, "not yet", delay=60.0))
    seen.append(await queue.cancel("b"))
    seen.append(await queue.cancel("b"))
    handle = await queue.send(double.with_options(task_id="d"), 21)
    found = await queue.dequeue(5.0)
    assert found is not None
    seen.extend((handle.is_new, await queue.extend(found), await queue.ack(found, 42), await handle.result(5.0)))
    await queue.pause()
    await queue.enqueue(Task(task_id="e", priority=TaskPriority.LOW, limits=(Limit("api", rate=1.0),)))
    seen.append(await queue.dequeue())
    await queue.resume()
    await queue.set_limit(Limit("api", max_concurrent=5))
    await queue.pause_limit("api", 1.0)
    await queue.clear_limit("api")
    found = await queue.dequeue(5.0)
    assert found is not None
    seen.append((found.task_id, await queue.drain(0.5), await queue.ack(found)))
    seen.append(await queue.every(60.0, double.task(1)))
    seen.append([one.name for one in await queue.schedules()])
    await queue.remove_schedule("double")
    seen.append([one.name for one in await queue.schedules()])
    await queue.close()
    with pytest.raises(PoolClosed):
        await queue.enqueue(Task())
    await queue.reopen()
    await queue.purge(["c"])
    seen.append(await queue.drain(scheduled=True))


async def told(store: Any, tell: Callable[[TaskQueue, list[object]], Awaitable[None]]) -> list[object]:
    """A story, and how it left the queue."""
    seen: list[object] = []
    async with TaskQueue(store, heartbeat="loop") as queue:
        await tell(queue, seen)
        seen.append(await queue.size())
        for task_id in "abcde":
            found = await queue.get(task_id)
            seen.append(found and (found.status, found.counts, [attempt.error for attempt in found.history]))
        seen.append(queue.in_flight())
    return seen


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_call_that_fails_once_changes_nothing(side: Literal["before", "after"]) -> None:
    calm, store = flaky_store()
    expected = await told(store, story)
    assert len(calm.calls) > 40
    for number in range(1, len(calm.calls) + 1):
        broken, store = flaky_store()
        broken.fail(number, side=side)
        assert await told(store, story) == expected, f"call {number}, {calm.calls[number - 1]}, failed {side}"


async def test_a_store_that_stays_away_is_said_to_be_away() -> None:
    broken, store = flaky_store()
    async with TaskQueue(store, heartbeat="loop", retry_timeout=30.0) as queue:
        await queue.enqueue_many([Task(task_id="held"), Task(task_id="waits", delay=3600.0)])
        held = await queue.dequeue()
        assert held is not None
        broken.fail(*range(1, 2000))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "enqueue": lambda: queue.enqueue(Task()),
            "dequeue": queue.dequeue,
            "ack": lambda: queue.ack(held),
            "nack": lambda: queue.nack(held),
            "size": queue.size,
            "cancel": lambda: queue.cancel("held"),
            "drain": queue.drain,
            "send": lambda: queue.send(double, 1),
            "pause": queue.pause,
        }
        for name, call in calls.items():
            began = anyio.current_time()
            with pytest.raises(StoreUnavailable):
                await call()
            assert 25.0 < anyio.current_time() - began <= 30.0, name
        broken.fail()
        assert queue.in_flight() == {"held": held}, "its settlements failed, and it is still ours"


async def test_a_store_that_stays_away_is_told_to_all_who_wait_for_results() -> None:
    broken, store = flaky_store()
    async with TaskQueue(store, heartbeat="loop") as queue:
        handle = await queue.send(double, 1)
        failed: list[float] = []

        async def wait() -> None:
            with pytest.raises(StoreUnavailable):
                await handle.result()
            failed.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            broken.fail(*range(1, 2000))
            await store._store.add([])  # not counted, and no change
            await store._store.control(paused=True)
        assert len(set(failed)) == 1
        broken.fail()


async def test_an_ack_whose_answer_was_lost_can_be_made_again() -> None:
    broken, store = flaky_store()
    async with TaskQueue(store, heartbeat="loop", retry_timeout=0) as queue:
        await queue.enqueue(Task(task_id="a"))
        assert await queue.dequeue() is not None
        broken.fail(1, side="after")
        with pytest.raises(StoreUnavailable):
            await queue.ack("a")
        await anyio.sleep(60.0)  # beats find the lease gone, and that is no loss
        assert await queue.ack("a")
        assert (await queue.size()).completed == 1
        assert queue.in_flight() == {}


async def test_what_a_cancelled_dequeue_got_is_given_back_once_the_store_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, store = flaky_store()
    async with TaskQueue(store, heartbeat="loop", lease=3600.0) as queue:
        await queue.enqueue(Task(task_id="a"))
        broken.fail(*range(1, 20), side="after")
        with anyio.move_on_after(1.0), caplog.at_level(logging.CRITICAL):
            await queue.dequeue()
        await anyio.sleep(2.5)
        assert (await store._store.size()).in_flight == 1  # not by a call that may be the one to find the store back
        await anyio.sleep(60.0)
        assert (await queue.size()).pending == 1
        assert len(broken.calls) > 20


async def test_a_store_that_hangs_at_the_end_is_left_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    broken, store = flaky_store()

    async def hang(*args: object) -> None:
        await anyio.sleep_forever()

    async with TaskQueue(store, heartbeat="loop") as queue:
        await queue.enqueue(Task())
        assert await queue.dequeue() is not None
        broken.instead["exchange"] = hang
    assert "its store did not answer within 2 s" in caplog.text
