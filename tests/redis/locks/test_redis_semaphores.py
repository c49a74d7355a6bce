"""What is particular to semaphores and read-write locks over Redis: as those of one process, and under leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import BaseLock, BaseSemaphore
from cuelight.errors import DeadlockError, LeaseLost, LockHeld, LockNotHeld, LockTimeout
from cuelight.redis import RedisClient, RedisReadWriteLock, RedisSemaphore
from helpers.lockable import over_redis, until, until_server, worker
from helpers.players import outcome, settle
from helpers.redis_servers import shared_server


def semaphore_of(places: int, **options: Any) -> RedisSemaphore:
    return RedisSemaphore("s", places, **over_redis(), **options)


async def test_a_semaphore_over_redis_lets_in_as_many_as_it_has_places() -> None:
    semaphore: BaseSemaphore = semaphore_of(3)
    inside = most = 0

    async def enter() -> None:
        nonlocal inside, most
        async with semaphore:
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.002)
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(enter)
    assert most == 3
    assert semaphore.available == semaphore.capacity == 3
    assert not semaphore.locked


async def test_a_large_request_is_not_starved_by_small_ones_of_others() -> None:
    where = over_redis()
    order: list[str] = []
    async with RedisClient(where["redis_url"]) as one, RedisClient(where["redis_url"]) as two:
        mine = RedisSemaphore("s", 3, server=one, prefix=where["prefix"])
        theirs = RedisSemaphore("s", 3, server=two, prefix=where["prefix"])

        async def large() -> None:
            async with mine.hold(3):
                order.append("large")

        async def small() -> None:
            async with theirs:
                order.append("small")

        async def waiting(how_many: int) -> None:
            async def so_many() -> bool:
                return len((await mine.state()).waiting) == how_many

            await until_server(so_many)

        async with anyio.create_task_group() as tasks:
            await theirs.acquire()
            tasks.start_soon(large)
            await waiting(1)
            tasks.start_soon(small)
            await waiting(2)
            theirs.release()
    assert order == ["large", "small"]


async def test_weights_are_taken_and_given_back_in_parts() -> None:
    semaphore = semaphore_of(5)

    async def held(how_many: int) -> None:
        async def so_many() -> bool:
            return (await semaphore.state()).held == how_many

        await until_server(so_many)

    await semaphore.acquire(3)
    await semaphore.acquire(weight=1)
    await held(4)
    assert semaphore.available == 1
    with pytest.raises(LockHeld, match="semaphore 's'"):
        semaphore.acquire_nowait(2)
    with pytest.raises(LockNotHeld, match="does not hold"):
        semaphore.release(5)
    semaphore.release(2)
    assert semaphore.available == 3
    await held(2)
    semaphore.release(2)
    await held(0)
    with pytest.raises(LockNotHeld):
        semaphore.release()
    async with semaphore.hold(5) as claim:
        assert claim.lease.weight == 5
        assert claim.statistics().held == 5
        assert semaphore.locked
        assert semaphore.statistics().held == 5
    with worker() as thread:
        thread.do(lambda: semaphore.acquire_blocking(4))
        assert isinstance(await outcome(semaphore.acquire(2, timeout=0.01)), LockTimeout)
        thread.do(lambda: semaphore.release(1))
        await held(3)
        thread.do(lambda: semaphore.release(3))
    await held(0)
    assert semaphore.available == 5
    assert "5 of 5" in repr(semaphore)


@pytest.mark.parametrize("weight", [0, -1, 6, 1.5])
async def test_a_weight_that_can_never_be_had_over_redis_is_refused_at_once(weight: Any) -> None:
    semaphore = semaphore_of(5)
    with pytest.raises(ValueError, match="has 5 places"):
        await semaphore.acquire(weight)
    for operation in (semaphore.acquire_nowait, semaphore.acquire_blocking, semaphore.release, semaphore.hold):
        with pytest.raises(ValueError, match=f"weight={weight}"):
            operation(weight)


async def test_each_hold_of_a_semaphore_has_a_lease_and_a_fence_of_its_own() -> None:
    semaphore = semaphore_of(3, lease=0.3)
    fences: set[int] = set()
    async with semaphore, semaphore, semaphore.hold(1) as claim:
        fences |= {lease.fence for lease in semaphore._state.leases[claim.lease.owner]}
        assert semaphore.lease is claim.lease
        await anyio.sleep(0.5)  # all are renewed, in one call
        claim.lease.check()
    assert len(fences) == 3
    assert (await semaphore.state()).expired == 0
    with anyio.fail_after(5), pytest.raises(LeaseLost):
        async with semaphore:
            shared_server().command("DEL", *semaphore._state.names.keys)
            await anyio.sleep_forever()
    with worker() as thread:

        def enter() -> None:
            with semaphore:
                shared_server().command("DEL", *semaphore._state.names.keys)

        assert isinstance(thread.do(enter), LeaseLost)
        assert thread.do(semaphore.state_blocking).held == 0


# Read-write locks.


@pytest.fixture(params=[False, True], ids=["fair", "writers first"])
def rwlock(request: pytest.FixtureRequest) -> RedisReadWriteLock:
    preference: bool = request.param
    return RedisReadWriteLock("data", **over_redis(), writer_preference=preference)


async def test_readers_over_redis_share_and_writers_exclude(rwlock: RedisReadWriteLock) -> None:
    reading = writing = most = 0

    async def read() -> None:
        nonlocal reading, most
        async with rwlock.read():
            reading += 1
            most = max(most, reading)
            assert not writing
            await anyio.sleep(0.002)
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
    assert "0 reading" in repr(rwlock)


@pytest.mark.parametrize(("preference", "expected"), [(False, "rrwrwwr"), (True, "wwwrrrr")])
async def test_readers_and_writers_of_two_processes_come_in_order(preference: bool, expected: str) -> None:
    """Each of them as a process of its own would: the line is that of the server."""
    where = over_redis()
    order: list[str] = []
    locks: list[RedisReadWriteLock] = []
    clients = [RedisClient(where["redis_url"]) for _ in range(len(expected) + 1)]
    for client in clients:
        lock = RedisReadWriteLock("data", server=client, prefix=where["prefix"], writer_preference=preference)
        locks.append(lock)

    async def enter(side: BaseLock, label: str) -> None:
        async with side:
            order.append(label)

    first = locks.pop()
    async with anyio.create_task_group() as tasks:
        await first.write().acquire()
        for count, (kind, lock) in enumerate(zip("rrwrwwr", locks, strict=True)):
            tasks.start_soon(enter, lock.read() if kind == "r" else lock.write(), kind)

            async def in_line(count: int = count) -> bool:
                return len((await first.state()).waiting) == count + 1

            await until_server(in_line)
        first.write().release()
    # Readers that enter together may tell in any order; they stand beside each other here anyway.
    assert "".join(order) == expected
    for client in clients:
        await client.aclose()


async def test_an_upgrade_over_redis_is_refused_and_says_so(rwlock: RedisReadWriteLock) -> None:
    async with rwlock.read():
        with pytest.raises(DeadlockError, match="holds read-write lock 'data' for reading and wants to write"):
            await rwlock.write().acquire()
    async with rwlock.write():
        with pytest.raises(DeadlockError, match="not re-entrant"):
            await rwlock.read().acquire()


async def test_a_downgrade_over_redis_lets_readers_in_and_no_writer(rwlock: RedisReadWriteLock) -> None:
    order: list[str] = []
    go = anyio.Event()

    async def enter(lock: BaseLock, label: str, then: Callable[[], object] = lambda: None) -> None:
        async with lock:
            order.append(label)
            then()

    async with anyio.create_task_group() as tasks, rwlock.write() as held:
        fence = held.lease.fence
        tasks.start_soon(enter, rwlock.read(), "reader", go.set)
        await settle()
        rwlock.downgrade()
        order.append("downgraded")
        assert held.lease.fence == fence
        assert (rwlock.writing, rwlock.readers > 0) == (False, True)
        with pytest.raises(LockNotHeld, match="does not write"):
            rwlock.downgrade()
        if not rwlock._state.writers_first:
            await go.wait()
        tasks.start_soon(enter, rwlock.write(), "writer")
        await settle()
        order.append("left")
    assert order[0] == "downgraded"
    assert order.index("left") < order.index("writer")
    assert rwlock.statistics().held == 0
    assert (await rwlock.state()).held == 0


async def test_after_a_downgrade_over_redis_either_side_gives_it_back(rwlock: RedisReadWriteLock) -> None:
    for side in (rwlock.read(), rwlock.write()):
        await rwlock.write().acquire()
        rwlock.downgrade()
        side.release()
        assert rwlock.statistics().held == 0
    with worker() as thread:
        for side in (rwlock.read(), rwlock.write()):
            assert thread.do(rwlock.write().acquire_blocking) is None
            assert thread.do(rwlock.downgrade) is None
            assert thread.do(rwlock.state_blocking).held == 2
            assert thread.do(side.release) is None
        assert thread.do(rwlock.state_blocking).held == 0
    await rwlock.read().acquire()
    with pytest.raises(LockNotHeld):
        rwlock.write().release()
    rwlock.read().release()


async def test_a_writer_that_lost_its_lease_is_cut_off_and_cannot_downgrade() -> None:
    rwlock = RedisReadWriteLock("data", **over_redis(), lease=0.3)
    with anyio.fail_after(5), pytest.raises(LeaseLost):
        async with rwlock.write():
            shared_server().command("DEL", *rwlock._state.names.keys)
            await anyio.sleep_forever()
    await rwlock.write().acquire()
    lease = rwlock.write().lease
    shared_server().command("DEL", *rwlock._state.names.keys)
    await until(lambda: lease.lost)
    with pytest.raises(LeaseLost):
        rwlock.downgrade()
    with pytest.raises(LeaseLost):
        rwlock.write().release()
    assert rwlock.name == rwlock.read().name == "data"


def test_the_same_name_with_another_preference_is_refused() -> None:
    where = over_redis()
    one = RedisReadWriteLock("data", **where)
    with pytest.raises(ValueError, match="writer_preference"):
        RedisReadWriteLock("data", **where, writer_preference=True)
    assert not one.writing
