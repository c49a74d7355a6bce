"""Tasks that wait for other tasks: they give up their slot, and never wait for themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.actors import Actor, Request, child, on, waits_by_node
from cuelight.coordination import LocalLock
from cuelight.errors import TaskCancelled, TaskFailed
from cuelight.tasks import SQLiteStore, TaskQueue, TaskWorker, current_task, task
from helpers.workers import new_worker, open_queue, until


class Used:
    """The queue and the worker that the task functions of a test use."""

    queue: TaskQueue
    worker: TaskWorker


@asynccontextmanager
async def working(functions: Any, concurrency: int = 1, **options: Any) -> AsyncGenerator[TaskQueue]:
    async with open_queue() as queue, new_worker(queue, functions, concurrency=concurrency, **options) as worker:
        Used.queue, Used.worker = queue, worker
        yield queue
        assert not waits_by_node, "nobody is left in the graph"
        assert worker._worker_loop is not None
        assert not worker._worker_loop.slots.suspended
        await anyio.sleep(1)
        assert worker._worker_loop.slots._runners <= concurrency


@task(name="inner")
async def inner(number: int) -> int:
    await anyio.sleep(1)
    return number


@task(name="nested", max_retries=1)
async def nested(depth: int) -> int:
    if depth == 0:
        return 0
    handle = await Used.queue.send(nested, depth - 1)
    return 1 + await handle.result()


@task(name="fan_out")
async def fan_out(count: int) -> list[int]:
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await (await Used.queue.send(inner, number)).result())

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
    return sorted(results)


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_tasks_that_wait_for_tasks_of_the_same_full_worker_get_their_results(concurrency: int) -> None:
    async with working([nested, inner, fan_out], concurrency) as queue:
        handles = [await queue.send(nested, 5) for _ in range(2 * concurrency)]
        assert [await handle.result(100) for handle in handles] == [5] * (2 * concurrency)
        fans = [await queue.send(fan_out, 7) for _ in range(2 * concurrency)]
        assert [await handle.result(1000) for handle in fans] == [list(range(7))] * (2 * concurrency)
        assert Used.worker.stats().processed == (2 * 6 + 2 * 8) * concurrency


@task(name="follow")
async def follow(task_id: str) -> list[Any]:
    return [update async for update in Used.queue.handle(task_id).updates()]


@task(name="report")
async def report() -> None:
    for number in range(3):
        await current_task().progress(number)
        await anyio.sleep(1)


async def test_a_task_that_follows_the_progress_of_another_gives_up_its_slot() -> None:
    async with working([follow, report]) as queue:
        following = await queue.send(follow, "other")
        await anyio.sleep(1)
        with pytest.raises(TaskFailed, match="there is no task 'other'"):
            await following.result()
        followed = await queue.send(report.with_options(delay=5.0))
        following = await queue.send(follow, followed.task_id)
        assert await following.result(100) == [0, 1, 2]


async def test_what_waits_takes_no_slot_and_what_runs_is_never_more_than_the_slots_and_those_that_went_on() -> None:
    running, most = 0, 0

    @task(name="work")
    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        return number

    @task(name="outer")
    async def outer() -> int:
        return await (await Used.queue.send(work, 1)).result()

    async with working([work, outer], 2) as queue:
        handles = [await queue.send(outer) for _ in range(20)]
        more = [await queue.send(work, 1) for _ in range(20)]
        assert sum([await handle.result(1000) for handle in handles + more]) == 40
    assert most == 2


async def test_a_result_that_is_there_costs_no_slot() -> None:
    most = 0

    @task(name="look")
    async def look(task_id: str) -> int:
        nonlocal most
        loop = Used.worker._worker_loop
        assert loop is not None
        for _ in range(5):
            await Used.queue.handle(task_id, inner).result()
            most = max(most, loop.slots.busy)
        return most

    async with working([look, inner]) as queue:
        done = await queue.send(inner, 1)
        await done.result(10)
        handles = [await queue.send(look, done.task_id) for _ in range(5)]
        assert [await handle.result(100) for handle in handles] == [1] * 5


@task(name="myself", max_retries=1)
async def myself() -> None:
    await Used.queue.handle(current_task().task_id).result()


@task(name="each other", max_retries=1)
async def each_other(task_id: str) -> None:
    await anyio.sleep(1)
    await Used.queue.handle(task_id).result()


async def test_a_task_that_would_wait_for_itself_is_told_so_with_the_way() -> None:
    async with working([myself, each_other], 2) as queue:
        with pytest.raises(TaskFailed, match=r"DeadlockError: task '.*' waits for the result of myself .* → task"):
            await (await queue.send(myself)).result(100)
        one = await queue.send(each_other.with_options(task_id="one"), "two")
        two = await queue.send(each_other.with_options(task_id="two"), "one")
        errors: list[str] = []
        for handle in (one, two):
            with pytest.raises(TaskFailed) as raised:
                await handle.result(100)
            errors.append(str(raised.value))
        assert sum("DeadlockError" in error for error in errors) >= 1
        assert any("the result of each other (one)" in error and "(two)" in error for error in errors)


async def test_a_task_that_holds_a_lock_for_which_the_awaited_task_waits_is_a_circle() -> None:
    lock = LocalLock("ledger")

    @task(name="book", max_retries=1)
    async def book() -> None:
        async with lock:
            pass

    @task(name="holder", max_retries=1)
    async def holder(how: str) -> None:
        async with lock, anyio.create_task_group() as group:
            handle = await Used.queue.send(book)
            if how == "in a child":
                group.start_soon(handle.result)
            else:
                await handle.result()

    async with working([book, holder], 2) as queue:
        handle = await queue.send(holder, "itself")
        with pytest.raises(TaskFailed, match=r"DeadlockError: .*lock 'ledger' → .*the result of book"):
            await handle.result(100)
        # Tasks of a task group are seen, too, when the lock is held by the task that waits for them.
        handle = await queue.send(holder, "in a child")
        with pytest.raises(TaskFailed, match="DeadlockError"):
            await handle.result(100)
        assert not lock.locked


class Run(Request[int]):
    pass


class Boss(Actor[Run]):
    @on(Run)
    async def run_it(self, message: Run) -> int:
        return await (await Used.queue.send(ask_back, 1)).result()


@task(name="ask back", max_retries=1)
async def ask_back(number: int) -> int:
    return number + await Used.queue.system.find("boss").ask(Run())


async def test_an_actor_that_waits_for_a_task_that_asks_it_is_a_circle() -> None:
    async with working([ask_back]) as queue:
        boss = await queue.system.spawn(child(Boss).with_options(name="boss"))
        with pytest.raises(Exception, match="DeadlockError"):
            await boss.ask(Run(), timeout=100)


@task(name="producer")
async def producer(count: int) -> int:
    for _ in range(count):
        await Used.queue.send(inner, 1)
    return count


async def test_a_task_that_waits_for_room_in_its_own_full_queue_gives_up_its_slot() -> None:
    async with working([producer, inner]) as queue:
        bounded = TaskQueue(queue.store, system=queue.system, max_length=2)
        Used.queue = bounded
        handle = await bounded.send(producer, 10)
        assert await handle.result(100) == 10
        assert await queue.drain(100)


@task(name="drainer", max_retries=1)
async def drainer(timeout: float | None) -> bool:
    return await Used.queue.drain(timeout)


async def test_a_task_that_drains_its_own_queue_is_told_that_this_never_ends() -> None:
    async with working([drainer]) as queue:
        with pytest.raises(TaskFailed, match="waits until its own queue is drained"):
            await (await queue.send(drainer, None)).result(100)
        assert await (await queue.send(drainer, 0.5)).result(100) is False


async def test_a_task_that_waits_is_cancelled_and_timed_out_as_any_other() -> None:
    @task(name="waits", max_timeouts=1)
    async def waits() -> None:
        await (await Used.queue.send(inner.with_options(delay=1000.0), 1)).result()

    async with working([waits, inner]) as queue:
        slow = await queue.send(waits.with_options(timeout=5.0))
        with pytest.raises(TaskFailed, match="it ran longer than 5 s"):
            await slow.result(100)
        handle = await queue.send(waits)
        await until(queue, handle.task_id, "in_flight")
        await anyio.sleep(2)
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(100)


async def test_a_worker_that_ends_gives_back_the_tasks_that_wait() -> None:
    async with open_queue() as queue:
        async with new_worker(queue, [nested], concurrency=1, shutdown_timeout=0.5) as worker:
            Used.queue, Used.worker = queue, worker
            handle = await queue.send(nested.with_options(delay=0.0), 3)
            await until(queue, handle.task_id, "in_flight")
        assert not waits_by_node
        assert (await queue.size()).in_flight == 0


async def test_very_many_tasks_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuelight.tasks._worker._lease_slots.MAX_SUSPENDED", 3)
    async with working([nested]) as queue:
        assert await (await queue.send(nested, 3)).result(100) == 3
        with pytest.raises(TaskFailed, match=r"3 tasks of .* do so already"):
            await (await queue.send(nested, 4)).result(100)


PATH: list[Path] = []


@task(name="plain inner", max_retries=1)
def plain_inner(number: int) -> int:
    return number


@task(name="plain outer", max_retries=1)
def plain_outer(depth: int) -> int:
    with TaskQueue(SQLiteStore(PATH[0], synchronous="OFF")) as queue:
        if depth == 0:
            return queue.send(plain_inner, 5).result(30)
        return queue.send(plain_outer, depth - 1).result(30)


LOCK = LocalLock("of threads")


@task(name="plain book", max_retries=1)
def plain_book() -> int:
    with LOCK:
        return 1


@task(name="plain holder", max_retries=1)
def plain_holder() -> int:
    with LOCK, TaskQueue(SQLiteStore(PATH[0], synchronous="OFF")) as queue:
        return queue.send(plain_book).result(30)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_plain_functions_that_wait_in_threads_give_up_their_threads_too(tmp_path: Path) -> None:
    PATH[:] = [tmp_path / "tasks.db"]
    functions: Any = [plain_inner, plain_outer, plain_book, plain_holder]
    async with (
        TaskQueue(SQLiteStore(PATH[0], synchronous="OFF")) as queue,
        TaskWorker(queue, functions, threads=1) as worker,
    ):
        handles = [await queue.send(plain_outer, 2) for _ in range(3)]
        assert [await handle.result(60) for handle in handles] == [5, 5, 5]
        with pytest.raises(TaskFailed, match=r"DeadlockError: .*lock 'of threads'.*the result of plain book"):
            await (await queue.send(plain_holder)).result(60)
        assert not waits_by_node
        assert worker._worker_loop is not None
        assert not worker._worker_loop.slots.suspended
        executors = worker._worker_loop.slots.executors
        assert executors._permits.value - executors._excess == 1
