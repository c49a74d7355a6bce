"""Work that waits for work of its own pool: its place goes to what it waits for; a circle is told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorCrashed, ActorPool, ActorSystem, LocalLock, Request, child, on
from cuelight.errors import DeadlockError
from cuelight.pools import AsyncWorkerPool, Submission, WorkerPool, WorkerPoolConfig

PATIENCE = 20  # seconds, for what would never come if it were wrong


def config(max_workers: int, **options: Any) -> WorkerPoolConfig:
    return WorkerPoolConfig(max_workers=max_workers, max_retries=0, **options)


class Load:
    """Counts how many run at a time, those that wait left out."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def end(self) -> None:
        with self._lock:
            self.now -= 1


# In the loop.


async def test_work_that_waits_for_work_of_its_full_pool_goes_on() -> None:
    load = Load()

    async def tree(depth: int, width: int = 2) -> int:
        load.begin()
        await anyio.lowlevel.checkpoint()
        load.end()
        if not depth:
            return 1
        return sum([(await pool.submit(tree, depth - 1, width)).unwrap() for _ in range(width)])

    for size in (1, 2, 3):
        async with AsyncWorkerPool(size) as pool:
            with anyio.fail_after(PATIENCE):
                results = [await one for one in [pool.submit(tree, 4) for _ in range(5)]]
                deep = await pool.submit(tree, 50, 1)
            assert [result.unwrap() for result in results] == [16] * 5
            assert deep.unwrap() == 1
            assert pool.stats().workers <= size + 1
        assert load.most <= size
        load = Load()


async def test_extra_workers_do_only_what_is_waited_for_and_leave() -> None:
    order: list[str] = []

    async def outer() -> None:
        order.append("outer")
        await pool.submit(note, "inner", priority=9)
        order.append("outer goes on")

    async def note(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        order.append(what)

    async with AsyncWorkerPool(1) as pool:
        task = pool.submit(outer)
        for number in range(3):
            _ = pool.submit(note, str(number))
        with anyio.fail_after(PATIENCE):
            await task
            await pool.drain()
        assert order == ["outer", "inner", "outer goes on", "0", "1", "2"]
        await anyio.wait_all_tasks_blocked()
        assert pool.stats().workers == 1


@pytest.mark.parametrize("kind", [None, "thread"])
async def test_work_that_maps_in_its_own_full_pool_goes_on(kind: Any) -> None:
    async def sums(limit: int) -> int:
        return sum((await pool.map(double, range(limit))).values)

    async def streams(limit: int) -> int:
        return sum([result.unwrap() async for result in pool.map(double, range(limit))])

    async with AsyncWorkerPool(2) as pool:
        with anyio.fail_after(PATIENCE):
            for function in (sums, streams):
                assert (await pool.map(function, [3, 4, 5, 6])).values == [6, 12, 20, 30]


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def test_work_whose_child_tasks_wait_gives_its_place_away() -> None:
    async def family() -> int:
        results: list[int] = []

        async def ask(number: int) -> None:
            results.append((await pool.submit(double, number)).unwrap())

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(ask, number)
        return sum(results)

    async with AsyncWorkerPool(2) as pool:
        with anyio.fail_after(PATIENCE):
            assert (await pool.map(lambda _: family(), range(4))).values == [20] * 4
        await pool.drain()
        await anyio.wait_all_tasks_blocked()
        assert pool.stats().workers <= 3


async def test_threads_that_wait_for_work_of_their_full_pool_go_on(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        import trio

        token = trio.lowlevel.current_trio_token()

        def wait_in_loop(function: Any, *args: Any) -> Any:
            return trio.from_thread.run(function, *args, trio_token=token)
    else:
        loop = asyncio.get_running_loop()

        def wait_in_loop(function: Any, *args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(function(*args), loop).result(PATIENCE)

    async def submitted(depth: int) -> int:
        return (await pool.submit(countdown, depth)).unwrap()

    def countdown(depth: int) -> int:
        return 1 + wait_in_loop(submitted, depth - 1) if depth else 0

    async with AsyncWorkerPool(1, kind="thread") as pool:
        with anyio.fail_after(PATIENCE):
            assert (await pool.submit(countdown, 10)).unwrap() == 10


async def test_two_pools_whose_work_waits_for_each_other_go_on() -> None:
    async def ping(depth: int) -> int:
        return 1 + (await second.submit(pong, depth - 1)).unwrap() if depth else 0

    async def pong(depth: int) -> int:
        return 1 + (await first.submit(ping, depth - 1)).unwrap() if depth else 0

    async with AsyncWorkerPool(1) as first, AsyncWorkerPool(1) as second:
        with anyio.fail_after(PATIENCE):
            assert (await first.submit(ping, 10)).unwrap() == 10


async def test_work_that_waits_for_room_in_its_full_pool_makes_room() -> None:
    async def producer() -> int:
        for number in range(20):
            await pool.wait_for_room()
            _ = pool.submit(double, number)
        return 20

    async with AsyncWorkerPool(1, max_pending=2) as pool:
        with anyio.fail_after(PATIENCE):
            assert (await pool.submit(producer)).unwrap() == 20
            await pool.drain()
        assert pool.stats().completed == 21


async def test_work_that_waits_and_is_cancelled_leaves_no_trace() -> None:
    async def outer() -> None:
        await pool.submit(anyio.sleep_forever)

    async with AsyncWorkerPool(1) as pool:
        for _ in range(3):
            task = pool.submit(outer)
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with anyio.fail_after(PATIENCE):
                await task
        assert (await pool.submit(double, 2)).unwrap() == 4
        group = pool.group
        assert group is not None
        assert (group.extra_workers.parked, dict(group.extra_workers.awaited)) == (0, {})


async def test_work_that_waits_for_all_work_of_its_pool_is_told() -> None:
    async def drain() -> None:
        await pool.drain()

    async def shut_down() -> None:
        await pool.shutdown()

    async with AsyncWorkerPool(2) as pool:
        with anyio.fail_after(PATIENCE):
            assert isinstance((await pool.submit(drain)).error, DeadlockError)
            assert isinstance((await pool.submit(shut_down)).error, DeadlockError)


# Circles.


async def test_a_circle_of_waits_through_a_pool_is_told() -> None:
    tasks: list[Submission[Any]] = []

    async def waits_for(number: int) -> str:
        await anyio.wait_all_tasks_blocked()
        return (await tasks[number].wait()).task_name

    async with AsyncWorkerPool(2) as pool:
        tasks.append(pool.submit(waits_for, 0))
        with anyio.fail_after(PATIENCE):
            error = (await tasks[0]).error
        assert isinstance(error, DeadlockError)
        assert "task" in str(error)
        assert "pool-1" in str(error)
        tasks[:] = [pool.submit(waits_for, 1), pool.submit(waits_for, 0)]
        with anyio.fail_after(PATIENCE):
            results = [await task for task in tasks]
        assert sorted(result.success for result in results) == [False, True]
        [error] = [result.error for result in results if result.error is not None]
        assert isinstance(error, DeadlockError)
        assert "each waits for the next" in str(error)


async def test_a_circle_of_a_pool_and_a_lock_is_told() -> None:
    lock = LocalLock("db")

    async def locks() -> str:
        async with lock:
            return "locked"

    async def holds() -> str:
        async with lock:
            return (await pool.submit(locks)).unwrap()

    async with AsyncWorkerPool(2) as pool:
        with anyio.fail_after(PATIENCE):
            assert isinstance((await pool.submit(holds)).error, DeadlockError)
            async with lock:  # held by the waiting task, which is no work of a pool
                result = await pool.submit(locks)
            assert isinstance(result.error, DeadlockError)
            assert "lock 'db'" in str(result.error)
            assert (await pool.submit(locks)).unwrap() == "locked"


@pytest.mark.parametrize("size", [1, 2])
async def test_a_task_that_can_never_begin_is_told_to_those_that_wait_for_it(size: int) -> None:
    lock = LocalLock("db")

    async def locks() -> None:
        async with lock:
            pass

    async with AsyncWorkerPool(size) as pool:
        with anyio.fail_after(PATIENCE):
            async with lock:
                waiting = [pool.submit(locks) for _ in range(size)]
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(DeadlockError, match="each waits for the next"):
                    await pool.submit(double, 1)
            assert all([(await task).success for task in waiting])


async def test_a_pool_whose_workers_wait_for_others_is_no_circle() -> None:
    mine, other = LocalLock("mine"), LocalLock("other")
    let_go = anyio.Event()

    async def holds_other() -> None:
        async with other:
            await let_go.wait()

    async def locks(lock: LocalLock) -> None:
        async with lock:
            pass

    async with anyio.create_task_group() as group, AsyncWorkerPool(2) as pool:
        group.start_soon(holds_other)
        await anyio.wait_all_tasks_blocked()
        async with mine:
            waiting = [pool.submit(locks, mine), pool.submit(locks, other)]
            await anyio.wait_all_tasks_blocked()
            task = pool.submit(double, 1)
            group.start_soon(task.wait)
            await anyio.wait_all_tasks_blocked()
            let_go.set()  # then one of the two workers is free
            with anyio.fail_after(PATIENCE):
                assert (await task).unwrap() == 2
        assert all([(await one).success for one in waiting])


class Ask(Request[int]):
    pass


class Boss(Actor[Ask]):
    def __init__(self, pool: AsyncWorkerPool, work: Any) -> None:
        self.pool, self.work = pool, work

    @on(Ask)
    async def ask(self, message: Ask) -> int:
        return int((await self.pool.submit(self.work)).unwrap())


async def test_a_circle_of_a_pool_and_an_actor_is_told() -> None:
    async def asks_back() -> int:
        return await boss.ask(Ask())

    async with ActorSystem() as system, AsyncWorkerPool(2, system=system) as pool:
        boss = await system.spawn(child(Boss, pool, asks_back).with_options(restart="temporary"))
        with anyio.fail_after(PATIENCE), pytest.raises(ActorCrashed) as caught:
            await boss.ask(Ask())
        assert isinstance(caught.value.__cause__, DeadlockError)


async def test_work_given_away_by_a_handler_is_no_part_of_it() -> None:
    answers: list[int] = []

    class Fire(Actor[Ask]):
        @on(Ask)
        async def ask(self, message: Ask) -> int:
            if not answers:
                answers.append(0)
                _ = pool.submit(asks_back)
            return 1

    async def asks_back() -> None:
        answers.append(await ref.ask(Ask()))

    async with ActorSystem() as system, AsyncWorkerPool(2, system=system) as pool:
        ref = await system.spawn(Fire)
        with anyio.fail_after(PATIENCE):
            assert await ref.ask(Ask()) == 1
            await pool.drain()
        assert answers == [0, 1]


async def test_members_of_an_actor_pool_that_ask_their_own_full_pool_are_told() -> None:
    class Selfish(Actor[Ask]):
        @on(Ask)
        async def ask(self, message: Ask) -> int:
            return await pools[0].ask(Ask())

    pools: list[ActorPool[Ask]] = []
    for size in (1, 2):
        async with ActorPool(child(Selfish).with_options(restart="temporary"), size) as pool:
            pools[:] = [pool]
            with anyio.fail_after(PATIENCE), pytest.raises(ActorCrashed) as caught:
                await pool.ask(Ask())
            error: BaseException | None = caught.value
            while isinstance(error, ActorCrashed):
                error = error.__cause__
            assert isinstance(error, DeadlockError)


# In threads that block.


def test_a_task_that_waits_for_a_task_of_its_full_pool_goes_on() -> None:
    load = Load()

    def tree(depth: int, width: int = 2) -> int:
        load.begin()
        load.end()
        if not depth:
            return 1
        ids = [pool.submit_task("inner", tree, (depth - 1, width)) for _ in range(width)]
        return sum(pool.get_task_result(one, timeout=PATIENCE).unwrap() for one in ids)

    def mapped(limit: int) -> int:
        return sum(result.unwrap() for result in pool.map(tree, [0] * limit))

    for size in (1, 2, 3):
        with WorkerPool(config(size)) as pool:
            outer = [pool.submit_task("outer", tree, (4,)) for _ in range(5)]
            assert [pool.get_task_result(one, timeout=PATIENCE).unwrap() for one in outer] == [16] * 5
            deep = pool.submit_task("deep", tree, (50, 1))
            assert pool.get_task_result(deep, timeout=PATIENCE).unwrap() == 1
            maps = [pool.submit_task("map", mapped, (7,)) for _ in range(4)]
            assert [pool.get_task_result(one, timeout=PATIENCE).unwrap() for one in maps] == [7] * 4
            extra = pool._thread_pool.extra_threads
            assert (extra.parked, extra.awaited) == (0, {})
        assert load.most <= size
        load = Load()


def test_extra_threads_do_only_what_is_waited_for() -> None:
    order: list[str] = []
    submitted = threading.Event()

    def outer() -> None:
        assert submitted.wait(PATIENCE)
        pool.get_task_result(pool.submit_task("inner", order.append, ("inner",), priority=9), timeout=PATIENCE)
        order.append("outer goes on")

    with WorkerPool(config(1)) as pool:
        pool.submit_task("outer", outer)
        for number in range(3):
            pool.submit_task("later", order.append, (str(number),))
        submitted.set()
        pool.wait_for_all(PATIENCE)
    assert order == ["inner", "outer goes on", "0", "1", "2"]


def test_a_task_that_waits_too_long_for_another_gives_its_place_back() -> None:
    gate = threading.Event()

    def outer() -> None:
        pool.get_task_result(pool.submit_task("inner", gate.wait, (PATIENCE,)), timeout=0.01)

    with WorkerPool(config(1)) as pool:
        error = pool.get_task_result(pool.submit_task("outer", outer), timeout=PATIENCE).error
        assert isinstance(error, TimeoutError)
        assert pool.get_task_result(pool.submit_task("x", len, ("",)), timeout=PATIENCE).success
        gate.set()
    assert pool.get_summary_metrics()["workers"] == 0


def test_a_circle_of_threads_and_tasks_is_told() -> None:
    begun = threading.Barrier(3)
    ids: list[str] = []

    def waits_for(number: int) -> bool:
        begun.wait(PATIENCE)
        return pool.get_task_result(ids[number], timeout=PATIENCE).success

    with WorkerPool(config(2)) as pool:
        ids += [pool.submit_task("one", waits_for, (1,)), pool.submit_task("two", waits_for, (0,))]
        begun.wait(PATIENCE)
        results = pool.wait_for_all(PATIENCE)
        [error] = [result.error for result in results if result.error is not None]
        assert isinstance(error, DeadlockError)
        assert "each waits for the next" in str(error)
        assert "thread 'pool-worker-" in str(error)


def test_a_circle_of_a_blocking_pool_and_a_lock_is_told() -> None:
    lock = LocalLock("db")

    def locks() -> str:
        with lock:
            return "locked"

    def holds() -> str:
        with lock:
            return str(pool.get_task_result(pool.submit_task("locks", locks), timeout=PATIENCE).unwrap())

    with WorkerPool(config(1)) as pool:
        assert isinstance(pool.get_task_result(pool.submit_task("holds", holds), timeout=PATIENCE).error, DeadlockError)
        with lock:
            error = pool.get_task_result(pool.submit_task("locks", locks), timeout=PATIENCE).error
        assert isinstance(error, DeadlockError)
        with lock:
            task_id = pool.submit_task("locks", locks)
            while pool.get_summary_metrics()["running"] == 0 or lock.statistics().waiting == 0:
                pass
            with pytest.raises(DeadlockError, match="each waits for the next"):
                pool.get_task_result(pool.submit_task("never begins", len, ("",)), timeout=PATIENCE)
        assert pool.get_task_result(task_id, timeout=PATIENCE).unwrap() == "locked"
