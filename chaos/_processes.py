"""The victim processes: a producer and workers, or users of a lock.

Each runs `main`, with its role and options as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import anyio

from chaos._ledger import Ledger
from cuelight.errors import LeaseLost, StoreUnavailable
from cuelight.tasks import Claim, Exchange, Finish, SQLiteStore, Store, Task, TaskQueue, TaskWorker, current_task

__all__ = ["QUEUE", "main", "task_id"]

QUEUE = "chaos"


def task_id(number: int) -> str:
    """The identity of a task. The successor of a killed producer uses the same identities again."""
    return f"task-{number:06}"


def _witnessed(store: Store, ledger: Ledger) -> Store:
    """Make a store record the completions that it accepts."""
    exchange = store.exchange

    async def witness(finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        answer = await exchange(finishes, claim)
        for finish, state in zip(finishes, answer.accepted, strict=True):
            if finish.kind == "done":
                ledger.write("accepted" if state == "completed" else "refused", finish.id, finish.epoch)
        return answer

    store.exchange = witness  # type: ignore[method-assign]
    return store


def _queue(options: dict[str, Any], ledger: Ledger) -> TaskQueue:
    store: Store
    if options["store"].startswith("redis:"):
        from cuelight.redis import RedisStore  # noqa: PLC0415 - a file needs none of it

        store = RedisStore(options["store"], queue=QUEUE)
    else:
        store = SQLiteStore(options["store"], queue=QUEUE)
    return TaskQueue(_witnessed(store, ledger), max_length=options["tasks"] + 1000)


async def produce(options: dict[str, Any]) -> None:
    """Enqueue all tasks, and record each acknowledgement."""
    ledger = Ledger(Path(options["ledger"]))
    async with _queue(options, ledger) as queue:
        for number in range(options["tasks"]):
            task = Task(task_id=task_id(number), task_type="work", payload=number, max_crashes=1000, result_ttl=86400)
            while True:
                try:
                    await queue.enqueue(task)
                    break
                except StoreUnavailable:  # it may be enqueued already; the queue recognizes its identity
                    await anyio.sleep(0.1)
            ledger.write("given", task.task_id)
            await anyio.sleep(options["pause"])


async def work(options: dict[str, Any]) -> None:
    """Run tasks until the process is killed."""
    ledger = Ledger(Path(options["ledger"]))
    random = Random(time.time_ns())

    async def handle(_payload: int) -> None:
        context = current_task()
        ledger.write("begun", context.task_id, context.epoch)
        await anyio.sleep(random.uniform(*options["work"]))
        ledger.write("ended", context.task_id, context.epoch)

    async with _queue(options, ledger) as queue:
        worker = TaskWorker(queue, {"work": handle}, concurrency=options["concurrency"], lease=options["lease"])
        await worker.run()


async def hold(options: dict[str, Any]) -> None:
    """Acquire the lock again and again until the process is killed."""
    from cuelight.redis import RedisClient, RedisLock, fenced_set  # noqa: PLC0415 - a queue in a file needs none of it

    ledger = Ledger(Path(options["ledger"]))
    random = Random(time.time_ns())
    guard = RedisClient(options["guard"])

    async def want(name: str) -> None:
        lock = RedisLock("chaos", options["store"], lease=options["lease"])
        while True:
            try:
                async with lock.hold() as lease:
                    ledger.write("got", name, lease.fence)
                    for _ in range(random.randint(1, 3)):
                        await anyio.sleep(random.uniform(0.001, 0.02))
                        at = time.time()
                        lease.check()
                        ledger.write("sure", name, lease.fence, at)
                        await _set(lease.fence, name)
            except LeaseLost:
                ledger.write("lost", name)
            except StoreUnavailable:
                await anyio.sleep(0.1)

    async def _set(fence: int, name: str) -> None:
        # By the token alone: the guard must stop a holder that does not know of its loss yet.
        try:
            await fenced_set(guard, "value", name, fence)
            ledger.write("written", name, fence)
        except LeaseLost:
            ledger.write("stale", name, fence)

    async with guard, anyio.create_task_group() as group:
        for number in range(options["concurrency"]):
            group.start_soon(want, f"{os.getpid()}-{number}")


def main() -> None:
    """Run a victim in the role that its arguments name."""
    role, options = sys.argv[1], json.loads(sys.argv[2])
    logging.basicConfig(level=logging.CRITICAL)
    anyio.run({"produce": produce, "work": work, "hold": hold}[role], options, backend=options["backend"])
