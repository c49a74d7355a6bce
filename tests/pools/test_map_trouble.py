"""Maps in trouble: parts of the pool that fail, executors that answer nonsense, sources that end their own map."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.errors import PoolClosed, RateLimited, TaskCancelled
from cuelight.pools import AsyncWorkerPool, Outcome
from cuelight.pools._maps._sinks import ListSink
from cuelight.pools._maps._source import AsyncSource, SyncSource
from cuelight.pools._pool_worker import PoolWorker
from cuelight.pools._results import PoolMetrics
from cuelight.pools._threads._executor import Successes
from cuelight.pools._worker_group import WorkerGroup
from helpers.pool_jobs import double, odd_only


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL):
        yield


async def double_soon(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def refuse(number: int) -> int:
    raise LookupError(number)


class Chunky:
    """An executor whose answer to a chunk is up to the test."""

    def __init__(self, answer: Callable[[Any, Sequence[Any]], Any]) -> None:
        self.abandoned = self.replaced = 0
        self._answer = answer

    async def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await anyio.lowlevel.checkpoint()
        return function(*args, **kwargs)

    async def run_chunk(self, function: Any, items: Sequence[Any]) -> list[Outcome]:
        await anyio.lowlevel.checkpoint()
        answer: list[Outcome] = self._answer(function, items)
        return answer

    run_many = run_chunk

    async def aclose(self) -> None:
        pass


def outcome(function: Callable[[Any], Any], item: Any) -> Outcome:
    try:
        return True, function(item)
    except Exception as error:
        return False, error


@pytest.mark.parametrize(
    ("place", "method", "function", "options"),
    [
        (WorkerGroup, "result", refuse, {}),
        (WorkerGroup, "result", odd_only, {"chunk_size": 4}),
        (ListSink, "put", double_soon, {}),
        (PoolMetrics, "record_many", double, {"chunk_size": 4}),
        (PoolWorker, "start_clock", double_soon, {"timeout": 5}),
    ],
)
async def test_a_map_whose_results_cannot_be_entered_ends_and_the_pool_goes_on(
    monkeypatch: pytest.MonkeyPatch, place: type, method: str, function: Any, options: dict[str, Any]
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError("for results")

    async with AsyncWorkerPool(1) as pool:
        with monkeypatch.context() as patch, pytest.raises(MemoryError, match="for results"), anyio.fail_after(10):
            patch.setattr(place, method, exhausted)
            await pool.map(function, range(8), **options)
        with anyio.fail_after(10):
            assert (await pool.map(double_soon, range(3))).values == [0, 2, 4]


async def test_items_that_are_tried_again_later_do_not_hold_up_whole_chunks() -> None:
    calls: list[int] = []

    def limited(number: int) -> int:
        calls.append(number)
        if number == 1 and calls.count(1) == 1:
            raise RateLimited(0.05)
        return 2 * number

    def answer(function: Any, items: Sequence[Any]) -> list[Any]:
        outcomes = [outcome(function, item) for item in items]
        if all(fine for fine, _ in outcomes):
            return Successes([value for _, value in outcomes])
        return outcomes

    async with AsyncWorkerPool(1, executor=lambda _: Chunky(answer)) as pool:
        results = await pool.map(limited, range(8), chunk_size=4)
    assert results.values == [0, 2, 4, 6, 8, 10, 12, 14]
    assert calls == [0, 1, 2, 3, 4, 5, 6, 7, 1]


async def test_cancelling_a_map_cancels_what_it_would_try_again_later() -> None:
    calls: list[int] = []

    async def limited(number: int) -> None:
        calls.append(number)
        if number == 2:
            scope.cancel()
        raise RateLimited(1000)

    async with AsyncWorkerPool(1) as pool:
        with anyio.CancelScope() as scope:
            await pool.map(limited, [1, 2])
        assert scope.cancelled_caught
        assert pool.stats().busy == 0
    assert calls == [1, 2]


@pytest.mark.parametrize(
    "nonsense",
    [None, [], [(True, 1)], [1, 2, 3], [(True, 1), (True, 2), (1, 3)], [(True, 1), (True, 2), (False, "no error")]],
)
async def test_an_executor_that_does_not_give_an_outcome_for_each_item_is_told_so(nonsense: Any) -> None:
    def answer(function: Any, items: Sequence[Any]) -> Any:
        return nonsense

    async with AsyncWorkerPool(1, executor=lambda _: Chunky(answer)) as pool:
        results = await pool.map(double, range(3), chunk_size=3)
    assert [type(error) for error in results.errors] == [TypeError] * 3
    assert f"returned {nonsense!r} for a chunk of 3 items: return a list with one outcome" in str(results.errors[0])


async def test_a_function_that_returns_a_coroutine_for_some_items_of_a_chunk_is_refused_for_these() -> None:
    def moody(number: int) -> Any:
        return double_soon(number) if number == 2 else number

    async with AsyncWorkerPool(1, kind="thread") as pool:
        results = await pool.map(moody, range(4), chunk_size=4)
    assert results.values == [0, 1, 3]
    [error] = results.errors
    assert type(error) is TypeError
    assert "moody returned a coroutine, but not for every item: make it an `async def`" in str(error)


async def test_a_source_may_end_its_own_stream() -> None:
    closed: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield 1
            pool.cancel_all()
            yield 2
        finally:
            closed.append("closed")

    async with AsyncWorkerPool(1) as pool:
        with pytest.raises(TaskCancelled):
            async for _ in pool.map(double_soon, source()):
                pass
        assert closed == ["closed"]


async def test_a_map_whose_reader_cannot_be_started_raises_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async def numbers() -> AsyncGenerator[int]:
        yield 1

    def refused(*_: object) -> None:
        raise PoolClosed("the crew is ending")

    async with AsyncWorkerPool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(AsyncSource, "start", refused)
            with pytest.raises(PoolClosed, match="the crew is ending"):
                await pool.map(double, numbers())
        assert (await pool.map(double, numbers())).values == [2]


async def test_a_source_that_takes_too_long_to_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuelight.pools._maps._source.CLOSE_LIMIT", 0.01)

    async def slow() -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            await anyio.sleep(1000)

    async with AsyncWorkerPool(1) as pool:
        stream = aiter(pool.map(double_soon, slow()))
        assert (await anext(stream)).result == 2
        with pytest.raises(TimeoutError, match=r"the source of the map took longer than 0\.01 s to close: cut off"):
            await stream.aclose()


async def test_a_map_whose_reader_is_ended_is_cancelled() -> None:
    reading = anyio.Event()

    async def endless() -> AsyncGenerator[int]:
        reading.set()
        await anyio.sleep(1000)
        yield 1  # pragma: no cover - it is ended before

    async with AsyncWorkerPool(1) as pool, anyio.create_task_group() as group:

        async def request() -> None:
            with pytest.raises(TaskCancelled, match="the reader of its items was ended"):
                await pool.map(double_soon, endless())

        group.start_soon(request)
        await reading.wait()
        workers = pool.group
        assert workers is not None
        [run] = workers.works
        source: Any = getattr(run, "source")  # noqa: B009 - of maps alone
        source._cell.kill("for the test")


def test_a_closed_source_has_no_more_items() -> None:
    class SourceOwner:
        def refresh(self) -> None: ...

        def fail(self, error: BaseException) -> None:
            raise error

    source = SyncSource(iter([1, 2]), contextvars.copy_context())
    assert source.next() == 1
    source.close(SourceOwner())
    with pytest.raises(StopIteration):
        source.next()
