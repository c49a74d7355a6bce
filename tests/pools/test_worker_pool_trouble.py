"""The blocking pool in trouble: crashes of its own parts, dead processes, Ctrl-C, and programs that just end."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cuelight.errors import TaskFailed, TaskTimedOut, WorkerDied
from cuelight.pools import WorkerPool, WorkerPoolConfig
from cuelight.pools._threads._job import Job
from cuelight.pools._threads._timer import TimerThread
from cuelight.pools._threads._worker import Worker
from helpers import process_jobs as jobs


def _nothing() -> None:
    pass


def config(max_workers: int = 2, **options: Any) -> WorkerPoolConfig:
    return WorkerPoolConfig(max_workers=max_workers, **options)


# Its own parts.


def test_a_thread_whose_harness_fails_costs_one_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = Worker.attempt

    def crash(worker: Worker, job: Job) -> tuple[bool, Any]:
        if job.name == "unlucky":
            raise MemoryError
        return attempt(worker, job)

    monkeypatch.setattr(Worker, "attempt", crash)
    with caplog.at_level(logging.ERROR, "cuelight.pools"), WorkerPool(config(1)) as pool:
        unlucky = pool.submit_task("unlucky", len, ("",))
        lucky = pool.submit_task("lucky", len, ("",))
        error = pool.get_task_result(unlucky, timeout=10).error
        assert isinstance(error, TaskFailed)
        assert isinstance(error.__cause__, MemoryError)
        assert pool.get_task_result(lucky, timeout=10).success
        assert pool.get_summary_metrics()["replaced"] == 1
    assert "failed and is replaced" in caplog.text


def test_a_pool_without_any_thread_refuses_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if isinstance(thread, Worker):
            raise RuntimeError("can't start new thread")  # noqa: TRY004 - as Python says it
        start(thread)

    with WorkerPool(config(2)) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit_task("x", len, ("",))
        assert pool.get_summary_metrics()["total_tasks"] == 0
        assert pool.get_task_result(pool.submit_task("x", len, ("",)), timeout=10).success


def test_a_pool_makes_do_with_the_threads_that_it_can_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def fail_second(thread: threading.Thread) -> None:
        if isinstance(thread, Worker):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    gate, entered = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert gate.wait(10)

    monkeypatch.setattr(threading.Thread, "start", fail_second)
    with caplog.at_level(logging.ERROR, "cuelight.pools"), WorkerPool(config(2)) as pool:
        pool.submit_task("x", block)
        assert entered.wait(10)
        task = pool.submit_task("y", len, ("",))
        gate.set()
        assert pool.get_task_result(task, timeout=10).success
    assert "no thread can be started; there are 1" in caplog.text


def test_a_thread_that_cannot_be_replaced_at_once_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def fail_second(thread: threading.Thread) -> None:
        if isinstance(thread, Worker):
            started.append(thread)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
        start(thread)

    gate = threading.Event()
    monkeypatch.setattr("cuelight.pools._threads._state.NO_THREAD", 0.01)
    monkeypatch.setattr(threading.Thread, "start", fail_second)
    limits = config(1, task_timeout_seconds=0.05, max_retries=0)
    with caplog.at_level(logging.ERROR, "cuelight.pools"), WorkerPool(limits) as pool:
        pool.submit_task("stuck", gate.wait, (10,))
        assert pool.get_task_result(pool.submit_task("x", len, ("",)), timeout=10).success
    gate.set()
    assert "no thread can be started; there are 0" in caplog.text


def test_time_is_kept_even_if_looking_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("cuelight.pools._threads._timer._PAUSE", 0.001)
    looks: list[float] = []
    done = threading.Event()

    def tick(now: float) -> float:
        looks.append(now)
        if 1 < len(looks) < 8:
            raise ZeroDivisionError
        if len(looks) > 8:
            done.set()
        return now + 0.001

    with caplog.at_level(logging.CRITICAL):
        timer = TimerThread("pet", tick, None)
        assert done.wait(20)
        timer.stop()
        timer.join()
        timer.check_soon()
        timer.stop()


def test_a_timer_thread_that_cannot_start_says_so() -> None:
    def no_loop() -> None:
        raise LookupError("no loop")

    with pytest.raises(LookupError, match="no loop"):
        TimerThread("pet", lambda now: now, {"loop_factory": no_loop})


def test_a_pool_that_was_dropped_ends_after_its_last_task() -> None:
    before = set(threading.enumerate())  # some of other tests may end meanwhile
    done = threading.Event()
    pool = WorkerPool(config(1))
    pool.submit_task("x", time.sleep, (0.01,))
    pool.submit_task("x", done.set)
    del pool
    gc.collect()
    assert done.wait(10)
    for _ in range(2000):
        if before.issuperset(threading.enumerate()):
            break
        time.sleep(0.002)
    assert before.issuperset(threading.enumerate())


def test_a_pool_can_be_collected_by_a_thread_that_holds_its_lock() -> None:
    pool: Any = WorkerPool(config(1))
    pool.get_task_result(pool.submit_task("x", len, ("",)))
    threads = pool._thread_pool
    with threads.lock:
        del pool
        gc.collect()
    threads.join()
    assert threads.over


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_time_out_may_come_before_the_call_does(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    slow = threading.Event().wait if kind == "thread" else time.sleep
    limits = config(4, max_retries=1, task_timeout_seconds=1e-6, backoff_base_seconds=0)
    with caplog.at_level(logging.ERROR, "cuelight.pools"), WorkerPool(limits, kind=kind) as pool:
        for _ in range(10):
            pool.submit_task("x", slow, (0.2,))
        assert all(isinstance(result.error, TaskTimedOut) for result in pool.wait_for_all(timeout=15))
        assert pool.get_summary_metrics()["failed"] == 10
    assert caplog.text == ""
    for _ in range(2000):
        if not pool.get_summary_metrics()["abandoned"]:
            break
        time.sleep(0.002)
    assert pool.get_summary_metrics()["abandoned"] == 0


# Processes.


def test_tasks_can_run_in_processes() -> None:
    with WorkerPool(config(2), kind="process") as pool:
        pids = {result.result for result in pool.map(jobs.same, range(20))}
        assert pids == set(range(20))
        pid = pool.get_task_result(pool.submit_task("x", os.getpid)).result
        assert pid != os.getpid()
        unsendable: Any = threading.Lock()
        for task_id in (
            pool.submit_task("x", jobs.same, (unsendable,)),
            pool.submit_task("x", jobs.unpicklable_result),
        ):
            result = pool.get_task_result(task_id)
            assert isinstance(result.error, pickle.PicklingError)
            assert result.metrics is not None
            assert result.metrics.retries_used == 0
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_dies_is_an_attempt(tmp_path: Path) -> None:
    with WorkerPool(config(1, max_retries=1, backoff_base_seconds=0), kind="process") as pool:
        died = pool.get_task_result(pool.submit_task("x", jobs.end, ("kill",)))
        assert isinstance(died.error, WorkerDied)
        assert died.metrics is not None
        assert died.metrics.retries_used == 1
        pid: int = pool.get_task_result(pool.submit_task("x", os.getpid)).unwrap()
        os.kill(pid, signal.SIGKILL)  # while it is idle: that costs nothing
        result = pool.get_task_result(pool.submit_task("x", os.getpid))
        assert result.success
        assert result.metrics is not None
        assert result.metrics.retries_used == 0
        assert result.result != pid


def test_a_process_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with WorkerPool(config(1, max_retries=0, task_timeout_seconds=2), kind="process") as pool:
        result = pool.get_task_result(pool.submit_task("slow", jobs.sleep_marked, (str(mark), 60)), timeout=10)
        assert isinstance(result.error, TaskTimedOut)
        assert "its process was killed" in str(result.error)
        summary = pool.get_summary_metrics()
        assert (summary["abandoned"], summary["replaced"], summary["workers"]) == (0, 1, 1)
        assert pool.get_task_result(pool.submit_task("x", jobs.same, (3,)), timeout=10).result == 3
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerPool(config(1, max_retries=0), kind="process") as pool:
        with monkeypatch.context() as patch:
            patch.setattr("cuelight.pools._processes._start._set_for_multiprocessing", _nothing)
            patch.setattr("sys.executable", "/nowhere/python")
            assert isinstance(pool.get_task_result(pool.submit_task("x", len, ("",))).error, FileNotFoundError)
            patch.setattr("sys.executable", "/bin/false")
            assert isinstance(pool.get_task_result(pool.submit_task("x", len, ("",))).error, WorkerDied)
        assert pool.get_task_result(pool.submit_task("x", len, ("",))).success


# Programs.

PROGRAM = """
import threading, time
from cuelight.pools import WorkerPool, WorkerPoolConfig
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, timeout=20, check=False
    )


def test_a_program_that_forgets_its_pool_ends_at_once() -> None:
    began = time.monotonic()
    done = run("""
pool = WorkerPool(WorkerPoolConfig(max_workers=1))
begun = threading.Event()
pool.submit_task("long", lambda: (begun.set(), time.sleep(60)))
pool.submit_task("waits", print, ("never",))
begun.wait()
print("end")
""")
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)
    assert time.monotonic() - began < 15


def test_a_program_ends_while_a_thread_that_was_left_behind_still_runs() -> None:
    done = run("""
with WorkerPool(WorkerPoolConfig(max_workers=1, task_timeout_seconds=0.05, max_retries=0)) as pool:
    pool.submit_task("stuck", time.sleep, (60,))
    print(type(pool.wait_for_all()[0].error).__name__)
""")
    assert (done.stdout, done.returncode) == ("TaskTimedOut\n", 0)


@pytest.mark.parametrize("wait", ["pool.get_task_result('pool-1')", "pool.wait_for_all()", "next(pool.map(len, ['']))"])
def test_ctrl_c_interrupts_whoever_waits_and_cancels_what_has_not_begun(wait: str) -> None:
    program = f"""
gate = threading.Event()
try:
    with WorkerPool(WorkerPoolConfig(max_workers=1)) as pool:
        pool.submit_task("long", gate.wait, (20,))
        while not pool.get_summary_metrics()["running"]:
            time.sleep(0.001)
        pool.submit_task("waits", len, ("",))
        try:
            print("ready", flush=True)
            {wait}
        finally:
            pool.abort_pending_tasks()
            gate.set()
except KeyboardInterrupt:
    summary = pool.get_summary_metrics()
    print("interrupted", summary["completed"], summary["cancelled"] > 0, summary["workers"])
"""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM + program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)  # it may be interrupted before it waits, too: the outcome is the same
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out == "interrupted 1 True 0\n"
