"""One task at a time: results, priorities, cancelling, time-outs, retries, and room."""

from __future__ import annotations

import functools
import math
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem
from cuelight.errors import PoolClosed, PoolFull, Rejected, TaskCancelled, TaskTimedOut
from cuelight.pools import AsyncWorkerPool, TaskStatus
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


async def double(number: int) -> int:
    return 2 * number


async def slow(seconds: float = 1.0) -> str:
    await anyio.sleep(seconds)
    return "done"


async def fail(error: Exception) -> None:
    raise error


def forget(unused: object) -> None:
    """Use it no more."""


class Notes:
    """Tasks that write down when they begin and how they end."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def nap(self, name: str, seconds: float = 1.0) -> str:
        self.log.append(f"+{name}")
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            self.log.append(f"x{name}")
            raise
        self.log.append(f"-{name}")
        return name

    async def note(self, name: str) -> None:
        self.log.append(name)


async def test_a_result_or_an_error_and_never_both() -> None:
    error = ValueError("no")
    async with AsyncWorkerPool(2) as pool:
        fine = await pool.submit(double, 4)
        failed = await pool.submit(fail, error)
    assert (fine.success, fine.result, fine.error) == (True, 8, None)
    assert (failed.success, failed.result, failed.error) == (False, None, error)
    assert (fine.task_name, fine.unwrap()) == ("double", 8)
    with pytest.raises(ValueError, match="no"):
        failed.unwrap()


async def test_names_and_keyword_arguments() -> None:
    async def add(a: int, *, timeout: int) -> int:
        await anyio.lowlevel.checkpoint()
        return a + timeout

    async with AsyncWorkerPool(name="crew") as pool:
        task = pool.submit(functools.partial(add, timeout=2), 1, task_id="mine", timeout=5)
        assert (await task).result == 3
        assert task.task_id == (await task).task_id == "mine"
        assert task.done
        assert not task.cancel()
        other = pool.submit(double, number=2)
        assert other.task_id == "crew-1"
        assert "crew-1" in repr(other)
        assert (await other.wait()).worker_id.startswith("crew-")


async def test_at_most_max_workers_run_at_a_time() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1

    async with AsyncWorkerPool(3) as pool:
        began = anyio.current_time()
        for _ in range(9):
            _ = pool.submit(work)
        await pool.drain()
        assert anyio.current_time() - began == pytest.approx(3)
        assert most == 3
        assert (pool.stats().workers, pool.stats().busy, pool.stats().completed) == (3, 0, 9)


async def test_workers_are_hired_only_when_there_is_work_for_them() -> None:
    async with AsyncWorkerPool(50) as pool:
        assert pool.stats().workers == 0
        await pool.submit(double, 1)
        assert pool.stats().workers == 1
        for number in range(20):
            await pool.submit(double, number)
        assert pool.stats().workers <= 2
        await pool.map(slow, [1.0] * 4)
        assert pool.stats().workers <= 5


async def test_the_smaller_priority_first_and_then_the_order_of_submission() -> None:
    notes = Notes()
    async with AsyncWorkerPool(1) as pool:
        _ = pool.submit(notes.nap, "first")
        await anyio.wait_all_tasks_blocked()
        for name, priority in (("c", 2), ("e", 3), ("d", 2), ("a", 0), ("b", 1)):
            _ = pool.submit(notes.note, name, priority=priority)
    assert notes.log == ["+first", "-first", "a", "b", "c", "d", "e"]


async def test_an_urgent_task_overtakes_the_rest_of_a_map() -> None:
    notes = Notes()
    async with AsyncWorkerPool(1) as pool, anyio.create_task_group() as group:
        group.start_soon(_gather, pool.map(notes.nap, "abc"))
        await anyio.sleep(0.5)
        _ = pool.submit(notes.note, "urgent", priority=0)
        _ = pool.submit(notes.note, "later", priority=2)
    assert notes.log == ["+a", "-a", "urgent", "+b", "-b", "+c", "-c", "later"]


async def _gather(mapping: Any) -> None:
    await mapping


async def test_a_task_that_waits_is_dropped_and_one_that_runs_is_stopped() -> None:
    notes = Notes()
    async with AsyncWorkerPool(1) as pool:
        running, waiting = pool.submit(notes.nap, "a"), pool.submit(notes.nap, "b")
        await anyio.wait_all_tasks_blocked()
        assert waiting.cancel()
        assert waiting.done
        assert not waiting.cancel()
        assert running.cancel()
        assert not running.done  # it has not stopped yet
        results = [await running, await waiting]
        assert [type(result.error) for result in results] == [TaskCancelled, TaskCancelled]
        assert notes.log == ["+a", "xa"]
        assert pool.stats().cancelled == 2
        assert (await pool.submit(double, 1)).result == 2  # the worker is as good as before


async def test_cancelling_the_wait_for_a_task_cancels_the_task() -> None:
    notes = Notes()
    async with AsyncWorkerPool(1) as pool:
        with anyio.move_on_after(0.5):
            await pool.submit(notes.nap, "a")
        assert notes.log == ["+a", "xa"]
        kept = pool.submit(notes.nap, "b")
        with anyio.move_on_after(0.5):
            await kept.wait()
        assert (await kept).result == "b"
    assert notes.log == ["+a", "xa", "+b", "-b"]


async def test_a_task_that_is_cancelled_has_ended_when_its_waiter_goes_on() -> None:
    ended: list[str] = []

    async def tidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            ended.append("tidied")

    async with AsyncWorkerPool(1) as pool:
        with anyio.move_on_after(1):
            await pool.submit(tidy)
        assert ended == ["tidied"]


async def test_a_time_out_stops_the_task() -> None:
    notes = Notes()
    async with AsyncWorkerPool(1, timeout=0.5) as pool:
        began = anyio.current_time()
        result = await pool.submit(notes.nap, "a")
        assert isinstance(result.error, TaskTimedOut)
        assert isinstance(result.error, TimeoutError)
        assert "0.5 s" in str(result.error)
        assert anyio.current_time() - began == pytest.approx(0.5)
        assert (await pool.submit(notes.nap, "b", timeout=None)).result == "b"
        assert isinstance((await pool.submit(notes.nap, "c", timeout=0.1)).error, TaskTimedOut)
        assert isinstance((await pool.submit(notes.nap, "d", timeout=0.6)).error, TaskTimedOut)
    assert notes.log == ["+a", "xa", "+b", "-b", "+c", "xc", "+d", "xd"]


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_a_task_that_swallows_its_cancellation_has_timed_out_all_the_same(how: str) -> None:
    async def stubborn() -> str:
        try:
            await anyio.sleep(10)
        except anyio.get_cancelled_exc_class():
            if how == "raise":
                raise ValueError("on the way out") from None
        return "late"

    async with AsyncWorkerPool(1) as pool:
        result = await pool.submit(stubborn, timeout=1)
        assert isinstance(result.error, TaskTimedOut)
        assert result.result is None
        assert isinstance(result.error.__cause__, ValueError if how == "raise" else type(None))
        assert (await pool.submit(slow)).result == "done"


async def test_what_a_task_group_raises_while_it_is_cancelled_is_the_cause() -> None:
    async def one() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("child")

    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await anyio.sleep_forever()

    async with AsyncWorkerPool(1) as pool:
        result = await pool.submit(group, timeout=1)
        assert isinstance(result.error, TaskTimedOut)
        assert isinstance(result.error.__cause__, ExceptionGroup)
        assert (await pool.submit(slow)).result == "done"


async def test_retries_are_counted_and_keep_the_place_of_the_task() -> None:
    calls: list[str] = []

    async def flaky(name: str, good: int) -> str:
        calls.append(name)
        if calls.count(name) < good:
            raise OSError(name)
        return name

    async with AsyncWorkerPool(1, retries=2) as pool:
        tasks = [pool.submit(flaky, "a", 3), pool.submit(flaky, "b", 4)]
        results = [await task for task in tasks]
        assert [result.success for result in results] == [True, False]
        assert calls == ["a"] * 3 + ["b"] * 3
        assert [pool.metrics()[task.task_id].retries_used for task in tasks] == [2, 2]
        calls.clear()
        assert isinstance((await pool.submit(fail, Rejected("never"))).error, Rejected)
        assert isinstance((await pool.submit(slow, timeout=0.5)).error, TaskTimedOut)
        stats = pool.stats()
        assert (stats.submitted, stats.completed, stats.failed) == (4, 1, 3)


async def test_a_full_pool_says_so_and_tells_when_there_is_room() -> None:
    async with AsyncWorkerPool(1, max_pending=2) as pool:
        await pool.wait_for_room()
        tasks = [pool.submit(slow)]
        await anyio.wait_all_tasks_blocked()
        tasks += [pool.submit(slow), pool.submit(slow)]
        assert pool.stats().pending == 2
        with pytest.raises(PoolFull, match="max_pending=2"):
            _ = pool.submit(slow)
        began = anyio.current_time()
        await pool.wait_for_room()
        assert anyio.current_time() - began == pytest.approx(1)
        tasks.append(pool.submit(slow))
        with anyio.move_on_after(0.1):
            await pool.wait_for_room()
        assert tasks[-1].cancel()
        await pool.wait_for_room()
        assert [(await task).success for task in tasks] == [True, True, True, False]
    assert pool.stats().submitted == 4


async def test_abort_pending_leaves_what_runs() -> None:
    async with AsyncWorkerPool(2) as pool:
        tasks = [pool.submit(slow) for _ in range(200)]
        await anyio.wait_all_tasks_blocked()
        assert pool.abort_pending() == 198
        assert pool.abort_pending() == 0
        assert [(await task).success for task in tasks].count(True) == 2
        assert pool.stats().cancelled == 198
        assert pool.stats().pending == 0


async def test_cancel_all_stops_everything_and_the_pool_lives_on() -> None:
    notes = Notes()
    async with AsyncWorkerPool(2) as pool:
        tasks = [pool.submit(notes.nap, str(number)) for number in range(4)]
        await anyio.wait_all_tasks_blocked()
        assert pool.cancel_all() == 4
        assert [type((await task).error) for task in tasks] == [TaskCancelled] * 4
        assert sorted(notes.log) == ["+0", "+1", "x0", "x1"]
        assert (await pool.submit(double, 1)).result == 2


async def test_metrics_tell_how_the_last_tasks_ran() -> None:
    async with AsyncWorkerPool(1, keep_metrics=3) as pool:
        await pool.submit(double, 1, task_id="forgotten")
        await pool.submit(slow, task_id="slow")
        await pool.submit(fail, ValueError("no"), task_id="bad")
        await pool.submit(double, 1, task_id="last")
        metrics = pool.metrics()
    assert list(metrics) == ["slow", "bad", "last"]
    bad = metrics["bad"]
    assert (bad.task_name, bad.status, bad.error_message) == ("fail", TaskStatus.FAILED, "ValueError: no")
    assert metrics["slow"].status is TaskStatus.COMPLETED
    assert metrics["last"].end_time is not None
    assert metrics["last"].worker_id == "pool-1"


async def test_a_pool_without_a_block_runs_what_is_awaited() -> None:
    notes = Notes()
    pool = AsyncWorkerPool(2)
    task = pool.submit(notes.nap, "a")
    assert not task.done
    assert (await task).result == "a"
    assert (await task).result == "a"
    assert task.done
    assert not task.cancel()
    cancelled = pool.submit(notes.nap, "b")
    assert cancelled.cancel()
    assert isinstance((await cancelled).error, TaskCancelled)
    with anyio.move_on_after(0.5):
        await pool.submit(notes.nap, "c")
    assert notes.log == ["+a", "-a", "+c", "xc"]
    stats = pool.stats()
    assert (stats.submitted, stats.completed, stats.cancelled, stats.workers) == (3, 1, 2, 0)
    assert pool.abort_pending() == 0
    await pool.wait_for_room()
    await pool.drain()
    await pool.shutdown()
    with pytest.raises(PoolClosed, match="shut down"):
        _ = pool.submit(double, 1)


async def test_a_task_that_was_never_awaited_in_a_pool_without_a_block_says_so() -> None:
    pool = AsyncWorkerPool()
    with pytest.warns(RuntimeWarning, match="double was submitted to a pool that is not in its `async with` block"):
        forget(pool.submit(double, 1))


async def test_a_detached_task_is_awaited_by_one_task() -> None:
    task = AsyncWorkerPool().submit(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(task.wait)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="awaited already"):
            await task
        task.cancel()
    assert isinstance((await task).error, TaskCancelled)


async def test_several_tasks_may_wait_for_one_submission() -> None:
    results: list[Any] = []
    async with AsyncWorkerPool() as pool, anyio.create_task_group() as group:
        task = pool.submit(slow)

        async def wait() -> None:
            results.append(await task.wait())

        group.start_soon(wait)
        group.start_soon(wait)
    assert [result.result for result in results] == ["done", "done"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_workers": 0}, "max_workers=0"),
        ({"max_workers": True}, "max_workers=True"),
        ({"kind": "fibre"}, "kind='fibre'"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"max_restarts": math.nan}, "max_restarts=nan"),
        ({"max_pending": 0}, "max_pending=0"),
        ({"retries": -1}, "retries=-1"),
        ({"max_crashes": 0}, "max_crashes=0"),
        ({"keep_metrics": -1}, "keep_metrics=-1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AsyncWorkerPool(**options)


async def test_bad_tasks_are_refused_where_they_are_given() -> None:
    anything: Any = 3
    async with AsyncWorkerPool() as pool:
        with pytest.raises(TypeError, match="cannot be called"):
            _ = pool.submit(anything)
        with pytest.raises(ValueError, match="timeout=-1"):
            _ = pool.submit(double, 1, timeout=-1)
        with pytest.raises(ValueError, match="max_workers=0"):
            pool.resize(0)
    async with AsyncWorkerPool(kind="thread") as pool:
        with pytest.raises(TypeError, match="double is an async function"):
            _ = pool.submit(double, 1)


async def test_a_pool_of_a_given_system_needs_no_block() -> None:
    async with ActorSystem() as system:
        pool = AsyncWorkerPool(2, system=system)
        assert (await pool.submit(double, 2)).result == 4
        task = pool.submit(slow)
    assert (await task).result == "done"  # the system has waited for it
    assert_no_orphans(system)
    with pytest.raises(PoolClosed):
        _ = pool.submit(double, 1)
