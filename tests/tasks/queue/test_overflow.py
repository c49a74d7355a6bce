"""What a full queue does."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from cuelight.errors import QueueFull
from cuelight.tasks import Task, TaskPriority, TaskQueue

from .conftest import MakeStore


async def test_a_full_queue_makes_producers_wait_in_their_order(make_store: MakeStore) -> None:
    order: list[str] = []
    async with TaskQueue(make_store(), max_length=1) as queue, anyio.create_task_group() as tasks:
        assert await queue.enqueue(Task(task_id="0"))
        for number in range(1, 6):
            tasks.start_soon(queue.enqueue, Task(task_id=str(number)))
            with anyio.fail_after(5):
                while len(queue.session.waiting_producers) < number:
                    await anyio.lowlevel.checkpoint()
        for _ in range(6):
            with anyio.fail_after(5):
                found = await queue.dequeue(5.0)
            assert found is not None
            order.append(found.task_id)
            await queue.ack(found)
    assert order == ["0", "1", "2", "3", "4", "5"]


async def test_a_producer_that_is_cancelled_while_it_waits_has_added_nothing(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), max_length=1) as queue:
        await queue.enqueue(Task())
        for _ in range(2):
            with anyio.move_on_after(0.02) as scope:
                await queue.enqueue(Task(task_id="cancelled"))
            assert scope.cancelled_caught
        found = await queue.dequeue()
        assert found is not None
        assert await queue.get("cancelled") is None
        assert await queue.enqueue(Task(task_id="next")), "the line goes on"


async def test_a_batch_that_is_larger_than_the_queue_flows_through_it(make_store: MakeStore) -> None:
    given = [Task() for _ in range(10)]
    outcomes: list[bool] = []
    found: list[str] = []
    async with TaskQueue(make_store(), max_length=3) as queue, anyio.create_task_group() as tasks:

        async def produce() -> None:
            outcomes.extend(await queue.enqueue_many([*given, given[0]]))

        tasks.start_soon(produce)
        while len(found) < 10:
            one = await queue.dequeue(5.0)
            assert one is not None
            found.append(one.task_id)
            assert (await queue.size()).pending <= 3
            await queue.ack(one)
    assert found == [one.task_id for one in given]
    assert outcomes == [True] * 10 + [False]


async def test_reject_raises_when_the_queue_is_full(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), name="mail", max_length=2, overflow="reject") as queue:
        batch = [Task(task_id=str(number)) for number in range(4)]
        with pytest.raises(QueueFull, match=r"'mail' is full \(2 tasks wait\): 2 of 4 .* the first is 2"):
            await queue.enqueue_many(batch)
        assert (await queue.size()).pending == 2
        with pytest.raises(QueueFull):
            await queue.enqueue(Task())
        assert not await queue.enqueue(batch[0]), "a duplicate needs no room"
        for _ in range(2):
            found = await queue.dequeue()
            assert found is not None
            await queue.ack(found)
        assert await queue.enqueue_many(batch) == [False, False, True, True]


async def test_shed_lowest_gives_up_the_least_urgent_task(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), max_length=2, overflow="shed_lowest") as queue:
        await queue.enqueue_many([Task(task_id="low", priority=TaskPriority.LOW), Task(task_id="normal")])
        with pytest.raises(QueueFull, match="none of them is less urgent"):
            await queue.enqueue(Task(priority=TaskPriority.BACKGROUND))
        assert await queue.enqueue(Task(task_id="high", priority=TaskPriority.HIGH))
        assert (await queue.dead_letters.get("low")).reason == "shed"
        assert (await queue.size()).pending == 2


async def test_a_queue_without_a_bound_is_never_full(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), max_length=None, overflow="reject") as queue:
        assert all(await queue.enqueue_many(Task() for _ in range(300)))


async def test_tasks_in_flight_leave_room(make_store: MakeStore) -> None:
    async with TaskQueue(make_store(), max_length=1, overflow="reject") as queue:
        for _ in range(3):
            await queue.enqueue(Task())
            assert await queue.dequeue() is not None
