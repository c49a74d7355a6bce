"""What the types of tasks promise. Not run: both type checkers must reject just the marked lines."""

from collections.abc import Coroutine
from typing import Any, assert_type

from cuelight.tasks import (
    AsyncTaskFunction,
    BlockingTaskHandle,
    BlockingTaskQueue,
    Limit,
    PlainTaskFunction,
    Task,
    TaskFunction,
    TaskHandle,
    TaskQueue,
    task,
)


@task
async def greet(name: str, times: int = 1) -> str:
    return name * times


@task
def add(a: int, b: int) -> int:
    return a + b


@task(name="mail", max_retries=5, limits=lambda to, text: Limit(f"user:{to}"), unique=lambda to, text: f"{to}:{text}")
async def mail(to: str, text: str) -> None: ...


@task(name="mail", timeout=60.0, limits=(Limit("smtp", rate=5),), unique=True, priority=1)
def mail_now(to: str) -> list[str]:
    return [to]


@task(retries=5)  # rejected
def odd() -> None: ...


@task(timeout="soon")  # rejected
def odder() -> None: ...


@task(deadline=5.0)  # rejected
def oddest() -> None: ...



async def calling() -> None:
    running: Coroutine[Any, Any, str] = greet("Ada")
    assert_type(await running, str)
    assert_type(await greet("Ada", times=2), str)
    assert_type(add(1, 2), int)
    assert_type(mail_now("ada"), list[str])
    await greet(5)  # rejected
    add(1)  # rejected
    add(1, b="x")  # rejected


async def sending(queue: TaskQueue) -> None:
    assert_type(await greet.send("Ada"), TaskHandle[str])
    assert_type(await greet.delay("Ada", 2), TaskHandle[str])
    assert_type(await add.bind(queue).send(1, b=2), TaskHandle[int])
    assert_type(await mail.with_options(delay=5.0, deadline=9.0, task_id="x").send("a", "b"), TaskHandle[None])
    assert_type(await queue.send(greet, "Ada", times=2), TaskHandle[str])
    assert_type(await queue.send(add, 1, 2), TaskHandle[int])
    assert_type(greet.task("Ada"), Task)
    assert_type(await queue.enqueue(greet.task("Ada")), bool)
    await greet.send(5)  # rejected
    await greet.send()  # rejected
    await greet.send("Ada", loud=True)  # rejected
    await queue.send(add, 1)  # rejected
    await queue.send(add, 1, "x")  # rejected
    await queue.send(len, "x")  # rejected
    greet.task(5)  # rejected
    greet.with_options(retries=5)  # rejected
    greet.with_options(delay="soon")  # rejected
    greet.with_options(limits=("api",))  # rejected
    greet.with_options(unique=lambda name: 5)  # rejected
    greet.bind(5)  # rejected


async def waiting(handle: TaskHandle[int], queue: TaskQueue) -> None:
    assert_type(await handle.result(), int)
    assert_type(await handle.result(timeout=5), int)
    wide: TaskHandle[int | str] = handle
    print(wide)
    narrow: TaskHandle[bool] = handle  # rejected
    assert_type(queue.handle("x"), TaskHandle[Any])
    assert_type(queue.handle("x", greet), TaskHandle[str])
    await queue.handle(5)  # rejected


async def consuming(queue: TaskQueue) -> None:
    assert_type(await queue.dequeue(timeout=5), Task | None)
    found = await queue.dequeue()
    assert found is not None
    assert_type(await queue.ack(found, {"any": "thing"}), bool)
    assert_type(await queue.nack("x", ValueError("no"), delay=5), bool)
    await queue.ack(None)  # rejected
    await queue.nack(found, 5)  # rejected
    await queue.every(60, greet.task("Ada"))
    await queue.every(60, mail)
    await queue.every("minute", mail)  # rejected
    await queue.cron("* * * * *", greet, tz="UTC")
    TaskQueue(overflow="explode")  # rejected
    async with TaskQueue(overflow="reject") as other:
        assert_type(other, TaskQueue)


def blocking() -> None:
    with TaskQueue() as queue:
        assert_type(queue, BlockingTaskQueue)
        assert_type(queue.enqueue(add.task(1, 2)), bool)
        assert_type(queue.send(greet, "Ada"), BlockingTaskHandle[str])
        assert_type(queue.send(add, 1, 2).result(5), int)
        assert_type(queue.handle("x", add).result(), int)
        assert_type(queue.dequeue(), Task | None)
        assert_type(queue.cancel("x"), str)
        assert_type(queue.cancel(["x", "y"]), dict[str, str])
        queue.cancel(5)  # rejected
        queue.send(greet, 5)  # rejected
        greet.bind(queue)  # rejected
        queue.ack(5)  # rejected


def together() -> None:
    functions: list[TaskFunction[..., Any]] = [greet, add, mail, mail_now]
    plain: PlainTaskFunction[..., int] = add
    asynchronous: AsyncTaskFunction[..., int] = add  # rejected
    result: TaskFunction[..., object] = greet
    number: TaskFunction[..., int] = greet  # rejected
    print(functions, plain, result)
