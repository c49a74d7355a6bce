"""The entry point of services, in processes of their own: real signals, real exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from cuelight import Actor, ActorSystem, child, run
from cuelight.errors import RestartLimitExceeded
from helpers.recorder import Crash, Get, Note, Recorder

SERVICE = """
import sys, anyio
from cuelight import Actor, Message, child, on, run, supervisor

class Work(Message):
    number: int

class Worker(Actor[Work]):
    async def started(self, why):
        for number in range(3):
            await self.ref.tell(Work(number))
        print("up", flush=True)

    async def stopped(self, why):
        print("stopped", why.describe(), flush=True)

    @on(Work)
    async def work(self, message):
        await anyio.sleep(0.05 if len(sys.argv) < 3 else 1000)
        print("did", message.number, flush=True)

run(supervisor(child(Worker)), backend=sys.argv[1], shutdown_timeout=20)
print("end", flush=True)
"""


def start(backend: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVICE, backend, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(backend: str, number: signal.Signals) -> None:
    process = start(backend)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out.splitlines() == ["did 0", "did 1", "did 2", "stopped shut down", "end"]
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_second_signal_forces(backend: str) -> None:
    process = start(backend, "slow")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # two of a kind at one moment would be one
    out, err = process.communicate(timeout=30)
    assert "stopped killed" in out
    assert process.returncode in {128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert "Traceback" not in err


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_run_returns_what_the_application_returns(backend: str) -> None:
    async def app(system: ActorSystem) -> int:
        ref = await system.spawn(Recorder, "a", [])
        await ref.tell(Note("x"))
        return await ref.ask(Get())

    assert run(app, backend=backend) == 1
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(app, backend=backend)))
    thread.start()
    thread.join()
    assert results == [1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_run_raises_a_crash_beyond_the_limit(backend: str) -> None:
    async def app(system: ActorSystem) -> None:
        ref = await system.spawn(Recorder, "a", [])
        await ref.tell(Crash("beyond"))
        await system.wait()

    with pytest.raises(ExceptionGroup) as caught:
        run(app, backend=backend, max_restarts=0)
    assert isinstance(caught.value.exceptions[0], RestartLimitExceeded)


def test_run_of_a_spec_ends_with_its_actor() -> None:
    class Brief(Actor[Note]):
        async def run(self) -> None:
            return

    assert run(child(Brief)) is None
