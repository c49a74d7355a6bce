"""Actors that record what happens to them, for the tests of supervision."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from cuelight import Actor, Exit, Message, Request, on
from cuelight.actors import Start

Log = list[str]


class Crash(Message):
    why: str = "crash"


class Note(Message):
    text: str


class Get(Request[int]):
    pass


class Sleep(Request[str]):
    seconds: float


class Recorder(Actor[Crash | Note | Get | Sleep]):
    """Records when it starts, restarts, is told something and stops."""

    def __init__(self, name: str, log: Log) -> None:
        self.label, self.log, self.notes = name, log, 0

    async def started(self, why: Start) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(f"+{self.label}")

    async def stopped(self, why: Exit) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(f"-{self.label}")

    def restarting(self, why: Exit) -> None:
        self.log.append(f"~{self.label}")

    @on(Crash)
    async def crash(self, message: Crash) -> None:
        raise RuntimeError(message.why)

    @on(Note)
    async def note(self, message: Note) -> None:
        self.notes += 1
        self.log.append(f"{self.label}:{message.text}")

    @on(Get)
    async def get(self, message: Get) -> int:
        return self.notes

    @on(Sleep)
    async def sleep(self, message: Sleep) -> str:
        await anyio.sleep(message.seconds)
        return "slept"
