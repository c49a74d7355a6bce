"""One limiter for several event loops in several threads, in real time."""

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from cuelight.coordination import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket, RateLimitConfig, RateLimiter
from helpers import BACKENDS, run_on

LOOPS = ("asyncio", "uvloop", "trio")


def in_threads(*mains: tuple[str, Callable[[], Awaitable[None]]]) -> None:
    """Run each on its own loop in its own thread, all at once."""
    failures: list[BaseException] = []

    def run(name: str, main: Callable[[], Awaitable[None]]) -> None:
        try:
            run_on(BACKENDS[name], main)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=one) for one in mains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_loops_in_threads_share_one_limit_and_none_is_starved() -> None:
    limiter = AsyncTokenBucket(1000.0, 20)
    slots: dict[str, list[int]] = {name: [] for name in LOOPS}

    def main(name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            while time.monotonic() < end:
                await limiter.acquire()
                slots[name].append(time.monotonic_ns())

        async def workers() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(work)

        return workers

    end = time.monotonic() + 0.6
    in_threads(*((name, main(name)) for name in LOOPS))
    every = sorted(slot for own in slots.values() for slot in own)
    took = (every[-1] - every[0]) / 1e9
    # Timers may be late by 10 ms, and a thread has to get its turn before it can look at the clock.
    assert len(every) <= 20 + (took + 0.01) * 1000 + 1
    assert len(every) == limiter.statistics().admitted
    assert len(every) > 300, "far below the limit"
    assert all(len(own) > len(every) / 20 for own in slots.values()), {name: len(own) for name, own in slots.items()}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_is_blocked_holds_up_nobody_else(name: str) -> None:
    limiter = AsyncLeakyBucket(RateLimitConfig(20, 1.0))
    waits, blocked = threading.Event(), threading.Event()
    free_at = through_at = 0.0

    async def blocks() -> None:
        nonlocal free_at
        await limiter.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.lowlevel.checkpoint()
            while not limiter.statistics().waiting:
                await anyio.lowlevel.checkpoint()
            waits.set()
            blocked.wait()  # on purpose
            free_at = time.monotonic()

    async def other() -> None:
        nonlocal through_at
        await anyio.to_thread.run_sync(waits.wait)
        await limiter.acquire(timeout=5)
        through_at = time.monotonic()
        blocked.set()

    in_threads((name, blocks), ("asyncio", other))
    assert 0 < through_at < free_at
    assert limiter.statistics()[:2] == (3, 0)


@pytest.mark.parametrize("first_in_line", [True, False])
def test_a_loop_that_ended_without_a_word_holds_up_nobody(first_in_line: bool) -> None:
    limiter = RateLimiter(concurrency=1)
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[None]] = []

    async def use() -> None:
        async with limiter.request():
            pass

    async def scenario() -> None:
        held = limiter.request()
        async with held:
            if first_in_line:
                await anyio.to_thread.run_sync(untrack)
            async with anyio.create_task_group() as group:
                group.start_soon(use)
                await anyio.wait_all_tasks_blocked()
                if not first_in_line:
                    await anyio.to_thread.run_sync(untrack)
                await held.__aexit__(None, None, None)

    def untrack() -> None:
        async def start() -> None:
            tasks.append(asyncio.ensure_future(use()))
            await asyncio.sleep(0.01)

        loop.run_until_complete(start())
        loop.close()

    anyio.run(scenario)
    assert limiter.statistics()[:2] == (2, 0)
    assert limiter.remaining() == {"concurrency": 1}
    # The task that waited is destroyed as it is: asyncio says so, and nothing is charged.
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    tasks.clear()
    gc.collect()
    assert limiter.statistics()[:2] == (2, 0)
    assert limiter._own_queue.users == 1
    assert limiter.idle


def test_the_first_in_line_may_be_gone_when_its_turn_moves_up() -> None:
    limiter = AsyncTokenBucket(RateLimitConfig(1, 3600.0))
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[None]] = []

    async def forgotten() -> None:
        tasks.append(asyncio.ensure_future(limiter.acquire()))
        await asyncio.sleep(0.01)

    def untrack() -> None:
        loop.run_until_complete(forgotten())
        loop.close()

    async def scenario() -> None:
        await limiter.acquire()
        await anyio.to_thread.run_sync(untrack)
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            limiter.update(RateLimitConfig(1, 1.0))  # its turn comes in a second, and it cannot be told
            assert limiter.statistics().waiting == 1
            limiter.update(RateLimitConfig(1, 0.1))

    anyio.run(scenario)
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert limiter.statistics()[:4] == (2, 0, 1, 0)


def test_cancelled_at_any_moment_nothing_is_lost_or_charged() -> None:
    """A storm of tasks that are cancelled natively and by scopes; in the end all permits are back."""
    limiter = RateLimiter(requests=RateLimitConfig(100_000, 1.0), concurrency=2)

    def storm(seed: int) -> Callable[[], Awaitable[None]]:
        async def one(number: int) -> None:
            with anyio.move_on_after((number * seed) % 7 / 1000):
                async with limiter.request(timeout=1 if number % 3 else None):
                    await anyio.sleep(0.0005)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                for number in range(300):
                    group.start_soon(one, number)
                    if number % 10 == 0:
                        await anyio.sleep(0.001)

        return main

    def native() -> Callable[[], Awaitable[None]]:
        async def one() -> None:
            async with limiter.request():
                await asyncio.sleep(0.0005)

        async def main() -> None:
            tasks = [asyncio.ensure_future(one()) for _ in range(200)]
            for number, task in enumerate(tasks):
                if number % 2:
                    await asyncio.sleep(0.0002)
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)

        return main

    in_threads(("asyncio", storm(3)), ("trio", storm(5)), ("uvloop", native()))
    assert limiter.remaining()["concurrency"] == 2
    assert limiter._own_queue.users == 1
    assert limiter.statistics().waiting == 0
    assert limiter._own_queue.served_cost == limiter._own_queue.end_cost


def test_it_waits_in_real_time_too() -> None:
    async def scenario() -> None:
        for limiter in (AsyncTokenBucket(50.0, 1), AsyncSlidingWindow(1, 0.02)):
            began = time.monotonic()
            for _ in range(4):
                await limiter.acquire()
            assert 0.06 - 0.03 <= time.monotonic() - began < 1

    for name in LOOPS:
        run_on(BACKENDS[name], scenario)
