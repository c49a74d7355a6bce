"""Ctrl-C at any moment of an async program: it comes out, and never in the middle of the library's own work."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import random
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import cuelight
from cuelight import Actor, ActorSystem, Exit, LocalLock, Message, on
from cuelight.mailbox import _interrupts

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}

STEPS = {"actors": (1999, 3), "memory": (4999, 13), "sqlite": (4999, 37)}
"""Moments from one interrupt to the next, in the gate and in the long run."""


@pytest.mark.stress
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_at_any_moment_comes_out_of_an_async_program(backend: str, kind: str, stress: bool) -> None:
    step = STEPS[kind][stress]
    module = [sys.executable, "-m", "helpers.interrupted_loop"]
    command = [*module, backend, kind, str(random.randrange(step)), "1000000", str(step)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    word, tried, bad = done.stdout.split()
    assert (word, bad) == ("interrupted", "0")
    assert (int(tried) + 1) * step > 3000


class Work(Message):
    pass


class Worker(Actor[Work]):
    """Interrupts the program in the middle of a message."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    @on(Work)
    async def work(self, _: Work) -> None:
        self.done.append("begun")
        signal.raise_signal(signal.SIGINT)
        self.done.append("ended")

    async def stopped(self, why: Exit) -> None:
        await anyio.lowlevel.checkpoint()
        self.done.append("stopped")


def test_an_interrupt_is_not_raised_in_handlers_on_trio() -> None:
    done: list[str] = []

    async def main() -> None:
        async with ActorSystem() as system:
            worker = await system.spawn(Worker, done)
            await worker.tell(Work())
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert done == ["begun", "ended", "stopped"]


def test_an_interrupt_while_the_block_of_a_system_is_left_ends_its_actors() -> None:
    done: list[str] = []

    async def main() -> None:
        async with ActorSystem() as system:
            worker = await system.spawn(Worker, done)
            worker.tell_nowait(Work())  # handled while the block is left

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert done == ["begun", "ended", "stopped"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cuelight")]


def test_an_interrupt_ends_the_wait_of_a_thread_that_runs_trio() -> None:
    lock = LocalLock()
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            while not lock.statistics().waiting:
                over.wait(0.001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            over.wait()

    holder = threading.Thread(target=hold)

    async def main() -> None:
        async with ActorSystem():
            holder.start()
            taken.wait()
            lock.acquire_blocking()

    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
        assert not lock.statistics().waiting
    finally:
        over.set()
        holder.join()


ENDLESS = """
import anyio
from cuelight import TaskQueue, TaskWorker, task

@task(name="loop")
async def loop() -> None:
    print("looping", flush=True)
    while True:
        pass

async def main() -> None:
    async with TaskQueue() as queue, TaskWorker(queue, [loop]):
        await queue.send(loop)
        await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


def test_an_interrupt_ends_a_task_that_never_suspends_on_trio() -> None:
    with subprocess.Popen([sys.executable, "-W", "error", "-c", ENDLESS], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "looping\n"
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (-signal.SIGINT, 1)
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    assert "never awaited" not in said


def test_trio_knows_all_code_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in pkgutil.walk_packages(cuelight.__path__, "cuelight."):
        importlib.import_module(module.name)
    known: dict[types.CodeType, bool] = {}
    held: set[str] = set()

    def enable(coded: Any) -> None:
        known[coded.__code__] = True

    def disable(coded: Any) -> None:
        known[coded.__code__] = False

    monkeypatch.setattr("trio.lowlevel.enable_ki_protection", enable)
    monkeypatch.setattr("trio.lowlevel.disable_ki_protection", disable)
    monkeypatch.setattr(_interrupts, "_protected_modules", held)
    monkeypatch.setattr(_interrupts, "_modules", 0)
    _interrupts.hold_interrupts()
    assert held >= _interrupts.BLOCKING  # a module that is renamed must be renamed there, too

    folder = str(Path(cuelight.__file__).parent)
    overloads = {id(one) for one in _overloads()}
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and function.__code__.co_filename.startswith(folder):
            if id(function) in overloads:
                continue
            assert function.__code__ in known, f"{function.__module__}.{function.__qualname__}"
    assert known[ActorSystem.wait.__code__]
    assert not known[cuelight.WorkerPool.submit_task.__code__]


def _overloads() -> list[Any]:
    import typing

    registry: Any = vars(typing)["_overload_registry"]
    return [one for module in registry.values() for functions in module.values() for one in functions.values()]


def test_code_that_is_loaded_later_is_held_too() -> None:
    program = """
import trio
from cuelight import ActorSystem
from trio.lowlevel import currently_ki_protected

def looks(function):
    def look(*args):
        seen.append(currently_ki_protected())
        return function(*args)
    return look

async def main():
    async with ActorSystem():
        from cuelight.redis import RedisClient
        from cuelight.redis._client import _client
        client = RedisClient("redis://localhost:1")
        _client.running_loop = looks(_client.running_loop)
        assert not currently_ki_protected()
        try:
            await client.execute("PING")
        except Exception:
            pass
        await client.aclose()

seen = []
trio.run(main)
assert seen[-1] is True, seen
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
