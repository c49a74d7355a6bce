"""After `os.fork()` pools of the parent work in the child, or say at once that they cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, signal, sys, threading, time
import anyio
from cuelight import *
from cuelight.pools import ProcessExecutor, ThreadExecutor

def in_child(function, seconds=15):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            print("child:", function(), flush=True)
        except BaseException as error:
            print("child:", type(error).__name__, str(error)[:100], flush=True)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("child: HANGS", flush=True)
"""


def run(program: str, folder: Path | None = None) -> list[str]:
    command = [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", "-c", HEAD + program]
    if folder is not None:  # processes import functions of the program, which `-c` has not
        path = folder / "program.py"
        path.write_text(
            HEAD + "def main():\n" + program.replace("\n", "\n    ") + "\nif __name__ == '__main__': main()"
        )
        command = [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_blocking_pool_begins_anew_in_a_forked_process(kind: str, tmp_path: Path) -> None:
    program = f"""
gate = threading.Event()
pool = WorkerPool(WorkerPoolConfig(max_workers=1, max_retries=0), kind={kind!r})
old = pool.submit_task("old", len, ("abc",))
print("parent:", pool.get_task_result(old, timeout=20).result)
running = pool.submit_task("running", time.sleep, (0.5,))
while not pool.get_summary_metrics()["running"]:
    time.sleep(0.001)
waiting = pool.submit_task("waiting", len, ("ab",))
def again():
    new = pool.submit_task("new", len, ("abcd",))
    return (
        pool.get_task_result(new, timeout=10).result,
        [one.result for one in pool.map(len, ["a", "bb"])],
        pool.get_task_result(old).result,
        [type(pool.get_task_result(one, timeout=1).error).__name__ for one in (running, waiting)],
        len(pool.wait_for_all(timeout=10)),
        pool.shutdown(),
        pool.get_summary_metrics()["completed"],
    )
in_child(again)
def forgotten():
    pool.submit_task("x", len, ("abc",))
    return "left"
in_child(forgotten)
print("parent:", [pool.get_task_result(one, timeout=20).result for one in (running, waiting)])
pool.shutdown()
print("parent:", pool.get_summary_metrics()["completed"])
in_child(lambda: pool.submit_task("x", len, ("abc",)))
"""
    assert run(program, tmp_path) == [
        "parent: 3",
        "child: (4, [1, 2], 3, ['TaskCancelled', 'TaskCancelled'], 4, None, 4)",
        "child: left",
        "parent: [None, 2]",
        "parent: 3",
        "child: PoolClosed the pool 'pool' was shut down: it takes no task ('x')",
    ]


def test_a_process_that_is_forked_in_the_middle_of_everything_has_a_pool_that_works() -> None:
    program = """
pool = WorkerPool(WorkerPoolConfig(max_workers=4))
stop = threading.Event()
def churn():
    while not stop.is_set():
        list(pool.map(len, ["a"] * 20))
        pool.get_task_result(pool.submit_task("x", len, ("ab",)))
threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    in_child(lambda: [one.result for one in pool.map(len, ["abc"] * 10)] == [3] * 10)
stop.set()
for thread in threads:
    thread.join()
pool.shutdown()
"""
    assert run(program) == ["child: True"] * 20


def test_a_forked_process_ends_without_a_word_and_leaves_the_workers_of_its_parent_alone(tmp_path: Path) -> None:
    program = """
import gc
pool = WorkerPool(WorkerPoolConfig(max_workers=2))
processes = WorkerPool(WorkerPoolConfig(max_workers=1), kind="process")
print(pool.get_task_result(pool.submit_task("x", len, ("abc",))).result)
pid = processes.get_task_result(processes.submit_task("x", os.getpid)).result
sys.stdout.flush()
child = os.fork()
if child == 0:
    del pool, processes
    gc.collect()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(pool.get_task_result(pool.submit_task("x", len, ("abc",)), timeout=10).result)
print(processes.get_task_result(processes.submit_task("x", os.getpid), timeout=10).result == pid)
pool.shutdown()
processes.shutdown()
"""
    assert run(program, tmp_path) == ["3", "3", "True"]


def test_worker_processes_end_with_their_parent_although_a_forked_process_lives_on(tmp_path: Path) -> None:
    program = """
pool = WorkerPool(WorkerPoolConfig(max_workers=1), kind="process")
pid = pool.get_task_result(pool.submit_task("x", os.getpid)).result
middle = os.fork()
if middle == 0:  # its worker process must not outlive it, though its own child does
    mine = pool.get_task_result(pool.submit_task("x", os.getpid)).result
    if os.fork() == 0:
        time.sleep(0.2)
        for _ in range(1000):
            if not os.path.exists(f"/proc/{mine}"):
                break
            time.sleep(0.01)
        print("its worker process has ended:", not os.path.exists(f"/proc/{mine}"), flush=True)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(middle, 0)
pool.shutdown()
time.sleep(1)
"""
    assert run(program, tmp_path) == ["its worker process has ended: True"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_pools_of_the_parent_are_refused_in_a_forked_process(backend: str) -> None:
    program = f"""
class Ask(Request[int]):
    pass
class Echo(Actor[Ask]):
    @on(Ask)
    async def ask(self, message):
        return 1
unused = AsyncWorkerPool(1)
async def double(number):
    return 2 * number
async def main():
    threads, processes = ThreadExecutor("t"), ProcessExecutor("p")
    await threads.run(len, ("abc",), {{}})
    await processes.run(len, ("abc",), {{}})
    async with AsyncWorkerPool(1) as pool, ActorPool(child(Echo), 1) as actors:
        await pool.submit(double, 1)
        await actors.ask(Ask())
        def again(function):
            def call():
                async def one():
                    return await function()
                return anyio.run(one, backend={backend!r})
            return call
        def other(function):  # another thread, for trio forbids a run within a run
            def call():
                found = []
                def work():
                    try:
                        found.append(again(function)())
                    except BaseException as error:
                        found.append((type(error).__name__, str(error)[-20:]))
                thread = threading.Thread(target=work)
                thread.start()
                thread.join(10)
                return found
            return call
        async def submitted():
            return (await pool.submit(double, 1)).result
        async def mapped():
            return (await pool.map(double, [1])).values
        async def ended():
            await pool.shutdown()
        async def drained():
            await pool.drain()
        async def asked():
            return await actors.ask(Ask())
        async def fresh():
            return (await unused.submit(double, 4)).result
        async def executed():
            return await threads.run(len, ("ab",), {{}}), await processes.run(len, ("abcd",), {{}})
        for function in (submitted, mapped, ended, drained, asked, fresh, executed):
            in_child(other(function))
        print("parent:", (await pool.submit(double, 3)).result, await actors.ask(Ask()))
    print("parent:", await threads.run(len, ("abc",), {{}}), await processes.run(len, ("abc",), {{}}))
    await threads.aclose()
    await processes.aclose()
anyio.run(main, backend={backend!r})
"""
    refused = "child: [('PoolClosed', 'make a new pool here')]"
    assert run(program) == [*[refused] * 5, "child: [8]", "child: [(2, 4)]", "parent: 6 1", "parent: 3 3"]
