"""The life of a pool: its block, its workers and their deaths, growing, shrinking and shutting down."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem
from cuelight.errors import (
    PoolClosed,
    RestartLimitExceeded,
    TaskCancelled,
    TaskFailed,
    TaskQuarantined,
    UnexpectedCancellation,
    WorkerDied,
)
from cuelight.pools import AsyncWorkerPool, Submission
from cuelight.pools._pool_worker import PoolWorker
from cuelight.pools._worker_group import WorkerGroup
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend, wait_until_idle
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


class Accident(SystemExit):
    """Something that no pool may swallow."""


async def slow(seconds: float = 1.0) -> str:
    await anyio.sleep(seconds)
    return "done"


def group_of(pool: AsyncWorkerPool) -> WorkerGroup:
    group = pool.group
    assert group is not None
    return group


async def test_leaving_the_block_waits_until_everything_is_done() -> None:
    async with AsyncWorkerPool(2) as pool:
        tasks = [pool.submit(slow) for _ in range(5)]
    assert all([(await task).success for task in tasks])
    assert pool.stats().workers == 0
    with pytest.raises(PoolClosed, match="'pool' was shut down"):
        _ = pool.submit(slow)
    with pytest.raises(PoolClosed):
        _ = pool.map(slow, [1])
    with pytest.raises(PoolClosed, match="make a new one"):
        async with pool:
            pass


async def test_leaving_the_block_by_an_exception_cancels_everything() -> None:
    began = anyio.current_time()
    tasks: list[Any] = []
    with pytest.raises(ValueError, match="mine"):
        async with AsyncWorkerPool(2) as pool:
            tasks = [pool.submit(slow) for _ in range(5)]
            await anyio.sleep(0.5)
            raise ValueError("mine")
    assert anyio.current_time() - began == pytest.approx(0.5)
    assert [type((await task).error) for task in tasks] == [TaskCancelled] * 5


async def test_cancelling_the_block_stops_what_runs() -> None:
    began, tasks = anyio.current_time(), list[Submission[str]]()
    with anyio.move_on_after(1.5):
        async with AsyncWorkerPool(1) as pool:
            tasks = [pool.submit(slow) for _ in range(5)]
            await pool.map(slow, [100])
    assert anyio.current_time() - began == pytest.approx(1.5)
    assert [(await task).success for task in tasks] == [True, False, False, False, False]


async def test_cancelling_the_end_of_the_block_stops_what_runs() -> None:
    began, tasks = anyio.current_time(), list[Submission[str]]()
    with anyio.move_on_after(1.5):
        async with AsyncWorkerPool(1) as pool:
            tasks = [pool.submit(slow) for _ in range(5)]
    assert anyio.current_time() - began == pytest.approx(1.5)
    assert [(await task).success for task in tasks] == [True, False, False, False, False]


async def test_a_worker_that_is_killed_costs_only_its_attempt() -> None:
    starts: list[int] = []

    async def work(number: int) -> int:
        starts.append(number)
        await anyio.sleep(1)
        return number

    async with AsyncWorkerPool(2) as pool:
        tasks = [pool.submit(work, number) for number in range(4)]
        mapping = pool.map(work, range(10, 14))
        await anyio.sleep(0.5)
        first = next(iter(group_of(pool).workers))
        first.kill("test")
        assert [(await task).result for task in tasks] == [0, 1, 2, 3]
        assert sorted(starts) == [0, 0, 1, 2, 3] or sorted(starts) == [0, 1, 1, 2, 3]
        second = next(iter(group_of(pool).workers))
        async with anyio.create_task_group() as group:

            async def kill() -> None:
                await anyio.sleep(0.5)
                second.kill("test")

            group.start_soon(kill)
            assert (await mapping).values == [10, 11, 12, 13]
        assert pool.stats().workers <= 2


async def test_a_task_under_which_workers_die_is_quarantined() -> None:
    async with AsyncWorkerPool(1, max_crashes=3) as pool:
        deaths = 0

        async def deadly() -> None:
            nonlocal deaths
            deaths += 1
            next(iter(group_of(pool).workers)).kill("poison")
            await anyio.sleep_forever()

        result = await pool.submit(deadly)
        assert deaths == 3
        assert isinstance(result.error, TaskQuarantined)
        assert isinstance(result.error.__cause__, WorkerDied)
        deaths = 0
        results = await pool.map(lambda number: deadly() if number == 1 else slow(number), range(3))
        assert [type(result.error) for result in results] == [type(None), TaskQuarantined, type(None)]
        assert deaths == 3
        assert (await pool.submit(slow)).result == "done"


async def test_a_worker_whose_own_code_crashes_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = 0
    became_idle = WorkerGroup.became_idle

    def crash_at_times(self: WorkerGroup, cell: Any) -> None:
        nonlocal crashes
        crashes += 1
        if crashes in (1, 3):
            raise RuntimeError("harness")
        became_idle(self, cell)

    monkeypatch.setattr(WorkerGroup, "became_idle", crash_at_times)
    async with AsyncWorkerPool(1) as pool:
        assert [(await pool.submit(slow)).result for _ in range(4)] == ["done"] * 4
    assert crashes > 4


async def test_workers_beyond_their_restart_limit_leave_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: PoolWorker, called: bool) -> None:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("harness")

    monkeypatch.setattr(PoolWorker, "_serve", broken)
    tasks: list[Any] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with AsyncWorkerPool(2, max_restarts=2) as pool:
            tasks = [pool.submit(slow) for _ in range(5)]
            await tasks[0]
    assert caught.group_contains(RestartLimitExceeded)
    assert [type((await task).error) for task in tasks] == [TaskCancelled] * 5


async def test_what_ends_the_program_ends_the_whole_pool() -> None:
    async def explode() -> None:
        await anyio.sleep(0.5)
        raise Accident

    other: Any = None
    with pytest.raises(Accident):
        async with AsyncWorkerPool(2) as pool:
            other = pool.submit(slow, 100)
            await pool.submit(explode)
    assert isinstance((await other).error, TaskCancelled)
    with pytest.raises(Accident):
        await AsyncWorkerPool(2).map(lambda _: explode(), range(3))


@pytest.mark.parametrize("function", [slow, float])
async def test_a_source_that_ends_the_program_ends_the_whole_pool(function: Any) -> None:
    def source() -> Iterator[float]:
        yield 0.0
        raise Accident

    async def later() -> AsyncGenerator[float]:
        yield 0.0
        raise Accident

    for items in (source(), later()):
        with pytest.raises(Accident):
            await AsyncWorkerPool(2).map(function, items, chunk_size=5)


async def test_the_task_that_ended_the_pool_says_so() -> None:
    async def explode() -> None:
        raise Accident

    task: Any = None
    with pytest.raises(Accident):
        async with AsyncWorkerPool(1, retries=5) as pool:
            task = pool.submit(explode)
            await pool.drain()
    error = (await task).error
    assert isinstance(error, TaskFailed)
    assert isinstance(error.__cause__, Accident)


class Odd(BaseException):
    """No `Exception`, and nothing that ends programs."""


@pytest.mark.parametrize("odd", [Odd, GeneratorExit, asyncio.CancelledError, StopIteration, StopAsyncIteration])
async def test_what_is_no_exception_costs_its_own_task(odd: type[BaseException]) -> None:
    async def fail(_: int) -> None:
        await anyio.lowlevel.checkpoint()
        raise odd("odd")

    def fail_plainly(_: int) -> None:
        raise odd("odd")

    async with AsyncWorkerPool(1) as pool:
        for function in (fail, fail_plainly):
            results = [await pool.submit(function, 1), *await pool.map(function, range(3))]
            for result in results:
                assert isinstance(result.error, Exception)
                assert isinstance(result.error, odd) or isinstance(result.error.__cause__, odd)
                assert isinstance(result.error, UnexpectedCancellation) is (odd is asyncio.CancelledError)
        assert (await pool.submit(slow)).success
        assert pool.stats().failed == 8


async def test_a_function_that_cancels_its_own_task_has_failed(anyio_backend_name: str) -> None:
    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(1)

    if anyio_backend_name == "trio":  # where no task can be cancelled by itself
        return
    async with AsyncWorkerPool(1) as pool:
        assert isinstance((await pool.submit(cancel_itself)).error, UnexpectedCancellation)
        assert (await pool.submit(slow)).success


async def test_a_pool_grows_and_shrinks_while_it_runs() -> None:
    running = most = 0

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1

    async with AsyncWorkerPool(2) as pool, anyio.create_task_group() as group:

        async def run() -> None:
            await pool.map(work, range(26))

        group.start_soon(run)
        await anyio.sleep(1.5)  # 2 done, 2 under way
        assert (running, pool.stats().workers) == (2, 2)
        pool.resize(6)
        await anyio.sleep(0.1)
        assert (running, pool.stats().workers) == (6, 6)
        pool.resize(1)
        pool.resize(3)
        assert running == 6  # nothing is stopped
        await anyio.sleep(5)
        assert (running, pool.stats().workers) == (3, 3)
        most = 0
        pool.resize(1)
        pool.resize(5)  # before those who are to leave have left
        await anyio.sleep(1.7)
        assert most <= 5
    assert pool.stats().completed == 26


async def test_idle_workers_leave_at_once() -> None:
    async with AsyncWorkerPool(4) as pool:
        await pool.map(slow, [1.0] * 4)
        assert pool.stats().workers == 4
        pool.resize(1)
        await anyio.wait_all_tasks_blocked()
        assert pool.stats().workers == 1
        assert (await pool.map(slow, [1.0] * 3)).values == ["done"] * 3
        assert pool.stats().workers == 1


async def test_shutdown_finishes_or_cancels_and_waits_or_does_not() -> None:
    async with ActorSystem() as system:
        for wait in (True, False):
            for cancel in (True, False):
                pool = AsyncWorkerPool(1, system=system)
                tasks = [pool.submit(slow) for _ in range(3)]
                await anyio.wait_all_tasks_blocked()
                began = anyio.current_time()
                await pool.shutdown(wait=wait, cancel=cancel)
                took = anyio.current_time() - began
                assert took == pytest.approx(3 if wait and not cancel else 0)
                if wait:
                    assert pool.stats().workers == 0
                with pytest.raises(PoolClosed):
                    _ = pool.submit(slow)
                assert [(await task).success for task in tasks] == [not cancel] * 3
                await pool.shutdown()
                assert pool.stats().workers == 0
    assert_no_orphans(system)


async def test_a_shutdown_that_is_not_waited_for_goes_on() -> None:
    async with ActorSystem() as system:
        pool = AsyncWorkerPool(1, system=system)
        tasks = [pool.submit(slow) for _ in range(3)]
        with anyio.move_on_after(0.5):
            await pool.shutdown()
        await wait_until_idle(system)
        assert all([(await task).success for task in tasks])
        assert pool.stats().workers == 0


async def test_the_end_of_its_system_ends_the_pool() -> None:
    tasks: list[Any] = []
    system = ActorSystem()
    pool = AsyncWorkerPool(2, system=system)
    with pytest.raises(ValueError, match="mine"):
        async with system:
            tasks = [pool.submit(slow) for _ in range(5)]
            await anyio.sleep(0.5)
            raise ValueError("mine")
    assert [type((await task).error) for task in tasks] == [TaskCancelled] * 5
    assert_no_orphans(system)
    with pytest.raises(PoolClosed):
        _ = pool.submit(slow)
    await pool.shutdown()


async def test_the_block_of_a_pool_in_a_given_system_ends_the_pool_alone() -> None:
    async with ActorSystem() as system:
        async with AsyncWorkerPool(2, name="a", system=system) as pool, AsyncWorkerPool(2, name="a", system=system):
            task = pool.submit(slow)
        assert (await task).result == "done"
        with pytest.raises(ValueError, match="mine"):
            async with AsyncWorkerPool(2, system=system) as pool:
                task = pool.submit(slow)
                raise ValueError("mine")
        assert isinstance((await task).error, TaskCancelled)
        assert pool.stats().workers == 0
        async with AsyncWorkerPool(2, system=system) as pool:
            pass
        with pytest.raises(PoolClosed):
            async with pool:
                pass
        assert system.root.children is None or system.root.children.empty
    assert_no_orphans(system)


async def test_a_system_is_awake_while_its_pool_works() -> None:
    async with ActorSystem() as system:
        pool = AsyncWorkerPool(2, system=system)
        task = pool.submit(slow)
        await wait_until_idle(system)
        assert task.done
        assert system.is_idle


async def test_tasks_may_submit_tasks() -> None:
    async with AsyncWorkerPool(2) as pool:

        async def tree(depth: int) -> int:
            if depth == 0:
                return 1
            _ = pool.submit(tree, depth - 1)
            await anyio.sleep(1)
            return depth

        _ = pool.submit(tree, 6)
        await pool.drain()
        assert pool.stats().completed == 7


async def test_a_pool_refuses_the_calls_of_other_threads() -> None:
    async with ActorSystem() as system, AsyncWorkerPool(2) as pool:
        errors: list[Any] = []

        async def read(results: Any) -> None:
            async for _ in results:
                pass

        def elsewhere() -> None:
            for call in (
                lambda: pool.submit(slow),
                lambda: pool.map(slow, [1]).__await__().send(None),
                lambda: read(pool.map(slow, [1])).send(None),
                lambda: AsyncWorkerPool(2, system=system).submit(slow),
            ):
                try:
                    call()
                except RuntimeError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 4
        assert all("event loop of another thread" in error for error in errors)
        assert (await pool.submit(slow)).result == "done"
    assert pool.stats().submitted == 1
    assert_no_orphans(system)
