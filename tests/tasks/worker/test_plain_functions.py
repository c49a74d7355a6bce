"""Plain functions: in threads, which cannot be stopped, and in processes, which can."""

from __future__ import annotations

import os
import threading
from typing import Any

import anyio
import pytest

from cuelight.errors import LeaseLost
from cuelight.tasks import Task, TaskContext, TaskQueue, TaskWorker, current_task, task
from helpers import BACKENDS, Backend, task_jobs
from helpers.workers import AT_ONCE, open_queue, snapshot, until


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Threads and processes keep real time, and so does the loop here."""
    backend: Backend = request.param
    return backend


def plain_worker(queue: TaskQueue | None, handlers: Any = (), **options: Any) -> TaskWorker:
    return TaskWorker(queue, handlers, backoff=AT_ONCE, **options)


@task(name="square")
def square(number: int) -> int:
    assert threading.current_thread() is not threading.main_thread()
    return number * number


async def test_a_plain_function_runs_in_a_thread_and_finds_its_context() -> None:
    def work(payload: int) -> list[Any]:
        context = current_task()
        context.progress_blocking(0.5)
        context.save_blocking({"at": payload})
        return [context.attempt, context.checkpoint, threading.current_thread() is threading.main_thread()]

    async with open_queue() as queue, plain_worker(queue, {"work": work, "square": square.function}):
        mine = Task(task_type="work", payload=3)
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == [1, {"at": 3}, False]
        assert (await snapshot(queue, mine)).progress is not None


async def test_at_most_so_many_threads_run_and_no_more_tasks_are_claimed() -> None:
    barrier = threading.Barrier(3)

    def meet(_: Any) -> int:
        return barrier.wait(10) * 0 + 1

    async with open_queue() as queue:
        tasks = [Task(task_type="meet") for _ in range(6)]
        await queue.enqueue_many(tasks)
        async with plain_worker(queue, {"meet": meet}, threads=3) as worker:
            assert worker._options.slots == 3
            for each in tasks:
                assert await queue.handle(each.task_id).result() == 1


async def test_a_plain_function_may_give_a_coroutine() -> None:
    async def later(payload: int) -> int:
        await anyio.lowlevel.checkpoint()
        return payload + 1

    def make(payload: int) -> Any:
        return later(payload)

    async with open_queue() as queue, plain_worker(queue, {"make": make}):
        mine = Task(task_type="make", payload=1)
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == 2


async def test_a_thread_that_takes_too_long_is_abandoned_and_said_so() -> None:
    let_go = threading.Event()
    contexts: list[TaskContext] = []
    outcome: list[Exception] = []
    ended = threading.Event()

    def hang(_: Any) -> None:
        contexts.append(current_task())
        let_go.wait(10)
        try:
            contexts[0].save_blocking("too late")
        except LeaseLost as error:
            outcome.append(error)
        ended.set()

    async with open_queue() as queue:
        async with plain_worker(queue, {"hang": hang, "square": square.function}, threads=1) as worker:
            mine = Task(task_type="hang", timeout=0.2, max_timeouts=1)
            await queue.enqueue(mine)
            kept = await until(queue, mine, "dead_letter")
            assert "its thread was abandoned and may still run" in kept.history[0].error
            assert contexts[0].cancelled
            assert worker.stats().abandoned == 1
            other = Task(task_type="square", payload=3)  # the only thread is free again
            await queue.enqueue(other)
            assert await queue.handle(other.task_id).result() == 9
        let_go.set()
        assert await anyio.to_thread.run_sync(ended.wait, 10)
    assert len(outcome) == 1


async def test_what_a_thread_raises_that_is_no_exception_ends_only_the_attempt() -> None:
    def leave(_: Any) -> None:
        raise SystemExit(3)

    async with open_queue() as queue, plain_worker(queue, {"leave": leave}):
        mine = Task(task_type="leave", max_retries=1)
        await queue.enqueue(mine)
        assert "SystemExit" in (await until(queue, mine, "dead_letter")).history[0].error


async def test_functions_run_in_processes_and_find_what_can_be_read() -> None:
    async with open_queue() as queue, plain_worker(queue, [task_jobs.who], kind="process", threads=2):
        results = [await (await queue.send(task_jobs.who, number)).result() for number in range(4)]
    assert [each["number"] for each in results] == [0, 1, 2, 3]
    assert all(each["pid"] != os.getpid() and each["attempt"] == 1 for each in results)


async def test_a_process_that_takes_too_long_is_killed() -> None:
    async with open_queue() as queue, plain_worker(queue, [task_jobs.spin], kind="process", threads=1) as worker:
        handle = await queue.send(task_jobs.spin.with_options(timeout=0.3))
        kept = await until(queue, handle.task_id, "dead_letter")
        assert (kept.reason, kept.counts.timeouts) == ("timeouts", 1)
        assert "its process was killed" in kept.history[0].error
        assert worker.stats().replaced == 1


async def test_a_process_that_dies_costs_its_own_task_a_crash_and_no_other() -> None:
    functions = [task_jobs.die, task_jobs.nap]
    async with open_queue() as queue, plain_worker(queue, functions, kind="process", threads=2):
        naps = [await queue.send(task_jobs.nap) for _ in range(2)]
        deadly = await queue.send(task_jobs.die)
        kept = await until(queue, deadly.task_id, "dead_letter")
        assert (kept.reason, kept.counts.crashes) == ("quarantined", 2)
        assert [attempt.kind for attempt in kept.history] == ["crash", "crash"]
        assert [await nap.result() for nap in naps] == ["rested", "rested"]
        assert (await snapshot(queue, naps[0].task_id)).counts.crashes == 0


async def test_shutdown_kills_processes_and_gives_their_tasks_back() -> None:
    async with open_queue() as queue:
        handle = await queue.send(task_jobs.spin)
        async with plain_worker(queue, [task_jobs.spin], kind="process", threads=1, shutdown_timeout=0.2) as worker:
            await until(queue, handle.task_id, "in_flight")
        kept = await snapshot(queue, handle.task_id)
        assert (kept.state, kept.counts.released, kept.counts.timeouts) == ("pending", 1, 0)
        assert worker.stats().released == 1


async def test_process_one_runs_plain_functions_too() -> None:
    result = await plain_worker(None, [square]).process_one(square.task(5))
    assert result is not None
    assert result.result == 25
