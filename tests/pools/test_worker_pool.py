"""The blocking pool: results, retries, time-outs, waiting, cancelling. Time is virtual where it matters."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuelight.errors import (
    DeadlockError,
    PoolClosed,
    RateLimited,
    Rejected,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskTimedOut,
    UnexpectedCancellation,
)
from cuelight.pools import TaskStatus, WorkerPool, WorkerPoolConfig
from cuelight.testing import VirtualClockLoop


class TimedPool(WorkerPool):
    """A pool whose time jumps to whatever is due next."""

    _backend_options = {"loop_factory": VirtualClockLoop}  # noqa: RUF012


class Gate:
    """A function that blocks until the gate is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.entered.release()
        assert self.opened.wait(10)
        return value

    def wait_entered(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=10)


def config(max_workers: int = 2, **options: Any) -> WorkerPoolConfig:
    return WorkerPoolConfig(max_workers=max_workers, **options)


def untimed(**options: Any) -> WorkerPoolConfig:
    return config(task_timeout_seconds=math.inf, **options)


def until(condition: Callable[[], Any]) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError(condition)


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# Bad input.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_workers", 0),
        ("max_workers", 2.5),
        ("max_retries", -1),
        ("task_timeout_seconds", 0),
        ("task_timeout_seconds", math.nan),
        ("backoff_base_seconds", -1),
        ("backoff_max_seconds", math.inf),
    ],
)
def test_a_bad_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"WorkerPoolConfig\({field}={value}\): give "):
        WorkerPoolConfig(**{field: value})


def test_bad_arguments_are_refused_where_they_are_given() -> None:
    async def fetch() -> None: ...

    fetch_method: Any = fetch
    nothing: Any = 5
    text: Any = "abc"
    with pytest.raises(TypeError, match="give a WorkerPoolConfig"):
        WorkerPool(nothing)
    with pytest.raises(ValueError, match="give 'thread' or 'process'"):
        WorkerPool(kind=nothing)
    with pytest.raises(ValueError, match="keep_results=0"):
        WorkerPool(keep_results=0)
    with WorkerPool() as pool:
        with pytest.raises(TypeError, match="cannot be called"):
            pool.submit_task("x", nothing)
        with pytest.raises(TypeError, match="AsyncWorkerPool"):
            pool.submit_task("x", fetch_method)
        with pytest.raises(TypeError, match=r"args='abc': give a tuple"):
            pool.submit_task("x", len, text)
        with pytest.raises(TypeError, match="cannot be called"):
            pool.map(nothing, [1])
        with pytest.raises(TypeError, match="not iterable"):
            pool.map(str, nothing)
        with pytest.raises(ValueError, match="buffer=0"):
            pool.map(str, [1], buffer=0)
        with pytest.raises(ValueError, match="ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION"):
            pool.wait_for_all(return_when=nothing)
        with pytest.raises(TaskNotFound, match="knows no task 'pool-77'"):
            pool.get_task_result("pool-77")
        listed: Any = ["abc"]
        assert pool.get_task_result(pool.submit_task("x", len, listed)).result == 3
        assert pool.get_summary_metrics()["total_tasks"] == 1


def test_a_config_that_is_changed_later_changes_no_pool() -> None:
    changed = config(max_retries=0)
    with WorkerPool(changed) as pool:
        changed.max_retries = 5
        assert pool.config.max_retries == 0


def test_a_pool_starts_nothing_before_its_first_task() -> None:
    before = set(threading.enumerate())
    with WorkerPool():
        assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile
    with WorkerPool() as pool:
        pool.submit_task("x", len, ("",))
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile
    assert pool.wait_for_all() == pool.wait_for_all()


# Order.


def test_the_more_urgent_go_first_and_within_a_priority_the_earlier() -> None:
    gate, order = Gate(), list[str]()
    with WorkerPool(config(1)) as pool:
        pool.submit_task("gate", gate)
        gate.wait_entered()
        for number, priority in enumerate([2, 3, 1, 2, 1, 3, 2]):
            pool.submit_task("x", order.append, (f"{priority}-{number}",), priority=priority)
        gate.opened.set()
    assert order == sorted(order)


def test_results_of_all_come_in_the_order_of_submission() -> None:
    with WorkerPool(config(8)) as pool:
        ids = [pool.submit_task("x", time.sleep, (0.003 * (number % 4),)) for number in range(40)]
        assert [result.task_id for result in pool.wait_for_all()] == ids
        assert list(pool.get_metrics()) == ids


# Retries.


def test_a_failure_is_tried_again_after_delays_that_double() -> None:
    times: list[float] = []
    with TimedPool(untimed(max_retries=5, backoff_base_seconds=2.0, backoff_max_seconds=10.0)) as pool:

        def fail() -> None:
            times.append(pool._thread_pool.clock())
            raise ConnectionError("busy")

        result = pool.get_task_result(pool.submit_task("x", fail))
    assert [round(later - earlier) for earlier, later in itertools.pairwise(times)] == [2, 4, 8, 10, 10]
    assert isinstance(result.error, ConnectionError)
    assert result.metrics is not None
    assert result.metrics.retries_used == 5
    assert result.metrics.error_message == "ConnectionError: busy"
    assert pool.get_summary_metrics()["total_retries"] == 5


def test_a_task_that_waits_for_a_retry_holds_no_worker() -> None:
    with WorkerPool(config(1, backoff_base_seconds=60.0)) as pool:
        failed = pool.submit_task("x", failing(ConnectionError()))
        assert pool.get_task_result(pool.submit_task("y", len, ("abc",)), timeout=10).result == 3
        assert pool.get_metrics()[failed].status is TaskStatus.SCHEDULED
        assert pool.get_summary_metrics()["pending"] == 1
        with pytest.raises(TimeoutError, match="it is scheduled"):
            pool.get_task_result(failed, timeout=0)
        assert pool.abort_pending_tasks() == 1
        assert isinstance(pool.get_task_result(failed).error, TaskCancelled)


def test_a_rejection_is_final_and_a_rate_limit_is_no_attempt() -> None:
    answers: Iterator[Any] = iter([RateLimited(5), RateLimited(5), RateLimited(0), "done"])

    def limited() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    with TimedPool(untimed(max_retries=1, backoff_base_seconds=0.0)) as pool:
        rejected = pool.get_task_result(pool.submit_task("x", failing(Rejected("never"))))
        assert isinstance(rejected.error, Rejected)
        result = pool.get_task_result(pool.submit_task("x", limited))
        assert (result.result, pool.get_summary_metrics()["total_retries"]) == ("done", 0)


def test_a_group_of_rejections_or_of_rate_limits_is_one() -> None:
    rejected = ExceptionGroup("outer", [ExceptionGroup("inner", [Rejected("never"), Rejected("never ever")])])
    answers: Iterator[Any] = iter([ExceptionGroup("outer", [ExceptionGroup("inner", [RateLimited(5)])]), "done"])

    def limited() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    with TimedPool(untimed(max_retries=1, backoff_base_seconds=0.0)) as pool:
        error = pool.get_task_result(pool.submit_task("x", failing(rejected))).error
        assert error is rejected.exceptions[0].exceptions[0]
        assert pool.get_task_result(pool.submit_task("x", limited)).result == "done"
        mixed = ExceptionGroup("mixed", [Rejected("never"), ValueError("bad")])
        assert pool.get_task_result(pool.submit_task("x", failing(mixed))).error is mixed
        assert pool.get_summary_metrics()["total_retries"] == 1


def test_other_base_exceptions_are_failures_that_are_tried_again() -> None:
    with TimedPool(untimed(max_retries=2, backoff_base_seconds=0.0)) as pool:
        for error in (GeneratorExit(), asyncio.CancelledError(), BaseExceptionGroup("g", [GeneratorExit()])):
            result = pool.get_task_result(pool.submit_task("odd", failing(error)))
            assert isinstance(result.error, TaskFailed | UnexpectedCancellation)
            assert result.error.__cause__ is error
            assert result.metrics is not None
            assert result.metrics.retries_used == 2


def test_a_rate_limit_that_makes_no_sense_is_none() -> None:
    class Odd(RateLimited):
        def __init__(self, retry_after: Any) -> None:
            super().__init__(1.0)
            self.retry_after = retry_after

    answers: Iterator[Any] = iter([Odd(float("nan")), Odd("soon"), Odd(-5), Odd(None)])

    def limited() -> str:
        answer = next(answers, None)
        if answer is not None:
            raise answer
        return "done"

    with TimedPool(untimed()) as pool:
        assert pool.get_task_result(pool.submit_task("x", limited)).result == "done"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("g", [SystemExit()])])
def test_what_would_end_a_program_ends_only_the_task(error: BaseException) -> None:
    with WorkerPool() as pool:
        result = pool.get_task_result(pool.submit_task("leave", failing(error)))
        assert isinstance(result.error, TaskFailed)
        assert result.error.__cause__ is error
        assert "the task 'leave' raised " in str(result.error)
        assert pool.get_summary_metrics()["total_retries"] == 0
        assert pool.get_task_result(pool.submit_task("x", len, ("",))).success


# Time-outs.


def test_a_call_that_takes_too_long_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with caplog.at_level(logging.INFO, "cuelight.pools"), TimedPool(config(1, max_retries=0)) as pool:
        stuck = pool.submit_task("stuck", gate)
        result = pool.get_task_result(stuck, timeout=10)
        assert isinstance(result.error, TaskTimedOut)
        assert isinstance(result.error, TimeoutError)
        assert "'stuck' ran longer than task_timeout_seconds=180; a thread cannot be stopped" in str(result.error)
        assert round(result.elapsed_ms) == 180_000
        summary = pool.get_summary_metrics()
        assert (summary["abandoned"], summary["replaced"], summary["workers"]) == (1, 1, 0)
    assert "such threads still run" in caplog.text
    gate.opened.set()
    until(lambda: pool.get_summary_metrics()["abandoned"] == 0)
    assert pool.get_task_result(stuck).error is result.error


def test_the_thread_that_takes_its_place_runs_what_waits() -> None:
    gate = Gate()
    with WorkerPool(config(1, max_retries=0, task_timeout_seconds=0.05)) as pool:
        stuck = pool.submit_task("stuck", gate)
        assert pool.get_task_result(pool.submit_task("x", len, ("abc",)), timeout=10).result == 3
        assert not pool.get_task_result(stuck).success
        assert pool.get_task_result(stuck).worker_id != pool.wait_for_all()[1].worker_id
    gate.opened.set()


def test_a_call_that_took_too_long_is_tried_again() -> None:
    gate, calls = Gate(), list[int]()

    def slow_once() -> str:
        calls.append(1)
        if len(calls) == 1:
            gate()
        return "done"

    with WorkerPool(config(1, backoff_base_seconds=0.001, task_timeout_seconds=0.1)) as pool:
        result = pool.get_task_result(pool.submit_task("x", slow_once), timeout=10)
        assert (result.result, result.error, len(calls)) == ("done", None, 2)
        assert pool.get_summary_metrics()["total_retries"] == 1
    gate.opened.set()
    until(lambda: pool.get_summary_metrics()["abandoned"] == 0)
    assert pool.get_task_result(result.task_id) is result


def test_shutting_down_does_not_wait_for_threads_that_were_left_behind() -> None:
    gate = Gate()
    pool = TimedPool(config(2, max_retries=0))
    pool.submit_task("stuck", gate)
    pool.shutdown()
    assert not gate.opened.is_set()
    gate.opened.set()


# Waiting.


def test_waiting_for_a_result_ends_with_its_time_out_and_the_task_goes_on() -> None:
    gate = Gate()
    with WorkerPool() as pool:
        task = pool.submit_task("slow", gate, (4,))
        gate.wait_entered()
        with pytest.raises(TimeoutError, match=r"'slow' \(pool-1\) had not ended after 0.01 s: it is in_flight"):
            pool.get_task_result(task, timeout=0.01)
        assert pool.wait_for_all(timeout=0.01) == []
        gate.opened.set()
        assert pool.get_task_result(task, timeout=10).result == 4
        assert pool.get_task_result(task, timeout=-1).result == 4


def test_waiting_for_all_returns_in_time_what_has_ended() -> None:
    gate = Gate()
    with WorkerPool() as pool:
        pool.submit_task("slow", gate)
        quick = pool.submit_task("quick", len, ("",))
        pool.get_task_result(quick)
        assert [result.task_id for result in pool.wait_for_all(timeout=0.01)] == [quick]
        gate.opened.set()
        assert len(pool.wait_for_all()) == 2


def test_waiting_for_the_first() -> None:
    gate = Gate()
    with WorkerPool(config(4, max_retries=0)) as pool:
        assert pool.wait_for_all(return_when="FIRST_COMPLETED") == []
        pool.submit_task("slow", gate)
        quick = pool.submit_task("quick", len, ("",))
        assert [result.task_id for result in pool.wait_for_all(return_when="FIRST_COMPLETED")] == [quick]
        wrong = pool.submit_task("wrong", failing(ValueError("wrong")))
        results = pool.wait_for_all(return_when="FIRST_EXCEPTION", timeout=10)
        assert [result.task_id for result in results] == [quick, wrong]
        gate.opened.set()


def test_waiting_for_the_first_exception_ends_when_there_is_none() -> None:
    with WorkerPool() as pool:
        pool.submit_task("x", time.sleep, (0.01,))
        assert len(pool.wait_for_all(return_when="FIRST_EXCEPTION", timeout=10)) == 1


def test_tasks_may_submit_tasks_and_wait_for_them() -> None:
    with WorkerPool(config(2)) as pool:

        def outer(depth: int) -> int:
            inner = pool.submit_task("inner", len, ("x" * depth,))
            return int(pool.get_task_result(inner, timeout=10).unwrap())

        assert pool.get_task_result(pool.submit_task("outer", outer, (7,))).result == 7
        assert len(pool.wait_for_all()) == 2


def test_a_task_that_waits_for_itself_is_told_so() -> None:
    started = threading.Event()
    ids: list[str] = []
    with WorkerPool(config(2, max_retries=0)) as pool:

        def own_result() -> None:
            assert started.wait(10)
            pool.get_task_result(ids[0])

        ids.append(pool.submit_task("own", own_result))
        started.set()
        assert isinstance(pool.get_task_result(ids[0]).error, DeadlockError)
        for wait in (pool.wait_for_all, pool.shutdown):
            assert isinstance(pool.get_task_result(pool.submit_task("x", wait)).error, DeadlockError)
        assert pool.get_task_result(pool.submit_task("x", lambda: pool.shutdown(wait=False))).success
        with pytest.raises(PoolClosed):
            pool.submit_task("x", len, ("",))


# Books.


def test_only_the_last_results_are_kept_if_so_wished() -> None:
    with WorkerPool(config(1), keep_results=2) as pool:
        ids = [pool.submit_task("x", len, ("",)) for _ in range(5)]
        assert [result.task_id for result in pool.wait_for_all()] == ids[-2:]
        with pytest.raises(TaskNotFound):
            pool.get_task_result(ids[0])
        assert pool.get_summary_metrics()["completed"] == 5


def test_the_summary_adds_up() -> None:
    gate = Gate()
    with WorkerPool(config(1, max_retries=0)) as pool:
        assert pool.get_summary_metrics()["success_rate"] == 0.0
        pool.submit_task("x", len, ("",))
        pool.submit_task("x", failing(ValueError("wrong")))
        pool.wait_for_all()
        pool.submit_task("x", gate)
        gate.wait_entered()
        pool.submit_task("x", gate)
        summary = pool.get_summary_metrics()
        assert {key: summary[key] for key in ("total_tasks", "completed", "failed", "running", "pending")} == {
            "total_tasks": 4,
            "completed": 1,
            "failed": 1,
            "running": 1,
            "pending": 1,
        }
        assert summary["success_rate"] == 0.5
        assert summary["avg_execution_time_ms"] > 0
        assert [metrics.status.value for metrics in pool.get_metrics().values()] == [
            "completed",
            "failed",
            "in_flight",
            "pending",
        ]
        gate.opened.set()


@pytest.mark.parametrize("enabled", [True, False])
def test_instrumentation_is_log_lines(caplog: pytest.LogCaptureFixture, enabled: bool) -> None:
    gate = Gate()
    options: dict[str, Any] = {"enable_instrumentation": enabled, "backoff_base_seconds": 0.0}
    with caplog.at_level(logging.DEBUG, "cuelight.pools"), WorkerPool(config(1, max_retries=1, **options)) as pool:
        pool.submit_task("good", len, ("",))
        pool.submit_task("bad", failing(ValueError("wrong")))
        pool.wait_for_all()
    with caplog.at_level(logging.DEBUG, "cuelight.pools"), TimedPool(config(1, max_retries=0, **options)) as pool:
        pool.submit_task("stuck", gate)
        pool.wait_for_all()
        gate.opened.set()
    levels = [record.levelname for record in caplog.records if record.name == "cuelight.pools"]
    assert levels == (["DEBUG", "INFO", "WARNING", "WARNING", "WARNING"] if enabled else [])
    assert pool.get_summary_metrics()["failed"] == 1


# Map.


def test_a_map_gives_results_in_the_order_of_the_items() -> None:
    told: list[tuple[int, int | None]] = []
    with WorkerPool(config(4, max_retries=0)) as pool:

        def tell(done: int, total: int | None) -> None:
            told.append((done, total))

        results = list(pool.map(lambda item: 12 // item, [1, 2, 0, 3], progress=tell))
        assert [result.result for result in results] == [12, 6, None, 4]
        assert isinstance(results[2].error, ZeroDivisionError)
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert pool.wait_for_all() == []
        assert pool.get_summary_metrics()["total_tasks"] == 4
        assert list(pool.map(str, [])) == []


def test_a_map_reads_no_more_than_its_buffer_ahead_and_closes_its_source() -> None:
    taken: list[int] = []
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            while True:
                taken.append(len(taken))
                yield taken[-1]
        finally:
            closed.append(True)

    with WorkerPool(config(2)) as pool:
        stream: Any = pool.map(str, source(), buffer=3)
        assert taken == []
        for number in range(10):
            assert next(stream).result == str(number)
            assert len(taken) == number + 3
        stream.close()
        assert closed == [True]
        assert pool.get_summary_metrics()["pending"] == 0


def test_leaving_a_map_early_cancels_what_has_not_begun() -> None:
    gate = Gate()
    with WorkerPool(config(2)) as pool:
        for _ in pool.map(lambda item: item and gate(), range(100), buffer=20):
            break
        gate.opened.set()
        pool.shutdown()
        summary = pool.get_summary_metrics()
        assert summary["cancelled"] >= 17
        assert summary["completed"] + summary["cancelled"] == 20


def test_an_error_of_the_source_ends_the_map() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with WorkerPool() as pool:
        with pytest.raises(LookupError, match="no more"):
            list(pool.map(str, source()))
        stream = pool.map(str, iter([1, 2, 3]), buffer=1)
        assert next(stream).result == "1"
        pool.shutdown(wait=False)
        with pytest.raises(PoolClosed):
            next(stream)
