"""Worker pools: many tasks and a few workers. No task can harm another.

Workers pull: an idle worker takes the next task. An error is a result like any other. A timeout really stops the task
where this is possible. A process that dies costs only the task that it was running.

Run it with `python examples/06_worker_pools.py`, or with `--backend trio`.
"""

import logging
import os
import sys
from typing import Any

import anyio
import anyio.to_thread

from cuelight import AsyncWorkerPool, TaskResult, WorkerPool, WorkerPoolConfig


def show(result: TaskResult[Any]) -> str:
    return f"{result.result}" if result.error is None else f"{type(result.error).__name__}: {result.error}"


async def measure(word: str) -> int:
    """An async function, which runs in the event loop."""
    if word == "forever":
        await anyio.sleep_forever()
    if not word.isalpha():
        raise ValueError(f"{word!r} is no word")
    return len(word)


async def in_the_loop() -> None:
    print("Async functions, two at a time, each with a fifth of a second:")
    async with AsyncWorkerPool(2, timeout=0.2) as pool:
        results = await pool.map(measure, ["tell", "ask", "4711", "forever", "supervise"])
        for result in results:  # in the order of the words
            print(f"    {show(result)}")
        print(f"    the good ones add up to {sum(results.values)}")

        urgent = pool.submit(measure, "now", priority=0)  # already running; awaiting it returns its result
        print(f"    {show(await urgent)}")

        print("A loop over a map reads only a little ahead, so its source may be endless:")
        words = ("x" * length for length in range(1, 10**9))
        async with aiter(pool.map(measure, words)) as lengths:  # leaving the block cancels the calls that still run
            async for result in lengths:
                if result.unwrap() > 3:
                    break
                print(f"    {show(result)}")


def square(number: int) -> int:
    """A plain function, which runs in a thread or, here, in a process."""
    if number == 3:
        os._exit(1)  # like a crash of native code, or a kill by the system for want of memory
    return number * number


async def in_processes() -> None:
    print("Plain functions in two processes, one of which dies:")
    async with AsyncWorkerPool(2, kind="process", max_crashes=1) as pool:
        for result in await pool.map(square, range(5)):
            print(f"    {type(result.error).__name__ if result.error else result.result}")


seen: set[int] = set()


def flaky(order: int) -> str:
    is_new = order not in seen
    seen.add(order)
    if is_new or order == 13:
        raise ConnectionError("the line is down")
    return f"order {order} is done"


def without_a_loop() -> None:
    print("Blocking code has a pool of its own, which tries again by itself:")
    config = WorkerPoolConfig(max_workers=2, max_retries=2, backoff_base_seconds=0.01)
    with WorkerPool(config) as pool, pool.dead_letters as dead_letters:
        for number in (1, 13):
            pool.submit_task(f"order {number}", flaky, (number,))
        for result in pool.wait_for_all():  # in the order of submission
            print(f"    {result.task_name}: {show(result)}")
        print(f"    attempts after the first: {pool.get_summary_metrics()['total_retries']}")

        for letter in dead_letters:  # a call that failed for good is kept, to be edited, replayed or purged
            print(f"    dead letter: {letter.payload.name}, {letter.error}")
            dead_letters.edit(letter.id, letter.payload.with_args(1))
        print(f"    replayed: {dead_letters.replay_all().replayed}")  # replaying submits it again
        print(f"    its result now: {show(pool.wait_for_all()[-1])}")


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the log of failures
    await in_the_loop()
    await in_processes()
    await anyio.to_thread.run_sync(without_a_loop)


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
