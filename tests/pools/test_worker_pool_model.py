"""The invariants of the blocking pool, on random work; and races of many threads."""

from __future__ import annotations

import heapq
import math
import random
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuelight.errors import PoolClosed, Rejected, TaskCancelled, TaskFailed
from cuelight.pools import TaskStatus, WorkerPool, WorkerPoolConfig

SupervisionPolicy = tuple[int, str, int]  # priority, how it ends, after how many failures


def run_plan(plan: SupervisionPolicy, calls: list[int]) -> str:
    _, ending, failures = plan
    if len(calls) <= failures:
        raise ConnectionError(len(calls))
    match ending:
        case "reject":
            raise Rejected("no")
        case "exit":
            raise SystemExit(1)
        case _:
            return ending


def expected_starts(plans: list[SupervisionPolicy], max_retries: int) -> list[int]:
    """Who is begun when by a single worker: in the order of (priority, sequence), and a retry keeps its sequence."""
    heap = [(priority, number) for number, (priority, _, _) in enumerate(plans)]
    heapq.heapify(heap)
    failed = [0] * len(plans)
    starts: list[int] = []
    while heap:
        priority, number = heapq.heappop(heap)
        starts.append(number)
        if failed[number] < min(plans[number][2], max_retries):
            failed[number] += 1
            heapq.heappush(heap, (priority, number))
    return starts


plans = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["ok", "fine", "reject", "exit"]), st.integers(0, 4)), max_size=12
)


@settings(max_examples=60)
@given(plans=plans, workers=st.integers(1, 3), max_retries=st.integers(0, 3))
def test_each_task_ends_once_and_threads_take_them_in_order(
    plans: list[SupervisionPolicy], workers: int, max_retries: int
) -> None:
    """Each task ends once: completed, failed or cancelled; threads take tasks in the order of (priority, sequence)."""
    starts: list[int] = []
    gate = threading.Event()
    entered = threading.Semaphore(0)
    config = WorkerPoolConfig(max_workers=workers, max_retries=max_retries, backoff_base_seconds=0)

    def hold() -> None:
        entered.release()
        assert gate.wait(10)

    def work(number: int, plan: SupervisionPolicy, calls: list[int]) -> str:
        starts.append(number)
        calls.append(1)
        return run_plan(plan, calls)

    with WorkerPool(config) as pool:
        for _ in range(workers):
            pool.submit_task("gate", hold, priority=-1)
        for _ in range(workers):
            assert entered.acquire(timeout=10)
        for number, plan in enumerate(plans):
            pool.submit_task(str(number), work, (number, plan, []), priority=plan[0])
        assert pool.get_summary_metrics()["workers"] == workers
        gate.set()
        results = pool.wait_for_all()[workers:]
    for (_, ending, failures), result in zip(plans, results, strict=True):
        kinds: dict[str, Any] = {"reject": Rejected, "exit": TaskFailed, "ok": type(None), "fine": type(None)}
        assert type(result.error) is (ConnectionError if failures > max_retries else kinds[ending])
        assert result.success is (result.error is None)
        assert result.metrics is not None
        assert result.metrics.retries_used == min(failures, max_retries)
    summary = pool.get_summary_metrics()
    assert summary["completed"] + summary["failed"] == summary["total_tasks"] == workers + len(plans)
    assert summary["workers"] == summary["running"] == summary["pending"] == 0
    if workers == 1:
        assert starts == expected_starts(plans, max_retries)
    assert sorted(starts) == sorted(expected_starts(plans, max_retries))


def together(*functions: Any) -> None:
    """Run functions in threads that begin at the same moment, and raise what they raise."""
    start = threading.Barrier(len(functions))
    errors: list[BaseException] = []

    def run(function: Any) -> None:
        try:
            start.wait(10)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for error in errors:
        raise error


def test_many_threads_submit_and_wait() -> None:
    lock = threading.Lock()
    seen: list[int] = []

    def work(number: int) -> int:
        with lock:
            seen.append(number)
        return -number

    with WorkerPool(WorkerPoolConfig(max_workers=4)) as pool:

        def client(first: int) -> None:
            ids = {pool.submit_task("x", work, (number,)): number for number in range(first, first + 200)}
            for task_id, number in ids.items():
                assert pool.get_task_result(task_id, timeout=10).result == -number
            assert len(pool.wait_for_all(timeout=10)) >= 200

        together(*[lambda first=first: client(first) for first in range(0, 1600, 200)])
    assert sorted(seen) == list(range(1600))


class Storm:
    """Clients of one pool who do everything at once."""

    def __init__(self, seed: int, tasks: int) -> None:
        self.rng, self.tasks = random.Random(seed), tasks
        self.pool = WorkerPool(WorkerPoolConfig(max_workers=3, max_retries=1, backoff_base_seconds=0.001))
        self.submitted: list[str] = []

    def work(self, number: int) -> int:
        if number % 7 == 0:
            raise ValueError(number)
        if number % 11 == 0:
            self.submitted.append(self.pool.submit_task("inner", len, ("",)))
        return number

    def submit(self) -> None:
        with suppress(PoolClosed):
            for number in range(self.tasks):
                self.submitted.append(self.pool.submit_task("x", self.work, (number,)))

    def stream(self) -> None:
        with suppress(PoolClosed):
            for result in self.pool.map(self.work, range(self.tasks)):
                assert result.success or isinstance(result.error, (ValueError, TaskCancelled, PoolClosed))

    def abort(self) -> None:
        for _ in range(self.rng.randrange(5)):
            self.pool.abort_pending_tasks()

    def wait(self) -> None:
        self.pool.wait_for_all(timeout=10)

    def shut_down(self) -> None:
        threading.Event().wait(self.rng.random() * 0.02)
        self.pool.shutdown(wait=self.rng.random() < 0.5, cancel_futures=self.rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(8))
def test_shutting_down_in_the_middle_of_everything(seed: int, stress: bool) -> None:
    """Each task ends once, and nobody waits for ever."""
    before = set(threading.enumerate())
    storm = Storm(seed, 5000 if stress else 300)
    together(storm.submit, storm.submit, storm.stream, storm.abort, storm.wait, storm.shut_down, storm.shut_down)
    pool = storm.pool
    pool.shutdown()
    assert {result.task_id for result in pool.wait_for_all()} >= set(storm.submitted)
    statuses = {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
    assert {metrics.status for metrics in pool.get_metrics().values()} <= statuses
    summary = pool.get_summary_metrics()
    assert summary["completed"] + summary["failed"] + summary["cancelled"] == summary["total_tasks"]
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile


def test_there_are_never_more_threads_than_allowed() -> None:
    lock = threading.Lock()
    busy, most = 0, 0

    def work() -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        threading.Event().wait(0.001)
        with lock:
            busy -= 1

    config = WorkerPoolConfig(max_workers=3, task_timeout_seconds=math.inf)
    with WorkerPool(config) as pool:
        for _ in range(100):
            pool.submit_task("x", work)
        pool.wait_for_all()
    assert most == 3


def test_all_workers_come_when_there_is_work_for_all() -> None:
    everybody = threading.Barrier(8)
    with WorkerPool(WorkerPoolConfig(max_workers=8)) as pool:
        for _ in range(3):
            ids = [pool.submit_task("x", everybody.wait, (10,)) for _ in range(8)]
            assert {pool.get_task_result(task_id).result for task_id in ids} == set(range(8))
