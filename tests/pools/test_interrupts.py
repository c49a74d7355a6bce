"""Ctrl-C at any moment of a blocking program with pools ends it in time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cuelight import WorkerPool
from cuelight.pools._interrupts import InterruptsHeld

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}

PROGRAM = """
import time
from cuelight import WorkerPool, WorkerPoolConfig

def nap(_=0):
    time.sleep(0.005)

if __name__ == "__main__":
    config = WorkerPoolConfig(max_workers=3, task_timeout_seconds=5)
    print("ready", flush=True)
    with WorkerPool(config) as threads, WorkerPool(config, kind="process") as processes:
        while True:
            task = processes.submit_task("nap", nap)
            ids = [threads.submit_task("nap", nap) for _ in range(5)]
            threads.get_task_result(ids[0])
            list(threads.map(nap, range(5)))
            processes.get_task_result(task)
            threads.abort_pending_tasks()
            threads.wait_for_all(timeout=0.01)
"""


@pytest.mark.stress
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_interrupt_at_any_moment_comes_out_of_a_blocking_pool(kind: str, stress: bool) -> None:
    step = {"thread": 1 if stress else 29, "process": 7 if stress else 397}[kind]
    command = [sys.executable, "-m", "helpers.interrupted_pool", kind, str(random.randrange(step)), "100000", str(step)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    words = done.stdout.split()
    assert words[0] == "interrupted"
    assert int(words[1]) * step > 300


@pytest.mark.stress
@pytest.mark.timeout(1000)
def test_the_first_ctrl_c_ends_a_program_with_blocking_pools(tmp_path: Path, stress: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    chance = random.Random(7)
    for _ in range(100 if stress else 5):
        process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0, 0.5))  # any moment will do
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode != 0
        assert b"KeyboardInterrupt" in said
        assert b"Exception ignored" not in said


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_is_held_comes_at_the_end_of_the_block() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt), InterruptsHeld():
        _interrupt()
        _interrupt()
        steps.append("whole")
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_of_the_program_is_called_and_its_frame_is_that_of_the_interrupt() -> None:
    calls: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append((number, frame)))
    try:
        with InterruptsHeld():
            _interrupt()
            assert not calls
        [(number, frame)] = calls
        assert number == signal.SIGINT
        assert frame.f_code is _interrupt.__code__
        with WorkerPool() as pool:
            pool.get_task_result(pool.submit_task("x", len, ("",)))
        assert callable(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_does_nothing_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptsHeld():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            _interrupt()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_not_interrupted_and_change_no_handler() -> None:
    seen: list[Any] = []

    def elsewhere() -> None:
        with InterruptsHeld():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_main_thread_that_may_set_no_handler_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("signal only works in main thread of the main interpreter")

    with monkeypatch.context() as patch:
        patch.setattr("signal.signal", refuse)
        with InterruptsHeld():
            pass
