"""What a sender learns of its task."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from cuelight.errors import (
    Rejected,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskQuarantined,
    TaskTimedOut,
)
from cuelight.pools import TaskStatus
from cuelight.tasks import Claim, MemoryStore, Query, Task, TaskHandle, TaskQueue, task
from cuelight.tasks._functions._values import encode

from .conftest import MakeStore


@task(name="double")
async def double(number: int) -> int:
    return 2 * number


@task(name="names")
async def names() -> set[str]:
    return {"a"}


async def taken(queue: TaskQueue) -> Task:
    found = await queue.dequeue(5.0)
    assert found is not None
    return found


async def test_a_result_has_the_type_of_its_annotation(queue: TaskQueue) -> None:
    handle = await queue.send(names)
    await queue.ack(await taken(queue), ["a", "b"])
    assert await handle.result() == {"a", "b"}
    assert await queue.handle(handle.task_id, names).result() == {"a", "b"}
    assert await queue.handle(handle.task_id).result() == ["a", "b"]
    assert await handle.result(0) == {"a", "b"}
    assert repr(handle) == f"<task handle {handle.task_id}>"


async def test_all_who_wait_for_a_result_get_it(queue: TaskQueue) -> None:
    handle = await queue.send(double, 21)
    results: list[int] = []

    async def wait() -> None:
        results.append(await handle.result(5.0))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await queue.ack(await taken(queue), 42)
    assert results == [42] * 10


async def test_very_many_wait_for_results_of_their_own(queue: TaskQueue) -> None:
    count = 300
    results: dict[int, int] = {}
    handles = [await queue.send(double, number) for number in range(count)]

    async def wait(number: int) -> None:
        results[number] = await handles[number].result()

    async def work() -> None:
        while (found := await queue.dequeue(0.0)) is not None:
            await queue.ack(found, 2 * found.payload["kwargs"]["number"])

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(work)
    assert results == {number: 2 * number for number in range(count)}


async def test_a_wait_for_a_result_ends_in_time_and_the_task_goes_on(queue: TaskQueue) -> None:
    handle = await queue.send(double, 1)
    for timeout in (0.01, 0, -1):
        with pytest.raises(TimeoutError, match=f"{handle.task_id} has not ended after {timeout} s"):
            await handle.result(timeout)
    assert await handle.status() == TaskStatus.PENDING


async def test_a_result_that_is_not_what_the_annotation_says_is_refused(queue: TaskQueue) -> None:
    handle = await queue.send(double, 1)
    await queue.ack(await taken(queue), "two")
    with pytest.raises(TypeError, match="double returned 'two'"):
        await handle.result()


async def test_a_failed_task_says_how_it_failed(queue: TaskQueue) -> None:
    handle = await queue.send(double.with_options(max_retries=2), 1)
    for attempt in (1, 2):
        try:
            raise ValueError(f"no luck, time {attempt}")
        except ValueError as error:
            await queue.nack(await taken(queue), error)
    expected = "failed the maximum number of times; the last error: ValueError: no luck, time 2"
    with pytest.raises(TaskFailed, match=expected) as failed:
        await handle.result()
    assert f"double ({handle.task_id})" in str(failed.value)
    assert any("test_a_failed_task_says_how_it_failed" in note for note in failed.value.__notes__), "its traceback"


async def test_each_way_to_be_given_up_has_its_error(queue: TaskQueue) -> None:
    rejected = await queue.send(double, 1)
    await queue.nack(await taken(queue), Rejected("a bad number"))
    with pytest.raises(TaskFailed, match=r"was rejected.*a bad number"):
        await rejected.result()

    slow = await queue.send(double.with_options(max_timeouts=1), 1)
    await queue.nack(await taken(queue), TaskTimedOut("60 s"))
    with pytest.raises(TaskTimedOut, match="60 s"):
        await slow.result()

    late = await queue.send(double.with_options(deadline=time.time() - 1), 1)
    assert await queue.dequeue() is None
    with pytest.raises(TaskExpired, match="was not started before its deadline"):
        await late.result()

    cancelled = await queue.send(double, 1)
    assert await cancelled.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        await cancelled.result()


async def test_a_task_whose_workers_died_is_quarantined() -> None:
    now = [1000.0]
    store = MemoryStore(clock=lambda: now[0])
    async with TaskQueue(store) as queue:
        handle = await queue.send(double.with_options(max_crashes=2), 1)
        for attempt in range(2):
            assert (await store.exchange((), Claim("mortal", str(attempt), 1, 5.0))).leases
            now[0] += 6.0
        assert await queue.dequeue() is None
        with pytest.raises(TaskQuarantined, match="when its worker died"):
            await handle.result()


async def test_a_shed_task_says_what_it_gave_way_to(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), max_length=1, overflow="shed_lowest") as queue:
        handle = await queue.send(double.with_options(priority=3), 1)
        await queue.send(double, 2)
        with pytest.raises(TaskFailed, match="gave way to a more urgent task"):
            await handle.result()


async def test_a_task_that_is_not_there_is_said_not_to_be(queue: TaskQueue) -> None:
    handle = queue.handle("nobody")
    for look in (handle.result, handle.status, handle.task, handle.progress):
        with pytest.raises(TaskNotFound, match="'nobody'"):
            await look()
    with pytest.raises(TaskNotFound):
        await anext(handle.updates())
    assert await handle.cancel() == "unknown"


async def test_a_handle_tells_where_its_task_is(queue: TaskQueue) -> None:
    handle = await queue.send(double.with_options(delay=0.01), 1)
    assert await handle.status() == TaskStatus.SCHEDULED
    found = await taken(queue)
    assert await handle.status() == TaskStatus.IN_FLIGHT
    assert (await handle.task()).payload == found.payload
    await queue.ack(found, 2)
    assert await handle.status() == TaskStatus.COMPLETED
    assert (await handle.task()).status == TaskStatus.COMPLETED


async def save(queue: TaskQueue, handle: TaskHandle[Any], progress: object) -> None:
    held = queue.session.dequeued[handle.task_id]
    assert await queue.store.save(handle.task_id, held.epoch, progress=encode(progress))


async def test_progress_is_followed_until_the_end(queue: TaskQueue) -> None:
    handle = await queue.send(double, 1)
    assert await handle.progress() is None
    found = await taken(queue)
    await save(queue, handle, {"done": 1})
    assert await handle.progress() == {"done": 1}
    seen: list[object] = []
    read = anyio.Semaphore(0)

    async def follow() -> None:
        async for update in handle.updates():
            seen.append(update)
            read.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        for step in (2, 3):
            with anyio.fail_after(5):
                await read.acquire()
            await save(queue, handle, {"done": step})
        await queue.ack(found, 2)
    assert seen == [{"done": 1}, {"done": 2}, {"done": 3}]


async def test_updates_may_be_left_early(queue: TaskQueue) -> None:
    handle = await queue.send(double, 1)
    await taken(queue)
    await save(queue, handle, 50)
    async for update in handle.updates():
        assert update == 50
        break
    assert not queue.result_waiters._waiting


async def test_a_replayed_task_can_be_waited_for_again(queue: TaskQueue) -> None:
    handle = await queue.send(double.with_options(max_retries=1), 1)
    await queue.nack(await taken(queue))
    with pytest.raises(TaskFailed):
        await handle.result()
    await queue.dead_letters.replay(handle.task_id)
    await queue.ack(await taken(queue), 2)
    assert await handle.result() == 2


async def test_a_result_of_another_process_arrives(make_store: MakeStore) -> None:
    """Another handle stands for another process: with SQLite it has a connection of its own."""
    async with TaskQueue(make_store()) as sender:
        store = make_store()
        if isinstance(store, MemoryStore):
            store = sender.store  # what is in memory cannot be shared otherwise
        async with TaskQueue(store) as worker:
            handle = await sender.send(double, 21)
            async with anyio.create_task_group() as tasks:

                async def work() -> None:
                    await anyio.wait_all_tasks_blocked()
                    await worker.ack(await taken(worker), 42)

                tasks.start_soon(work)
                with anyio.fail_after(5):
                    assert await handle.result() == 42


async def test_the_results_of_a_function_are_read_page_by_page(queue: TaskQueue) -> None:
    for number in range(3):
        await queue.send(double.with_options(task_id=str(number)), number)
        await queue.ack(await taken(queue), 2 * number)
    await queue.send(names)
    await queue.ack(await taken(queue), ["a"])
    assert [found async for found in queue.results(double)] == [("0", 0), ("1", 2), ("2", 4)]
    assert [result async for _, result in queue.results(names)] == [{"a"}]
    async for task_id, _ in queue.results(double):
        assert task_id == "0"
        break
    found = await queue.find(Query(state="completed", limit=2))
    assert [snapshot.record.id for snapshot in found] == ["0", "1"]
