"""Payloads, results, progress, checkpoints and dead letters without annotations, over each store."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import anyio
import pytest

from cuelight.errors import Rejected, TaskFailed
from cuelight.supervision import Backoff
from cuelight.tasks import Task, TaskQueue, TaskWorker, current_task, task
from helpers.task_values import AN_HOUR, BERLIN

VALUES: list[Any] = [
    datetime(2026, 1, 2, 3, 4, 5),
    datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=BERLIN),
    datetime(2026, 1, 2, tzinfo=AN_HOUR),
    datetime(2026, 1, 2, tzinfo=UTC),
    date(2026, 1, 2),
    time(1, 2, 3, 4),
    timedelta(days=-1, microseconds=7),
    Decimal("1.10"),
    UUID(int=5),
    (1, ("a",)),
    {1, "a"},
    frozenset({(1, 2)}),
    b"\xff",
    bytearray(b"x"),
    {date(2026, 1, 2): Decimal(1), 7: None},
]
EVERYTHING = {"values": VALUES, "more": tuple(VALUES)}


class Color(Enum):
    RED = "red"


def types_of(value: Any) -> Any:
    if isinstance(value, dict):
        return [types_of(part) for part in value.values()]
    return [types_of(part) for part in value] if isinstance(value, list | tuple) else type(value)


def same(got: Any) -> bool:
    return bool(got == EVERYTHING) and types_of(got) == types_of(EVERYTHING)


@task(name="untyped")
async def untyped(given, **more):  # type: ignore[no-untyped-def]
    context = current_task()
    await context.progress(more["extra"])
    await context.save((given, context.attempt))
    if context.attempt == 1:
        raise ConnectionError
    return [context.checkpoint, more]


async def test_values_without_annotations_come_back_as_they_were_over_every_store(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="a", payload=EVERYTHING))
    taken = await queue.dequeue()
    assert taken is not None
    assert same(taken.payload)
    await queue.ack(taken, result=EVERYTHING)
    assert same(await queue.handle("a").result())

    async with TaskWorker(queue, [untyped], backoff=Backoff(minimum=0, maximum=0)):
        handle = await queue.send(untyped, EVERYTHING, extra=Decimal("0.5"))
        result: Any = await handle.result()
        checkpoint, more = result
        assert (type(checkpoint), checkpoint[1], more) == (tuple, 2, {"extra": Decimal("0.5")})
        assert same(checkpoint[0])
        assert await handle.progress() == Decimal("0.5")


async def test_a_dead_letter_shows_and_takes_values_as_they_are(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="a", payload=EVERYTHING))
    taken = await queue.dequeue()
    assert taken is not None
    await queue.nack(taken, Rejected("no"))
    letter = await queue.dead_letters.get("a")
    assert same(letter.payload)
    await queue.dead_letters.edit("a", (Decimal("1.5"), EVERYTHING))
    await queue.dead_letters.replay("a")
    again = await queue.dequeue(timeout=5)
    assert again is not None
    assert type(again.payload) is tuple
    assert same(again.payload[1])
    await queue.ack(again)


async def test_what_would_be_changed_is_refused_at_each_door(queue: TaskQueue) -> None:
    with pytest.raises(TypeError, match=r"payload\['color'\] cannot be stored: it is of type Color, an enum"):
        await queue.enqueue(Task(payload={"color": Color.RED}))
    with pytest.raises(TypeError, match="untyped: the argument extra cannot be stored: it is of type Color"):
        await queue.send(untyped, 1, extra=Color.RED)
    await queue.enqueue(Task(task_id="a"))
    taken = await queue.dequeue()
    assert taken is not None
    with pytest.raises(TypeError, match="result cannot be stored: it is of type Color"):
        await queue.ack(taken, result=Color.RED)
    assert await queue.ack(taken), "it is this handle's still"
    assert (await queue.size()).pending == 0


@task(name="careless", max_retries=1)
async def careless(where: str):  # type: ignore[no-untyped-def]
    context = current_task()
    if where == "progress":
        await context.progress(Color.RED)
    elif where == "checkpoint":
        await context.save([Color.RED])
    return Color.RED


async def test_a_task_that_gives_such_a_value_has_failed_with_the_reason() -> None:
    async with TaskQueue() as queue, TaskWorker(queue, [careless]):
        for where, what in (
            ("progress", "progress cannot be stored"),
            ("checkpoint", r"checkpoint\[0\] cannot be stored"),
            ("result", "the result of careless cannot be stored: it is of type Color, an enum"),
        ):
            with pytest.raises(TaskFailed, match=what):
                await (await queue.send(careless, where)).result()


async def test_what_is_nested_too_deep_is_refused_before_it_is_there(queue: TaskQueue) -> None:
    deep: Any = 1
    for _ in range(101):
        deep = [deep]
    with pytest.raises(TypeError, match="nested more than 100 levels deep"):
        await queue.enqueue(Task(payload=deep))
    await queue.enqueue(Task(task_id="a", payload=deep[0]))

    async def further(frames: int) -> Task | None:
        return await queue.dequeue() if not frames else await further(frames - 1)

    taken = await further(400)  # a consumer with many frames on its stack
    assert taken is not None
    assert taken.payload == deep[0]
    assert await queue.ack(taken, deep[0])
    with anyio.fail_after(10):
        assert await queue.handle("a").result() == deep[0]
