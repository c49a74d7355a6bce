"""The programs and promises that the documentation of the blocking pool makes, as they are written there."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cuelight.pools import TaskMetrics, TaskResult, TaskStatus, WorkerPool, WorkerPoolConfig


def test_the_basic_example(capsys: pytest.CaptureFixture[str]) -> None:
    # Create configuration
    config = WorkerPoolConfig(
        max_workers=50,  # Maximum concurrent workers
        max_retries=3,  # Retry failed tasks up to 3 times
        task_timeout_seconds=180,  # 3 minutes per task
        backoff_base_seconds=1.0,  # Start with 1s backoff
        backoff_max_seconds=60.0,  # Cap backoff at 60s
    )

    # Create pool (or use context manager)
    with WorkerPool(config) as pool:
        # Submit tasks
        def my_task(x: int) -> int:
            return x * 2

        task_id = pool.submit_task(task_name="double_5", task_fn=my_task, args=(5,))

        # Get individual result
        result = pool.get_task_result(task_id)
        print(f"Result: {result.result}")  # Output: Result: 10
    assert capsys.readouterr().out == "Result: 10\n"


def process_micro_question(number: int, document: str) -> str:
    if number == 13:
        raise LookupError("no thirteenth question")
    return f"{document}:{number}"


def test_the_integration_with_an_orchestrator(capsys: pytest.CaptureFixture[str]) -> None:
    def process_all_micro_questions(preprocessed_doc: str) -> list[TaskResult[Any]]:
        """Process all 300 micro questions using WorkerPool."""

        # Configure pool
        config = WorkerPoolConfig(max_workers=50, max_retries=3, backoff_base_seconds=0.001)

        with WorkerPool(config) as pool:
            # Submit all 300 questions
            for q_num in range(1, 301):
                pool.submit_task(
                    task_name=f"Q{q_num:03d}", task_fn=process_micro_question, args=(q_num, preprocessed_doc)
                )

            # Wait for all tasks to complete
            results = pool.wait_for_all(timeout=1800)  # 30 min timeout

            # Process results
            successful = [r for r in results if r.success]
            failed = [r for r in results if not r.success]

            print(f"Success rate: {len(successful) / len(results) * 100:.1f}%")
            assert [result.task_name for result in failed] == ["Q013"]

            return results

    results = process_all_micro_questions("doc")
    assert [result.task_name for result in results] == [f"Q{number:03d}" for number in range(1, 301)]
    assert [result.result for result in results[:2]] == ["doc:1", "doc:2"]
    assert capsys.readouterr().out == "Success rate: 99.7%\n"


@pytest.mark.parametrize(("failures", "said"), [(2, "Success after 2 retries"), (9, "Failed after 3 retries: busy 4")])
def test_handling_failures_with_retry(capsys: pytest.CaptureFixture[str], failures: int, said: str) -> None:
    calls: list[int] = []

    def call_external_api() -> str:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionError(f"busy {len(calls)}")
        return "ok"

    config = WorkerPoolConfig(
        max_workers=10,
        max_retries=3,
        backoff_base_seconds=2.0 / 1000,  # Exponential: 2s, 4s, 8s, ...
        backoff_max_seconds=30.0,  # Cap at 30s
    )

    with WorkerPool(config) as pool:

        def flaky_task() -> str:
            # This might fail occasionally
            return call_external_api()

        task_id = pool.submit_task("api_call", flaky_task)
        result = pool.get_task_result(task_id)
        assert result.metrics is not None

        if result.success:
            print(f"Success after {result.metrics.retries_used} retries")
        else:
            print(f"Failed after {result.metrics.retries_used} retries: {result.error}")
    assert capsys.readouterr().out == f"{said}\n"


def test_aborting_pending_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    release, running = threading.Event(), threading.Semaphore(0)

    def slow_task(_: int) -> None:
        running.release()
        assert release.wait(10)

    config = WorkerPoolConfig(max_workers=5)

    with WorkerPool(config) as pool:
        # Submit many tasks
        for i in range(100):
            pool.submit_task(f"task_{i}", slow_task, args=(i,))
        for _ in range(5):
            assert running.acquire(timeout=10)

        # Something went wrong, abort pending tasks
        cancelled = pool.abort_pending_tasks()
        print(f"Cancelled {cancelled} pending tasks")
        release.set()
    assert capsys.readouterr().out == "Cancelled 95 pending tasks\n"
    summary = pool.get_summary_metrics()
    assert (summary["completed"], summary["cancelled"], summary["pending"]) == (5, 95, 0)


def test_getting_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkerPool() as pool:
        # Submit and execute tasks...
        pool.submit_task("length", len, ("abc",))
        results = pool.wait_for_all()
        assert len(results) == 1

        # Get summary metrics
        summary = pool.get_summary_metrics()
        print(f"Completed: {summary['completed']}")
        print(f"Failed: {summary['failed']}")
        print(f"Average time: {summary['avg_execution_time_ms']:.2f}ms"[:14])
        print(f"Total retries: {summary['total_retries']}")

        # Get detailed per-task metrics
        all_metrics = pool.get_metrics()
        for _task_id, metrics in all_metrics.items():  # noqa: PERF102 - as documented
            print(f"{metrics.task_name}: {metrics.status} in {metrics.execution_time_ms:.2f}ms"[:20])
    assert capsys.readouterr().out == (
        "Completed: 1\nFailed: 0\nAverage time: \nTotal retries: 0\nlength: completed in\n"
    )


def test_the_defaults_are_the_documented_ones() -> None:
    assert {field.name: field.default for field in fields(WorkerPoolConfig)} == {
        "max_workers": 50,
        "task_timeout_seconds": 180.0,
        "max_retries": 3,
        "backoff_base_seconds": 1.0,
        "backoff_max_seconds": 60.0,
        "enable_instrumentation": True,
    }
    documented = {"task_id", "task_name", "success", "result", "error", "metrics"}
    assert documented <= {field.name for field in fields(TaskResult)}
    documented = {"task_id", "task_name", "status", "start_time", "end_time", "execution_time_ms", "retries_used"}
    assert documented | {"worker_id", "error_message"} == {field.name for field in fields(TaskMetrics)}


def test_the_fields_of_a_result_and_its_metrics() -> None:
    with WorkerPool() as pool:
        task_id = pool.submit_task("power", pow, (2,), {"exp": 5})
        result = pool.get_task_result(task_id, timeout=10)
    assert (result.task_id, result.task_name, result.success, result.result) == (task_id, "power", True, 32)
    assert result.error is None
    assert result.unwrap() == 32
    metrics = result.metrics
    assert metrics is not None
    assert (metrics.status, metrics.retries_used, metrics.error_message) == (TaskStatus.COMPLETED, 0, None)
    assert metrics.worker_id == result.worker_id == "pool-worker-1"
    assert metrics.end_time is not None
    assert 0 < metrics.start_time <= metrics.end_time == result.timestamp
    assert metrics.execution_time_ms == result.elapsed_ms == result.duration_ms


def test_a_result_is_made_with_the_fields_of_each_document() -> None:
    error = ValueError("x")
    blocking = TaskResult[int](
        task_id="a", task_name="n", success=False, result=None, error=error, metrics=TaskMetrics(task_id="a")
    )
    pool = TaskResult(task_id="a", success=True, result=1, error=None, elapsed_ms=2.5)
    worker = TaskResult(
        task_id="a", worker_id="w", success=True, result=1, error=None, duration_ms=2.5, timestamp=pool.timestamp
    )
    assert pool == replace(worker, worker_id="")
    assert pool.elapsed_ms == pool.duration_ms == worker.elapsed_ms == worker.duration_ms == 2.5
    assert blocking.elapsed_ms == 0
    for result in (blocking, pool, worker, pickle.loads(pickle.dumps(worker)), copy.copy(worker)):
        shown = asdict(result)
        assert {"elapsed_ms", "duration_ms", "metrics", "timestamp", "worker_id", "task_name"} <= shown.keys()
        assert shown["elapsed_ms"] == shown["duration_ms"] == result.elapsed_ms
        assert result == replace(result)
    assert asdict(blocking)["metrics"]["task_id"] == "a"
    with pytest.raises(ValueError, match="two names of one value"):
        TaskResult(task_id="a", elapsed_ms=1.0, duration_ms=2.0)


def test_the_documented_test_suite_runs() -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-W", "error", "-m", "unittest", "tests.test_concurrency", "-v"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("... ok") >= 15
