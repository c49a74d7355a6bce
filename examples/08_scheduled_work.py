"""Scheduled work: delays, deadlines, periods, limits, and the choice of a worker for a task.

Run it with `python examples/08_scheduled_work.py`, or with `--backend trio`.
"""

import logging
import sys
import time

import anyio

from cuelight import (
    Channel,
    Limit,
    SchedulingStrategy,
    Task,
    TaskExpired,
    TaskPriority,
    TaskQueue,
    TaskScheduler,
    TaskWorker,
    WorkerInfo,
    task,
)

done: Channel[str] = Channel(100)
at_work = most = 0


@task(name="say")
async def say(text: str) -> None:
    await done.send(text)


def two_per_user(user: str, page: int) -> Limit:  # noqa: ARG001 - it is called as the task would be
    return Limit(f"user:{user}", max_concurrent=2)


@task(name="translate", limits=two_per_user)
async def translate(user: str, page: int) -> str:
    """At most two pages of one user are translated at a time, over all workers and processes."""
    global at_work, most  # noqa: PLW0603 - a gauge of this example
    at_work += 1
    most = max(most, at_work)
    await anyio.sleep(0.02)
    at_work -= 1
    return f"{user}{page}"


async def in_time(queue: TaskQueue) -> None:
    print("The most urgent first; a task with a delay when its time has come:")
    await queue.send(say.with_options(delay=0.3, priority=TaskPriority.BACKGROUND), "later")
    await queue.send(say.with_options(priority=TaskPriority.LOW), "when there is time")
    await queue.send(say, "now")
    await queue.send(say.with_options(priority=TaskPriority.CRITICAL), "at once")
    late = await queue.send(say.with_options(deadline=time.time() - 1), "too late")
    async with TaskWorker(queue, [say], concurrency=1):
        for _ in range(4):
            print(f"    {await done.receive()}")
        try:
            await late.result()
        except TaskExpired:
            [letter] = await queue.dead_letters.list(reason="expired")
            print(f"    not said, because its deadline had passed: {letter.payload['kwargs']['text']!r}")

        print("A task that comes back, once for all workers of the queue:")
        name = await queue.every(0.1, say.task("tick"))
        for _ in range(3):
            print(f"    {await done.receive()}")
        await queue.remove_schedule(name)


async def within_limits(queue: TaskQueue) -> None:
    print("A limit holds no worker: tasks beyond it wait in the queue.")
    handles = [await queue.send(translate, "ann", page) for page in range(6)]
    async with TaskWorker(queue, [translate], concurrency=10):
        pages = [await handle.result() for handle in handles]
    print(f"    {' '.join(pages)}, at most {most} at a time")


async def in_place() -> None:
    print("A scheduler says which worker gets a task:")
    scheduler = TaskScheduler(SchedulingStrategy.LEAST_LOADED)
    await scheduler.register_worker(WorkerInfo("big", ["train", "resize"], max_concurrent=2))
    await scheduler.register_worker("small", ["resize"], max_concurrent=1)
    for kind in ("train", "resize", "resize", "resize"):
        print(f"    {kind}: {await scheduler.assign(Task(task_type=kind)) or 'nobody has room'}")
    await scheduler.report_completion("small")
    print(f"    one is done. resize: {await scheduler.assign(Task(task_type='resize'))}")


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)
    async with TaskQueue() as queue:  # in memory; a SQLiteStore("tasks.db") would keep it after the program's end
        await in_time(queue)
        await within_limits(queue)
    await in_place()


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
