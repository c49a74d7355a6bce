"""What is particular to semaphores and to read-write locks."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import BaseLock, BaseSemaphore, LocalLock, LocalSemaphore, ReadWriteLock, Semaphore
from cuelight.errors import DeadlockError, LockHeld, LockNotHeld, LockTimeout
from helpers.lockable import until, worker
from helpers.players import outcome, settle


async def test_a_semaphore_lets_in_as_many_as_it_has_places() -> None:
    semaphore: BaseSemaphore = Semaphore(max_concurrent=3)
    inside = most = 0

    async def enter() -> None:
        nonlocal inside, most
        async with semaphore:
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(enter)
    assert most == 3
    assert semaphore.available == semaphore.capacity == 3
    assert not semaphore.locked


async def test_a_large_request_is_not_starved_by_small_ones() -> None:
    semaphore = LocalSemaphore(3)
    order: list[str] = []

    async def small(number: int) -> None:
        async with semaphore:
            order.append(f"small {number}")
            await anyio.lowlevel.checkpoint()

    async def large() -> None:
        async with semaphore.hold(3):
            order.append("large")

    async with anyio.create_task_group() as tasks:
        await semaphore.acquire()
        tasks.start_soon(large)
        await settle()
        for number in range(10):
            tasks.start_soon(small, number)
        await settle()
        assert order == []
        semaphore.release()
    assert order[0] == "large"


async def test_weights_are_taken_and_given_back() -> None:
    semaphore = LocalSemaphore(5, name="s")
    await semaphore.acquire(3)
    await semaphore.acquire(weight=1)
    assert semaphore.available == 1
    with pytest.raises(LockHeld, match="semaphore 's'"):
        semaphore.acquire_nowait(2)
    with pytest.raises(LockNotHeld, match="does not hold"):
        semaphore.release(5)
    semaphore.release(2)
    assert semaphore.available == 3
    semaphore.release(2)
    with pytest.raises(LockNotHeld):
        semaphore.release()
    with semaphore.hold(5) as held:
        assert held.statistics().held == 5
        assert semaphore.locked
    with worker() as thread:
        thread.do(lambda: semaphore.acquire_blocking(4))
        assert isinstance(await outcome(semaphore.acquire(2, timeout=0.01)), LockTimeout)
        assert isinstance(await outcome(semaphore.hold(2).acquire(0.01)), LockTimeout)
        thread.do(lambda: semaphore.release(4))
    assert semaphore.available == 5


@pytest.mark.parametrize("weight", [0, -1, 6, 1.5])
async def test_a_weight_that_can_never_be_had_is_refused_at_once(weight: Any) -> None:
    semaphore = LocalSemaphore(5)
    with pytest.raises(ValueError, match="has 5 places"):
        await semaphore.acquire(weight)
    for operation in (semaphore.acquire_nowait, semaphore.acquire_blocking, semaphore.release, semaphore.hold):
        with pytest.raises(ValueError, match=f"weight={weight}"):
            operation(weight)
    assert semaphore.available == 5


@pytest.mark.parametrize("places", [0, -1, 2.5])
def test_a_semaphore_without_places_is_refused(places: Any) -> None:
    with pytest.raises(ValueError, match=f"max_concurrent={places}"):
        LocalSemaphore(places)


async def test_a_semaphore_of_another_back_end_needs_no_blocks_of_its_own() -> None:
    inherited: Any = BaseSemaphore

    class Elsewhere(LocalSemaphore):
        __enter__, __exit__ = inherited.__enter__, inherited.__exit__
        __aenter__, __aexit__ = inherited.__aenter__, inherited.__aexit__

    semaphore: BaseSemaphore = Elsewhere(2)
    async with semaphore:
        with worker() as thread:
            thread.do(semaphore.__enter__)
            assert semaphore.locked
            thread.do(lambda: semaphore.__exit__(None, None, None))
    assert semaphore.available == 2


async def test_a_task_that_holds_some_of_it_may_wait_for_more_from_others() -> None:
    semaphore = LocalSemaphore(2)
    await semaphore.acquire()
    with worker() as thread:
        thread.do(semaphore.acquire_blocking)
        async with anyio.create_task_group() as tasks:

            async def free() -> None:
                await until(lambda: semaphore.statistics().waiting)
                thread.do(semaphore.release)

            tasks.start_soon(free)
            async with semaphore:
                assert semaphore.locked
    semaphore.release()
    assert semaphore.available == 2


# Read-write locks.


@pytest.fixture(params=[False, True], ids=["fair", "writers first"])
def rwlock(request: pytest.FixtureRequest) -> ReadWriteLock:
    preference: bool = request.param
    return ReadWriteLock("data", writer_preference=preference)


async def test_readers_share_and_writers_exclude(rwlock: ReadWriteLock) -> None:
    reading = writing = most = 0

    async def read() -> None:
        nonlocal reading, most
        async with rwlock.read():
            reading += 1
            most = max(most, reading)
            assert not writing
            await anyio.lowlevel.checkpoint()
            reading -= 1

    async def write() -> None:
        nonlocal writing
        async with rwlock.write():
            writing += 1
            assert (writing, reading) == (1, 0)
            await anyio.lowlevel.checkpoint()
            writing -= 1

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(write if number % 5 == 4 else read)
    assert most > 1
    assert (rwlock.readers, rwlock.writing) == (0, False)


async def _line(rwlock: ReadWriteLock, kinds: str) -> str:
    """Line up readers and writers behind a writer; in which order they enter."""
    order: list[str] = []

    async def enter(lock: BaseLock, label: str) -> None:
        async with lock:
            order.append(label)

    async with anyio.create_task_group() as tasks:
        await rwlock.write().acquire()
        for kind in kinds:
            tasks.start_soon(enter, rwlock.read() if kind == "r" else rwlock.write(), kind)
            await settle()
        rwlock.write().release()
    return "".join(order)


async def test_a_fair_read_write_lock_serves_in_the_order_of_arrival() -> None:
    assert await _line(ReadWriteLock(), "rrwrwwr") == "rrwrwwr"


async def test_with_writer_preference_writers_go_before_readers() -> None:
    assert await _line(ReadWriteLock(writer_preference=True), "rrwrwwr") == "wwwrrrr"


async def test_a_reader_waits_behind_a_waiting_writer(rwlock: ReadWriteLock) -> None:
    with worker() as writer:
        async with rwlock.read():
            writer.start(rwlock.write().acquire_blocking)
            await until(lambda: rwlock.statistics().waiting)

            async def read() -> None:
                assert isinstance(await outcome(rwlock.read().acquire(0)), LockTimeout)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
        assert writer.result() is None
        writer.do(rwlock.write().release)


async def test_an_upgrade_is_refused_and_says_so(rwlock: ReadWriteLock) -> None:
    async with rwlock.read():
        with pytest.raises(DeadlockError, match="holds read-write lock 'data' for reading and wants to write"):
            await rwlock.write().acquire()
        with pytest.raises(DeadlockError, match="not re-entrant"):
            await rwlock.read().acquire()
    async with rwlock.write():
        with pytest.raises(DeadlockError, match="not re-entrant"):
            await rwlock.read().acquire()


async def test_a_downgrade_lets_readers_in_and_no_writer(rwlock: ReadWriteLock) -> None:
    order: list[str] = []

    async def enter(lock: BaseLock, label: str) -> None:
        async with lock:
            order.append(label)
            await settle()

    async with anyio.create_task_group() as tasks, rwlock.write():
        tasks.start_soon(enter, rwlock.read(), "reader")
        await settle()
        tasks.start_soon(enter, rwlock.write(), "writer")
        await settle()
        rwlock.downgrade()
        order.append("downgraded")
        assert not rwlock.writing
        with pytest.raises(LockNotHeld, match="does not write"):
            rwlock.downgrade()
        await settle()
        order.append("left")
    expected = {"downgraded", "left", "reader", "writer"}
    assert set(order) == expected
    assert order.index("left") < order.index("writer")
    assert order[0] == "downgraded"
    assert rwlock.statistics().held == 0


async def test_after_a_downgrade_either_side_gives_it_back(rwlock: ReadWriteLock) -> None:
    for side in (rwlock.read(), rwlock.write()):
        await rwlock.write().acquire()
        rwlock.downgrade()
        side.release()
        assert rwlock.statistics().held == 0
    await rwlock.read().acquire()
    with pytest.raises(LockNotHeld):
        rwlock.write().release()
    rwlock.read().release()
    await rwlock.write().acquire()
    with pytest.raises(LockNotHeld):
        rwlock.read().release()
    rwlock.write().release()


async def test_a_read_side_is_locked_while_somebody_reads(rwlock: ReadWriteLock) -> None:
    async with rwlock.read():
        assert (rwlock.read().locked, rwlock.write().locked, rwlock.readers) == (True, False, 1)
        assert rwlock.statistics().held == 1
    async with rwlock.write():
        assert (rwlock.read().locked, rwlock.write().locked, rwlock.readers) == (False, True, 0)
    assert rwlock.name == rwlock.read().name == "data"


def test_what_they_look_like() -> None:
    lock, semaphore, rwlock = LocalLock("l"), LocalSemaphore(2, name="s"), ReadWriteLock("r")
    assert repr(lock) == "<LocalLock 'l' free>"
    assert repr(semaphore) == "<LocalSemaphore 's' 2 of 2 free>"
    assert repr(rwlock) == "<ReadWriteLock 'r' 0 reading>"
    with lock, semaphore, rwlock.write():
        assert repr(lock) == "<LocalLock 'l' held>"
        assert repr(semaphore) == "<LocalSemaphore 's' 1 of 2 free>"
        assert repr(rwlock) == "<ReadWriteLock 'r' writing>"
    assert LocalLock().name != LocalLock().name
    assert semaphore.name == "s"
    assert LocalSemaphore().name.startswith("semaphore-")
