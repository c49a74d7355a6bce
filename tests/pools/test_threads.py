"""The executor that runs calls in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolClosed, TaskFailed
from cuelight.pools import Executor, ThreadExecutor
from cuelight.pools._functions import wrap_coroutine, wrap_coroutines

LEVEL: contextvars.ContextVar[int] = contextvars.ContextVar("LEVEL", default=0)


NONE: dict[str, Any] = {}


class Blocked:
    """A function that blocks until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()

    def __call__(self, value: int = 0) -> int:
        self.begun.set()
        assert self.release.wait(10)
        self.ended.set()
        return value


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - a thread that was left behind tells nobody
            await anyio.sleep(0.001)


async def test_a_call_runs_in_one_thread_of_its_own() -> None:
    executor: Executor = ThreadExecutor("pet")
    first = await executor.run(threading.current_thread, (), {})
    second = await executor.run(threading.current_thread, (), {})
    assert first is second
    assert first.name == "pet"
    assert first is not threading.current_thread()
    assert await executor.run(divmod, (7, 2), {}) == (3, 1)
    assert await executor.run(int, ("ff",), {"base": 16}) == 255
    await executor.aclose()
    assert not first.is_alive()


async def test_a_call_raises_what_the_function_raised() -> None:
    executor = ThreadExecutor("pet")
    with pytest.raises(ZeroDivisionError):
        await executor.run(divmod, (1, 0), {})
    with pytest.raises(SystemExit):
        await executor.run(sys.exit, (3,), {})
    assert await executor.run(int, ("7",), {}) == 7
    await executor.aclose()


async def test_a_cancellation_that_a_function_raises_is_no_cancellation_here() -> None:
    executor = ThreadExecutor("pet")

    def stop() -> None:
        raise GeneratorExit

    with pytest.raises(TaskFailed, match=r"stop raised GeneratorExit"):
        await executor.run(stop, (), {})
    with pytest.raises(RuntimeError, match="next raised StopIteration"):
        await executor.run(next, (iter(()),), {})
    await executor.aclose()


async def test_a_chunk_has_an_outcome_for_each_item() -> None:
    executor = ThreadExecutor("pet")
    outcomes = await executor.run_chunk(lambda item: 12 // item, [1, 0, 3])
    assert [succeeded for succeeded, _ in outcomes] == [True, False, True]
    assert [value for succeeded, value in outcomes if succeeded] == [12, 4]
    assert isinstance(outcomes[1][1], ZeroDivisionError)
    assert await executor.run_chunk(int, []) == []
    await executor.aclose()


async def test_context_variables_are_copied_into_calls_and_items() -> None:
    executor = ThreadExecutor("pet")
    LEVEL.set(5)

    def raise_level(by: int) -> int:
        LEVEL.set(LEVEL.get() + by)
        return LEVEL.get()

    assert await executor.run(raise_level, (1,), {}) == 6
    assert await executor.run_chunk(raise_level, [1, 2]) == [(True, 6), (True, 7)]
    assert LEVEL.get() == 5
    await executor.aclose()


async def test_cancelling_a_call_leaves_its_thread_behind(caplog: pytest.LogCaptureFixture) -> None:
    executor = ThreadExecutor("pet")
    blocked = Blocked()
    with caplog.at_level(logging.WARNING, "cuelight.pools"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(executor.run, blocked, (), NONE)
            await until(blocked.begun.is_set)
            tasks.cancel_scope.cancel()
    assert (executor.abandoned, executor.replaced) == (1, 1)
    assert "a thread cannot be stopped" in caplog.text
    assert "pet: " in caplog.text
    assert await executor.run(int, ("7",), {}) == 7
    blocked.release.set()
    await until(lambda: executor.abandoned == 0)
    assert blocked.ended.is_set()
    assert executor.replaced == 1
    await executor.aclose()


async def test_a_chunk_that_was_left_behind_begins_no_other_item() -> None:
    executor = ThreadExecutor("pet")
    blocked, calls = Blocked(), list[int]()

    def work(item: int) -> None:
        calls.append(item)
        blocked()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(executor.run_chunk, work, [1, 2, 3])
        await until(blocked.begun.is_set)
        tasks.cancel_scope.cancel()
    blocked.release.set()
    await until(lambda: executor.abandoned == 0)
    assert calls == [1]
    await executor.aclose()


async def test_a_call_that_is_cancelled_before_it_began_never_runs() -> None:
    executor = ThreadExecutor("pet")
    calls: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await executor.run(calls.append, (1,), {})
    # Either the thread was quicker, or it never ran; a thread is left behind only while it runs.
    await until(lambda: executor.abandoned == 0)
    seen = list(calls)
    assert await executor.run(len, (calls,), {}) == len(seen)
    await executor.aclose()


async def test_one_call_at_a_time() -> None:
    executor = ThreadExecutor("pet")
    blocked = Blocked()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(executor.run, blocked, (), NONE)
        await until(blocked.begun.is_set)
        with pytest.raises(RuntimeError, match="one call at a time"):
            await executor.run(int, (), {})
        blocked.release.set()
    await executor.aclose()


async def test_a_closed_executor_takes_no_calls() -> None:
    executor = ThreadExecutor("pet")
    await executor.aclose()
    with pytest.raises(PoolClosed, match="'pet' was closed"):
        await executor.run(int, (), {})
    executor = ThreadExecutor("pet")
    thread = await executor.run(threading.current_thread, (), {})
    await executor.aclose()
    await executor.aclose()
    assert not thread.is_alive()


async def test_closing_does_not_wait_for_a_call_that_is_under_way() -> None:
    executor = ThreadExecutor("pet")
    blocked, results = Blocked(), list[int]()

    async def call() -> None:
        results.append(await executor.run(blocked, (3,), {}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(blocked.begun.is_set)
        await executor.aclose()
        blocked.release.set()
    assert results == [3]


def test_a_loop_that_ends_before_the_call_does_no_harm() -> None:
    executor, blocked = ThreadExecutor("pet"), Blocked()
    loop = asyncio.new_event_loop()
    task = loop.create_task(executor.run(blocked, (), {}))
    loop.run_until_complete(asyncio.to_thread(blocked.begun.wait, 10))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    thread = next(thread for thread in threading.enumerate() if thread.name == "pet")
    blocked.release.set()
    executor._thread.close(None)  # type: ignore[union-attr]  # without a loop there is nobody to call `aclose`
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        task.cancel()
    del task


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_ends_while_a_thread_that_was_left_behind_still_runs(backend: str) -> None:
    program = f"""
import time, anyio
from cuelight.pools import ThreadExecutor

async def main():
    executor = ThreadExecutor("pet")
    with anyio.move_on_after(0.05):
        await executor.run(time.sleep, (60,), {{}})
    print("abandoned", executor.abandoned)
    await executor.aclose()

anyio.run(main, backend={backend!r})
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "abandoned 1\n"
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("wrap", [wrap_coroutines, wrap_coroutine])
def test_a_coroutine_that_nobody_takes_is_closed_without_a_warning_also_in_a_cycle(
    wrap: Callable[[Callable[[Any], Any]], Callable[[Any], Any]],
) -> None:
    async def nobody_takes_it() -> None:
        pytest.fail("it ran")

    call = wrap(lambda number: nobody_takes_it() if number else number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert call(0) == 0
        circle: list[Any] = [call(1)]
        circle.append(circle)
        del circle
        gc.collect()
    assert [each for each in caught if "nobody_takes_it" in str(each.message)] == []
