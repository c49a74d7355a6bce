"""After `os.fork()` the blocking queues of the parent say at once that they live elsewhere, and others work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this platform")

PROGRAM = """
import os, signal, sys, time
from cuelight import *
from cuelight.tasks import *

def in_child(function, seconds=15):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            print(function(), flush=True)
        except BaseException as error:
            print(type(error).__name__, str(error)[:42], flush=True)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("HANGS", flush=True)

def new_store():
    return SQLiteStore(sys.argv[1]) if sys.argv[1:] else MemoryStore()

def anew():
    with TaskQueue(new_store()) as own:
        own.enqueue(Task(task_id="in a child"))
        return own.get("in a child").task_id

def left():
    return queue.__exit__(None, None, None), letters.__exit__(None, None, None)

with TaskQueue(new_store()) as queue, DeadLetterQueue() as letters:
    assert queue.enqueue(Task(task_id="a"))
    task = queue.dequeue()
    handle, dead = queue.handle("a"), queue.dead_letters
    for use in (
        queue.size, lambda: queue.enqueue(Task()), lambda: queue.dequeue(5), lambda: queue.ack(task), queue.in_flight,
        lambda: queue.handle("a"), lambda: handle.result(1), lambda: next(handle.updates()), lambda: queue.dead_letters,
        dead.list, letters.list, left, anew,
    ):
        in_child(use)
    print(queue.ack(task), queue.size().completed)
"""


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_blocking_queue_of_the_parent_says_so_at_once_in_a_forked_process(kind: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "tasks.db")] if kind == "sqlite" else []
    command = [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    said = "PoolClosed this process is a fork of the one that ent"
    assert done.stdout.splitlines() == [*[said] * 11, "(None, None)", "in a child", "True 1"]
