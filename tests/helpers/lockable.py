"""Every kind of lock as the same thing, for the contract that all of them keep; and threads that tell what they saw."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.coordination import BaseLock, LocalLock, LocalSemaphore, LockManager, LockStatistics, ReadWriteLock
from cuelight.redis._locks import RedisLock, RedisReadWriteLock, RedisSemaphore, redis_locks
from helpers.redis_servers import shared_server

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True)
class Kind:
    """A way to make a lock that excludes.

    Attributes:
        make: makes one, given its name.
    """

    make: Callable[[str], BaseLock]


class Elsewhere(BaseLock):
    """A lock of another back end: it has what `BaseLock` asks for, and its state is somebody else's."""

    def __init__(self, name: str) -> None:
        self._state = LocalLock(name)

    @property
    def name(self) -> str:
        return self._state.name

    @property
    def locked(self) -> bool:
        return self._state.locked

    async def acquire(self, timeout: float | None = None) -> None:
        await self._state.acquire(timeout)

    def acquire_blocking(self, timeout: float | None = None) -> None:
        self._state.acquire_blocking(timeout)

    def acquire_nowait(self) -> None:
        self._state.acquire_nowait()

    def release(self) -> None:
        self._state.release()

    def statistics(self) -> LockStatistics:
        return self._state.statistics()


_next = itertools.count()


def over_redis() -> dict[str, Any]:
    """Where locks over Redis are in a test: names of one test are not those of another."""
    return {"redis_url": shared_server().url, "prefix": f"test-{next(_next)}"}


KINDS: dict[str, Kind] = {
    "lock": Kind(LocalLock),
    "lock in debug mode": Kind(lambda name: LocalLock(name, debug=True)),
    "lock of another back end": Kind(Elsewhere),
    "lock of a manager": Kind(lambda name: LockManager().get_lock(name)),
    "semaphore of 1": Kind(lambda name: LocalSemaphore(1, name=name).hold(1)),
    "semaphore, all of it": Kind(lambda name: LocalSemaphore(5, name=name).hold(5)),
    "write": Kind(lambda name: ReadWriteLock(name).write()),
    "write, preferred": Kind(lambda name: ReadWriteLock(name, writer_preference=True).write()),
    "redis lock": Kind(lambda name: RedisLock(name, **over_redis())),
    "redis lock of a manager": Kind(lambda name: LockManager(redis_locks(**over_redis())).get_lock(name)),
    "redis semaphore of 1": Kind(lambda name: RedisSemaphore(name, 1, **over_redis()).hold(1)),
    "redis semaphore, all of it": Kind(lambda name: RedisSemaphore(name, 5, **over_redis()).hold(5)),
    "redis write": Kind(lambda name: RedisReadWriteLock(name, **over_redis()).write()),
    "redis write, preferred": Kind(
        lambda name: RedisReadWriteLock(name, **over_redis(), writer_preference=True).write()
    ),
}
"""A lock of another back end joins the contract by an entry here."""


class Worker:
    """A thread that does one thing after another for a test, and waits in between."""

    def __init__(self, name: str = "worker") -> None:
        self._go = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._work: Callable[[], Any] | None = None
        self._result: Any = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            work = self._work
            if work is None:
                return
            try:
                self._result = work()
            except Exception as error:
                self._result = error
            self._done.release()

    def start(self, work: Callable[[], Any]) -> None:
        """Begin something that may block."""
        self._work = work
        self._go.release()

    def result(self, timeout: float = 10) -> Any:
        """What came of it: the value or the error."""
        assert self._done.acquire(timeout=timeout), "the thread is still blocked"
        return self._result

    def do(self, work: Callable[[], Any]) -> Any:
        """Do something that does not block for long."""
        self.start(work)
        return self.result()

    def end(self) -> None:
        """Have the thread end, and wait for that."""
        self._work = None
        self._go.release()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def worker(name: str = "worker") -> Generator[Worker]:
    """A worker for a block."""
    one = Worker(name)
    try:
        yield one
    finally:
        one.end()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so that other threads bring about. Only a failing test waits long."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - a thread may bring it about
            await anyio.sleep(0.001)


async def until_server(condition: Callable[[], Awaitable[Any]]) -> None:
    """Wait until something is so that a server tells."""
    with anyio.fail_after(10):
        while not await condition():  # noqa: ASYNC110 - nothing else tells
            await anyio.sleep(0.005)


def until_blocking(condition: Callable[[], Any]) -> None:
    """The same in a thread."""
    anyio.run(until, condition)
