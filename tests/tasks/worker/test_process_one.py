"""`process_one`: one task, isolated; from the queue or given by hand."""

from __future__ import annotations

import logging
import sys
from typing import Any

import anyio
import pytest

from cuelight.errors import RateLimited, Rejected, StoreUnavailable, TaskFailed, TaskTimedOut
from cuelight.tasks import MemoryStore, Snapshot, Task, TaskWorker, current_task, task
from helpers.workers import Faulty, loop_store, new_worker, open_queue, snapshot


@task(name="double")
async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return number * 2


async def echo(given: Task) -> Any:
    return given.payload


async def test_a_given_task_runs_without_a_queue_and_its_payload_is_left_as_it_is() -> None:
    payload = object()  # nobody has to store it
    result = await new_worker(None, handler=echo, worker_id="w1").process_one(Task(task_id="t1", payload=payload))
    assert result is not None
    assert (result.task_id, result.worker_id, result.success, result.error) == ("t1", "w1", True, None)
    assert result.result is payload
    assert result.unwrap() is payload
    assert result.duration_ms >= 0


async def test_a_given_task_of_a_function_is_called_with_its_arguments() -> None:
    result = await new_worker(None, [double]).process_one(double.task(4))
    assert result is not None
    assert result.result == 8


@pytest.mark.parametrize("error", [ValueError("v"), Rejected("r"), RateLimited(3.0)])
async def test_an_exception_is_in_the_result_and_goes_no_further(error: Exception) -> None:
    async def fail(_: Task) -> None:
        raise error

    result = await new_worker(None, handler=fail).process_one(Task())
    assert result is not None
    assert (result.success, result.error, result.result) == (False, error, None)
    with pytest.raises(type(error)):
        result.unwrap()


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), BaseExceptionGroup("two", [SystemExit(1)])])
async def test_what_is_no_exception_is_in_the_result_too(error: BaseException) -> None:
    async def fail(_: Task) -> None:
        raise error

    result = await new_worker(None, handler=fail).process_one(Task())
    assert result is not None
    assert isinstance(result.error, TaskFailed)
    assert type(error).__name__ in str(result.error)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_goes_on_and_the_task_is_given_back(backend: str) -> None:
    store = MemoryStore()

    async def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    async def give() -> None:
        async with open_queue(store) as queue:
            await queue.enqueue(Task(task_id="t1", task_type="x", max_retries=1))

    async def work() -> None:
        async with open_queue(store) as queue:
            await TaskWorker(queue, {"x": interrupt}).process_one()

    async def look() -> Snapshot:
        async with open_queue(store) as queue:
            return await snapshot(queue, "t1")

    anyio.run(give, backend=backend)
    with pytest.raises(KeyboardInterrupt):
        anyio.run(work, backend=backend)
    kept = anyio.run(look, backend=backend)
    assert (kept.state, kept.counts.released) == ("pending", 1)


async def test_none_claims_one_task_and_settles_it() -> None:
    async with open_queue() as queue:
        worker = new_worker(queue, [double])
        assert await worker.process_one() is None
        handles = [await queue.send(double, number) for number in (1, 2)]
        result = await worker.process_one()
        assert result is not None
        assert (result.task_id, result.result) == (handles[0].task_id, 2)
        assert await handles[0].result() == 2
        size = await queue.size()
        assert (size.completed, size.pending, size.in_flight) == (1, 1, 0)
        assert worker.stats().succeeded == 1


async def test_a_claimed_task_that_fails_is_counted_in_the_queue() -> None:
    async def fail(_: Any) -> None:
        raise ValueError("no")

    async with open_queue() as queue:
        mine = Task(task_type="fail", max_retries=2)
        await queue.enqueue(mine)
        worker = new_worker(queue, {"fail": fail})
        for state in ("pending", "dead_letter"):
            result = await worker.process_one()
            assert result is not None
            assert isinstance(result.error, ValueError)
            assert (await snapshot(queue, mine)).state in {state, "scheduled"}
        assert (await snapshot(queue, mine)).state == "dead_letter"


async def test_a_task_at_hand_of_an_unknown_type_is_said_to_be_with_its_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = await new_worker(None, [double], worker_id="w").process_one(Task(task_id="t1", task_type="other"))
    assert result is not None
    assert "there is no handler for the task type 'other'" in str(result.error)
    assert caplog.messages == ["w has no handler for the task type 'other': the task t1 is left to its caller"]


async def test_a_claimed_task_of_an_unknown_type_is_parked() -> None:
    async with open_queue() as queue:
        mine = Task(task_type="mystery")
        await queue.enqueue(mine)
        result = await new_worker(queue, [double]).process_one()
        assert result is not None
        assert "mystery" in str(result.error)
        assert (await snapshot(queue, mine)).state == "parked"


async def test_a_time_out_is_in_the_result() -> None:
    async def sleep(_: Task) -> None:
        await anyio.sleep(100)

    result = await new_worker(None, handler=sleep, timeout=5).process_one(Task())
    assert result is not None
    assert isinstance(result.error, TaskTimedOut)
    assert result.elapsed_ms == pytest.approx(5000, rel=0.01)


async def test_cancelling_it_cancels_the_task_and_gives_it_back() -> None:
    cut: list[float] = []

    async def sleep(_: Any) -> None:
        try:
            await anyio.sleep(100)
        finally:
            cut.append(anyio.current_time())

    async with open_queue() as queue:
        mine = Task(task_type="sleep", max_retries=1, max_crashes=1)
        await queue.enqueue(mine)
        with anyio.move_on_after(5) as scope:
            await new_worker(queue, {"sleep": sleep}).process_one()
        assert scope.cancelled_caught
        kept = await snapshot(queue, mine)
    assert (len(cut), kept.state, kept.counts.released) == (1, "pending", 1)


async def test_what_a_given_task_saves_is_there_for_its_next_attempt() -> None:
    async def count(_: Task) -> int:
        context = current_task()
        await context.progress(0.5)
        await context.save((context.checkpoint or 0) + 1)
        return int(context.checkpoint)

    worker = new_worker(None, handler=count)
    mine = Task()
    for number in (1, 2):
        result = await worker.process_one(mine)
        assert result is not None
        assert (result.result, mine.checkpoint) == (number, number)


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_store_that_fails_now_and_then_changes_nothing(how: str) -> None:
    for number in range(1, 8):

        def fails(step: str, call: int, number: int = number) -> str | None:
            return how if call == number and step != "beat" else None

        faulty = Faulty(loop_store())
        async with open_queue(faulty.store) as queue:
            handle = await queue.send(double, 3)
            faulty.calls, faulty.fails = 0, fails
            result = await new_worker(queue, [double]).process_one()
            assert result is not None
            assert result.result == 6
            assert await handle.result() == 6
            assert (await queue.size()).in_flight == 0


async def test_a_store_that_stays_away_is_reported() -> None:
    def fails(step: str, _: int) -> str | None:
        return "before" if step == "exchange" else None

    faulty = Faulty(loop_store())
    async with open_queue(faulty.store) as queue:
        faulty.fails = fails
        with pytest.raises(StoreUnavailable):
            await new_worker(queue, [double], lease=5).process_one()
        faulty.fails = None


async def test_a_traceback_does_not_keep_the_task_alive(caplog: pytest.LogCaptureFixture) -> None:
    import gc
    import weakref

    class Heavy:
        pass

    kept: list[weakref.ref[Heavy]] = []

    async def fail(_: Task) -> None:
        heavy = Heavy()
        kept.append(weakref.ref(heavy))
        raise ValueError

    worker = new_worker(None, handler=fail)
    gc.collect()
    gc.disable()
    try:
        with caplog.at_level(logging.CRITICAL, "cuelight.tasks"):  # a record would keep the exception
            result = await worker.process_one(Task())
        assert result is not None
        result = None
        await anyio.lowlevel.checkpoint()
        assert sys.getrefcount(worker) < 10
        assert kept[0]() is None
    finally:
        gc.enable()
