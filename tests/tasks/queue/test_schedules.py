"""Periodic work as it is declared: names, changes of its time, and the whole set at once. Over each store."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from cuelight.tasks import Cron, Every, Schedule, Task, TaskQueue, task
from cuelight.tasks._queue._periodic import due_after_change
from helpers.task_queues import flaky


@task(name="greet")
async def greet(name: str, tags: set[str] | None = None) -> str:
    return name


@task(name="poll")
async def poll() -> None:
    raise AssertionError


async def by_name(queue: TaskQueue) -> dict[str, Schedule]:
    return {schedule.name: schedule for schedule in await queue.schedules()}


async def test_other_work_under_a_name_that_nobody_gave_is_refused(queue: TaskQueue) -> None:
    assert await queue.every(60, greet.task("Ann")) == "greet"
    with pytest.raises(ValueError, match=r"there is already a schedule 'greet', .*name='greet' to replace it"):
        await queue.every(60, greet.task("Ben"))
    with pytest.raises(ValueError, match="there is already a schedule 'greet'"):
        await queue.cron("@daily", greet.task("Ben"))
    assert (await by_name(queue))["greet"].record.payload == (await by_name(queue))["greet"].record.payload
    assert await queue.every(60, greet.task("Ben"), name="greet Ben") == "greet Ben"
    assert await queue.every(30, greet.task("Ann")) == "greet", "the same work may have another time"
    assert await queue.every(30, greet.task("Eve"), name="greet") == "greet", "its name was given"
    assert len(await queue.schedules()) == 2


async def test_the_same_arguments_in_another_order_are_the_same_work(queue: TaskQueue) -> None:
    await queue.every(60, greet.task("Ann", {"a", "b", "c"}))
    await queue.every(60, greet.task("Ann", {"c", "b", "a"}))
    await queue.every(60, Task(task_type="untyped", payload={"a": 1, "b": 2}))
    await queue.every(60, Task(task_type="untyped", payload={"b": 2, "a": 1}))
    assert len(await queue.schedules()) == 2


async def test_periods_of_two_versions_in_turn_do_not_put_the_work_off(queue: TaskQueue) -> None:
    await queue.every(3600, poll)
    first = (await by_name(queue))["poll"]
    for seconds in (3600.5, 3600, 3600.5, 3600):
        await queue.every(seconds, poll)
        due = (await by_name(queue))["poll"].due
        assert abs(due - first.due) < 1, "it counts from the last time"


@pytest.mark.parametrize(
    ("old", "due", "new", "expected"),
    [
        ("every 3600.0", 1000.0 + 3600, "every 3600.5", 1000.0 + 3600.5),  # the last time was at 1000
        ("every 86400.0", 1000.0 + 86400, "every 60.0", 1060.0),
        ("every 60.0", 1060.0, "every 86400.0", 1000.0 + 86400),
        ("every 60.0", 900.0, "every 86400.0", 900.0),  # what is due stays due
        ("every 60.0", 900.0, "cron UTC 0 9 * * *", 900.0),
        ("every 60.0", 1060.0, "every 60.0", 1060.0),
        ("every~ab 60.0", 1060.0, "every 60.0", 1060.0),
        ("every 60.0", 9000.0, "every 30.0", 1030.0),  # a clock that was set back
        ("every 60.0", 1060.0, "cron UTC 0 9 * * *", 9 * 3600.0),
        ("cron UTC 0 9 * * *", 9 * 3600.0, "every 60.0", 1060.0),
        ("cron UTC 0 9 * * *", 9 * 3600.0, "cron UTC 0 10 * * *", 10 * 3600.0),
        ("every nonsense", 1060.0, "every 60.0", 1060.0),
        ("nonsense", 5000.0, "every 60.0", 1060.0),
    ],
)
def test_a_changed_time_counts_from_the_last_one_and_what_is_due_stays_due(
    old: str, due: float, new: str, expected: float
) -> None:
    assert due_after_change(new, 1000.0, old, due) == expected


async def test_sync_schedules_adds_changes_and_removes(queue: TaskQueue) -> None:
    await queue.every(60, poll, name="old")
    await queue.every(60, greet.task("Ann"))
    before = await by_name(queue)

    wanted: list[Every | Cron] = [
        Every(60, greet.task("Ann")),
        Every(60, greet.task("Ben"), name="greet Ben"),
        Cron("@daily", poll, tz="Europe/Berlin"),
    ]
    changes = await queue.sync_schedules(wanted)
    assert (changes.added, changes.changed, changes.removed) == (["greet Ben", "poll"], [], ["old"])
    assert changes.unchanged == ["greet"]
    there = await by_name(queue)
    assert sorted(there) == ["greet", "greet Ben", "poll"]
    assert there["greet"].due == before["greet"].due

    assert (await queue.sync_schedules(wanted)).unchanged == ["greet", "greet Ben", "poll"]

    wanted[0] = Every(60, greet.task("Eve"))
    wanted[1] = Every(61, greet.task("Ben"), name="greet Ben")
    wanted[2] = Cron("@daily", poll.with_options(max_retries=9), tz="Europe/Berlin")
    changes = await queue.sync_schedules(iter(wanted))
    assert changes.changed == ["greet", "greet Ben", "poll"]
    assert (await by_name(queue))["poll"].due == there["poll"].due
    assert (await by_name(queue))["greet Ben"].due == pytest.approx(there["greet Ben"].due + 1)

    assert (await queue.sync_schedules([])).removed == ["greet", "greet Ben", "poll"]
    assert await queue.schedules() == []


async def test_a_set_with_a_mistake_in_it_changes_nothing(queue: TaskQueue) -> None:
    await queue.every(60, poll)
    any_every: Any = Every
    mistakes: list[tuple[Callable[[], list[Any]], type[Exception], str]] = [
        (lambda: [Every(60, greet.task("Ben"))], ValueError, "two schedules are named 'greet'"),
        (lambda: [Every(math.nan, poll)], ValueError, r"every\(nan\)"),
        (lambda: [Cron("61 * * * *", poll)], ValueError, "bad minute"),
        (lambda: [greet], TypeError, r"give Every\(seconds, task\) or Cron\(line, task\)"),
        (lambda: [any_every(60, print)], TypeError, "decorated with @task"),
        (lambda: [Every(60, Task())], ValueError, "without a name"),
    ]
    for wrong, kind, message in mistakes:
        with pytest.raises(kind, match=message):
            await queue.sync_schedules([Every(60, greet.task("Ann")), *wrong()])
        assert list(await by_name(queue)) == ["poll"]


async def test_a_set_is_completed_when_the_store_was_away_in_between() -> None:
    from cuelight.tasks import MemoryStore

    faulty, store = flaky(MemoryStore())
    async with TaskQueue(store) as queue:
        await queue.every(60, poll, name="old")
        faulty.fail(2, 4, 6, side="after")
        await queue.sync_schedules([Every(60, poll), Every(60, greet.task("Ann"))])
        assert sorted(await by_name(queue)) == ["greet", "poll"]


def test_blocking_code_has_the_same() -> None:
    with TaskQueue() as queue:
        changes = queue.sync_schedules([Every(60, poll)])
        assert (changes.added, [one.name for one in queue.schedules()]) == (["poll"], ["poll"])
