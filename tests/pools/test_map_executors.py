"""Plain functions in the threads and processes of a pool: chunks, time-outs, deaths."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.errors import TaskCancelled, TaskFailed, TaskQuarantined, TaskTimedOut, WorkerDied
from cuelight.pools import AsyncWorkerPool, Outcome
from cuelight.pools._maps._chunk_sizer import MAX_SIZE, ChunkSizer
from helpers.pool_jobs import die_at, double, leave, odd_only, stuck_once


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


async def double_soon(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


@pytest.mark.parametrize("kind", [None, "thread", "process"])
async def test_plain_functions_run_beside_the_loop(kind: Any) -> None:
    async with AsyncWorkerPool(2, kind=kind) as pool:
        assert (await pool.submit(double, number=3)).result == 6
        results = await pool.map(double, range(500))
        assert results.values == [2 * number for number in range(500)]
        assert [result.task_id for result in results][:2] == ["pool-2-0", "pool-2-1"]
        assert sorted((await pool.map(double, range(50), ordered=False)).values) == [2 * number for number in range(50)]
        assert [r.result async for r in pool.map(double, iter(range(300)))] == [2 * number for number in range(300)]
        mixed = await pool.map(odd_only, range(100))
        assert mixed.values == list(range(1, 100, 2))
        assert len(mixed.errors) == 50
        assert len(pool.metrics()) == 951
        assert isinstance((await pool.submit(odd_only, 2)).error, ValueError)


async def test_threads_are_those_of_the_workers() -> None:
    async with AsyncWorkerPool(3, name="crew") as pool:
        names = set((await pool.map(lambda _: threading.current_thread().name, range(50))).values)
        assert names <= {"crew-1", "crew-2", "crew-3"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("crew")]


async def test_a_plain_function_that_returns_a_coroutine_is_awaited() -> None:
    async with AsyncWorkerPool(2) as pool:
        assert (await pool.submit(lambda: double_soon(4))).result == 8
        assert (await pool.map(lambda number: double_soon(number), range(40))).values == [2 * n for n in range(40)]
        assert (await pool.map(functools.partial(double_soon), range(4))).values == [0, 2, 4, 6]

        def moody(number: int) -> Any:
            return double_soon(number) if number == 399 else number

        results = await pool.map(moody, range(400))
        assert [type(error) for error in results.errors] in ([TypeError], [])  # alone in its chunk, it is awaited
        assert len(results.values) + len(results.errors) == 400


def leave_early(number: int = 0) -> None:
    raise GeneratorExit


async def test_errors_of_plain_functions_name_the_function_of_the_user() -> None:
    for kind in (None, "thread", "process"):
        async with AsyncWorkerPool(1, kind=kind) as pool:
            results = [await pool.submit(leave_early), await pool.submit(functools.partial(leave_early, number=2))]
            results += await pool.map(leave_early, [1, 2, 3], chunk_size=3)
            for result in results:
                assert isinstance(result.error, TaskFailed)
                assert ("leave_early" in str(result.error)) is (kind != "process")
            assert "cuelight." not in "".join(str(result.error) for result in results)
            letters = await pool.dead_letters.list(limit=10)
            assert {letter.task_type for letter in letters} == {f"{__name__}.leave_early"}


async def test_a_thread_that_takes_too_long_is_abandoned() -> None:
    gate = threading.Event()

    def stuck(number: int) -> int:
        if number == 1:
            gate.wait(10)
        return number

    async with AsyncWorkerPool(2) as pool:
        results = await pool.map(stuck, range(3), timeout=0.2)
        assert [type(result.error) for result in results] == [type(None), TaskTimedOut, type(None)]
        assert (pool.stats().abandoned, pool.stats().replaced) == (1, 1)
        task = pool.submit(stuck, 1)
        while not pool.stats().busy:
            await anyio.lowlevel.checkpoint()
        assert task.cancel()
        assert isinstance((await task).error, TaskCancelled)
        gate.set()
        assert (await pool.submit(stuck, 5)).result == 5
    assert pool.stats().replaced >= 1


async def test_a_process_that_takes_too_long_is_killed() -> None:
    async with AsyncWorkerPool(1, kind="process") as pool:
        assert (await pool.submit(os.getpid)).result != os.getpid()
        with anyio.fail_after(10):
            results = await pool.map(time.sleep, [0, 100, 0], timeout=0.5)
        assert [type(result.error) for result in results] == [type(None), TaskTimedOut, type(None)]
        with anyio.move_on_after(0.3):
            await pool.map(time.sleep, [100.0] * 10)
        with anyio.fail_after(10):
            assert (await pool.submit(divmod, 7, 4)).result == (1, 3)
        assert pool.stats().replaced == 2


async def test_an_item_that_kills_processes_is_quarantined_and_the_others_are_run_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deadly = functools.partial(die_at, at=13, log=str(log))
    async with AsyncWorkerPool(2, kind="process", max_crashes=2) as pool:
        results = await pool.map(deadly, range(40), chunk_size=10)
        assert [type(error) for error in results.errors] == [TaskQuarantined]
        assert isinstance(results[13].error, TaskQuarantined)
        assert isinstance(results[13].error.__cause__, WorkerDied)
        assert results.values == [number for number in range(40) if number != 13]
        runs = log.read_text().split()
        assert runs.count("13") == 2
        assert len(runs) == 41
        assert isinstance((await pool.submit(os._exit, 3)).error, TaskQuarantined)
        assert (await pool.submit(double, 2)).result == 4


async def test_a_process_that_is_killed_from_outside_costs_one_attempt(tmp_path: Path) -> None:
    log = tmp_path / "pid"
    async with AsyncWorkerPool(1, kind="process") as pool:
        task = pool.submit(stuck_once, str(log))
        with anyio.fail_after(15):
            while not log.exists():  # noqa: ASYNC110 - another process tells us nothing
                await anyio.sleep(0.005)
            pid = int(log.read_text())
            os.kill(pid, signal.SIGKILL)
            result = await task
        assert result.result == pid
        assert pool.metrics()[task.task_id].retries_used == 1


async def test_a_system_exit_in_a_thread_does_not_vanish() -> None:
    task: Any = None
    with pytest.raises(SystemExit):
        async with AsyncWorkerPool(1) as pool:
            task = pool.submit(leave, 3)
            await pool.drain()
    assert isinstance((await task).error, TaskFailed)
    with pytest.raises(SystemExit):
        await AsyncWorkerPool(2).map(leave, range(10), chunk_size=5)


class Inline:
    """An executor that calls at once: what a map asks of an executor can be seen."""

    def __init__(self, name: str) -> None:
        self.abandoned = self.replaced = 0
        self.chunks: list[int] = []
        self.closed = False
        MADE.append(self)

    async def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await anyio.lowlevel.checkpoint()
        self.chunks.append(1)
        return function(*args, **kwargs)

    async def run_chunk(self, function: Any, items: Sequence[Any]) -> list[Outcome]:
        await anyio.lowlevel.checkpoint()
        self.chunks.append(len(items))
        if items[0] == "broken":
            raise OSError("the executor is broken")
        return [(True, function(item)) for item in items]

    async def aclose(self) -> None:
        self.closed = True


MADE: list[Inline] = []


async def test_chunks_grow_with_quick_items_and_are_one_with_a_time_out() -> None:
    MADE.clear()
    async with AsyncWorkerPool(1, executor=Inline) as pool:
        await pool.map(double, range(5000))
        (made,) = MADE
        assert sum(made.chunks) == 5000
        assert max(made.chunks) > 100
        for options, sizes in (({"timeout": 5}, {1}), ({"chunk_size": 7}, {7, 2}), ({"buffer": 3}, {1, 2, 3})):
            made.chunks.clear()
            chosen: dict[str, Any] = options
            assert [result.success async for result in pool.map(double, range(100), **chosen)] == [True] * 100
            assert set(made.chunks) <= sizes
        results = await pool.map(str, ["broken"] * 4, chunk_size=4)
        assert [str(error) for error in results.errors] == ["the executor is broken"] * 4
    assert made.closed


async def test_a_source_that_fails_in_the_middle_of_a_chunk_ends_the_map() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("broken")

    def own() -> Iterator[int]:
        yield from range(3)
        pool.cancel_all()
        yield from range(9)

    async def slow() -> AsyncGenerator[int]:
        for number in range(100):
            yield number

    async with AsyncWorkerPool(1, executor=Inline) as pool:
        with pytest.raises(OSError, match="broken"):
            await pool.map(double, source(), chunk_size=10)
        with pytest.raises(TaskCancelled):
            await pool.map(double, own(), chunk_size=10)
        assert (await pool.map(double, slow(), chunk_size=10)).values == [2 * number for number in range(100)]


def test_a_chunk_takes_some_milliseconds_and_the_last_are_small() -> None:
    chunk_sizer = ChunkSizer(None, None)
    assert chunk_sizer.next(0, 4) == 1
    chunk_sizer.record(1, 0.001)
    assert chunk_sizer.next(1, 4) == 8  # it grows by steps, because the first item may not be like the others
    chunk_sizer.record(8, 8.0)
    assert chunk_sizer.next(9, 4) == 10  # 10 ms at 1 ms an item
    chunk_sizer.record(10, 1000.0)
    assert chunk_sizer.next(19, 4) == 1
    for _ in range(10):
        chunk_sizer.record(chunk_sizer.size, 0.0)
    assert chunk_sizer.next(0, 4) == MAX_SIZE
    known = ChunkSizer(None, 100)
    for _ in range(3):
        known.record(known.size, 0.0)
    assert [known.next(taken, 4) for taken in (0, 50, 90, 99)] == [12, 6, 1, 1]
    assert ChunkSizer(5, 100).next(99, 4) == 5
