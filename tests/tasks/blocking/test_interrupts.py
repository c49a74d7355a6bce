"""Ctrl-C at any moment of a program with a blocking queue ends it, without a second one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from cuelight.tasks import MemoryStore, SQLiteStore, Task, TaskQueue

store = SQLiteStore(sys.argv[1]) if sys.argv[1:] else MemoryStore()
print("begins", flush=True)
with TaskQueue(store) as queue:
    for _ in range(20):
        queue.enqueue(Task())
    print("waits", flush=True)
    while queue.dequeue(0.01) is not None:
        pass
print("ends", flush=True)
"""

MOMENTS = 200 if "CUELIGHT_STRESS" in os.environ else 4


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_one_interrupt_ends_a_program_with_a_blocking_queue_at_any_moment(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *([str(tmp_path / "tasks.db")] if kind == "sqlite" else [])]
    whole = 0.0
    for moment in range(-1, MOMENTS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            began = time.monotonic()
            if moment >= 0:
                time.sleep(whole * moment / MOMENTS)
                process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                pytest.fail(f"it hung after an interrupt at {moment} of {MOMENTS}")
            if moment < 0:
                whole = time.monotonic() - began
            assert process.returncode in {0, -signal.SIGINT, 1}, errors
            # A last interrupt finds the interpreter without its handlers.
            assert not errors or errors.rstrip().endswith(b"KeyboardInterrupt"), errors
