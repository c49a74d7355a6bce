"""How tasks fail, over each store: the arguments, the control exceptions in groups, the log."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from cuelight.errors import RateLimited, Rejected, TaskFailed
from cuelight.supervision import Backoff
from cuelight.tasks import Limit, Snapshot, Task, TaskQueue, TaskWorker, task

AT_ONCE = Backoff(minimum=0.0, maximum=0.0, jitter=0.0)


@task(name="mail")
async def old(to: str) -> str:
    return f"old {to}"


@task(name="mail")
async def new(to: str, site: str = "home") -> str:
    return f"new {to} {site}"


@task(name="grouped", max_retries=5, limits=Limit("api", max_concurrent=5))
async def grouped(how: str) -> str:
    async def refuse() -> None:
        if how == "limited":
            raise RateLimited(60.0, "api")
        raise Rejected("bad card")

    async def further() -> None:
        async with anyio.create_task_group() as inner:
            inner.start_soon(refuse)

    async with anyio.create_task_group() as outer:
        outer.start_soon(further)
    return how


async def until(queue: TaskQueue, task_id: str, state: str) -> Snapshot:
    with anyio.fail_after(20):
        while True:
            since = queue.store.version()
            kept = await queue.snapshot(task_id)
            assert kept is not None
            if kept.state == state:
                return kept
            await queue.store.changed(since, 0.2)


async def test_a_task_for_another_version_is_put_back_and_not_given_up(queue: TaskQueue) -> None:
    async with TaskWorker(queue, [old]):
        handle = await queue.send(new, "ann", site="work")
        kept = await until(queue, handle.task_id, "scheduled")
    assert [attempt.kind for attempt in kept.history] == ["mismatch"]
    assert kept.counts.errors == 0


async def test_a_group_of_control_exceptions_counts_as_the_first_of_them(queue: TaskQueue) -> None:
    async with TaskWorker(queue, [grouped], backoff=AT_ONCE):
        rejected = await queue.send(grouped, "rejected")
        with pytest.raises(TaskFailed, match="was rejected; the last error: Rejected: bad card"):
            await rejected.result()
        limited = await queue.send(grouped, "limited")
        kept = await until(queue, limited.task_id, "scheduled")
        assert (kept.counts.rate_limited, kept.counts.errors) == (1, 0)
        assert kept.due - queue.store.now() > 30
        other = await queue.send(grouped, "limited")
        assert (await other.task()).status == "pending", "the limit is closed for all"


async def test_nack_heeds_a_control_exception_in_a_group(queue: TaskQueue) -> None:
    await queue.enqueue(Task(task_id="a"))
    taken = await queue.dequeue()
    assert taken is not None
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [Rejected("bad card")])])
    assert not await queue.nack(taken, group)
    assert (await queue.dead_letters.get("a")).reason == "rejected"

    await queue.enqueue(Task(task_id="b", max_retries=1))
    taken = await queue.dequeue()
    assert taken is not None
    assert await queue.nack(taken, ExceptionGroup("one", [RateLimited(0.0)])), "it is no attempt"


def fields(record: logging.LogRecord) -> dict[str, Any]:
    names = ("task_id", "task_type", "task_name", "worker_id", "attempt", "queue")
    return {name: getattr(record, name) for name in names}


async def fail(_: Any) -> None:
    raise ConnectionError("the line is down")


async def test_a_failed_attempt_is_logged_with_name_and_type_and_traceback(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskWorker(queue, {"mail": fail}, worker_id="w", backoff=AT_ONCE):
        await queue.enqueue(Task(task_id="a", task_type="mail", max_retries=2))
        await until(queue, "a", "dead_letter")
    first, second = [record for record in caplog.records if getattr(record, "task_id", "") == "a"]
    assert (first.levelno, second.levelno) == (logging.WARNING, logging.ERROR)
    expected = {"task_id": "a", "task_type": "mail", "task_name": "fail", "worker_id": "w", "queue": "default"}
    assert fields(first) == {**expected, "attempt": 1}
    assert fields(second) == {**expected, "attempt": 2}
    text = second.getMessage()
    assert "w: error of fail (type mail, id a) in attempt 2, now dead_letter: ConnectionError: the line is down" in text
    assert 'raise ConnectionError("the line is down")' in text


async def test_nack_logs_the_error_with_name_and_type_and_traceback(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.enqueue(Task(task_id="a", task_type="mail", max_retries=2))
    for attempt, level, state in ((1, logging.WARNING, "pending"), (2, logging.ERROR, "dead_letter")):
        taken = await queue.dequeue()
        assert taken is not None
        caplog.clear()
        try:
            await fail(None)
        except ConnectionError as error:
            await queue.nack(taken, error)
        [record] = [record for record in caplog.records if getattr(record, "task_id", "") == "a"]
        assert record.levelno == level
        assert fields(record) | {"worker_id": ""} == {
            "task_id": "a",
            "task_type": "mail",
            "task_name": "mail",
            "worker_id": "",
            "attempt": attempt,
            "queue": "default",
        }
        assert f"error of mail (type mail, id a) in attempt {attempt}, now {state}" in record.getMessage()
        assert record.exc_info is not None
        assert 'raise ConnectionError("the line is down")' in str(record.exc_text)

    await queue.enqueue(Task(task_id="b", task_type="mail", max_retries=1))
    taken = await queue.dequeue()
    assert taken is not None
    caplog.clear()
    await queue.nack(taken, "no such address")
    [record] = [record for record in caplog.records if getattr(record, "task_id", "") == "b"]
    assert record.getMessage().endswith("now dead_letter: no such address")


async def test_process_one_logs_the_failure_of_a_task_at_hand(caplog: pytest.LogCaptureFixture) -> None:
    given = Task(task_id="a", task_type="mail")
    result = await TaskWorker(handlers={"mail": fail}, worker_id="w").process_one(given)
    assert result is not None
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert fields(record) == {
        "task_id": "a",
        "task_type": "mail",
        "task_name": "fail",
        "worker_id": "w",
        "attempt": 1,
        "queue": "",
    }
    assert record.exc_info is not None
    assert record.exc_info[1] is result.error
    assert 'raise ConnectionError("the line is down")' in str(record.exc_text)
