"""Exceptions that mean something to a worker, when it is the task that raises them, and cancellations of others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

import anyio
import pytest

from cuelight.errors import LeaseLost, RateLimited, Rejected, TaskCancelled, TaskTimedOut, WorkerDied
from cuelight.mailbox import current_backend
from cuelight.supervision import Backoff
from cuelight.tasks import Snapshot, Task
from cuelight.tasks._worker._failure import Released
from cuelight.testing import virtual_backend
from helpers.workers import new_worker, open_queue, until

ASYNCIO = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])  # trio has no such cancellations


async def ended(function: Callable[[Any], Any], *states: str, **options: Any) -> Snapshot:
    """How a task that calls this ended, and that its worker goes on."""
    async with open_queue() as queue, new_worker(queue, {"job": function, "len": len}, **options):
        mine = Task(task_type="job", max_retries=1)
        await queue.enqueue(mine)
        kept = await until(queue, mine, *(states or ("dead_letter", "cancelled", "completed")))
        other = Task(task_type="len", payload="abc")
        await queue.enqueue(other)
        assert await queue.handle(other.task_id).result() == 3
    return kept


@pytest.mark.parametrize(
    "error",
    [
        TaskCancelled("the other task was cancelled"),
        TaskTimedOut("the other task timed out"),
        WorkerDied("of a pool that the task used"),
        LeaseLost("of a lock"),
        Released("not by this worker"),
        TimeoutError(),
    ],
)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_a_task_was_told_of_others_is_an_error_of_its_own(error: Exception, kind: str) -> None:
    def plain(_: Any) -> None:
        raise error

    async def job(_: Any) -> None:
        raise error

    kept = await ended(job if kind == "async" else plain)
    assert (kept.state, kept.reason, kept.counts.errors) == ("dead_letter", "errors", 1)
    assert kept.history[0].error.startswith(type(error).__name__)


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (ExceptionGroup("g", [Rejected("no")]), "rejected", "Rejected: no"),
        (ExceptionGroup("g", [ExceptionGroup("h", [Rejected("no")]), Rejected("nor")]), "rejected", "Rejected: no"),
        (ExceptionGroup("g", [Rejected("no"), ValueError("x")]), "errors", "ExceptionGroup: g"),
        (ExceptionGroup("g", [Rejected("no"), RateLimited(1.0)]), "errors", "ExceptionGroup: g"),
    ],
)
async def test_a_group_counts_as_a_control_exception_only_if_it_holds_no_other(
    error: Exception, reason: str, text: str
) -> None:
    async def job(_: Any) -> None:
        raise error

    kept = await ended(job)
    assert kept.reason == reason
    assert kept.history[0].error.startswith(text)
    assert "ExceptionGroup" in kept.history[0].traceback, "where it comes from"


class Odd(RateLimited):
    def __init__(self, retry_after: Any, key: Any) -> None:
        super().__init__(1.0)
        self.retry_after, self.key = retry_after, key


class Broken(RateLimited):
    @property
    def retry_after(self) -> float:
        raise RuntimeError

    @retry_after.setter
    def retry_after(self, _: float) -> None: ...


@pytest.mark.parametrize(
    "error",
    [
        Odd(math.nan, None),
        Odd("soon", "api"),
        Odd(-5.0, 7),
        Odd(math.inf, ""),
        Odd(1.0, "a" * 10),
        Odd(None, object()),
        Broken(1.0),
    ],
)
async def test_a_pause_that_makes_no_sense_costs_nobody_anything(error: RateLimited) -> None:
    async def job(_: Any) -> None:
        raise error

    kept = await ended(job, "scheduled")
    assert (kept.counts.rate_limited, kept.counts.errors) == (1, 0)


@ASYNCIO
@pytest.mark.parametrize("how", ["awaits", "raises", "in a group", "plain"])
async def test_a_cancellation_that_nobody_meant_for_the_task_is_its_failure(how: str) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()

    def plain(_: Any) -> None:
        future.result()

    async def job(_: Any) -> None:
        if how == "raises":
            raise current_backend().cancelled
        if how == "awaits":
            await future
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 1)
            await future

    kept = await ended(plain if how == "plain" else job)
    assert kept.reason == "errors"
    assert "CancelledError" in kept.history[0].error
    if how in {"awaits", "raises"}:
        assert kept.history[0].error.startswith("UnexpectedCancellation: ")


def raise_cancelled(_: Any) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_cancellation_that_a_process_raises_is_a_failure_of_its_task() -> None:
    kept = await ended(raise_cancelled, kind="process", heartbeat="thread")
    assert kept.reason == "errors"
    assert "CancelledError" in kept.history[0].error


@ASYNCIO
async def test_a_task_whose_asyncio_task_is_cancelled_has_failed_and_the_worker_goes_on() -> None:
    runs: list[int] = []

    async def job(_: Any) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        runs.append(mine.cancelling())
        mine.cancel()
        await anyio.sleep(100)

    async with open_queue() as queue, new_worker(queue, {"job": job}, concurrency=1):
        mine = Task(task_type="job", max_retries=3)
        await queue.enqueue(mine)
        kept = await until(queue, mine, "dead_letter")
    assert kept.counts.errors == 3
    assert kept.history[0].error.startswith("UnexpectedCancellation: ")
    assert runs == [0, 0, 0], "the cancellation of one is not left to the next"


class Crooked:
    """A back-off of the user's own."""

    def __init__(self, delay: Any) -> None:
        self._delay = delay

    def delay(self, failures: int, jitter: float) -> float:
        if isinstance(self._delay, Exception):
            raise self._delay
        return cast("float", self._delay)

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("delay", [ValueError("no"), math.nan, -1.0, math.inf, "soon", None])
async def test_a_back_off_that_fails_is_replaced_by_the_default(delay: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def job(_: Any) -> None:
        raise ValueError

    crooked: Any = Crooked(delay)
    async with open_queue() as queue, new_worker(queue, {"job": job}, backoff=crooked):
        mine = Task(task_type="job", max_retries=3)
        await queue.enqueue(mine)
        assert (await until(queue, mine, "dead_letter")).counts.errors == 3
    assert any("the default back-off is used" in record.getMessage() for record in caplog.records)


async def test_a_back_off_of_ones_own_is_used() -> None:
    class Slow(Backoff, frozen=True):
        def delay(self, restarts: int, jitter: float) -> float:
            return 100.0

    began: list[float] = []

    async def job(_: Any) -> None:
        began.append(anyio.current_time())
        raise ValueError

    async with open_queue() as queue, new_worker(queue, {"job": job}, backoff=Slow()):
        mine = Task(task_type="job", max_retries=2)
        await queue.enqueue(mine)
        await until(queue, mine, "dead_letter")
    assert began[1] - began[0] == pytest.approx(100)
