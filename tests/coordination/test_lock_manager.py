"""Locks by name, and several at once."""

from __future__ import annotations

import gc
import math
import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import BaseLock, LocalLock, LockManager
from cuelight.errors import DeadlockError, LockTimeout
from helpers.lockable import worker
from helpers.players import outcome, settle


async def test_a_name_has_one_lock() -> None:
    manager = LockManager()
    lock = manager.get_lock("a")
    assert manager.get_lock("a") is lock
    assert manager.get_lock("b") is not lock
    assert lock.name == "a"
    async with manager.acquire("a"):
        assert lock.locked
    assert not lock.locked


async def test_names_that_are_not_used_are_forgotten() -> None:
    manager = LockManager()
    for number in range(10_000):
        async with manager.acquire(str(number)):
            pass
        with manager.get_lock(str(number)):
            pass
    gc.collect()
    assert len(manager) <= 2
    assert manager.stats["total"] <= 2


async def test_a_lock_that_is_held_is_not_forgotten() -> None:
    manager = LockManager()
    manager.get_lock("a").acquire_nowait()
    await manager.get_lock("b").acquire()
    manager.get_lock("c").acquire_blocking()
    gc.collect()
    assert manager.stats["active"] == 3
    for name in "abc":
        with pytest.raises(DeadlockError):
            manager.get_lock(name).acquire_nowait()
        manager.get_lock(name).release()
    gc.collect()
    assert len(manager) == 0


async def test_what_the_dead_held_is_forgotten_too() -> None:
    manager = LockManager()

    async def take(number: int) -> None:
        await manager.get_lock(str(number)).acquire()

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(take, number)
    for number in range(200):
        manager.get_lock(str(number)).acquire_nowait()
        manager.get_lock(str(number)).release()
    gc.collect()
    assert len(manager) == 0


async def test_acquire_all_takes_all_in_one_order_each_once() -> None:
    manager = LockManager()
    both = manager.acquire_all(["b", "a", "b"])
    assert both.names == ("a", "b")
    async with both:
        assert manager.stats["active"] == 2
        with pytest.raises(RuntimeError, match="held through this object already"):
            async with both:
                pass
    assert manager.stats["active"] == 0
    async with manager.acquire_all([]):
        pass


async def test_acquire_all_takes_all_or_none_within_one_deadline() -> None:
    manager = LockManager()
    a = manager.get_lock("a")
    with worker() as thread:
        thread.do(manager.get_lock("c").acquire_blocking)
        with anyio.fail_after(5):
            with pytest.raises(LockTimeout, match="lock 'c'"):
                async with manager.acquire_all(["c", "b", "a"], timeout=0.02):
                    pass
        with pytest.raises(LockTimeout, match="lock 'c'"), manager.acquire_all(["c", "a"], timeout=0.02):
            pass
        assert not a.locked
        assert manager.stats["active"] == 1
        with anyio.move_on_after(0.02):
            async with manager.acquire_all(["c", "a"]):
                pass
        assert not a.locked
        thread.do(manager.get_lock("c").release)


async def test_acquire_all_cannot_deadlock_with_itself() -> None:
    manager = LockManager()
    names = list("abcde")
    rng = random.Random(7)
    done = 0

    async def work() -> None:
        nonlocal done
        for _ in range(10):
            wanted = rng.sample(names, 3)
            async with manager.acquire_all(wanted):
                await anyio.lowlevel.checkpoint()
                done += 1

    with anyio.fail_after(20), worker() as thread:

        def work_blocking() -> None:
            for _ in range(50):
                with manager.acquire_all(rng.sample(names, 3)):
                    pass

        thread.start(work_blocking)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(work)
        assert thread.result() is None
    assert done == 100
    assert manager.stats["active"] == 0


async def test_locks_are_released_in_reverse_order_even_if_one_was_taken_away() -> None:
    manager = LockManager()
    a, b, c = (manager.get_lock(name) for name in "abc")
    with pytest.raises(Exception, match="cannot release lock 'b'"):
        async with manager.acquire_all(["a", "b", "c"]):
            b.release()
    with pytest.raises(ExceptionGroup) as caught:
        async with manager.acquire_all(["a", "b", "c"]):
            a.release()
            c.release()
    assert [str(error).split("release lock ")[1][:3] for error in caught.value.exceptions] == ["'c'", "'a'"]
    assert not any(lock.locked for lock in (a, b, c))


async def test_stats_add_up() -> None:
    manager = LockManager()
    lock = manager.get_lock("a")
    async with anyio.create_task_group() as tasks:
        async with manager.acquire("a"), manager.acquire("b"):
            tasks.start_soon(outcome, lock.acquire())
            await settle()
            stats = manager.stats
            assert (stats["active"], stats["waiting"], stats["total"]) == (2, 1, 2)
            assert stats["acquisitions"] == 2
        await settle()
    stats = manager.stats
    assert stats["waits"] == 1
    assert stats["wait_seconds"] >= stats["longest_wait"] > 0
    assert stats["hold_seconds"] >= stats["longest_hold"] > 0
    assert f"{stats['active']}" in "01"


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_bad_arguments_are_refused_where_they_are_given(timeout: float) -> None:
    manager = LockManager()
    with pytest.raises(ValueError, match="timeout="):
        manager.acquire("a", timeout)
    wrong: Any = "abc"
    with pytest.raises(TypeError, match="several names"):
        manager.acquire_all(wrong)
    wrong = 5
    with pytest.raises(TypeError, match="is a str, not 5"):
        manager.get_lock(wrong)


async def test_another_factory_makes_the_locks() -> None:
    made: list[str] = []

    def factory(name: str, /, *, debug: bool | None = None) -> BaseLock:
        made.append(name)
        return LocalLock(name, debug=debug)

    manager = LockManager(factory, debug=True)
    async with manager.acquire_all(["x", "y"]):
        taken = manager.get_lock("x").statistics().holders[0].taken_at
        assert taken is not None
        assert "test_lock_manager.py" in taken
    assert made == ["x", "y"]
    assert "2 locks" in repr(manager) or "0 locks" in repr(manager)
