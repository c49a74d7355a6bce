"""Queues of several processes over one file, some of which die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cuelight.tasks import SQLiteStore, Task, TaskQueue

CONSUMER = """
import sys
from cuelight.tasks import SQLiteStore, TaskQueue

with TaskQueue(SQLiteStore(sys.argv[1], synchronous="OFF"), lease=float(sys.argv[2])) as queue:
    while (task := queue.dequeue(timeout=10.0)) is not None:
        print(task.task_id, flush=True)
        if task.task_type == "hold":
            sys.stdin.readline()
        if task.task_type == "end":
            assert queue.ack(task)
            break
        print(queue.ack(task, {"by": "the other process"}), flush=True)
"""


def consumer(path: Path, lease: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONSUMER, str(path), str(lease)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with anyio.fail_after(15):
        return (await anyio.to_thread.run_sync(process.stdout.readline)).strip()


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what dies is another process, whatever loop this one has


async def test_a_result_comes_from_another_process(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with TaskQueue(SQLiteStore(path, synchronous="OFF")) as queue:
        process = consumer(path, 15.0)
        try:
            given = Task(task_id="there")
            await queue.enqueue(given)
            assert await queue.handle("there").result(15.0) == {"by": "the other process"}
            await queue.enqueue(Task(task_type="end"))
            assert await queue.drain(15.0)
        finally:
            end(process)


async def test_what_a_killed_process_held_goes_to_another_when_its_lease_runs_out(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with TaskQueue(SQLiteStore(path, synchronous="OFF")) as queue:
        await queue.enqueue(Task(task_id="held", task_type="hold"))
        process = consumer(path, 1.0)
        try:
            assert await line_of(process) == "held"
            await anyio.sleep(1.5)  # longer than its lease, which is renewed while the process lives
            assert await queue.dequeue() is None
            killed = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            found = await queue.dequeue(timeout=10.0)
            assert found is not None
            assert (found.task_id, found.counts.crashes, found.retry_count) == ("held", 1, 0)
            assert time.monotonic() - killed < 3.0
            assert await queue.ack(found)
        finally:
            end(process)


async def test_a_stopped_process_learns_that_its_task_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with TaskQueue(SQLiteStore(path, synchronous="OFF")) as queue:
        await queue.enqueue(Task(task_id="held", task_type="hold"))
        process = consumer(path, 1.0)
        try:
            assert await line_of(process) == "held"
            os.kill(process.pid, signal.SIGSTOP)
            found = await queue.dequeue(timeout=10.0)
            assert found is not None
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert await line_of(process) == "False", "its ack is refused"
            assert await queue.ack(found, "here")
            assert await queue.handle("held").result() == "here"
        finally:
            end(process)
