"""Stores in a process that was forked while they were open: they work or say why not, and the parent goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from helpers.redis_servers import shared_server

_HEAD: Final = """
import os, sys, threading, warnings
import anyio
from cuelight.errors import PoolClosed
from cuelight.redis._tasks import RedisStore
from cuelight.tasks import Record, SQLiteStore, TaskQueue, task

warnings.simplefilter("ignore")
kind, backend, where = sys.argv[1:]

def make():
    return SQLiteStore(where, synchronous="OFF") if kind == "sqlite" else RedisStore(where, f"forks-{backend}")

@task(name="t")
async def nothing(n):
    pass

def in_child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException as error:
            print("the child:", repr(error), file=sys.stderr)
            os._exit(1)
        sys.stdout.flush()
        raise SystemExit
    return pid
"""
_USE: Final = """
async def child(store, queue):
    for name, step in (("store", store.size), ("queue", queue.size), ("send", lambda: queue.send(nothing, 1))):
        with anyio.fail_after(10):
            try:
                await step()
            except PoolClosed as error:
                assert kind == "sqlite" and "before a fork: await open()" in str(error), error
                print(name, "refused")
            except RuntimeError as error:
                assert name != "store" and "make another TaskQueue" in str(error), error
                print(name, "refused")
            else:
                print(name, "works")
    with anyio.fail_after(10):
        await store.open()
        await store.add([Record(id="child", type="t")])
        await store.close()
        async with TaskQueue(make()) as own:
            await own.send(nothing, 2)
    print("opened anew")

async def main():
    store = make()
    async with TaskQueue(store) as queue:
        await queue.send(nothing, 0)
        pids = []
        run = lambda: anyio.run(child, store, queue, backend=backend)
        thread = threading.Thread(target=lambda: pids.append(in_child(run)))  # there a loop can be run
        thread.start()
        thread.join()
        while os.waitpid(pids[0], os.WNOHANG) == (0, 0):
            await anyio.sleep(0.01)
        await queue.send(nothing, 3)
        print("the parent has", (await queue.size()).pending)

anyio.run(main, backend=backend)
"""
_CROWD: Final = """
async def open_and_close():
    store = make()
    await store.open()
    await store.close()

async def child():
    with anyio.fail_after(20):
        await open_and_close()

anyio.run(open_and_close, backend=backend)  # a child must not find modules half imported
over = threading.Event()

def keep_opening():
    while not over.is_set():
        anyio.run(open_and_close, backend=backend)

threads = [threading.Thread(target=keep_opening, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(15):
    pid = in_child(lambda: anyio.run(child, backend=backend) or os._exit(0))  # without the threads
    assert os.waitpid(pid, 0)[1] == 0
over.set()
for thread in threads:
    thread.join()
print("all children opened it")
"""


def _run(script: str, kind: str, backend: str, where: str) -> list[str]:
    command = [sys.executable, "-c", _HEAD + textwrap.dedent(script), kind, backend, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_process_opens_a_file_for_itself_or_is_told_to(backend: str, tmp_path: Path) -> None:
    lines = _run(_USE, "sqlite", backend, str(tmp_path / "q.db"))
    assert lines == ["store refused", "queue refused", "send refused", "opened anew", "the parent has 4"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_process_uses_redis_with_connections_of_its_own(backend: str) -> None:
    lines = _run(_USE, "redis", backend, shared_server().url)
    assert lines == ["store works", "queue refused", "send refused", "opened anew", "the parent has 4"]


def test_a_fork_while_other_threads_open_stores_leaves_no_lock_behind(tmp_path: Path) -> None:
    assert _run(_CROWD, "sqlite", "asyncio", str(tmp_path / "q.db")) == ["all children opened it"]
