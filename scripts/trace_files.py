"""List the files of the package that one operation enters: a tell, an ask, a crash, a task, a lock, a limiter, a map.

Run as `python scripts/trace_files.py [NAME ...]`. With `--files`, the files are listed, each with its number of calls.
An operation runs once before it is traced, so that set-up and lazy imports do not count.
"""

import argparse
import logging
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

import cuelight
from cuelight import Actor, ActorSystem, AsyncTokenBucket, AsyncWorkerPool, LocalLock, Message, Request, on
from cuelight.tasks import SQLiteStore, Store, TaskQueue, TaskWorker, task

ROOT = Path(cuelight.__file__).parent
Operation = Callable[[], Awaitable[object]]


class Files:
    """Counts calls by file, in all threads, while it is switched on."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.on = False
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if self.on and event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            self.calls[Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()] += 1


class Add(Message):
    pass


class Total(Request[int]):
    pass


class Fail(Message):
    pass


class Counting(Actor[Add | Total | Fail]):
    def __init__(self) -> None:
        self.total = 0

    @on(Add)
    async def add(self, message: Add) -> None:
        self.total += 1

    @on(Total)
    async def get(self, message: Total) -> int:
        return self.total

    @on(Fail)
    async def fail(self, message: Fail) -> None:
        raise ValueError("traced")


@task(name="traced")
async def nothing() -> None:
    """Do nothing."""


async def same(item: int) -> int:
    return item


@asynccontextmanager
async def actor() -> AsyncGenerator[tuple[ActorSystem, Any], None]:
    async with ActorSystem() as system:
        yield system, await system.spawn(Counting)


@asynccontextmanager
async def a_tell() -> AsyncGenerator[Operation, None]:
    async with actor() as (system, ref):

        async def tell() -> None:
            await ref.tell(Add())
            await system.wait_until_idle()

        yield tell


@asynccontextmanager
async def an_ask() -> AsyncGenerator[Operation, None]:
    async with actor() as (_, ref):

        async def ask() -> None:
            await ref.ask(Total())

        yield ask


@asynccontextmanager
async def a_crash() -> AsyncGenerator[Operation, None]:
    async with actor() as (system, ref):

        async def crash() -> None:
            await ref.tell(Fail())
            await system.wait_until_idle()

        yield crash


@asynccontextmanager
async def queue_over(store: Store) -> AsyncGenerator[Operation, None]:
    async with TaskQueue(store) as queue, TaskWorker(queue, [nothing]):

        async def send() -> None:
            await (await queue.send(nothing)).result()

        yield send


@asynccontextmanager
async def a_task_on_sqlite() -> AsyncGenerator[Operation, None]:
    with tempfile.TemporaryDirectory() as folder:
        async with queue_over(SQLiteStore(Path(folder, "tasks.db"))) as send:
            yield send


@asynccontextmanager
async def a_task_on_redis() -> AsyncGenerator[Operation, None]:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from cuelight.redis import RedisStore  # noqa: PLC0415 - needs the extra
    from helpers.redis_servers import shared_server  # noqa: PLC0415

    async with queue_over(RedisStore(shared_server().url)) as send:
        yield send


@asynccontextmanager
async def a_lock() -> AsyncGenerator[Operation, None]:
    lock = LocalLock("traced")

    async def hold() -> None:
        async with lock:
            pass

    yield hold


@asynccontextmanager
async def a_limiter() -> AsyncGenerator[Operation, None]:
    yield AsyncTokenBucket(rate=1000, capacity=1000).acquire


@asynccontextmanager
async def a_map() -> AsyncGenerator[Operation, None]:
    async with AsyncWorkerPool(2) as pool:

        async def run() -> None:
            await pool.map(same, range(10))

        yield run


OPERATIONS = {
    "tell": a_tell,
    "ask": an_ask,
    "crash": a_crash,
    "task on SQLite": a_task_on_sqlite,
    "task on Redis": a_task_on_redis,
    "lock": a_lock,
    "limiter": a_limiter,
    "map": a_map,
}


async def files_of(name: str, files: Files) -> Counter[str]:
    """The files that an operation enters, with their calls."""
    async with OPERATIONS[name]() as operation:
        await operation()
        await anyio.sleep(0.05)  # what the first one has left behind
        files.calls = Counter()
        files.on = True
        await operation()
        await anyio.sleep(0.02)  # what it starts
        files.on = False
        return files.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *OPERATIONS], help=", ".join(OPERATIONS))
    parser.add_argument("--files", action="store_true", help="list the files")
    arguments = parser.parse_args()
    logging.disable()  # a crash is logged
    files = Files()
    for name in arguments.names or OPERATIONS:
        calls = anyio.run(files_of, name, files)
        print(f"{name:<15} {len(calls):>3} files")
        for path, number in sorted(calls.items()) if arguments.files else ():
            print(f"    {path} ({number})")


if __name__ == "__main__":
    main()
