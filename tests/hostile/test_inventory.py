"""The register of places where the library calls code of users, compared with its public signatures."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hostile.cases import COVERED

PACKAGES: Final = [
    f"cuelight.{name}"
    for name in ("actors", "mailbox", "supervision", "pools", "tasks", "coordination", "errors", "redis")
]
"""Those that programs import from."""

CALLED: Final = re.compile(
    r"\b(Callable|Awaitable|Coroutine|Iterable|Iterator|AsyncIterable|AsyncIterator|Overflow|Executor|Case|DeadLetterSink"
    r"|Strategy|AssignStrategy|\w+Policy|Backoff|RestartLimit)\b"
)
"""Annotations of arguments that bring code of users."""

HOOKS: Final = {
    "Actor": ("started", "restarting", "stopped", "run"),
    "Supervisor": ("specs",),
}
"""Methods that subclasses override and the library calls."""

SAME: Final = {
    "ChildSpec(factory)": "child(factory)",
    "ActorSystem(strategy)": "supervisor(strategy)",
    "RateLimiter(clock)": "AsyncTokenBucket(clock)",
    "AsyncLeakyBucket(clock)": "AsyncTokenBucket(clock)",
    "AsyncSlidingWindow(clock)": "AsyncTokenBucket(clock)",
    "AcquireMixin.limited(cost)": "AsyncTokenBucket.limited(cost)",
    "SQLiteStore(clock)": "MemoryStore(clock)",
    "RedisStore(clock)": "MemoryStore(clock)",
    "TaskFunction(function)": "task(async)",
    "task(function)": "task(async)",
    "QueueBase(on_cancel)": "TaskQueue(on_cancel)",
    "QueueBase(on_lost)": "TaskQueue(on_lost)",
    "QueueAdmin.cancel(task_id)": "TaskQueue.cancel",
    "QueueAdmin.purge(task_ids)": "TaskQueue.cancel",
    "QueueAdmin.sync_schedules(schedules)": "TaskQueue.sync_schedules",
    "QueueOperations.enqueue_many(tasks)": "TaskQueue.enqueue_many",
    "LockManager.acquire_all(names)": "LockManager.acquire_all",
    "BlockingTaskQueue.cancel(task_id)": "TaskQueue.cancel",
    "BlockingTaskQueue.purge(task_ids)": "TaskQueue.cancel",
    "BlockingTaskQueue.enqueue_many(tasks)": "TaskQueue.enqueue_many",
    "BlockingTaskQueue.sync_schedules(schedules)": "TaskQueue.sync_schedules",
    "Dispatcher.call_threadsafe(function)": "ActorSystem.call_threadsafe(function)",
    "Executor.run(function)": "AsyncWorkerPool.submit(fn)",
    "Executor.run_chunk(function)": "AsyncWorkerPool.map(fn)",
    "ThreadExecutor.run(function)": "AsyncWorkerPool.submit(fn)",
    "ThreadExecutor.run_chunk(function)": "AsyncWorkerPool.map(fn)",
    "ProcessExecutor.run(function)": "AsyncWorkerPool.submit(fn)",
    "ProcessExecutor.run_chunk(function)": "AsyncWorkerPool.map(fn)",
    "ProcessExecutor.run_many(function)": "AsyncWorkerPool.map(fn)",
    "select(cases)": "Case.case_poll",
    "select_nowait(cases)": "Case.case_poll",
    "merge(cases)": "Case.case_poll",
    "RedisClient.subscribe(on_message)": "Server.subscribe(on_message)",
    "RedisClient.subscribe(on_gap)": "Server.subscribe(on_message)",
    "Server.subscribe(on_gap)": "Server.subscribe(on_message)",
    "RedisNode(messages)": "messages=[...], __post_init__",
}
"""Places that are reached through another one, by the same lines."""

OTHERWISE: Final = {
    "ThreadedSystem.call(function)": "raises in the caller; test_blocking.py has the cases",
    "run(app)": "it is the program: what it raises leaves `run`",
    "BlockingProxy(make)": "only the library makes these",
    "BlockingTaskQueue(make)": "only the library makes these",
    "TaskHandle(read)": "only the library makes these",
    "RedisWeightedLock.release_part(apply_locally)": "only the library calls it",
    "Backend.call_threadsafe(function)": "only the library calls it",
    "Backend.set_alarm(ring)": "only the library calls it",
    "Backend.spawn(function)": "only the library calls it",
    "Background(done)": "only the library calls it",
    "Background(work)": "only the library calls it",
    "Cell.ask_now(call)": "only the library calls it",
    "CellMailbox.drop_control(unwanted)": "only the library calls it",
    "Mailbox(overflow)": "only the library calls it",
    "call_in_loop(function)": "only the library calls it",
    "checked_overflow(overflow)": "only the library calls it",
    "find_cycle(first)": "only the library calls it",
    "run_interruptible(awaitable)": "only the library calls it",
    "when_task_ends(call)": "only the library calls it",
    "Dispatcher.call_later(function)": "only the library calls it",
    "Dispatcher.post(function)": "only the library calls it",
}
"""Places that are no part of the table, and why."""


def places() -> Iterator[str]:
    """The places where public functions and methods take code of users."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            public: Any = getattr(module, name)
            if inspect.isclass(public):
                for method, function in inspect.getmembers(public, inspect.isroutine):
                    if method == "__init__" or not method.startswith("_"):
                        yield from _arguments(function)
                yield from (f"{name}.{hook}" for hook in HOOKS.get(name, ()))
            elif inspect.isroutine(public):
                yield from _arguments(public)


def _arguments(function: Any) -> Iterator[str]:
    if not str(getattr(function, "__module__", "")).startswith("cuelight."):
        return
    called = function.__qualname__.removesuffix(".__init__")
    for parameter in inspect.signature(function).parameters.values():
        if not parameter.name.startswith("_") and CALLED.search(str(parameter.annotation)):
            yield f"{called}({parameter.name})"


def registered() -> set[str]:
    """The places in the register, without what tells them apart further."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"hostile.{path.stem}")
    return {re.sub(r"[:,.][^()]*\)$", ")", re.sub(r"\).*", ")", name)) for name in COVERED} | set(COVERED)


def test_every_place_where_code_of_users_is_called_is_in_the_table() -> None:
    known = registered()
    missing = sorted({place for place in places() if SAME.get(place, place) not in known and place not in OTHERWISE})
    assert missing == []


def test_places_that_are_named_here_exist() -> None:
    found = set(places())
    assert [place for place in (*SAME, *OTHERWISE) if place not in found] == []
