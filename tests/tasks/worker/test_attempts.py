"""How attempts end: each kind is told apart, and none of them ends the worker."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, cast

import anyio
import pytest

from cuelight.errors import RateLimited, Rejected
from cuelight.mailbox import current_backend
from cuelight.tasks import Limit, Task, TaskQueue, current_task, task
from cuelight.testing import virtual_backend
from helpers.workers import A_SECOND, new_worker, open_queue, snapshot, until


@task(name="add")
async def add(one: int, other: int) -> int:
    await anyio.lowlevel.checkpoint()
    return one + other


async def test_a_task_function_is_called_with_its_arguments_and_its_result_is_kept() -> None:
    async with open_queue() as queue, new_worker(queue, [add]) as worker:
        handle = await queue.send(add, 1, other=2)
        assert await handle.result() == 3
        assert (worker.stats().processed, worker.stats().succeeded) == (1, 1)


async def test_a_mapping_gives_each_function_the_payload() -> None:
    async def double(payload: int) -> int:
        return payload * 2

    async with open_queue() as queue, new_worker(queue, {"double": double, "add": add}):
        mine = Task(task_type="double", payload=4)
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == 8
        assert await (await queue.send(add, 1, 1)).result() == 2


async def test_one_handler_for_every_type_is_given_the_task() -> None:
    async def run(given: Task) -> list[Any]:
        return [given.task_type, given.payload, given.retry_count]

    async with open_queue() as queue, new_worker(queue, handler=run):
        mine = Task(task_type="anything", payload={"a": 1})
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == ["anything", {"a": 1}, 0]


async def run_once(queue: TaskQueue, error: BaseException, max_retries: int = 1) -> Task:
    """A task that raises this, after its one attempt."""

    async def fail(_: Any) -> None:
        raise error

    mine = Task(task_type="fail", max_retries=max_retries)
    await queue.enqueue(mine)
    async with new_worker(queue, {"fail": fail}):
        await until(queue, mine, "dead_letter", "scheduled")
    return mine


async def test_an_exception_is_an_error_with_its_type_message_and_traceback() -> None:
    async with open_queue() as queue:
        kept = await snapshot(queue, await run_once(queue, ValueError("seven")))
    [attempt] = kept.history
    assert (kept.state, kept.reason, kept.counts.errors) == ("dead_letter", "errors", 1)
    assert (attempt.kind, attempt.error) == ("error", "ValueError: seven")
    assert "raise error" in attempt.traceback
    assert "_runner.py" not in attempt.traceback


async def test_a_task_that_fails_is_tried_again_after_its_back_off() -> None:
    began: list[float] = []

    async def fail(_: Any) -> None:
        began.append(anyio.current_time())
        raise ValueError

    async with open_queue() as queue, new_worker(queue, {"fail": fail}, backoff=A_SECOND):
        mine = Task(task_type="fail", max_retries=4)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
    assert [round(later - began[0], 2) for later in began] == [0, 1, 3, 7]
    assert (kept.counts.errors, len(kept.history)) == (4, 4)


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), BaseExceptionGroup("two", [SystemExit(1)])])
async def test_what_is_no_exception_ends_the_attempt_and_not_the_worker(error: BaseException) -> None:
    async def fail(_: Any) -> None:
        raise error

    async with open_queue() as queue, new_worker(queue, {"fail": fail, "add": add}):
        mine = Task(task_type="fail", max_retries=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
        assert type(error).__name__ in kept.history[0].error
        assert await (await queue.send(add, 1, 1)).result() == 2


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])  # on trio nobody can raise it
async def test_a_cancellation_of_somebody_elses_is_an_error() -> None:
    async def fail(_: Any) -> None:
        raise current_backend().cancelled

    async with open_queue() as queue, new_worker(queue, {"fail": fail, "add": add}):
        mine = Task(task_type="fail", max_retries=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
        assert "CancelledError" in kept.history[0].error
        assert await (await queue.send(add, 1, 1)).result() == 2


async def test_a_result_that_cannot_be_stored_is_an_error_that_says_so() -> None:
    async def make(_: Any) -> object:
        return {"socket": object()}

    async with open_queue() as queue, new_worker(queue, {"make": make}):
        mine = Task(task_type="make", max_retries=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
    assert "the result of" in kept.history[0].error
    assert "['socket']" in kept.history[0].error


async def test_rejected_gives_a_task_up_at_once() -> None:
    async with open_queue() as queue:
        kept = await snapshot(queue, await run_once(queue, Rejected("no such user"), max_retries=9))
    assert (kept.state, kept.reason) == ("dead_letter", "rejected")
    assert kept.history[0].error.endswith("Rejected: no such user")


@pytest.mark.parametrize("payload", [None, ["one"], {"args": [1, 2]}, {"args": [], "kwargs": {}, "more": 1}])
async def test_a_payload_that_is_no_call_is_rejected_with_the_reason(payload: Any) -> None:
    async with open_queue() as queue, new_worker(queue, [add]):
        mine = Task(task_type="add", payload=payload)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
    assert kept.reason == "rejected"
    assert "add cannot be called with this payload" in kept.history[0].error


async def test_rate_limited_is_no_attempt_and_pauses_its_key_for_all() -> None:
    began: list[tuple[str, float]] = []

    async def call(who: str) -> None:
        began.append((who, anyio.current_time()))
        if len(began) == 1:
            raise RateLimited(30.0, "api")

    limit = Limit("api", max_concurrent=1)
    async with open_queue() as queue, new_worker(queue, {"call": call}):
        tasks = [Task(task_type="call", payload=who, limits=(limit,), max_retries=1) for who in ("a", "b")]
        await queue.enqueue_many(tasks)
        for each in tasks:
            await until(queue, each, "completed")
        kept = await snapshot(queue, tasks[0])
        assert (kept.counts.rate_limited, kept.counts.errors) == (1, 0)
    assert all(when - began[0][1] >= 30 for _, when in began[1:])
    assert sorted(who for who, _ in began) == ["a", "a", "b"]


async def test_a_time_out_cancels_an_async_task_and_is_counted_apart() -> None:
    ends: list[float] = []

    async def sleep(_: Any) -> None:
        try:
            await anyio.sleep(100)
        finally:
            ends.append(anyio.current_time())

    async with open_queue() as queue, new_worker(queue, {"sleep": sleep}, timeout=50):
        mine = Task(task_type="sleep", timeout=5, max_timeouts=2)
        other = Task(task_type="sleep", max_timeouts=1)
        await queue.enqueue_many([mine, other])
        kept = await until(queue, mine, "dead_letter")
        assert (kept.reason, kept.counts.timeouts, kept.counts.errors) == ("timeouts", 2, 0)
        assert kept.history[0].error.endswith("TaskTimedOut: it ran longer than 5 s")
        assert kept.history[0].elapsed == pytest.approx(5)
        assert "anyio.sleep(100)" in kept.history[0].traceback
        assert (await until(queue, other, "dead_letter")).history[0].error.endswith("longer than 50 s")
    assert ends == pytest.approx([5, 10, 50], abs=0.1)


async def test_a_task_that_completes_in_spite_of_its_time_out_is_done() -> None:
    async def stubborn(_: Any) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)
        return "done"

    async with open_queue() as queue, new_worker(queue, {"stubborn": stubborn}):
        mine = Task(task_type="stubborn", timeout=5)
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == "done"


async def test_a_task_that_turns_its_time_out_into_an_error_has_timed_out() -> None:
    async def twist(_: Any) -> None:
        try:
            await anyio.sleep(10)
        finally:
            raise RuntimeError("cleaning up failed")

    async with open_queue() as queue, new_worker(queue, {"twist": twist}):
        mine = Task(task_type="twist", timeout=5, max_timeouts=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
    assert kept.reason == "timeouts"
    assert "cleaning up failed" in kept.history[0].traceback


async def test_a_time_out_of_the_tasks_own_is_an_error() -> None:
    async def impatient(_: Any) -> None:
        with anyio.fail_after(1):
            await anyio.sleep(10)

    async with open_queue() as queue, new_worker(queue, {"impatient": impatient}):
        mine = Task(task_type="impatient", timeout=5, max_retries=1)
        await queue.enqueue(mine)
        assert (await until(queue, mine, "dead_letter")).reason == "errors"


async def test_a_task_group_that_is_cut_off_is_timed_out() -> None:
    async def group(_: Any) -> None:
        async def fail() -> None:
            try:
                await anyio.sleep(10)
            finally:
                raise ValueError("one of them")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(anyio.sleep, 10)

    async with open_queue() as queue, new_worker(queue, {"group": group, "add": add}):
        mine = Task(task_type="group", timeout=5, max_timeouts=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
        assert kept.reason == "timeouts"
        assert await (await queue.send(add, 1, 1)).result() == 2


async def test_an_unknown_type_is_parked_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with open_queue() as queue, new_worker(queue, [add]) as worker:
        tasks = [Task(task_type="mystery", payload=n) for n in range(3)]
        await queue.enqueue_many(tasks)
        for each in tasks:
            await until(queue, each, "parked")
        assert worker.stats().unknown == 3
    assert sum("'mystery'" in record.message for record in caplog.records) == 1


async def solve(payload: int) -> int:
    return -payload


async def solve_given(given: Task) -> int:
    return await solve(given.payload)


@pytest.mark.parametrize("first", ["the task", "the worker"])
async def test_parked_tasks_run_once_a_worker_knows_them(first: str) -> None:
    async with open_queue() as queue, anyio.create_task_group() as group:
        mine = Task(task_type="mystery", payload=7)
        if first == "the worker":
            knowing = new_worker(queue, {"mystery": solve})
            ignorant = new_worker(queue, [add])
            async with ignorant:
                await queue.enqueue(mine)
                await until(queue, mine, "parked")
                group.start_soon(knowing.run)
                assert await queue.handle(mine.task_id).result() == -7
            group.cancel_scope.cancel()
        else:
            async with new_worker(queue, [add]):
                await queue.enqueue(mine)
                await until(queue, mine, "parked")
            async with new_worker(queue, handler=solve_given):
                assert await queue.handle(mine.task_id).result() == -7


colour: ContextVar[str] = ContextVar("colour", default="none")


async def test_a_task_finds_no_context_variables_of_the_task_before_it() -> None:
    async def paint(payload: str) -> str:
        before = colour.get()
        colour.set(payload)
        return before

    async with open_queue() as queue:
        colour.set("of the worker")
        async with new_worker(queue, {"paint": paint}, concurrency=1):
            tasks = [Task(task_type="paint", payload=name) for name in ("red", "green", "blue")]
            await queue.enqueue_many(tasks)
            assert {await queue.handle(each.task_id).result() for each in tasks} == {"of the worker"}


async def test_text_that_no_store_takes_is_made_fit() -> None:
    async with open_queue() as queue:
        kept = await snapshot(queue, await run_once(queue, ValueError("half \udc80 " + "long " * 2000)))
    assert "half \\udc80" in kept.history[0].error
    assert len(kept.history[0].error) < 2200


async def test_an_error_that_cannot_be_printed_is_an_error_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    async with open_queue() as queue:
        kept = await snapshot(queue, await run_once(queue, Broken()))
    assert "Broken" in kept.history[0].error


async def test_dead_letters_are_logged_as_errors(caplog: pytest.LogCaptureFixture) -> None:
    async with open_queue() as queue:
        mine = await run_once(queue, ValueError("seven"))
    [record] = [record for record in caplog.records if mine.task_id in record.message]
    assert (record.levelno, "ValueError: seven" in record.message) == (logging.ERROR, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "without handlers"),
        ({"handlers": [len]}, "decorate it with @task"),
        ({"handlers": [add, add]}, "two handlers are named 'add'"),
        ({"handlers": add}, "give a list"),
        ({"handlers": {"x": 3}}, "cannot be called"),
        ({"handlers": {3: add}}, "give a string"),
        ({"handler": 3}, "takes a Task"),
        ({"handlers": [add], "concurrency": 0}, "concurrency=0"),
        ({"handlers": [add], "threads": 0}, "threads=0"),
        ({"handlers": [add], "lease": 0}, "lease=0"),
        ({"handlers": [add], "timeout": -1}, "timeout=-1"),
        ({"handlers": [add], "kind": "gpu"}, "kind='gpu'"),
        ({"handlers": [add], "heartbeat": "none"}, "heartbeat='none'"),
        ({"handlers": [add], "shutdown_timeout": -1}, "shutdown_timeout=-1"),
        ({"handlers": [add], "worker_id": ""}, "worker_id=''"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        new_worker(None, **options)


async def test_a_context_variable_that_cannot_be_compared_is_not_left_to_the_next_task() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError("not comparable")

        __hash__ = object.__hash__

    variable: ContextVar[Any] = ContextVar("variable", default=None)

    async def look(_: Any) -> bool:
        found = variable.get()
        variable.set(Odd())
        return found is None

    async with open_queue() as queue:
        variable.set(None)
        async with new_worker(queue, {"look": look}, concurrency=1):
            tasks = [Task(task_type="look") for _ in range(3)]
            await queue.enqueue_many(tasks)
            assert [await queue.handle(each.task_id).result() for each in tasks] == [True, True, True]


async def test_an_error_that_breaks_the_printing_of_errors_is_an_error_by_its_name() -> None:
    broken = SyntaxError("of a template")
    broken.text = cast("str", 5)
    broken.lineno = 1
    async with open_queue() as queue:
        kept = await snapshot(queue, await run_once(queue, broken))
    assert kept.history[0].error == "SyntaxError: of a template (line 1)"
    assert "raise error" in kept.history[0].traceback


async def test_the_epoch_of_an_attempt_grows_with_each_attempt() -> None:
    epochs: list[int] = []

    async def fail_twice(_: Any) -> None:
        epochs.append(current_task().epoch)
        if len(epochs) < 3:
            raise ConnectionError("again")

    async with open_queue() as queue, new_worker(queue, {"fail": fail_twice}):
        mine = Task(task_type="fail")
        await queue.enqueue(mine)
        await until(queue, mine, "completed")
    assert epochs == [1, 2, 3]
