"""A queue belongs to the thread of its event loop: others are told so at once, with what to do instead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight.supervision import ActorSystem
from cuelight.tasks import Task, TaskQueue, TaskWorker, task
from helpers.workers import open_queue


@task(name="greet")
async def greet(name: str) -> str:
    return f"Hello, {name}!"


def _in_thread(function: Callable[[], Any]) -> Any:
    """What a function returns or raises in a thread that has no loop."""
    result: list[Any] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    return result[0]


def _in_foreign_loop(function: Callable[[], Any]) -> Any:
    async def main() -> Any:
        value = function()
        return await value if hasattr(value, "__await__") else value

    return _in_thread(lambda: asyncio.run(main()))


USES: dict[str, Callable[[TaskQueue], Any]] = {
    "enqueue": lambda queue: queue.enqueue(Task()),
    "enqueue_many": lambda queue: queue.enqueue_many([Task()]),
    "send": lambda queue: queue.send(greet, "Ann"),
    "dequeue": lambda queue: queue.dequeue(),
    "ack": lambda queue: queue.ack("a"),
    "nack": lambda queue: queue.nack("a"),
    "extend": lambda queue: queue.extend("a"),
    "in_flight": lambda queue: queue.in_flight(),
    "size": lambda queue: queue.size(),
    "get": lambda queue: queue.get("a"),
    "result": lambda queue: queue.handle("a").result(),
    "status": lambda queue: queue.handle("a").status(),
    "updates": lambda queue: anext(queue.handle("a").updates()),
    "cancel": lambda queue: queue.cancel("a"),
    "purge": lambda queue: queue.purge("a"),
    "pause": lambda queue: queue.pause(),
    "close": lambda queue: queue.close(),
    "drain": lambda queue: queue.drain(),
    "every": lambda queue: queue.every(60, greet.task("Ann")),
    "sync_schedules": lambda queue: queue.sync_schedules([]),
    "schedules": lambda queue: queue.schedules(),
    "worker": lambda queue: TaskWorker(queue, [greet]).run(),
    "process_one": lambda queue: TaskWorker(queue, [greet]).process_one(),
    "another handle in its system": lambda queue: TaskQueue(queue.store, system=queue.system),
}


@pytest.mark.parametrize("use", USES)
async def test_a_use_of_a_queue_from_a_foreign_loop_is_refused_with_the_way_out(use: str) -> None:
    async with open_queue() as queue:
        await queue.enqueue(Task(task_id="a"))
        error = await anyio.to_thread.run_sync(_in_foreign_loop, lambda: USES[use](queue))
        assert isinstance(error, RuntimeError), error
        assert "lives in the event loop of another thread" in str(error)
        assert "make another TaskQueue over the same store" in str(error)
        size = await queue.size()
        assert (size.pending, size.closed, size.paused) == (1, False, False)


async def test_another_queue_over_the_same_store_works_in_another_thread() -> None:
    async with open_queue() as queue:

        def produce() -> bool:
            with TaskQueue(queue.store) as other:
                return other.enqueue(Task(task_id="from a thread"))

        assert await anyio.to_thread.run_sync(_in_thread, produce) is True
        assert await queue.get("from a thread") is not None


def test_a_queue_is_not_made_for_a_system_of_another_thread() -> None:
    with ActorSystem.blocking() as system, pytest.raises(RuntimeError, match="cannot be made here: make another"):
        TaskQueue(system=system.system)
