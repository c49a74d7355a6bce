"""A program on an event loop that interrupts itself: Ctrl-C comes at the n-th moment when its main thread looks for it.

    python -m helpers.interrupted_loop BACKEND STORE FIRST LAST STEP

For each n all that the library does on an event loop is used once. The interrupt must come out of that in time,
however deep in the library it was raised, and nothing may be left, lost or warned of.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import multiprocessing
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from cuelight import (
    Actor,
    ActorSystem,
    AsyncWorkerPool,
    Channel,
    LocalLock,
    LocalSemaphore,
    Message,
    Request,
    SQLiteStore,
    TaskQueue,
    TaskWorker,
    after,
    current_task,
    on,
    select,
    task,
)
from cuelight.errors import _leaves
from cuelight.tasks import MemoryStore
from helpers.interrupted_pool import Interrupter

DEADLINE = 60.0


class Add(Message):
    pass


class Total(Request[int]):
    pass


class Hold(Message):
    pass


class Counter(Actor[Add | Total]):
    """Runs in the dispatcher, or in who asks."""

    count = 0

    @on(Add)
    def add(self, _: Add) -> None:
        self.count += 1

    @on(Total)
    def total(self, _: Total) -> int:
        return self.count


class Partner(Actor[Add | Hold]):
    """Has a task of its own: the other end of a channel, and another party of a lock and a semaphore."""

    def __init__(self, channel: Channel[int], lock: LocalLock, room: LocalSemaphore) -> None:
        self.channel, self.lock, self.room = channel, lock, room

    @on(Add)
    async def add(self, _: Add) -> None:
        for number in range(3):
            await self.channel.send(number)

    @on(Hold)
    async def hold(self, _: Hold) -> None:
        async with self.lock, self.room:
            await anyio.lowlevel.checkpoint()


@task(name="greet")
async def greet(name: str) -> str:
    await anyio.lowlevel.checkpoint()
    return f"Hello, {name}!"


@task(name="shout")
def shout(name: str) -> str:
    current_task().progress_blocking("begun")
    return name.upper()


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def use_actors() -> None:
    """Actors, channels, `select`, locks and semaphores."""
    channel, lock, room = Channel[int](1), LocalLock(), LocalSemaphore(1)
    async with ActorSystem() as system:
        counter = await system.spawn(Counter)
        partner = await system.spawn(Partner, channel, lock, room)
        for _ in range(3):
            await counter.tell(Add())
        assert await counter.ask(Total()) <= 3
        await partner.tell(Add())
        assert await channel.receive() == 0
        assert (await select(channel, after(10)))[1] == 1
        assert (await channel.receive()) == 2
        async with lock, room:
            await partner.tell(Hold())
            await anyio.lowlevel.checkpoint()
        async with lock:
            pass
        async with room:
            pass
        await counter.stop()


async def use_pool() -> None:
    """A pool of async functions."""
    async with AsyncWorkerPool(2) as pool:
        assert (await pool.submit(double, 1)).result == 2
        assert (await pool.map(double, range(5))).values == [0, 2, 4, 6, 8]


async def use_tasks(store: Any, sent: list[str]) -> None:
    """A queue and a worker, whose tasks run in the loop and in threads."""
    async with TaskQueue(store) as queue, TaskWorker(queue, [greet, shout]):
        first = await queue.send(greet, "Ann")
        sent.append(first.task_id)
        second = await queue.send(shout, "Ben")
        sent.append(second.task_id)
        assert await first.result() == "Hello, Ann!"
        assert await second.result() == "BEN"


def check_file(path: str, sent: list[str]) -> None:
    """No task is lost, and nobody holds one."""
    with TaskQueue(SQLiteStore(path)) as queue:
        size = queue.size()
        assert size.in_flight == 0, size
        there = size.pending + size.scheduled + size.parked + size.completed
        assert there >= len(sent), (size, sent)


def left() -> list[str]:
    """The threads and processes that are still there, but those that the loops keep for later."""
    gc.collect()
    kept = ("Trio thread", "AnyIO worker")
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    processes = [process.name for process in multiprocessing.active_children()]
    return [name for name in threads if not name.startswith(kept)] + processes


class Complaints(logging.Handler):
    """What was logged, or could not be raised."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger().addHandler(self)
        sys.unraisablehook = self.unraisable
        threading.excepthook = lambda given: self.said.append("".join(traceback.format_exception(given.exc_value)))
        warnings.simplefilter("error")

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))

    def unraisable(self, given: Any) -> None:
        self.said.append(f"{given.err_msg} {given.object!r}: {given.exc_value!r}")


def was_interrupted(error: BaseException) -> bool:
    """Whether it is an interrupt and nothing else, perhaps in a group."""
    leaves: Any = _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]  # pyright: ignore[reportUnknownArgumentType]
    return all(type(leaf) is KeyboardInterrupt for leaf in leaves)


def interrupt(interrupter: Interrupter, backend: str, kind: str, path: str, complaints: Complaints) -> None:
    """Use it all once, and interrupt that."""
    sent: list[str] = []
    complaints.said.clear()

    async def main() -> None:
        with interrupter:
            if kind == "actors":
                await use_actors()
                await use_pool()
            else:
                await use_tasks(MemoryStore() if kind == "memory" else SQLiteStore(path), sent)
        await anyio.lowlevel.checkpoint()  # asyncio delivers it here at the latest

    try:
        anyio.run(main, backend=backend)
    except BaseException as error:
        if not was_interrupted(error):
            raise
    else:
        if interrupter.where:
            raise AssertionError("the interrupt was lost")
    ends = time.monotonic() + DEADLINE / 2
    while left():
        assert time.monotonic() < ends, left()
        time.sleep(0.001)
    if kind == "sqlite" and interrupter.where:
        check_file(path, sent)
    assert not complaints.said, "\n".join(complaints.said)


def main(backend: str, kind: str, first: int, last: int, step: int) -> None:
    """Interrupt one run after another; end when a run is over before it is interrupted."""
    complaints, tried, bad = Complaints(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        interrupt(Interrupter(1_000_000_000), backend, kind, f"{folder}/first.db", complaints)
        for moment in range(first, last, step):
            faulthandler.dump_traceback_later(DEADLINE, exit=True)
            interrupter = Interrupter(moment)
            try:
                interrupt(interrupter, backend, kind, str(Path(folder, f"{moment}.db")), complaints)
            except BaseException:
                bad += 1
                print(f"at moment {moment}, {interrupter.where}:", file=sys.stderr)
                traceback.print_exc()
            if not interrupter.where:
                break
            tried += 1
    print("interrupted", tried, bad, flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(text) for text in sys.argv[3:]))
