"""Tasks whose arguments do not fit the function of a worker, as while a new version is rolled out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from cuelight.errors import StoreUnavailable, TaskFailed
from cuelight.tasks import Task, TaskFunction, task
from cuelight.tasks._worker._mismatch import GIVE_UP_AFTER
from helpers.workers import Faulty, loop_store, new_worker, open_queue, snapshot, until


@task(name="mail")
async def old(to: str) -> str:
    return f"old {to}"


@task(name="mail")
async def new(to: str, site: str = "home") -> str:
    return f"new {to} {site}"


@task(name="mail")
async def stricter(to: str, site: str) -> str:
    return f"stricter {to} {site}"


@task(name="mail")
async def renamed(recipient: str) -> str:
    return f"renamed {recipient}"


@task(name="mail")
async def retyped(to: int) -> str:
    return f"retyped {to}"


SENT: list[tuple[Callable[[], Task], TaskFunction[..., Any], TaskFunction[..., Any], str]] = [
    (lambda: new.task("ann", site="work"), old, new, "new ann work"),
    (lambda: old.task("ann"), stricter, old, "old ann"),
    (lambda: old.task("ann"), renamed, old, "old ann"),
    (lambda: old.task("ann"), retyped, old, "old ann"),
]


@pytest.mark.parametrize(("sent", "wrong", "right", "result"), SENT)
async def test_a_task_for_another_version_waits_for_a_worker_that_has_it(
    sent: Callable[[], Task], wrong: TaskFunction[..., Any], right: TaskFunction[..., Any], result: str
) -> None:
    async with open_queue() as queue:
        mine = sent()
        mine.max_retries = 0
        await queue.enqueue(mine)
        async with new_worker(queue, [wrong]) as worker:
            await until(queue, mine, "scheduled")
            await anyio.sleep(600)
        kept = await snapshot(queue, mine)
        assert kept.state == "scheduled"
        assert (kept.counts.errors, kept.counts.crashes) == (0, 0), "it costs no attempt"
        assert {attempt.kind for attempt in kept.history} == {"mismatch"}
        assert worker.stats().released == len(kept.history)
        async with new_worker(queue, [right]):
            assert await queue.handle(mine.task_id, right).result() == result


async def test_the_error_names_the_call_that_was_sent_and_the_signature_of_the_worker() -> None:
    async with open_queue() as queue, new_worker(queue, [old]):
        handle = await queue.send(new, "ann", site="work")
        kept = await until(queue, handle.task_id, "scheduled")
        assert "the task was sent as (to='ann', site='work')" in kept.history[0].error
        assert "does not fit (to: 'str') -> 'str': got an unexpected keyword argument 'site'" in kept.history[0].error


async def test_a_task_that_fits_no_worker_becomes_a_dead_letter_after_an_hour() -> None:
    async with open_queue() as queue, new_worker(queue, [old]):
        began = anyio.current_time()
        handle = await queue.send(new, "ann", site="work")
        with pytest.raises(
            TaskFailed, match=r"no worker has had a function that fits for 60 minutes: mail: the task was"
        ):
            await handle.result()
        assert GIVE_UP_AFTER <= anyio.current_time() - began <= GIVE_UP_AFTER + 400
        kept = await snapshot(queue, handle.task_id)
        assert (kept.state, kept.reason) == ("dead_letter", "rejected")
        assert len(kept.history) < 20, "the first of them is remembered"
        delays = [after.at - before.at for before, after in zip(kept.history, kept.history[1:], strict=False)]
        assert [round(delay / 5 / 1.2) for delay in delays[:4]] == pytest.approx([1, 2, 4, 8], abs=2)

        # Replayed, it has an hour again.
        await queue.dead_letters.replay(handle.task_id)
        await until(queue, handle.task_id, "scheduled")


async def test_a_deploy_that_gives_the_task_back_does_not_begin_the_hour_anew() -> None:
    async with open_queue() as queue:
        handle = await queue.send(new, "ann", site="work")
        began = anyio.current_time()
        for _ in range(100):
            async with new_worker(queue, [old]):
                await anyio.sleep(60)
            if (await snapshot(queue, handle.task_id)).state == "dead_letter":
                break
        assert GIVE_UP_AFTER <= anyio.current_time() - began <= GIVE_UP_AFTER + 400


async def test_a_store_that_is_away_while_its_history_is_asked_for_costs_nothing() -> None:
    faulty = Faulty(loop_store(), lambda name, _: "before" if name == "get" else None)
    async with open_queue(faulty.store) as queue, new_worker(queue, [old]):
        mine = new.task("ann", site="work")
        await queue.enqueue(mine)
        with pytest.raises(StoreUnavailable):
            await faulty.store.get([mine.task_id])
        assert (await until(queue, mine, "scheduled")).history[0].kind == "mismatch"


async def test_a_task_at_hand_that_does_not_fit_says_so_at_once() -> None:
    result = await new_worker(None, [old]).process_one(new.task("ann", site="work"))
    assert result is not None
    assert "does not fit (to: 'str')" in str(result.error)
