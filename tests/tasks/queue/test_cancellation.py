"""Operations that are cancelled at each of their suspensions, by scopes and by asyncio itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import anyio
import pytest

from cuelight.pools import TaskStatus
from cuelight.tasks import Task, TaskQueue, task
from helpers.task_queues import Outcome, cancelled_at

Kind = Literal["scope", "native"]


@task(name="double")
async def double(number: int) -> int:
    return 2 * number


@pytest.fixture(params=["scope", "native"])
def kind(request: pytest.FixtureRequest, anyio_backend_name: str) -> Kind:
    if request.param == "native" and anyio_backend_name == "trio":
        return "scope"  # trio has nothing but scopes
    chosen: Kind = request.param
    return chosen


async def settled(queue: TaskQueue) -> None:
    """Wait until the actor of the queue has seen to what was cancelled."""
    with anyio.fail_after(5):
        await queue.system.wait_until_idle()


async def each_moment(
    operation: Callable[[int], Awaitable[object]], kind: Kind, after: Callable[[int, Outcome[object]], Awaitable[None]]
) -> None:
    """Run an operation until there is no later moment to cancel it."""
    at, reached = 0, True
    while reached:
        at += 1
        number = at
        outcome = await cancelled_at(number, partial(operation, number), kind)
        await after(number, outcome)
        reached = outcome.reached
    assert at > 1, "it never suspended"


async def test_a_cancelled_enqueue_has_added_the_task_once_or_not_at_all(queue: TaskQueue, kind: Kind) -> None:
    async def operation(number: int) -> object:
        return await queue.enqueue(Task(task_id=str(number)))

    async def after(number: int, outcome: Outcome[object]) -> None:
        there = await queue.get(str(number)) is not None
        if outcome.values:
            assert there
        assert await queue.enqueue(Task(task_id=str(number))) != there
        assert (await queue.size()).pending == number

    await each_moment(operation, kind, after)


async def test_a_cancelled_dequeue_neither_loses_a_task_nor_costs_it_an_attempt(queue: TaskQueue, kind: Kind) -> None:
    await queue.enqueue(Task(task_id="only"))

    async def operation(number: int) -> object:
        return await queue.dequeue()

    async def after(number: int, outcome: Outcome[object]) -> None:
        if outcome.values:
            assert list(queue.in_flight()) == ["only"]
        else:
            await settled(queue)
            assert queue.in_flight() == {}
            assert (await queue.size()).pending == 1
            assert await queue.dequeue() is not None
        found = queue.in_flight()["only"]
        assert (found.counts.errors, found.counts.crashes, found.counts.timeouts) == (0, 0, 0)
        await queue.session.settle(
            queue.session.dequeued["only"], queue.session.finish(queue.session.dequeued["only"], "released")
        )

    await each_moment(operation, kind, after)


async def test_a_dequeue_that_is_cancelled_while_it_waits_takes_nothing(queue: TaskQueue, kind: Kind) -> None:
    async def operation(number: int) -> object:
        return await queue.dequeue(0.01)

    async def after(number: int, outcome: Outcome[object]) -> None:
        await settled(queue)
        await queue.enqueue(Task(task_id=str(number)))
        found = await queue.dequeue()
        assert found is not None
        assert found.task_id == str(number)
        assert await queue.ack(found)

    await each_moment(operation, kind, after)


@pytest.mark.parametrize("what", ["ack", "nack"])
async def test_a_cancelled_settlement_takes_effect_or_can_be_made_again(
    queue: TaskQueue, kind: Kind, what: str
) -> None:
    expected = TaskStatus.COMPLETED if what == "ack" else TaskStatus.DEAD_LETTER

    async def settle(number: int) -> bool:
        if what == "ack":
            return await queue.ack(str(number))
        return not await queue.nack(str(number), "no luck")

    at, reached = 0, True
    while reached:
        at += 1
        number = at
        await queue.enqueue(Task(task_id=str(number), max_retries=1))
        assert await queue.dequeue() is not None
        outcome = await cancelled_at(number, partial(settle, number), kind)
        reached = outcome.reached
        await settled(queue)
        if str(number) in queue.in_flight():
            assert not outcome.values
            assert await settle(number)
        found = await queue.get(str(number))
        assert found is not None
        assert found.status == expected
        assert found.counts.errors == (what == "nack")
        assert queue.in_flight() == {}
    assert at > 1


async def test_a_cancelled_wait_for_a_result_leaves_the_others_waiting(queue: TaskQueue, kind: Kind) -> None:
    handle = await queue.send(double, 21)
    results: list[int] = []

    async def wait() -> None:
        results.append(await handle.result())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()

        async def operation(number: int) -> object:
            return await handle.result(0.01)

        async def after(number: int, outcome: Outcome[object]) -> None:
            assert not outcome.values
            assert not results

        with pytest.raises(TimeoutError):
            await each_moment(operation, kind, after)
        found = await queue.dequeue()
        assert found is not None
        await queue.ack(found, 42)
    assert results == [42, 42, 42]


async def test_whoever_looks_for_all_may_be_cancelled(queue: TaskQueue) -> None:
    handles = [await queue.send(double, number) for number in range(5)]
    results: dict[int, int] = {}
    scopes: dict[int, anyio.CancelScope] = {}

    async def wait(number: int) -> None:
        with anyio.CancelScope() as scopes[number]:
            results[number] = await handles[number].result()

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
        for number in range(3):
            scopes[number].cancel()
            await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            found = await queue.dequeue()
            assert found is not None
            await queue.ack(found, 2 * found.payload["kwargs"]["number"])
    assert results == {3: 6, 4: 8}


async def test_a_cancelled_send_has_sent_once_or_not_at_all(queue: TaskQueue, kind: Kind) -> None:
    async def operation(number: int) -> object:
        return await queue.send(double.with_options(task_id=str(number)), number)

    async def after(number: int, outcome: Outcome[object]) -> None:
        there = await queue.get(str(number)) is not None
        again = await queue.send(double.with_options(task_id=str(number)), number)
        assert again.is_new != there
        assert (await queue.size()).pending == number

    await each_moment(operation, kind, after)


async def test_a_cancelled_block_gives_back_what_was_dequeued(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="held"))
    async with anyio.create_task_group() as tasks:

        async def consume() -> None:
            async with TaskQueue(queue.store) as other:
                assert await other.dequeue() is not None
                await anyio.sleep_forever()

        tasks.start_soon(consume)
        with anyio.fail_after(5):
            while (await queue.size()).in_flight == 0:
                version = queue.store.version()
                await queue.store.changed(version, 0.1)
        tasks.cancel_scope.cancel()
    found = await queue.dequeue(5.0)
    assert found is not None
    assert found.counts.crashes == 0
