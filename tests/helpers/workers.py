"""For tests of task workers: a queue on the loop's own clock, and a store that fails when it is told to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import current_backend
from cuelight.supervision import ActorSystem, Backoff
from cuelight.tasks import MemoryStore, Snapshot, Store, Task, TaskQueue, TaskWorker

AT_ONCE = Backoff(minimum=0.0, maximum=0.0, jitter=0.0)
A_SECOND = Backoff(minimum=1.0, maximum=8.0, jitter=0.0)

EPOCH = 1_000_000.0

PLAIN = frozenset({"close", "durable", "now", "overlap", "version"})
"""What a wrapped store passes on as it is."""


def loop_store() -> MemoryStore:
    """A store whose clock is that of the running loop, so that virtual time is its time too."""
    loop_time = current_backend().time
    return MemoryStore(clock=lambda: EPOCH + loop_time())


class Wrapped:
    """A store that has every call go through `around`, which may fail it before or after."""

    def __init__(self, store: Store, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        self.store, self._around = store, around

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name in PLAIN:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._around(name, lambda: method(*args, **kwargs))

        return call


class Faulty:
    """Makes chosen calls of a store fail: before they take effect, or after, so that only their answer is lost."""

    def __init__(self, store: Store, fails: Callable[[str, int], str | None] | None = None) -> None:
        """Wrap a store; `fails(step, number)` says "before", "after" or None for each call, counted from 1."""
        self.calls = 0
        self.away = False
        self.fails = fails
        self.store = cast("Store", Wrapped(store, self._around))

    def _around(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls += 1
        how = "before" if self.away else self._how(name)
        if name == "beat":
            return self._blocking(how, call)
        return self._awaited(name, how, call)

    def _how(self, name: str) -> str | None:
        return None if self.fails is None else self.fails(name, self.calls)

    @staticmethod
    def _blocking(how: str | None, call: Callable[[], Any]) -> Any:
        if how == "before":
            raise StoreUnavailable("arranged, before")
        answer = call()
        if how == "after":
            raise StoreUnavailable("arranged, after")
        return answer

    @staticmethod
    async def _awaited(name: str, how: str | None, call: Callable[[], Awaitable[Any]]) -> Any:
        if how == "before":
            raise StoreUnavailable(f"arranged, before {name}")
        answer = await call()
        if how == "after":
            raise StoreUnavailable(f"arranged, after {name}")
        return answer


@asynccontextmanager
async def open_queue(
    store: Store | None = None, *, retry_timeout: float = 30.0, **options: Any
) -> AsyncGenerator[TaskQueue]:
    """A queue in a system of its own, on the loop's clock."""
    async with ActorSystem("test", slow_after=None, **options) as system:
        queue = TaskQueue(loop_store() if store is None else store, system=system, retry_timeout=retry_timeout)
        await queue.size()  # it is open now
        yield queue


def new_worker(queue: TaskQueue | None, handlers: Any = (), **options: Any) -> TaskWorker:
    """A worker for virtual time: the loop renews its leases, and failed tasks run again at once."""
    options = {"heartbeat": "loop", "backoff": AT_ONCE, **options}
    return TaskWorker(queue, handlers, **options)


async def snapshot(queue: TaskQueue, task: Task | str) -> Snapshot:
    """A task as its store has it."""
    task_id = task if isinstance(task, str) else task.task_id
    kept = (await _unwrapped(queue).get([task_id]))[0]
    assert kept is not None
    return kept


async def until(queue: TaskQueue, task: Task | str, *states: str) -> Snapshot:
    """The task, once it is in one of these states."""
    store = _unwrapped(queue)
    while True:
        since = store.version()
        kept = await snapshot(queue, task)
        if kept.state in states:
            return kept
        await store.changed(since, 60.0)


def _unwrapped(queue: TaskQueue) -> Store:
    store: Any = queue.store
    return store.store if isinstance(store, Wrapped) else queue.store
