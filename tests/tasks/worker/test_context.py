"""What a task knows of itself, and what it keeps for the next attempt."""

from __future__ import annotations

import pickle
from typing import Any

import anyio
import pytest

from cuelight.errors import LeaseLost
from cuelight.tasks import Task, TaskContext, TaskHandle, current_task
from helpers.workers import Faulty, loop_store, new_worker, open_queue, snapshot, until


def test_outside_of_a_task_there_is_no_context() -> None:
    with pytest.raises(RuntimeError, match="no task runs here"):
        current_task()


async def test_a_task_goes_on_from_what_an_attempt_before_it_saved() -> None:
    seen: list[Any] = []

    async def count(_: Any) -> int:
        context = current_task()
        seen.append((context.attempt, context.counts.errors, context.checkpoint, context.key("charge")))
        start = context.checkpoint or 0
        await context.save(start + 1)
        assert context.checkpoint == start + 1
        if start < 2:
            raise ValueError
        return start

    async with open_queue() as queue, new_worker(queue, {"count": count}):
        mine = Task(task_id="t1", task_type="count")
        await queue.enqueue(mine)
        assert await queue.handle("t1").result() == 2
    assert seen == [(1, 0, None, "t1:charge"), (2, 1, 1, "t1:charge"), (3, 2, 2, "t1:charge")]


async def test_progress_is_seen_from_outside() -> None:
    async def work(_: Any) -> None:
        for done in (0.25, 0.5):
            await current_task().progress(done)
            await anyio.sleep(10)

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        mine = Task(task_type="work")
        await queue.enqueue(mine)
        handle: TaskHandle[Any] = queue.handle(mine.task_id)
        await anyio.sleep(5)
        assert await handle.progress() == 0.25
        await anyio.sleep(10)
        assert await handle.progress() == 0.5
        await until(queue, mine, "completed")


async def test_what_cannot_be_stored_is_refused_where_it_is_given() -> None:
    errors: list[str] = []

    async def work(_: Any) -> None:
        for keep in (current_task().progress, current_task().save):
            try:
                await keep(object())
            except TypeError as error:
                errors.append(str(error))

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        mine = Task(task_type="work")
        await queue.enqueue(mine)
        await until(queue, mine, "completed")
    assert ["progress" in errors[0], "checkpoint" in errors[1]] == [True, True]


async def test_the_deadline_of_an_attempt_is_known_and_whether_it_was_cut_off() -> None:
    contexts: list[TaskContext] = []

    async def work(_: Any) -> None:
        contexts.append(current_task())
        await anyio.sleep(20)

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        start = queue.store.now()
        mine, other = Task(task_type="work", timeout=5, max_timeouts=1), Task(task_type="work")
        await queue.enqueue_many([mine, other])
        await until(queue, mine, "dead_letter")
        await until(queue, other, "completed")
    first, second = sorted(contexts, key=lambda context: context.deadline is None)
    assert (first.task_id, second.task_id, first.task_type) == (mine.task_id, other.task_id, "work")
    assert first.deadline == pytest.approx(start + 5, abs=0.1)
    assert second.deadline is None
    assert (first.cancelled, second.cancelled) == (True, False)
    assert repr(second) == f"<attempt 1 of work {other.task_id}>"


async def test_a_task_that_is_cut_off_may_save_while_it_cleans_up() -> None:
    async def work(_: Any) -> int:
        context = current_task()
        if context.checkpoint is not None:
            return int(context.checkpoint)
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await context.save(17)
        raise AssertionError

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        mine = Task(task_type="work", timeout=5)
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == 17


async def test_an_attempt_that_has_ended_can_keep_nothing_more() -> None:
    contexts: list[TaskContext] = []

    async def work(_: Any) -> None:
        contexts.append(current_task())

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        mine = Task(task_type="work")
        await queue.enqueue(mine)
        kept = await until(queue, mine, "completed")
        with pytest.raises(LeaseLost, match="has ended, or lost its lease"):
            await contexts[0].save("too late")
        assert kept.checkpoint is None


async def test_saving_waits_for_a_store_that_is_away() -> None:
    faulty = Faulty(loop_store())

    async def work(_: Any) -> None:
        faulty.away = True
        async with anyio.create_task_group() as group:
            group.start_soon(come_back)
            await current_task().save("kept")

    async def come_back() -> None:
        await anyio.sleep(4)
        faulty.away = False

    async with open_queue(faulty.store) as queue, new_worker(queue, {"work": work}, lease=30):
        mine = Task(task_type="work")
        await queue.enqueue(mine)
        await until(queue, mine, "completed")
        assert anyio.current_time() >= 4


async def test_a_stale_attempt_that_saves_is_told_that_its_lease_is_lost() -> None:
    errors: list[Exception] = []

    async def work(_: Any) -> None:
        try:
            await current_task().save(1)
        except LeaseLost as error:
            errors.append(error)

    async with open_queue() as queue:
        save = queue.store.save

        async def refuse(task_id: str, epoch: int, **kept: Any) -> bool:
            return await save(task_id, epoch - 1, **kept)

        queue.store.save = refuse  # type: ignore[method-assign]
        async with new_worker(queue, {"work": work}):
            mine = Task(task_type="work")
            await queue.enqueue(mine)
            await until(queue, mine, "completed")
        assert (await snapshot(queue, mine)).checkpoint is None
    assert len(errors) == 1


async def test_a_context_that_went_to_a_process_can_be_read_and_keeps_nothing() -> None:
    copies: list[TaskContext] = []

    async def work(_: Any) -> None:
        copies.append(pickle.loads(pickle.dumps(current_task())))

    async with open_queue() as queue, new_worker(queue, {"work": work}):
        mine = Task(task_id="t1", task_type="work", timeout=5)
        await queue.enqueue(mine)
        await until(queue, mine, "completed")
    [copy] = copies
    assert (copy.task_id, copy.attempt, copy.deadline is not None, copy.cancelled) == ("t1", 1, True, False)
    with pytest.raises(RuntimeError, match="read-only"):
        await copy.save(1)
    with pytest.raises(RuntimeError, match="does not run in a thread"):
        copy.progress_blocking(1)
