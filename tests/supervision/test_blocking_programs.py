"""Whole programs with a blocking system: forked ones, and ones that are interrupted (Ctrl-C) at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

SYSTEM = """
import os, sys, threading, time
import anyio
from cuelight import Actor, ActorSystem, Channel, Message, Request, on

class Add(Message):
    pass

class Total(Request[int]):
    pass

class Forever(Request[int]):
    pass

class Counter(Actor[Add | Total | Forever]):
    count = 0

    @on(Add)
    def add(self, message: Add) -> None:
        self.count += 1

    @on(Total)
    def total(self, message: Total) -> int:
        return self.count

    @on(Forever)
    async def wait(self, message: Forever) -> int:
        await anyio.sleep_forever()
        return 0

    async def stopped(self, exit: object) -> None:
        print("stopped", os.getpid() == parent, flush=True)

parent = os.getpid()
"""

FORK = """
with ActorSystem.blocking(backend=BACKEND) as system:
    counter = system.spawn(Counter)
    channel = system.call(Channel, 5)
    end = system.call(channel.from_thread)
    child = os.fork()
    if not child:
        for call in (
            lambda: counter.ask(Total(), timeout=5),
            lambda: counter.tell(Add()),
            lambda: system.spawn(Counter),
            lambda: counter.stop(),
            lambda: counter.ref.tell_threadsafe(Add()),
            lambda: end.receive(timeout=5),
            lambda: end.send(1),
        ):
            try:
                print("returned", call(), flush=True)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
        with ActorSystem.blocking(backend=BACKEND) as own:
            print("own:", own.spawn(Counter).ask(Total()), flush=True)
        sys.exit(0)
    print("child:", os.waitpid(child, 0)[1], flush=True)
    print("parent:", counter.ask(Total()), flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_process_is_refused_by_the_blocking_system_of_its_parent(backend: str) -> None:
    program = SYSTEM + FORK.replace("BACKEND", repr(backend))
    command = [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    for line in lines[:5]:
        assert "Error: this process is a fork" in line or "SystemClosed: this process is a fork" in line
    for line in lines[5:7]:
        assert line.startswith("ChannelClosed: ")
        assert "this process is a fork" in line
    assert lines[7:] == ["own: 0", "stopped False", "child: 0", "parent: 0", "stopped True"]


IDLE = """
print("ready", flush=True)
with ActorSystem.blocking(backend=BACKEND) as system:
    counter = system.spawn(Counter)
    print("inside", flush=True)
    threading.Event().wait()
"""

ASKING = """
print("ready", flush=True)
with ActorSystem.blocking(backend=BACKEND) as system:
    counter = system.spawn(Counter)
    print("inside", flush=True)
    counter.ask(Forever(), timeout=1000)
"""

LEAVING = """
print("ready", flush=True)
for round in range(1000):
    with ActorSystem.blocking(backend=BACKEND) as system:
        counter = system.spawn(Counter)
        counter.ask(Total())
    if not round:
        print("inside", flush=True)
"""

BUSY = """
print("ready", flush=True)
with ActorSystem.blocking(backend=BACKEND, shutdown_timeout=1000) as system:
    counter = system.spawn(Counter)
    counter.ref.tell_threadsafe(Forever())
    print("inside", flush=True)
"""


@pytest.mark.stress
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", [IDLE, ASKING, LEAVING, BUSY], ids=["idle", "asking", "leaving", "busy"])
def test_one_interrupt_ends_a_program_with_a_blocking_system_at_any_moment(
    program: str, backend: str, stress: bool
) -> None:
    chance = random.Random()
    code = SYSTEM + program.replace("BACKEND", repr(backend))
    span = _interrupt(code, None)
    moments = 100 if stress else 2
    for number in range(moments):
        _interrupt(code, span * 1.5 * (number + chance.random()) / moments)


def _interrupt(code: str, after: float | None) -> float:
    """Interrupt a program some seconds after it is ready, or when it is inside. Returns the seconds between these."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            if after is None:
                assert "inside\n" in iter(process.stdout.readline, "")
            else:
                time.sleep(after)
            span = time.monotonic() - began
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == -signal.SIGINT, errors
    assert "KeyboardInterrupt" in errors
    assert "Exception ignored" not in errors, errors
    return span


def test_a_program_that_does_not_leave_the_block_of_a_blocking_system_ends_its_actors() -> None:
    program = SYSTEM + "system = ActorSystem.blocking().__enter__()\ncounter = system.spawn(Counter)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped True\n", "")
