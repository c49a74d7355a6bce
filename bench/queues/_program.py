"""What the programs of all queues share: their settings, the tasks they run, the journal, and the loops of a producer.

It runs in the environments of the peers too, so it needs nothing but the standard library, and the loop that is asked
for. Only ours and streaq run on trio: the others stay on asyncio then.

A task does nothing, or it takes three seconds in steps, so that one that is to end can be seen to end. Both write into
the journal: one line of fixed size for each thing that happens, with the time of a clock that all processes share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

ENVIRONMENT = "BENCH_QUEUES"
"""The variable that holds the settings."""

STEPS, STEP = 12, 0.25
"""What a slow task does: as many sleeps of so many seconds."""

RAN, BEGAN, ENDED, BROKEN_OFF = b"r", b"b", b"e", b"x"


@dataclass(frozen=True)
class Settings:
    """What a process shall do.

    Attributes:
        url: of the server.
        journal: the file.
        loop: asyncio, uvloop or trio, where a library gives the choice.
        variant: of a library that has several; its own default if empty.
        concurrency: tasks that a worker runs at once.
        count: tasks that a producer sends.
        batch: how many of them at once, where it sends many, or has many tasks that send.
        pause: seconds between two of a trickle, on average.
    """

    url: str = ""
    journal: str = os.devnull
    loop: str = "asyncio"
    variant: str = ""
    concurrency: int = 10
    count: int = 0
    batch: int = 100
    pause: float = 0.02

    def as_environment(self) -> dict[str, str]:
        """What to add to the environment of a process."""
        return {ENVIRONMENT: json.dumps(asdict(self))}


SETTINGS = Settings(**json.loads(os.environ.get(ENVIRONMENT, "{}")))


class Record(NamedTuple):
    """One line of the journal: what happened to which task in which process, and when."""

    what: bytes
    item: int
    process: int
    at: float


_LINE = struct.Struct("<c3xIId")
LINE = _LINE.size


def read_journal(data: bytes) -> list[Record]:
    """All of it, in the order of its writing."""
    return [Record(*fields) for fields in _LINE.iter_unpack(data[: len(data) // LINE * LINE])]


class _Journal:
    def __init__(self, path: str) -> None:
        # Lines that are appended by one call each do not mix, whichever processes write them, and outlive `kill -9`.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: bytes, item: int) -> None:
        os.write(self._file, _LINE.pack(what, item, os.getpid(), time.monotonic()))


journal = _Journal(SETTINGS.journal)


def do_nothing(item: int) -> None:
    """The task that is counted."""
    journal.write(RAN, item)


async def do_slowly(item: int) -> None:
    """The task that is killed."""
    journal.write(BEGAN, item)
    try:
        for _ in range(STEPS):
            await sleep(STEP)
    except BaseException:
        journal.write(BROKEN_OFF, item)
        raise
    journal.write(ENDED, item)


def do_slowly_in_a_thread(item: int) -> None:
    """The same, for libraries that have no async tasks."""
    journal.write(BEGAN, item)
    try:
        for _ in range(STEPS):
            time.sleep(STEP)
    except BaseException:
        journal.write(BROKEN_OFF, item)
        raise
    journal.write(ENDED, item)


async def sleep(seconds: float) -> None:
    """Sleep, on the loop that was asked for."""
    if SETTINGS.loop == "trio":
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def run(function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function on the loop that was asked for."""
    if SETTINGS.loop == "trio":
        import trio

        return trio.run(function)
    if SETTINGS.loop == "uvloop":
        import uvloop

        return uvloop.run(function())
    return asyncio.run(function())


def wait_for_the_end() -> None:
    """Return when somebody asks this process to end."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()


@dataclass(frozen=True)
class Sender:
    """How a library sends tasks: plain functions, or coroutine functions.

    Attributes:
        nothing: sends a task that does nothing.
        slow: sends a slow one.
        many: sends a batch of tasks that do nothing, where the library can.
    """

    nothing: Callable[[int], Any]
    slow: Callable[[int], Any]
    many: Callable[[list[int]], Any] | None = None


Producer = AbstractContextManager[Sender] | AbstractAsyncContextManager[Sender]


async def _one_by_one(send: Callable[[int], Awaitable[Any]], wait: Callable[[float], Awaitable[Any]]) -> Any:
    started = time.perf_counter()
    for item in range(SETTINGS.count):
        await send(item)
    return time.perf_counter() - started


async def _in_batches(send: Callable[[list[int]], Awaitable[Any]], wait: Callable[[float], Awaitable[Any]]) -> Any:
    items = list(range(SETTINGS.count))
    started = time.perf_counter()
    for first in range(0, SETTINGS.count, SETTINGS.batch):
        await send(items[first : first + SETTINGS.batch])
    return time.perf_counter() - started


async def _at_once(send: Callable[[int], Awaitable[Any]], wait: Callable[[float], Awaitable[Any]]) -> Any:
    async def some(first: int) -> None:
        for item in range(first, SETTINGS.count, SETTINGS.batch):
            await send(item)

    started = time.perf_counter()
    if SETTINGS.loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for first in range(SETTINGS.batch):
                nursery.start_soon(some, first)
    else:
        await asyncio.gather(*(some(first) for first in range(SETTINGS.batch)))
    return time.perf_counter() - started


async def _trickle(send: Callable[[int], Awaitable[Any]], wait: Callable[[float], Awaitable[Any]]) -> Any:
    chance = random.Random(1)
    sent = []
    for item in range(SETTINGS.count):
        await wait(chance.uniform(0.5, 1.5) * SETTINGS.pause)
        sent.append(time.monotonic())
        await send(item)
    return sent


ROLES = {
    "enqueue": ("nothing", _one_by_one),
    "enqueue_at_once": ("nothing", _at_once),
    "enqueue_many": ("many", _in_batches),
    "enqueue_slow": ("slow", _one_by_one),
    "trickle": ("nothing", _trickle),
}
"""What a producer can be asked for: which of the functions of its sender, and how it calls it."""


def produce(producer: Producer, role: str) -> Any:
    """Send what the role says; the seconds that took, or the times of a trickle."""
    kind, loop = ROLES[role]
    if isinstance(producer, AbstractAsyncContextManager):

        async def send_all() -> Any:
            async with producer as sender:
                return await loop(getattr(sender, kind), sleep)

        return run(send_all)
    with producer as sender:
        return _plainly(getattr(sender, kind), loop)


def _plainly(send: Callable[[Any], Any], loop: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Run one of the loops with a function that blocks: nothing in it ever suspends then."""

    async def send_blocking(given: Any) -> None:
        send(given)

    async def wait_blocking(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - it has no loop that it could block

    try:
        loop(send_blocking, wait_blocking).send(None)
    except StopIteration as over:
        return over.value
    raise AssertionError("it suspended")
