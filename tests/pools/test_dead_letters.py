"""Tasks of pools that have failed for good: their log records and their dead letters."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem, DeadLetterQueue, MemoryStore
from cuelight.errors import PoolClosed, Rejected, TaskCancelled
from cuelight.pools import AsyncWorkerPool, FailedCall, WorkerPool, WorkerPoolConfig


def config(**options: Any) -> WorkerPoolConfig:
    given: dict[str, Any] = {"max_workers": 2, "max_retries": 0, "backoff_base_seconds": 0.0} | options
    return WorkerPoolConfig(**given)


class Line:
    """A service that is down until somebody repairs it."""

    def __init__(self) -> None:
        self.down = True
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, item: Any, *, times: int = 1) -> Any:
        self.calls.append((item, times))
        if self.down:
            raise ConnectionError(f"the line is down: {item}")
        return item * times

    async def later(self, item: Any, *, times: int = 1) -> Any:
        await anyio.lowlevel.checkpoint()
        return self(item, times=times)


@pytest.mark.parametrize("kind", [None, "thread"])
async def test_a_task_that_has_failed_for_good_is_a_dead_letter(kind: Any) -> None:
    line = Line()
    function: Any = line if kind else line.later
    async with AsyncWorkerPool(2, kind=kind, retries=1, name="web") as pool:
        assert await pool.dead_letters.count() == 0
        failed = await pool.submit(function, "a", times=2, task_id="mine", priority=1, timeout=50)
        await pool.map(function, ["b"])
        line.down = False
        assert (await pool.submit(function, "c")).success
        first, second = await pool.dead_letters.list()
        assert (first.id, second.id) == ("mine", "web-1-0")
        assert first.payload == FailedCall(function, ("a",), {"times": 2}, failed.task_name, 1, 50.0)
        assert second.payload.args == ("b",)
        assert first.error == "ConnectionError: the line is down: a"
        assert "in __call__" in first.traceback
        assert (first.reason, first.source) == ("errors", failed.worker_id)
        assert first.task_type.endswith("Line" if kind else "Line.later")


async def test_replaying_a_dead_letter_submits_it_again() -> None:
    line = Line()
    async with AsyncWorkerPool(2) as pool:
        await pool.submit(line.later, "a", times=2, task_id="mine")
        await pool.map(line.later, "bc")
        await pool.dead_letters.replay("mine")
        await pool.drain()
        assert line.calls[-1] == ("a", 2)
        assert {letter.id for letter in await pool.dead_letters.list()} == {"mine", "pool-1-0", "pool-1-1"}
        line.down = False
        report = await pool.dead_letters.replay_all()
        await pool.drain()
        assert (report.replayed, await pool.dead_letters.count()) == (3, 0)
        assert sorted(line.calls[-3:]) == [("a", 2), ("b", 1), ("c", 1)]
        assert pool.stats().completed == 3


async def test_a_dead_letter_is_edited_before_it_is_replayed_and_keeps_what_went_wrong() -> None:
    async def check(word: str) -> None:
        await anyio.lowlevel.checkpoint()
        if not word.isalpha():
            raise ValueError(f"{word!r} is no word")

    pool = AsyncWorkerPool(1)  # without a block a replay runs it at once
    await pool.map(check, ["tell", "4711"])
    [letter] = await pool.dead_letters.list()
    call: FailedCall = letter.payload
    await pool.dead_letters.edit(letter.id, call.with_args("4712"))
    await pool.dead_letters.replay(letter.id)
    [again] = await pool.dead_letters.list()
    assert again.error == "ValueError: '4712' is no word"
    await pool.dead_letters.edit(again.id, "no call any more")
    with pytest.raises(TypeError, match="is no FailedCall"):
        await pool.dead_letters.replay(again.id)
    seen: list[Any] = []
    await pool.dead_letters.replay(again.id, to=lambda letter: seen.append(letter.payload))
    assert (seen, await pool.dead_letters.count()) == (["no call any more"], 0)


async def test_pools_may_share_a_queue_and_each_letter_knows_its_way_back() -> None:
    shared = DeadLetterQueue(keep=10)
    lines = [Line(), Line()]
    async with AsyncWorkerPool(1, name="a", dead_letters=shared) as first:
        async with AsyncWorkerPool(1, name="b", dead_letters=shared) as second:
            assert first.dead_letters is second.dead_letters is shared
            await first.submit(lines[0].later, 1)
            await second.submit(lines[1].later, 2)
            await shared.add("from nowhere", error="?")
            report = await shared.replay_all()
            assert (report.replayed, report.failed) == (2, 1)
            await first.drain()
            await second.drain()
            assert [len(line.calls) for line in lines] == [2, 2]
            assert await shared.count() == 3
        report = await shared.replay_all(reason="errors")
        assert (report.replayed, report.failed) == (1, 1)
        assert [text for text in report.errors.values() if "PoolClosed" in text]


def test_a_queue_that_shows_what_others_keep_is_refused() -> None:
    anything: Any = 5
    for make in (AsyncWorkerPool, WorkerPool):
        with pytest.raises(TypeError, match="keeps none"):
            make(dead_letters=DeadLetterQueue(MemoryStore()))
        with pytest.raises(TypeError, match="dead_letters=5: give a DeadLetterQueue"):
            make(dead_letters=anything)


async def test_dead_letters_of_actors_take_none_of_pools() -> None:
    async with ActorSystem() as system:
        with pytest.raises(TypeError, match="keeps none"):
            AsyncWorkerPool(dead_letters=DeadLetterQueue.of(system))
        with pytest.raises(TypeError, match="of their own"):
            DeadLetterQueue.of(system).add_nowait(1, way_back=print)


async def test_what_was_cancelled_is_no_dead_letter() -> None:
    async with AsyncWorkerPool(1) as pool:
        running, waiting = pool.submit(anyio.sleep_forever), pool.submit(anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        waiting.cancel()
        running.cancel()
        assert isinstance((await running).error, TaskCancelled)
        assert await pool.dead_letters.count() == 0


async def test_the_reason_of_a_dead_letter_says_how_the_task_ended() -> None:
    async def refuse() -> None:
        raise Rejected("bad card")

    async with AsyncWorkerPool(1) as pool:
        await pool.submit(refuse)
        await pool.submit(anyio.sleep_forever, timeout=0.01)
        assert [letter.reason for letter in await pool.dead_letters.list()] == ["rejected", "timeouts"]


async def test_only_the_latest_dead_letters_are_kept_and_the_rest_is_counted() -> None:
    async def fail(number: int) -> None:
        raise ValueError(number)

    async with AsyncWorkerPool(1, dead_letters=DeadLetterQueue(keep=3)) as pool:
        await pool.map(fail, range(10))
        assert [letter.payload.args for letter in await pool.dead_letters.list()] == [(7,), (8,), (9,)]
        assert pool.dead_letters.dropped == 7


async def test_letters_of_an_async_pool_are_replayed_in_its_loop() -> None:
    line = Line()
    async with AsyncWorkerPool(1) as pool:
        await pool.submit(line.later, 1)
        letters = pool.dead_letters
        errors: list[BaseException] = []

        def replay() -> None:
            try:
                with letters as blocking:
                    blocking.replay("pool-1")
            except RuntimeError as error:
                errors.append(error)

        await anyio.to_thread.run_sync(replay)
        assert "belongs to the event loop of another thread" in str(errors[0])
        assert await letters.count() == 1


# Blocking pools.


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_task_of_a_blocking_pool_that_has_failed_for_good_is_a_dead_letter(kind: Any) -> None:
    with WorkerPool(config(), kind=kind) as pool:
        failed = pool.submit_task("seven", int, ("seven",))
        pool.submit_task("7", int, ("7",))
        assert not pool.get_task_result(failed).success
        with pool.dead_letters as letters:
            [letter] = letters.list()
            assert (letter.id, letter.task_type, letter.payload.name) == (failed, "builtins.int", "seven")
            assert letter.payload.args == ("seven",)
            letters.edit(letter.id, letter.payload.with_args("7"))
            letters.replay(letter.id)
            assert letters.count() == 0
        results = pool.wait_for_all(timeout=20)
        assert [result.result for result in results] == [None, 7, 7]
        assert list(pool.map(int, ["8", "x"]))[1].error is not None
        with pool.dead_letters as letters:
            assert [letter.payload.args for letter in letters.list()] == [("x",)]


def test_a_letter_is_there_when_the_result_is_and_threads_may_write_at_once() -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    with WorkerPool(config(max_workers=8), dead_letters=DeadLetterQueue(keep=1000)) as pool:
        results = list(pool.map(fail, range(200)))
        assert len(results) == 200
        with pool.dead_letters as letters:
            assert sorted(letter.payload.args[0] for letter in letters) == list(range(200))


def test_a_pool_that_was_dropped_is_not_kept_by_its_letters() -> None:
    import gc
    import weakref

    shared = DeadLetterQueue()
    pool = WorkerPool(config(), dead_letters=shared)
    assert not pool.get_task_result(pool.submit_task("x", int, ("x",))).success
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    with shared as letters, pytest.raises(PoolClosed, match="is no more"):
        letters.replay("pool-1")


# Log records.


async def test_a_failed_task_is_logged_before_its_result_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(number: int) -> None:
        raise ValueError(f"number {number}")

    seen: list[int] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(len(results))

    results: list[Any] = []
    watch = Watch(logging.WARNING)
    logging.getLogger("cuelight.pools").addHandler(watch)
    try:
        async with AsyncWorkerPool(1, name="web", retries=2) as pool:
            results.append(await pool.submit(fail, 1, task_id="first"))
            results.extend(await pool.map(fail, [2]))
    finally:
        logging.getLogger("cuelight.pools").removeHandler(watch)
    assert seen == [0, 1]
    first, second = [record for record in caplog.records if record.name == "cuelight.pools"]
    name = "test_a_failed_task_is_logged_before_its_result_is_there.<locals>.fail"
    assert first.getMessage() == (
        f"web: the task {name} ({__name__}.{name}, first) failed after 2 retries: ValueError: number 1"
    )
    assert first.exc_text is not None
    assert "in fail" in first.exc_text
    assert first.exc_info is not None
    fields = {"pool": "web", "task_id": "first", "task_name": name, "task_type": f"{__name__}.{name}"}
    assert vars(first).items() >= fields.items()
    assert (vars(first)["retries"], vars(first)["attempt"], vars(first)["worker_id"]) == (2, 3, "web-1")
    assert vars(second)["task_id"] == "web-1-0"


def test_a_failed_task_of_a_blocking_pool_is_logged_before_its_result_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[bool] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING:
                [job] = pool._thread_pool.table.jobs.values()
                seen.append(job.ended is None)

    watch = Watch(logging.WARNING)
    logging.getLogger("cuelight.pools").addHandler(watch)
    try:
        with WorkerPool(config(max_retries=1), name="web") as pool:
            task_id = pool.submit_task("seven", int, ("seven",))
            assert not pool.get_task_result(task_id).success
    finally:
        logging.getLogger("cuelight.pools").removeHandler(watch)
    assert seen == [True]
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith(
        "web: the task seven (builtins.int, web-1) failed after 1 retries: ValueError"
    )
    assert record.exc_text is not None
    fields = {
        "pool": "web",
        "task_id": "web-1",
        "task_name": "seven",
        "task_type": "builtins.int",
        "worker_id": "web-worker-1",
        "retries": 1,
        "attempt": 2,
    }
    assert vars(record).items() >= fields.items()


async def test_a_flood_of_failures_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    async with AsyncWorkerPool(2, kind="thread") as pool:
        results = await pool.map(fail, range(500))
        assert len(results.errors) == 500
    assert 10 <= len(caplog.records) < 20
    assert "more records like this were left out" in caplog.text


def test_without_instrumentation_nothing_is_logged_or_measured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), WorkerPool(config(enable_instrumentation=False, max_retries=1)) as pool:
        failed = pool.submit_task("seven", int, ("seven",))
        fine = pool.submit_task("7", int, ("7",))
        assert pool.get_task_result(failed).metrics is None
        assert pool.get_task_result(fine).metrics is None
        assert [result.metrics for result in pool.map(int, ["8"])] == [None]
        assert pool.get_metrics() == {}
        summary = pool.get_summary_metrics()
        assert (summary["avg_execution_time_ms"], summary["total_retries"]) == (0.0, 0)
        assert (summary["completed"], summary["failed"]) == (2, 1)  # what the pool itself needs to know
        with pool.dead_letters as letters:
            assert letters.count() == 1
    assert [record for record in caplog.records if record.name == "cuelight.pools" and record.levelno > 10] == []
