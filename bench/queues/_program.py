"""The shared part of all queue programs: settings, tasks, the journal, and the loops of a producer.

It also runs in the environments of the peers, so it needs only the standard library and the selected loop. Only
Cuelight and streaq run on trio; the others stay on asyncio in that case.

A task either does nothing, or takes three seconds in steps, so that an interruption shows. Both write to the journal:
one line of fixed size for each event, with the time of a clock that all processes share.
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
"""The environment variable with the settings."""

STEPS, STEP = 12, 0.25
"""A slow task: the number of sleeps, and the seconds of each."""

RAN, BEGAN, ENDED, BROKEN_OFF = b"r", b"b", b"e", b"x"


@dataclass(frozen=True)
class Settings:
    """The settings of a process.

    Attributes:
        url: the address of the server.
        journal: the file of the journal.
        loop: asyncio, uvloop or trio, where a library offers the choice.
        variant: the variant of a library that has several; empty for its default.
        concurrency: the number of tasks that a worker runs at once.
        count: the number of tasks that a producer sends.
        batch: the size of a batch, or the number of concurrent senders.
        pause: the mean seconds between two tasks of a trickle.
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
        """The variables to add to the environment of a process."""
        return {ENVIRONMENT: json.dumps(asdict(self))}


SETTINGS = Settings(**json.loads(os.environ.get(ENVIRONMENT, "{}")))


class Record(NamedTuple):
    """One line of the journal: the event, the task, the process and the time."""

    what: bytes
    item: int
    process: int
    at: float


_LINE = struct.Struct("<c3xIId")
LINE = _LINE.size


def read_journal(data: bytes) -> list[Record]:
    """Parse the journal, in the order of writing."""
    return [Record(*fields) for fields in _LINE.iter_unpack(data[: len(data) // LINE * LINE])]


class _Journal:
    def __init__(self, path: str) -> None:
        # Appends by one call each do not mix, even from several processes, and outlive `kill -9`.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: bytes, item: int) -> None:
        os.write(self._file, _LINE.pack(what, item, os.getpid(), time.monotonic()))


journal = _Journal(SETTINGS.journal)


def do_nothing(item: int) -> None:
    """The task for throughput."""
    journal.write(RAN, item)


async def do_slowly(item: int) -> None:
    """The task for losses."""
    journal.write(BEGAN, item)
    try:
        for _ in range(STEPS):
            await sleep(STEP)
    except BaseException:
        journal.write(BROKEN_OFF, item)
        raise
    journal.write(ENDED, item)


def do_slowly_in_a_thread(item: int) -> None:
    """The same, for libraries without async tasks."""
    journal.write(BEGAN, item)
    try:
        for _ in range(STEPS):
            time.sleep(STEP)
    except BaseException:
        journal.write(BROKEN_OFF, item)
        raise
    journal.write(ENDED, item)


async def sleep(seconds: float) -> None:
    """Sleep on the selected loop."""
    if SETTINGS.loop == "trio":
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def run(function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function on the selected loop."""
    if SETTINGS.loop == "trio":
        import trio

        return trio.run(function)
    if SETTINGS.loop == "uvloop":
        import uvloop

        return uvloop.run(function())
    return asyncio.run(function())


def wait_for_the_end() -> None:
    """Return when this process is asked to end."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()


@dataclass(frozen=True)
class Sender:
    """The ways in which a library sends tasks: plain functions, or coroutine functions.

    Attributes:
        nothing: sends a task that does nothing.
        slow: sends a slow task.
        many: sends a batch of tasks that do nothing, if the library can.
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
"""The roles of a producer: the sending function, and the loop that calls it."""


def produce(producer: Producer, role: str) -> Any:
    """Send tasks in a role. Returns the seconds that this took, or the times of a trickle."""
    kind, loop = ROLES[role]
    if isinstance(producer, AbstractAsyncContextManager):

        async def send_all() -> Any:
            async with producer as sender:
                return await loop(getattr(sender, kind), sleep)

        return run(send_all)
    with producer as sender:
        return _plainly(getattr(sender, kind), loop)


def _plainly(send: Callable[[Any], Any], loop: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Run one of the loops with a blocking function. No await in it ever suspends."""

    async def send_blocking(given: Any) -> None:
        send(given)

    async def wait_blocking(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - it has no loop that it could block

    try:
        loop(send_blocking, wait_blocking).send(None)
    except StopIteration as over:
        return over.value
    raise AssertionError("it suspended")
