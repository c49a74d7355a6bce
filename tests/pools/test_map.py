"""Maps over async functions: order, streams, windows, sources, errors, cancelling and progress."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import ActorSystem
from cuelight.errors import PoolClosed, TaskCancelled, TaskTimedOut
from cuelight.pools import AsyncWorkerPool, Results, TaskResult
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import Backend, run_on


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


async def double(number: int) -> int:
    return 2 * number


async def nap(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


async def odd_only(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    if number % 2 == 0:
        raise ValueError(f"{number} is even")
    return number


def forget(unused: object) -> None:
    """Use it no more."""


class Source:
    """Items, and what becomes of who reads them."""

    def __init__(self, items: int | None = None, error_at: int | None = None) -> None:
        self.items, self.error_at = items, error_at
        self.read = 0
        self.log: list[str] = []

    def _next(self) -> int:
        if self.read == self.error_at:
            raise OSError("the source is broken")
        self.read += 1
        return self.read - 1

    def plain(self) -> Iterator[int]:
        try:
            while self.items is None or self.read < self.items:
                yield self._next()
        finally:
            self.log.append("closed")

    async def slow(self) -> AsyncGenerator[int]:
        try:
            with anyio.CancelScope():  # belongs to one task, as in many a source
                while self.items is None or self.read < self.items:
                    await anyio.sleep(0.01)
                    yield self._next()
        finally:
            self.log.append("closed")

    def of(self, kind: str) -> Iterator[int] | AsyncIterator[int]:
        return self.plain() if kind == "plain" else self.slow()


KINDS = pytest.mark.parametrize("kind", ["plain", "slow"])


@KINDS
async def test_results_come_in_the_order_of_the_items(kind: str) -> None:
    seconds = [0.3, 0.1, 0.2, 0.0, 0.5]
    source = Source(5)
    async with AsyncWorkerPool(3) as pool:
        results = await pool.map(lambda at: nap(seconds[at]), source.of(kind))
    assert isinstance(results, Results)
    assert results.values == seconds
    assert results.errors == []
    assert [result.task_id for result in results] == [f"pool-1-{number}" for number in range(5)]
    assert source.log == ["closed"]


async def test_unordered_results_come_as_they_are_completed() -> None:
    async with AsyncWorkerPool(3) as pool:
        assert (await pool.map(nap, [0.3, 0.1, 0.2], ordered=False)).values == [0.1, 0.2, 0.3]
        assert [result.result async for result in pool.map(nap, [0.3, 0.1, 0.2], ordered=False)] == [0.1, 0.2, 0.3]
        assert [result.result async for result in pool.map(nap, [0.3, 0.1, 0.2])] == [0.3, 0.1, 0.2]


async def test_errors_of_items_are_results_and_kept_apart() -> None:
    async with AsyncWorkerPool(3) as pool:
        results = await pool.map(odd_only, range(4))
        assert results.values == [1, 3]
        assert [str(error) for error in results.errors] == ["0 is even", "2 is even"]
        streamed = [result.success async for result in pool.map(odd_only, range(4))]
        assert streamed == [False, True, False, True]
        assert await pool.map(odd_only, []) == []
        stats = pool.stats()
        assert (stats.submitted, stats.completed, stats.failed) == (8, 4, 4)


@KINDS
async def test_an_endless_source_is_read_only_a_window_ahead(kind: str) -> None:
    source = Source()
    async with AsyncWorkerPool(2) as pool:
        seen: list[int] = []
        async for result in pool.map(double, source.of(kind), buffer=5):
            seen.append(result.unwrap())
            await anyio.sleep(1)
            assert source.read <= len(seen) + 5 + (kind == "slow") * 2
            if len(seen) == 10:
                break
        assert seen == [2 * number for number in range(10)]
        await anyio.wait_all_tasks_blocked()
        assert source.log == ["closed"]
        before = source.read
        await anyio.sleep(1)
        assert source.read == before
        assert (await pool.submit(double, 1)).result == 2


@KINDS
@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "raise", "with"])
async def test_leaving_a_stream_early_stops_what_runs_and_closes_the_source(kind: str, how: str) -> None:
    source, running = Source(), 0

    async def work(number: int) -> int:
        nonlocal running
        running += 1
        try:
            await anyio.sleep(0 if number == 0 else 100)
        finally:
            running -= 1
        return number

    async with AsyncWorkerPool(3) as pool:
        mapping = pool.map(work, source.of(kind))
        if how == "break":
            async for _ in mapping:
                break
            await anyio.wait_all_tasks_blocked()
        elif how == "raise":
            with pytest.raises(KeyError):
                async for _ in mapping:
                    raise KeyError
            await anyio.wait_all_tasks_blocked()
        elif how == "cancel":
            with anyio.move_on_after(1):
                async for _ in mapping:
                    pass
        elif how == "with":
            async with aiter(mapping) as stream:
                assert (await anext(stream)).result == 0
        else:
            stream = aiter(mapping)
            assert (await anext(stream)).result == 0
            await stream.aclose()
            await stream.aclose()
            assert [result async for result in stream] == []
        assert running == 0
        assert source.log == ["closed"]
        assert (await pool.submit(double, 1)).result == 2


@KINDS
async def test_an_error_of_the_source_is_raised_once_all_has_stopped(kind: str) -> None:
    running = 0

    async def work(number: int) -> int:
        nonlocal running
        running += 1
        try:
            await anyio.sleep(0 if number == 0 else 100)
        finally:
            running -= 1
        return number

    async with AsyncWorkerPool(5) as pool:
        with pytest.raises(OSError, match="broken"):
            await pool.map(work, Source(error_at=3).of(kind))
        assert running == 0
        got: list[Any] = []
        with pytest.raises(OSError, match="broken"):
            async for result in pool.map(work, Source(error_at=3).of(kind)):
                got.append(result.result)  # noqa: PERF401 - a comprehension would lose what came before the error
        assert got == [0]
        assert running == 0
        assert (await pool.submit(double, 1)).result == 2
    with pytest.raises(OSError, match="broken"):
        await AsyncWorkerPool(5).map(work, Source(error_at=0).of(kind))


@KINDS
async def test_cancelling_an_awaited_map_stops_what_runs_and_closes_the_source(kind: str) -> None:
    source = Source()
    log: list[int] = []

    async def work(number: int) -> None:
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            log.append(number)

    async with AsyncWorkerPool(2) as pool:
        with anyio.move_on_after(1):
            await pool.map(work, source.of(kind))
        assert sorted(log) == [0, 1]
        assert source.log == ["closed"]
    log.clear()
    with anyio.move_on_after(1):
        await AsyncWorkerPool(2).map(work, Source().of(kind))
    assert sorted(log) == [0, 1]


async def test_a_source_that_blocks_for_ever_can_be_left() -> None:
    closed = anyio.Event()

    async def stuck() -> AsyncGenerator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with AsyncWorkerPool(2) as pool:
        with anyio.move_on_after(1) as scope:
            async for result in pool.map(double, stuck()):
                assert result.result == 2
        assert scope.cancelled_caught
        assert closed.is_set()
    tasks = None
    closed = anyio.Event()
    with anyio.move_on_after(1):
        async with AsyncWorkerPool(2) as pool:
            tasks = pool.submit(nap, 0.5)
            await pool.map(double, stuck())
    assert closed.is_set()
    assert tasks is not None
    assert (await tasks).success


class Plain:
    """An async iterator that is no generator, and nothing that could be closed."""

    def __init__(self) -> None:
        self.left = 3

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


class Numbered:
    """What could be iterated before there were iterators."""

    def __getitem__(self, at: int) -> int:
        if at == 3:
            raise IndexError
        return at


async def test_anything_that_can_be_iterated_is_a_source() -> None:
    async with AsyncWorkerPool(2) as pool:
        items: list[AsyncIterator[int] | Iterable[int]] = [
            Plain(),
            cast(Iterable[int], Numbered()),
            {0, 1, 2},
            iter([0, 1, 2]),
            dict.fromkeys(range(3)),
        ]
        for one in items:
            assert sorted((await pool.map(double, one)).values) == [0, 2, 4]
        nothing: Any = 3
        with pytest.raises(TypeError, match="map over 3"):
            await pool.map(double, nothing)
        send, receive = anyio.create_memory_object_stream[int](3)
        with send, receive:
            for number in range(3):
                send.send_nowait(number)
            send.close()
            assert (await pool.map(double, receive)).values == [0, 2, 4]


async def test_a_source_that_fails_when_it_is_closed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def plain() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise OSError("cannot close")

    async def slow() -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            raise OSError("cannot close")

    makers: list[Callable[[], Iterator[int] | AsyncIterator[int]]] = [plain, slow]
    for make in makers:
        async with AsyncWorkerPool(2) as pool:
            stream = aiter(pool.map(nap, make()))
            assert (await anext(stream)).success
            with pytest.raises(OSError, match="cannot close"):
                await stream.aclose()
            async for _ in pool.map(nap, make()):
                break
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(1):
                await anext(aiter(pool.map(lambda _: nap(100), make())))
        assert caplog.text.count("was left, and then its source failed: OSError('cannot close')") == 2
        caplog.clear()


async def test_a_source_may_end_its_own_map() -> None:
    stream: Any = None

    def source() -> Iterator[int]:
        yield 1
        yield 2
        pool.cancel_all()
        yield 3
        raise AssertionError("it was closed")  # pragma: no cover

    async with AsyncWorkerPool(2) as pool:
        stream = pool.map(nap, source())
        with pytest.raises(TaskCancelled):
            await stream
        assert (await pool.submit(double, 1)).result == 2


async def test_time_outs_and_retries_are_for_each_item() -> None:
    attempts: list[float] = []

    async def work(seconds: float) -> float:
        attempts.append(seconds)
        return await nap(seconds)

    async with AsyncWorkerPool(2, retries=1) as pool:
        results = await pool.map(work, [0.4, 2, 0.4, 3, 0.4], timeout=0.5)
        assert [type(result.error) for result in results] == [type(None), TaskTimedOut] * 2 + [type(None)]
        assert sorted(attempts) == [0.4, 0.4, 0.4, 2, 2, 3, 3]
        assert [line.retries_used for line in pool.metrics().values()].count(1) == 2
        assert [r.success async for r in pool.map(work, [2, 0.4, 3], timeout=0.5)] == [False, True, False]


async def test_progress_is_told_after_each_item() -> None:
    told: list[tuple[int, int | None]] = []
    async with AsyncWorkerPool(2) as pool:
        await pool.map(double, [1, 2, 3], progress=lambda done, total: told.append((done, total)))
        assert told == [(1, 3), (2, 3), (3, 3)]
        told.clear()
        await pool.map(odd_only, iter([1, 2]), progress=lambda done, total: told.append((done, total)))
        assert told == [(1, None), (2, None)]


async def test_a_progress_callback_that_raises_ends_the_map() -> None:
    def tell(done: int, total: int | None) -> None:
        if done == 2:
            raise KeyError(total)

    async with AsyncWorkerPool(2) as pool:
        with pytest.raises(KeyError, match="9"):
            await pool.map(nap, [0.1] * 9, progress=tell)
        assert pool.stats().submitted < 9
        assert (await pool.submit(double, 1)).result == 2


async def test_a_map_that_was_never_used_says_so() -> None:
    async with AsyncWorkerPool() as pool:
        with pytest.warns(RuntimeWarning, match="map of double was neither awaited nor looped over"):
            forget(pool.map(double, [1]))
        mapping = pool.map(double, [1])
        await mapping
        with pytest.raises(RuntimeError, match="used before"):
            aiter(mapping)


async def test_streaming_needs_a_pool_that_runs() -> None:
    with pytest.raises(PoolClosed, match="inside `async with`"):
        async for _ in AsyncWorkerPool().map(double, [1]):
            pass
    async with ActorSystem() as system:
        pool = AsyncWorkerPool(system=system)
        assert [result.result async for result in pool.map(double, [1])] == [2]
    assert_no_orphans(system)


async def test_a_stream_that_nobody_reads_holds_up_nothing() -> None:
    source = Source()
    async with AsyncWorkerPool(2) as pool:
        stream = aiter(pool.map(double, source.plain()))
        assert (await anext(stream)).result == 0
        await pool.drain()
        assert (await anext(stream)).result == 2
    assert source.log == ["closed"]
    with pytest.raises(TaskCancelled):
        while True:
            await anext(stream)


async def test_one_task_reads_a_stream() -> None:
    async with AsyncWorkerPool() as pool, anyio.create_task_group() as group:
        stream = aiter(pool.map(nap, [1.0]))
        group.start_soon(stream.__anext__)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(stream)


async def test_a_map_does_not_starve_other_tasks() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with AsyncWorkerPool(4) as pool, anyio.create_task_group() as group:
        group.start_soon(other)
        await pool.map(double, range(10_000))
        group.cancel_scope.cancel()
    assert turns > 20


async def test_a_stream_dropped_by_the_collector_in_another_thread_is_cancelled() -> None:
    closed = anyio.Event()

    async def source() -> AsyncGenerator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    async with AsyncWorkerPool(2) as pool:
        streams = [aiter(pool.map(nap, source()))]
        await anext(streams[0])
        await anyio.to_thread.run_sync(streams.clear)
        await closed.wait()


@pytest.mark.parametrize("streamed", [True, False])
@given(
    workers=st.integers(1, 5),
    buffer=st.none() | st.integers(1, 6),
    items=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=5, max_size=20),
    ordered=st.booleans(),
    retries=st.integers(0, 2),
)
def test_each_item_has_one_result_and_a_stream_stays_in_its_window(  # noqa: PLR0917 - hypothesis gives them
    streamed: bool, workers: int, buffer: int | None, items: list[Any], ordered: bool, retries: int
) -> None:
    for name in VIRTUAL_BACKENDS:
        run_on(virtual_backend(name), _law, streamed, workers, buffer, items, ordered, retries)


async def _law(  # noqa: PLR0917
    streamed: bool, workers: int, buffer: int | None, items: list[tuple[int, bool]], ordered: bool, retries: int
) -> None:
    taken, read, running = 0, 0, 0

    def source() -> Iterator[tuple[int, int, bool]]:
        nonlocal taken
        for at, (seconds, fine) in enumerate(items):
            taken += 1
            if streamed:
                assert taken <= read + (buffer or 2 * workers)
            yield at, seconds, fine

    async def work(item: tuple[int, int, bool]) -> int:
        nonlocal running
        running += 1
        assert running <= workers
        await anyio.sleep(item[1])
        running -= 1
        if not item[2]:
            raise KeyError(item[0])
        return item[0]

    results: list[TaskResult[int]] = []
    async with AsyncWorkerPool(workers, retries=retries) as pool:
        mapping = pool.map(work, source(), ordered=ordered, buffer=buffer)
        if streamed:
            async for result in mapping:
                read += 1
                results.append(result)
        else:
            results += await mapping
        stats = pool.stats()
    numbers = [int(result.task_id.rsplit("-", 1)[1]) for result in results]
    assert sorted(numbers) == list(range(len(items)))
    if ordered:
        assert numbers == sorted(numbers)
    for number, result in zip(numbers, results, strict=True):
        assert result.success == items[number][1]
        assert (result.result == number) if result.success else isinstance(result.error, KeyError)
    assert (stats.submitted, stats.completed + stats.failed) == (len(items), len(items))
