"""What every lock does, whoever keeps its state."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from cuelight.errors import DeadlockError, LockHeld, LockNotHeld, LockTimeout
from helpers.lockable import KINDS, Kind, until, worker
from helpers.players import outcome, settle

if TYPE_CHECKING:
    from cuelight.coordination import BaseLock


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def lock(kind: Kind) -> BaseLock:
    return kind.make("it")


async def test_a_lock_excludes_tasks(lock: BaseLock) -> None:
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside == 1
            await anyio.lowlevel.checkpoint()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(enter)
    assert not lock.locked
    assert lock.statistics().acquisitions == 20


def test_a_lock_excludes_threads(lock: BaseLock) -> None:
    count = 0

    def enter() -> None:
        nonlocal count
        for _ in range(200):
            with lock:
                seen = count
                count = seen + 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert count == 800
    assert not lock.locked


async def test_a_thread_waits_for_a_task_and_a_task_for_a_thread(lock: BaseLock) -> None:
    with worker() as thread:
        async with lock:
            thread.start(lock.acquire_blocking)
            await until(lambda: lock.statistics().waiting == 1)
        async with anyio.create_task_group() as tasks:
            await until(lambda: lock.statistics().holders and "thread" in lock.statistics().holders[0].who)
            tasks.start_soon(lock.acquire)
            await until(lambda: lock.statistics().waiting == 1)
            assert thread.result() is None
            assert thread.do(lock.release) is None
            await until(lambda: "task" in lock.statistics().holders[0].who)


async def test_waiters_are_served_in_the_order_of_arrival(lock: BaseLock) -> None:
    order: list[int] = []

    async def enter(number: int) -> None:
        async with lock:
            order.append(number)

    async with anyio.create_task_group() as tasks:
        await lock.acquire()
        for number in range(10):
            tasks.start_soon(enter, number)
            await settle()
        lock.release()
        with pytest.raises(LockHeld, match="'it' is held"):
            lock.acquire_nowait()  # nobody overtakes those in line
    assert order == list(range(10))


async def test_acquire_nowait_takes_it_or_raises(lock: BaseLock) -> None:
    lock.acquire_nowait()
    assert lock.locked
    with worker("other") as thread:
        error = thread.do(lock.acquire_nowait)
        assert isinstance(error, LockHeld)
        assert isinstance(error, anyio.WouldBlock)
        assert "task" in str(error)
        lock.release()
        assert thread.do(lock.acquire_nowait) is None
        assert thread.do(lock.release) is None
    assert not lock.locked


async def test_acquire_with_a_time_out_names_the_holder(lock: BaseLock) -> None:
    with worker("hog") as thread:
        thread.do(lock.acquire_blocking)
        for timeout in (0, 0.01):
            with pytest.raises(LockTimeout, match="'hog'") as caught:
                await lock.acquire(timeout)
            assert isinstance(caught.value, TimeoutError)
        assert lock.statistics().waiting == 0
        thread.do(lock.release)
    await lock.acquire(0)
    lock.release()


def test_acquire_blocking_with_a_time_out_names_the_holder(lock: BaseLock) -> None:
    with worker("hog") as thread:
        thread.do(lock.acquire_blocking)
        for timeout in (0, 0.01):
            with pytest.raises(LockTimeout, match="'hog'"):
                lock.acquire_blocking(timeout)
        assert lock.statistics().waiting == 0
        thread.do(lock.release)
    lock.acquire_blocking(0)
    lock.release()


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_time_out_that_makes_no_sense_is_refused(lock: BaseLock, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout="):
        await lock.acquire(timeout)
    with pytest.raises(ValueError, match="timeout="):
        lock.acquire_blocking(timeout)
    assert not lock.locked


async def test_a_lock_is_not_reentrant_and_says_so(lock: BaseLock) -> None:
    async with lock:
        with pytest.raises(DeadlockError, match=r"'it'.*"):
            await lock.acquire()
        with pytest.raises(DeadlockError, match=r"'it'.*"):
            lock.acquire_blocking()
        assert lock.statistics().waiting == 0
    assert not lock.locked


def test_a_lock_is_not_reentrant_for_threads(lock: BaseLock) -> None:
    with lock, pytest.raises(DeadlockError, match="'MainThread'"):
        lock.acquire_blocking()
    assert not lock.locked


async def test_release_by_another_is_refused(lock: BaseLock) -> None:
    with pytest.raises(LockNotHeld, match="nobody holds it"):
        lock.release()
    async with lock:
        with worker("thief") as thread:
            error = thread.do(lock.release)
            assert isinstance(error, LockNotHeld)
            assert "'thief'" in str(error)

        async def steal() -> None:
            with pytest.raises(LockNotHeld, match="'it'"):
                lock.release()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(steal)
        assert lock.locked
    assert not lock.locked


async def test_an_exception_in_the_block_releases(lock: BaseLock) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        async with lock:
            raise RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"), lock:
        raise RuntimeError("boom")
    assert not lock.locked


async def test_statistics_tell_who_holds_and_who_waits(lock: BaseLock) -> None:
    async with anyio.create_task_group() as tasks:
        async with lock:
            tasks.start_soon(outcome, lock.acquire())
            await settle()
            seen = lock.statistics()
            assert seen.held >= 1
            assert seen.waiting == 1
            assert len(seen.holders) == 1
            assert "task" in seen.holders[0].who
            assert seen.holders[0].seconds is not None
            now_at = seen.holders[0].now_at
            assert now_at is not None
        await settle()
        seen = lock.statistics()
        assert (seen.acquisitions, seen.waits) == (2, 1)
        assert seen.wait_seconds >= seen.longest_wait > 0
        assert seen.hold_seconds >= seen.longest_hold > 0


async def test_a_waiter_that_is_cancelled_leaves_the_line(lock: BaseLock) -> None:
    async with anyio.create_task_group() as tasks:
        await lock.acquire()
        first, second = anyio.CancelScope(), anyio.Event()

        async def give_up() -> None:
            with first:
                await lock.acquire()

        async def enter() -> None:
            async with lock:
                second.set()

        tasks.start_soon(give_up)
        await settle()
        tasks.start_soon(enter)
        await settle()
        assert lock.statistics().waiting == 2
        first.cancel()
        await settle()
        assert lock.statistics().waiting == 1
        lock.release()
        await second.wait()
    assert not lock.locked
