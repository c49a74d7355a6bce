"""What a task queue promises to producers and consumers, over each store and on each loop."""

from __future__ import annotations

import logging
import math
import time
from heapq import heappop, heappush
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuelight.errors import PoolClosed, RateLimited, Rejected, TaskTimedOut
from cuelight.pools import TaskStatus
from cuelight.tasks import Limit, Query, QueueEntry, Record, Task, TaskPriority, TaskQueue, task
from helpers import Backend, run_on


@task(name="greet")
async def greet(name: str) -> str:
    return f"Hello, {name}"


async def taken(queue: TaskQueue, timeout: float = 0.0) -> Task:
    found = await queue.dequeue(timeout)
    assert found is not None
    return found


async def test_what_was_enqueued_is_dequeued_as_it_was(queue: TaskQueue) -> None:
    given = Task(
        task_type="mail", payload={"to": ["ada"], "n": 1}, priority=TaskPriority.HIGH, max_retries=7, timeout=5.0
    )
    assert await queue.enqueue(given)
    found = await taken(queue)
    assert (found.task_id, found.task_type, found.payload) == (given.task_id, "mail", {"to": ["ada"], "n": 1})
    assert (found.priority, found.max_retries, found.timeout) == (TaskPriority.HIGH, 7, 5.0)
    assert (found.deadline, found.retry_count, found.status) == (None, 0, TaskStatus.IN_FLIGHT)
    assert found.created_at == given.created_at


async def test_a_task_is_taken_by_priority_then_deadline_then_arrival(queue: TaskQueue) -> None:
    soon = time.time() + 60
    tasks = {
        "late": Task(priority=TaskPriority.LOW),
        "first": Task(),
        "second": Task(),
        "dated": Task(deadline=soon + 60),
        "sooner": Task(deadline=soon),
        "urgent": Task(priority=TaskPriority.CRITICAL),
    }
    assert await queue.enqueue_many(tasks.values()) == [True] * 6
    names = {given.task_id: name for name, given in tasks.items()}
    order = [names[(await taken(queue)).task_id] for _ in tasks]
    assert order == ["urgent", "sooner", "dated", "first", "second", "late"]
    assert await queue.dequeue() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a back end is just a name
@given(
    st.lists(st.tuples(st.sampled_from(TaskPriority), st.sampled_from([None, 4e9, 5e9]), st.booleans()), max_size=12)
)
def test_tasks_are_taken_in_the_order_in_which_their_entries_compare(
    backend: Backend, given_tasks: list[tuple[TaskPriority, float | None, bool]]
) -> None:
    """Also among those that come while others are taken, and those that are tried again, which keep their place."""

    async def scenario() -> None:
        waiting: list[QueueEntry] = []
        async with TaskQueue() as queue:
            for sequence, (priority, deadline, take) in enumerate(given_tasks):
                given_task = Task(priority=priority, deadline=deadline)
                assert await queue.enqueue(given_task)
                heappush(waiting, QueueEntry(priority, deadline or math.inf, sequence, given_task.task_id))
                if take:
                    assert await queue.nack(await taken(queue), "again"), "it is tried again, in its old place"
                    assert (await taken(queue)).task_id == heappop(waiting).task_id
            while waiting:
                assert (await taken(queue)).task_id == heappop(waiting).task_id
            assert await queue.dequeue() is None

    run_on(backend, scenario)


async def test_a_task_is_taken_only_once_by_its_identifier(queue: TaskQueue) -> None:
    given = Task(task_id="one")
    assert await queue.enqueue(given)
    assert not await queue.enqueue(given)
    assert await queue.enqueue_many([Task(task_id="two"), Task(task_id="one"), Task(task_id="two")]) == [
        True,
        False,
        False,
    ]
    assert await queue.ack(await taken(queue))
    assert not await queue.enqueue(given), "also after it was done"
    assert (await queue.size()).pending == 1


async def test_a_unique_key_is_taken_until_its_task_is_finished(queue: TaskQueue) -> None:
    assert await queue.enqueue(Task(unique="report"))
    assert not await queue.enqueue(Task(unique="report"))
    assert await queue.ack(await taken(queue))
    assert await queue.enqueue(Task(unique="report"))


async def test_a_task_past_its_deadline_becomes_a_dead_letter(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="old", deadline=time.time() - 1))
    await queue.enqueue(Task(task_id="good"))
    assert (await taken(queue)).task_id == "good"
    letter = await queue.dead_letters.get("old")
    assert letter.reason == "expired"
    assert (await queue.size()).dead_letter == 1


async def test_nack_counts_and_dead_letters_at_max_retries(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="bad", max_retries=2))
    first = await taken(queue)
    assert await queue.nack(first, ValueError("no luck")), "it will be tried again"
    assert (first.retry_count, first.status) == (1, TaskStatus.PENDING)
    second = await taken(queue)
    assert (second.task_id, second.retry_count) == ("bad", 1)
    assert not await queue.nack("bad", "still none")
    assert (second.retry_count, second.status) == (2, TaskStatus.DEAD_LETTER)
    dead = await queue.get("bad")
    assert dead is not None
    assert [attempt.error for attempt in dead.history] == ["ValueError: no luck", "still none"]
    assert "ValueError: no luck" in dead.history[0].traceback
    assert await queue.dequeue() is None


async def test_nack_heeds_errors_that_say_more(queue: TaskQueue) -> None:
    for task_id in ("limited", "rejected", "slow"):
        await queue.enqueue(
            Task(task_id=task_id, max_retries=1, limits=(Limit("api"),) if task_id == "limited" else ())
        )
    for found in [await taken(queue) for _ in range(3)]:
        errors = {"limited": RateLimited(0.0, "api"), "rejected": Rejected("bad input"), "slow": TaskTimedOut("5 s")}
        again = await queue.nack(found, errors[found.task_id])
        assert again == (found.task_id != "rejected")
    limited, slow = await queue.get("limited"), await queue.get("slow")
    assert limited is not None
    assert slow is not None
    assert (limited.counts.rate_limited, limited.counts.errors) == (1, 0)
    assert (slow.counts.timeouts, slow.counts.errors) == (1, 0)
    assert (await queue.dead_letters.get("rejected")).reason == "rejected"


async def test_nack_with_a_delay_hides_the_task_until_then(queue: TaskQueue) -> None:
    await queue.enqueue(Task())
    assert await queue.nack(await taken(queue), delay=0.05)
    assert await queue.dequeue() is None
    assert (await taken(queue, 5.0)).retry_count == 1


async def test_dequeue_waits_for_a_task_and_no_longer_than_it_says(queue: TaskQueue) -> None:
    assert await queue.dequeue(0.01) is None
    found: list[Task | None] = []

    async def wait() -> None:
        found.append(await queue.dequeue(math.inf))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await queue.enqueue(Task(task_id="awaited"))
    assert [one and one.task_id for one in found] == ["awaited"]


async def test_dequeue_waits_for_the_time_of_a_delayed_task(queue: TaskQueue) -> None:
    await queue.enqueue(Task(delay=0.05))
    assert (await queue.size()).scheduled == 1
    assert await queue.dequeue() is None
    await taken(queue, 5.0)


async def test_each_task_goes_to_one_of_those_who_wait(queue: TaskQueue) -> None:
    found: list[str] = []
    given = [Task() for _ in range(40)]

    async def consume() -> None:
        while (one := await queue.dequeue(5.0)) is not None and one.task_type != "end":
            found.append(one.task_id)
            assert await queue.ack(one)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(consume)
        await queue.enqueue_many(given[:20])
        for one in given[20:]:
            await queue.enqueue(one)
        await queue.enqueue_many(Task(task_type="end", priority=TaskPriority.LOW) for _ in range(5))
    assert sorted(found) == sorted(one.task_id for one in given)


async def test_ack_and_nack_settle_only_what_this_handle_has(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="mine"))
    assert not await queue.ack("mine"), "not dequeued yet"
    found = await taken(queue)
    assert queue.in_flight() == {"mine": found}
    assert (await queue.size()).in_flight == 1
    assert await queue.extend(found)
    assert await queue.extend("mine", 60.0)
    assert await queue.ack(found)
    assert not await queue.ack(found)
    assert not await queue.nack("mine")
    assert not await queue.extend("mine")
    assert queue.in_flight() == {}


async def test_a_result_that_cannot_be_stored_leaves_the_task_in_flight(queue: TaskQueue) -> None:
    await queue.enqueue(Task())
    found = await taken(queue)
    with pytest.raises(TypeError, match=r"result\['x'\] cannot be stored"):
        await queue.ack(found, {"x": object()})
    assert await queue.ack(found, {"x": 1})


async def test_cancel_says_what_it_did(queue: TaskQueue) -> None:
    await queue.enqueue_many([Task(task_id="waits"), Task(task_id="runs", priority=TaskPriority.HIGH)])
    found = await taken(queue)
    assert await queue.cancel("waits") == "cancelled"
    assert await queue.cancel("waits") == "cancelled"
    assert await queue.cancel("runs") == "cancelling"
    assert await queue.cancel("nobody") == "unknown"
    assert not await queue.nack(found), "a task that is wanted cancelled is not tried again"
    assert await queue.cancel("runs") == "cancelled"
    assert found.status == TaskStatus.CANCELLED
    await queue.enqueue(Task(task_id="done"))
    await queue.ack(await taken(queue))
    assert await queue.cancel("done") == "finished"


async def test_a_paused_queue_gives_no_tasks(queue: TaskQueue) -> None:
    await queue.enqueue(Task())
    await queue.pause()
    assert (await queue.size()).paused
    assert await queue.dequeue() is None
    assert await queue.dequeue(0.02) is None
    await queue.resume()
    await taken(queue)


async def test_a_closed_queue_takes_no_tasks_and_gives_those_it_has(queue: TaskQueue) -> None:
    await queue.enqueue(Task())
    await queue.close()
    with pytest.raises(PoolClosed):
        await queue.enqueue(Task())
    await queue.ack(await taken(queue))
    await queue.reopen()
    assert await queue.enqueue(Task())


async def test_drain_waits_until_all_is_done(queue: TaskQueue) -> None:
    assert await queue.drain()
    await queue.enqueue_many([Task(), Task(delay=0.02), Task(task_id="tomorrow", delay=86400.0)])
    assert not await queue.drain(0)
    assert not await queue.drain(0.005)

    async def consume() -> None:
        for _ in range(2):
            found = await taken(queue, 5.0)
            assert not await queue.drain(0), "one is in flight"
            await queue.ack(found)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        assert await queue.drain(5.0)
    assert not await queue.drain(0.01, scheduled=True)
    assert await queue.cancel("tomorrow") == "cancelled"
    assert await queue.drain(scheduled=True)


async def test_purge_forgets_what_is_over(queue: TaskQueue) -> None:
    await queue.enqueue_many([Task(task_id="done"), Task(task_id="waits", priority=TaskPriority.LOW)])
    await queue.ack(await taken(queue))
    assert await queue.purge(["done", "waits", "nobody"]) == 1
    assert await queue.purge("waits") == 0
    assert await queue.get("done") is None
    assert await queue.enqueue(Task(task_id="done")), "its identity is forgotten too"


async def test_limits_hold_back_tasks_of_the_same_key(queue: TaskQueue) -> None:
    await queue.enqueue_many(Task(limits=(Limit("api", max_concurrent=1),)) for _ in range(3))
    first = await taken(queue)
    assert await queue.dequeue() is None
    await queue.ack(first)
    second = await taken(queue)
    await queue.set_limit(Limit("api", max_concurrent=2))
    third = await taken(queue)
    assert await queue.ack(second)
    assert await queue.ack(third)
    await queue.enqueue_many(Task(limits=(Limit("api", max_concurrent=1),)) for _ in range(2))
    await queue.clear_limit("api")
    await queue.ack(await taken(queue))
    await queue.pause_limit("api", 60.0)
    assert await queue.dequeue() is None


async def test_schedules_are_kept_by_name(queue: TaskQueue) -> None:
    daily = greet.with_options(max_retries=9).task("Ada")
    assert await queue.every(3600, daily) == "greet"
    assert await queue.cron("30 9 * * MON-FRI", daily, tz="Europe/Berlin", name="mornings") == "mornings"
    first, second = sorted(await queue.schedules(), key=lambda one: one.name)
    assert (first.name, second.name) == ("greet", "mornings")
    assert first.record.max_retries == 9
    assert first.due > time.time() + 3500
    await queue.every(3600, Task(task_type="greet"), name="greet")
    again = next(one for one in await queue.schedules() if one.name == "greet")
    assert again.due == first.due, "said again it keeps its time"
    assert await queue.remove_schedule("greet")
    assert not await queue.remove_schedule("greet")
    assert [one.name for one in await queue.schedules()] == ["mornings"]


async def test_a_schedule_that_makes_no_sense_is_refused(queue: TaskQueue) -> None:
    with pytest.raises(ValueError, match="every"):
        await queue.every(0, greet.task("Ada"))
    with pytest.raises(ValueError, match="61"):
        await queue.cron("61 * * * *", greet.task("Ada"))
    with pytest.raises(ValueError, match="name"):
        await queue.every(5, Task())
    with pytest.raises(ValueError, match="deadline"):
        await queue.every(5, Task(task_type="x", deadline=time.time() + 60))
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        await queue.every(5, greet)
    assert await queue.schedules() == []


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_wrong_time_to_wait_is_refused(queue: TaskQueue, timeout: float) -> None:
    await queue.enqueue(Task())
    with pytest.raises(ValueError, match="timeout"):
        await queue.dequeue(timeout)
    found = await taken(queue)
    with pytest.raises(ValueError, match="delay"):
        await queue.nack(found, delay=timeout)
    with pytest.raises(ValueError, match="seconds"):
        await queue.extend(found, timeout)


async def test_one_wrong_task_of_a_batch_keeps_all_out(queue: TaskQueue) -> None:
    with pytest.raises(ValueError, match="timeout=-1"):
        await queue.enqueue_many([Task(), Task(timeout=-1)])
    assert await queue.enqueue_many([]) == []
    assert (await queue.size()).pending == 0


async def test_a_payload_that_no_queue_has_stored_is_given_up(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.store.add([Record(id="odd", type="x", payload=b"\xc1"), Record(id="good", type="x")])
    with caplog.at_level(logging.ERROR):
        found = await queue.dequeue(1.0)
    assert found is not None
    assert found.task_id == "good"
    assert "odd is given up" in caplog.text
    letters = await queue.store.find(Query(state="dead_letter"))
    assert [(letter.record.id, letter.reason) for letter in letters] == [("odd", "undecodable")]


async def test_a_memory_store_compares_queue_entries() -> None:
    async with TaskQueue() as queue:
        tasks = [Task(priority=TaskPriority(number % 3), deadline=(None, 4e9)[number % 2]) for number in range(12)]
        await queue.enqueue_many(tasks)
        store: Any = queue.store
        entries: list[QueueEntry] = sorted(entry for entry, _, _ in store._row_store._unlimited.entries)
        assert {type(entry) for entry in entries} == {QueueEntry}
        expected = [
            QueueEntry(one.priority, one.deadline or math.inf, number, one.task_id) for number, one in enumerate(tasks)
        ]
        assert [entry.task_id for entry in entries] == [entry.task_id for entry in sorted(expected)]
        assert [(await taken(queue)).task_id for _ in tasks] == [entry.task_id for entry in entries]
    assert QueueEntry(2, math.inf, 7) < QueueEntry(2, math.inf, 8) < QueueEntry(2, math.inf, 1, turn=1.0)
    assert QueueEntry(2, 1.0, 7, "a")._replace(priority=1) == QueueEntry(1, 1.0, 7, "a")
