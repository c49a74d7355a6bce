"""Context variables: work runs in the context of its submitter, and changes no other."""

from __future__ import annotations

import contextvars
import threading
import types
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem
from cuelight.pools import AsyncWorkerPool, WorkerPool, WorkerPoolConfig
from cuelight.pools._contexts import Abandoned, ContextCalls, in_context

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def who_async(_: Any = None) -> str:
    await anyio.lowlevel.checkpoint()
    return WHO.get()


def who(_: Any = None) -> str:
    return WHO.get()


async def leave_mark(item: int) -> str:
    before = WHO.get()
    WHO.set(f"item {item}")
    await anyio.lowlevel.checkpoint()
    assert WHO.get() == f"item {item}"
    return before


def leave_mark_plainly(item: int) -> str:
    before = WHO.get()
    WHO.set(f"item {item}")
    return before


@pytest.mark.parametrize(("kind", "function"), [(None, who_async), (None, who), ("thread", who)])
async def test_work_runs_in_the_context_of_its_submitter(kind: Any, function: Any) -> None:
    seen: dict[str, list[str | None]] = {}

    async def request(name: str) -> None:
        WHO.set(name)
        submitted = (await pool.submit(function)).result
        mapped = [result.result for result in await pool.map(function, [1, 2, 3])]
        streamed = [result.result async for result in pool.map(function, [1, 2, 3])]
        seen[name] = [submitted, *mapped, *streamed]

    WHO.set("host")
    async with ActorSystem() as system, AsyncWorkerPool(2, system=system, kind=kind) as pool:
        for name in ("a", "b", "c"):  # one after another: the workers were hired by the first
            async with anyio.create_task_group() as group:
                group.start_soon(request, name)
        async with anyio.create_task_group() as group:
            for name in ("d", "e", "f"):
                group.start_soon(request, name)
    assert seen == {name: [name] * 7 for name in "abcdef"}
    assert WHO.get() == "host"


@pytest.mark.parametrize(
    ("kind", "function"), [(None, leave_mark), (None, leave_mark_plainly), ("thread", leave_mark_plainly)]
)
@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_what_one_item_sets_is_not_there_for_the_next(kind: Any, function: Any, chunk_size: int) -> None:
    WHO.set("host")
    async with AsyncWorkerPool(2, kind=kind) as pool:
        results = await pool.map(function, range(20), chunk_size=chunk_size)
        assert results.values == ["host"] * 20
        for _ in range(3):
            assert (await pool.submit(function, 1)).result == "host"
    assert WHO.get() == "host"


async def test_the_context_is_that_of_the_call_and_not_of_the_await() -> None:
    pool = AsyncWorkerPool(1)  # without a block: it runs when it is awaited
    WHO.set("early")
    task, mapping = pool.submit(who_async), pool.map(who_async, [1])
    WHO.set("late")
    assert (await task).result == "early"
    assert (await mapping).values == ["early"]


async def test_each_attempt_begins_with_the_context_as_it_was() -> None:
    seen: list[str] = []

    async def fails() -> None:
        seen.append(WHO.get())
        WHO.set("changed")
        raise ValueError

    WHO.set("host")
    async with AsyncWorkerPool(1, retries=2) as pool:
        await pool.submit(fails)
        await pool.map(lambda _: fails(), [1])
    assert seen == ["host"] * 6


async def test_a_source_and_a_callback_run_in_the_context_of_the_map() -> None:
    seen: list[str] = []

    def plain() -> Iterator[int]:
        token = WHO.set("source")
        yield 1
        seen.append(WHO.get())
        WHO.reset(token)  # fails if the generator was advanced in another context
        yield 2

    async def later() -> AsyncIterator[int]:
        seen.append(WHO.get())
        yield 1

    def progress(done: int, total: int | None) -> None:
        seen.append(f"{done} {WHO.get()}")

    async with AsyncWorkerPool(2) as pool:

        async def request(items: Any) -> None:
            WHO.set("guest")
            await pool.map(anyio.sleep, items, progress=progress)

        async with anyio.create_task_group() as group:
            group.start_soon(request, later())
        async with anyio.create_task_group() as group:
            group.start_soon(request, [0])
        assert seen == ["guest", "1 guest", "1 guest"]
        seen.clear()
        await pool.map(who_async, plain(), chunk_size=1)
        assert seen == ["source"]


async def test_what_work_starts_inherits_its_context() -> None:
    async def parent() -> list[str]:
        seen: list[str] = []

        async def child() -> None:
            seen.append(WHO.get())

        WHO.set("parent")
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        return seen

    async with AsyncWorkerPool(1) as pool:
        assert (await pool.submit(parent)).result == ["parent"]


def test_tasks_of_a_blocking_pool_run_in_the_context_of_whoever_submitted_them() -> None:
    def submit(name: str) -> list[Any]:
        WHO.set(name)
        first = pool.submit_task("who", who)
        mapped = pool.map(leave_mark_plainly, range(10))
        WHO.set("changed later")
        return [pool.get_task_result(first).result, *(result.result for result in mapped)]

    seen: dict[str, list[Any]] = {}

    def request(name: str) -> None:
        seen[name] = contextvars.copy_context().run(submit, name)

    with WorkerPool(WorkerPoolConfig(max_workers=2)) as pool:
        for name in "abc":
            request(name)
        threads = [threading.Thread(target=request, args=(name,)) for name in "def"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {name: [name] * 11 for name in "abcdef"}


def test_each_attempt_of_a_blocking_pool_begins_with_the_context_as_it_was() -> None:
    seen: list[str] = []

    def fails() -> None:
        seen.append(WHO.get())
        WHO.set("changed")
        raise ValueError

    def submit() -> None:
        WHO.set("host")
        pool.get_task_result(pool.submit_task("fails", fails))

    with WorkerPool(WorkerPoolConfig(max_workers=1, max_retries=2, backoff_base_seconds=0)) as pool:
        contextvars.copy_context().run(submit)
    assert seen == ["host"] * 3


# Without an event loop: what a worker's coroutine does when its loop has ended in the middle of work.


@types.coroutine
def trap(value: str) -> Generator[str, Any, Any]:
    return (yield value)


def named(name: str) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(WHO.set, name)
    return context


async def work(seen: list[str], argument: str = "trap") -> str:
    try:
        seen.append(f"{await trap(argument)} {WHO.get()}")
    except BaseException as error:
        seen.append(f"{type(error).__name__} {WHO.get()}")
        raise
    return "returned"


def test_what_work_awaits_goes_on_to_the_loop_and_comes_back_in_its_context() -> None:
    seen: list[str] = []
    advanced: Any = in_context(named("guest"), work(seen))
    assert advanced.send(None) == "trap"
    with pytest.raises(StopIteration) as ended:
        advanced.send("answer")
    assert (ended.value.value, seen) == ("returned", ["answer guest"])
    failing: Any = in_context(named("guest"), work(seen))
    failing.send(None)
    with pytest.raises(LookupError):
        failing.throw(LookupError())
    assert seen[1:] == ["LookupError guest"]


def test_work_whose_loop_has_ended_is_abandoned_in_its_context() -> None:
    seen: list[str] = []
    advanced: Any = in_context(named("guest"), work(seen))
    advanced.send(None)
    advanced.close()
    assert seen == ["Abandoned guest"]


def test_abandoned_work_may_return() -> None:
    async def stubborn() -> str:
        try:
            await trap("trap")
        except Abandoned:
            seen.append("returns")
        return "result"

    seen: list[str] = []
    advanced: Any = in_context(named("guest"), stubborn())
    advanced.send(None)
    advanced.close()
    assert seen == ["returns"]


def test_work_is_closed_by_a_collector_that_runs_in_the_same_context() -> None:
    seen: list[str] = []
    context = named("guest")
    advanced: Any = in_context(context, work(seen))
    advanced.send(None)
    context.run(advanced.close)
    assert seen == ["GeneratorExit guest"]


def test_calls_are_made_one_after_another_each_in_its_context() -> None:
    seen: list[str] = []

    def function(argument: str) -> Any:
        return work(seen, argument)

    calls = ContextCalls(function)
    for name in ("first", "second"):
        performed: Any = calls.perform(named(name), function, f"trap of {name}")
        assert performed.send(None) == f"trap of {name}"
        with pytest.raises(StopIteration):
            performed.send("answer")
        assert (calls.value, calls.error) == ("returned", None)
    failing: Any = calls.perform(named("third"), function, "trap")
    failing.send(None)
    with pytest.raises(StopIteration):
        failing.throw(LookupError("no"))
    assert isinstance(calls.error, LookupError)
    calls.close()
    assert seen == ["answer first", "answer second", "LookupError third"]


def test_a_call_whose_loop_has_ended_is_abandoned_in_its_context() -> None:
    seen: list[str] = []

    def function(argument: str) -> Any:
        return work(seen, argument)

    calls = ContextCalls(function)
    performed: Any = calls.perform(named("guest"), function, "trap")
    performed.send(None)
    performed.close()
    assert seen == ["GeneratorExit guest"]
    assert isinstance(calls.error, Abandoned)
    calls.close()


def test_a_call_may_return_anything_that_can_be_awaited() -> None:
    class Promise:
        def __await__(self) -> Generator[Any, Any, str]:
            answer: str = yield "trap of a promise"
            return answer

    def promise(_: object) -> Promise:
        return Promise()

    calls = ContextCalls(promise)
    performed: Any = calls.perform(named("guest"), promise, None)
    assert performed.send(None) == "trap of a promise"
    with pytest.raises(StopIteration):
        performed.send("kept")
    assert (calls.value, calls.error) == ("kept", None)
    calls.close()
