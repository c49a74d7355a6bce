"""Locks, semaphores and read-write locks: acquire and release, alone and contended; and the bytes of an idle lock."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from bench._harness import Aim, Result, Rivals
from cuelight.coordination import LocalLock, LocalSemaphore, LockManager, ReadWriteLock

TASKS = 10
THREADS = 4
IDLE = 20_000


class Wrapped:
    """`threading.Lock` in a Python class: the smallest cost of a lock written in Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _trio(name: str, *args: Any) -> Any:
    import trio

    return getattr(trio, name)(*args)


def alone(make: Callable[[], Any]) -> Callable[[int], Awaitable[None]]:
    """One task acquires and releases the lock in a loop."""

    async def run(n: int) -> None:
        lock = make()
        for _ in range(n):
            async with lock:
                pass

    return run


def alone_in_a_thread(make: Callable[[], Any]) -> Callable[[int], None]:
    def run(n: int) -> None:
        lock = make()
        for _ in range(n):
            with lock:
                pass

    return run


def contended(make: Callable[[], Any]) -> Callable[[int], Awaitable[None]]:
    """Ten tasks that yield while they hold the lock, so that each turn is a hand-over."""

    async def run(n: int) -> None:
        lock = make()

        async def work() -> None:
            for _ in range(n // TASKS):
                async with lock:
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(TASKS):
                group.start_soon(work)

    return run


def contended_by_threads(make: Callable[[], Any]) -> Callable[[int], None]:
    def run(n: int) -> None:
        lock = make()

        def work() -> None:
            for _ in range(n // THREADS):
                with lock:
                    pass

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


async def acquire_all(n: int) -> None:
    manager = LockManager()
    for _ in range(n):
        async with manager.acquire_all(("a", "b", "c")):
            pass


async def by_name(n: int) -> None:
    manager = LockManager()
    for _ in range(n):
        async with manager.acquire("a"):
            pass


def _locks(workload: Callable[[Callable[[], Any]], Any]) -> Rivals:
    return {
        "cuelight": workload(LocalLock),
        "asyncio.Lock": workload(asyncio.Lock),
        "anyio.Lock": workload(anyio.Lock),
        "anyio.Lock fast": workload(lambda: anyio.Lock(fast_acquire=True)),
    }


def _semaphores(workload: Callable[[Callable[[], Any]], Any]) -> Rivals:
    return {
        "cuelight": workload(lambda: LocalSemaphore(5)),
        "asyncio.Semaphore": workload(lambda: asyncio.Semaphore(5)),
        "anyio.Semaphore": workload(lambda: anyio.Semaphore(5)),
        "anyio.Semaphore fast": workload(lambda: anyio.Semaphore(5, fast_acquire=True)),
    }


def _in_threads(workload: Callable[[Callable[[], Any]], Any]) -> Rivals:
    return {
        "cuelight": workload(LocalLock),
        "threading.Lock wrapped": workload(Wrapped),
        "threading.Lock": workload(threading.Lock),
    }


WORKLOADS: dict[str, Rivals] = {
    "lock, async with": _locks(alone),
    "lock, async with, 10 tasks": _locks(contended),
    "lock, with": _in_threads(alone_in_a_thread),
    "lock, with, 4 threads": _in_threads(contended_by_threads),
    "semaphore of 5, async with": _semaphores(alone),
    "semaphore of 5, async with, 10 tasks": _semaphores(contended),
    "read lock, async with": {"cuelight": alone(lambda: ReadWriteLock().read())},
    "write lock, async with": {"cuelight": alone(lambda: ReadWriteLock().write())},
    "lock manager, one name": {"cuelight": by_name},
    "lock manager, three names": {"cuelight": acquire_all},
}

TRIO_WORKLOADS: dict[str, Rivals] = {
    "lock, async with": {"trio.Lock": alone(lambda: _trio("Lock"))},
    "lock, async with, 10 tasks": {"trio.Lock": contended(lambda: _trio("Lock"))},
    "semaphore of 5, async with": {"trio.Semaphore": alone(lambda: _trio("Semaphore", 5))},
    "semaphore of 5, async with, 10 tasks": {"trio.Semaphore": contended(lambda: _trio("Semaphore", 5))},
}

AIMS = {
    "lock, async with": Aim("anyio.Lock fast", 1),
    "lock, async with, 10 tasks": Aim("asyncio.Lock", 0.6, trio=0.15),
    "semaphore of 5, async with": Aim("asyncio.Semaphore", 0.65, trio=0.35),
    "semaphore of 5, async with, 10 tasks": Aim("asyncio.Semaphore", 0.5, trio=0.1),
    "lock, with": Aim("threading.Lock wrapped", 0.5),
}


def _bytes_each(make: Callable[[int], Any]) -> float:
    gc.collect()
    tracemalloc.start()
    kept = [make(number) for number in range(IDLE)]
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / len(kept)


def _weigh(name: str, loop: str) -> Result:
    """Bytes that Python allocates for a new, idle object. All have one name, so that names do not count."""
    makers: dict[str, dict[str, Callable[[int], Any]]] = {
        "bytes of an idle lock": {
            "cuelight": lambda _: LocalLock("a"),
            "asyncio.Lock": lambda _: asyncio.Lock(),
            "threading.Lock wrapped": lambda _: Wrapped(),
        },
        "bytes of an idle semaphore": {
            "cuelight": lambda _: LocalSemaphore(5, name="a"),
            "asyncio.Semaphore": lambda _: asyncio.Semaphore(5),
        },
        "bytes of an idle read-write lock": {"cuelight": lambda _: ReadWriteLock("a")},
    }
    result = Result("coordination", name, loop, unit="B")
    for rival, make in makers[name].items():
        result.figures[rival] = _bytes_each(make)
    result.compare()
    return result


MEASURES = dict.fromkeys(
    ("bytes of an idle lock", "bytes of an idle semaphore", "bytes of an idle read-write lock"), _weigh
)
