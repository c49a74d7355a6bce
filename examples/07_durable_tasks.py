"""Durable tasks: a queue in one file, a worker that retries, and dead letters that are repaired and replayed.

A shop charges for orders. One part of the program takes the orders and ends. Another part starts later, finds the
orders in the file and processes them: the bank is unreachable at first, and one card is invalid.

Run it with `python examples/07_durable_tasks.py`, or with `--backend trio`.
"""

import logging
import sys
import tempfile
from pathlib import Path

import anyio

from cuelight import Backoff, Rejected, SQLiteStore, TaskFailed, TaskQueue, TaskWorker, current_task, task

AT_ONCE = Backoff(minimum=0, maximum=0)
"""No delay before a retry, so that the demonstration is short. The default delay is a second and doubles each time."""

called: set[str] = set()


@task(name="charge", max_retries=3)
async def charge(order: int, card: str, cents: int) -> str:
    """A task function, async or plain. It can still be called directly. Its arguments are checked when it is sent."""
    if not card.isdigit():
        raise Rejected(f"{card!r} is no card")  # a retry would not help
    now = current_task()
    key = now.key("charge")  # the same in each attempt, so that the bank recognizes a repetition
    if key not in called:
        called.add(key)
        raise ConnectionError("the bank is away")
    return f"order {order}: {cents / 100:.2f} from card {card}, at attempt {now.attempt}"


async def take_orders(file: Path) -> list[str]:
    async with TaskQueue(SQLiteStore(file)) as queue:
        first = await queue.send(charge, 1, "4711", 1999)
        second = await queue.send(charge, 2, "47i2", 500)
        again = await queue.send(charge.with_options(task_id=first.task_id), 1, "4711", 1999)
        print(f"Order 1 was given twice, and is in the queue once: {not again.is_new}")
        print(f"Waiting: {(await queue.size()).pending}")
        return [first.task_id, second.task_id]  # enough to find the tasks again in any process


async def work_on_orders(file: Path, orders: list[str]) -> None:
    # When the block ends, the worker finishes its running tasks and returns the others to the queue.
    async with TaskQueue(SQLiteStore(file)) as queue, TaskWorker(queue, [charge], backoff=AT_ONCE):
        for task_id in orders:
            handle = queue.handle(task_id, charge)
            try:
                print(f"    {await handle.result(timeout=10)}")
            except TaskFailed as failure:
                print(f"    given up, {type(failure).__name__}")

        letters = queue.dead_letters
        async for letter in letters:
            print(f"Dead letter: {letter.task_type}({letter.payload['kwargs']}), {letter.reason}:")
            print(f"    {letter.error}")
            await letters.edit(letter.id, charge.task(2, "4712", 500).payload)
        report = await letters.replay_all(reason="rejected", rate=100)  # rate: the most tasks per second
        print(f"Repaired and replayed: {report.replayed}")
        print(f"    {await queue.handle(orders[1], charge).result(timeout=10)}")


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the warnings about failed attempts
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shop.db"
        orders = await take_orders(file)
        print("The shop closes, and opens again.")
        await work_on_orders(file, orders)


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
