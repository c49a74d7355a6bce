"""Blocks over Redis that end in unusual ways: what was in them is not hidden, and what they held is given back."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination._lock_waiting import release
from cuelight.errors import LeaseLost, LockNotHeld, StoreUnavailable
from cuelight.redis import RedisClient, RedisLock, RedisSemaphore
from cuelight.redis._locks import _lock
from helpers.lockable import over_redis, until, until_server, worker
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy

SHORT = 0.3


class Halt(BaseException):
    """What no lock may replace by an error of its own."""


def untrack(lock: RedisLock) -> None:
    """Have the server forget a lock."""
    assert shared_server().command("DEL", *lock._state.names.keys).startswith(b":")


async def nobody_has(lock: RedisLock | RedisSemaphore) -> None:
    """Wait until the server has nobody who holds it or waits."""

    async def is_free() -> bool:
        state = await lock.state()
        return not state.held and not state.waiting

    await until_server(is_free)


@pytest.mark.parametrize("error", [ValueError("boom"), Halt("halt")], ids=["error", "halt"])
async def test_what_children_of_a_block_raised_that_lost_its_lease_is_not_hidden(error: BaseException) -> None:
    """Some children are cancelled by the loss, one fails: an error is the context, what is more than that goes on."""
    lock = RedisLock("it", **over_redis(), lease=SHORT)

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    with anyio.fail_after(5), pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at below
        async with lock:
            untrack(lock)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                tasks.start_soon(fail)
    left: Any = caught.value
    if isinstance(error, Exception):
        assert isinstance(left, LeaseLost)
        left = left.__context__
    assert error in left.exceptions  # of the task group
    assert not lock.locked
    await nobody_has(lock)


async def test_blocks_that_are_left_in_the_wrong_order_give_back_what_they_held() -> None:
    """Cancel scopes do not allow that, and say so; the places do not stay taken."""
    semaphore = RedisSemaphore("it", 3, **over_redis())
    two = semaphore.hold(2)

    async def cross() -> None:
        await semaphore.__aenter__()
        await two.__aenter__()
        await semaphore.__aexit__(None, None, None)

    with pytest.raises((RuntimeError, ExceptionGroup)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cross)
    await until(lambda: semaphore.available == 1)  # what is still held is that of a task that has ended
    semaphore.acquire_nowait(3)
    semaphore.release(3)
    await nobody_has(semaphore)


async def test_a_block_is_left_by_the_one_who_entered_it_or_not_at_all() -> None:
    lock = RedisLock("it", **over_redis())
    with pytest.raises(LockNotHeld, match="nobody holds it"):
        await lock.__aexit__(None, None, None)
    error: list[BaseException] = []

    async def leave() -> None:
        with pytest.raises(LockNotHeld, match="does not hold it") as caught:
            await lock.__aexit__(None, None, None)
        error.append(caught.value)

    async with lock:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
        assert lock.locked
        assert error
    await nobody_has(lock)


async def test_a_lost_lease_does_not_hide_why_a_thread_ends() -> None:
    lock = RedisLock("it", **over_redis())

    def hold(error: BaseException) -> BaseException:
        try:
            with lock:
                untrack(lock)
                raise error
        except BaseException as raised:
            return raised

    with worker() as thread:
        assert isinstance(thread.do(lambda: hold(SystemExit(3))), SystemExit)
        lost = thread.do(lambda: hold(ValueError("boom")))
    assert isinstance(lost, LeaseLost)
    assert isinstance(lost.__context__, ValueError)
    assert not lock.locked


async def test_locks_say_in_a_program_what_they_are() -> None:
    lock, semaphore = RedisLock("it", **over_redis()), RedisSemaphore("places", 2, **over_redis())
    assert "'it' not held here" in repr(lock)
    async with lock, semaphore:
        assert "'it' held here" in repr(lock)
        assert "1 of 2 not held here" in repr(semaphore)
    assert semaphore.name == "places"


async def test_places_taken_one_by_one_are_given_back_in_one_piece() -> None:
    semaphore = RedisSemaphore("it", 4, **over_redis())
    for _ in range(4):
        await semaphore.acquire()
    semaphore.release(3)
    assert semaphore.available == 3

    async def one_is_held() -> bool:
        return (await semaphore.state()).held == 1

    await until_server(one_is_held)
    with pytest.raises(LockNotHeld):
        semaphore.release(2)
    semaphore.release()
    await nobody_has(semaphore)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "cancelled meanwhile"])
async def test_a_block_waits_for_a_thread_that_was_quicker_to_tell_the_server(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of this process has its turn as the block ends, and takes along what is to be given back: in vain."""
    prefix = over_redis()["prefix"]
    outcomes: list[Any] = []

    def release_and_wait(*args: Any) -> None:
        release(*args)
        while not proxy.faults:  # the thread has asked, and will never know what the server said
            threading.Event().wait(0.001)

    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.5) as client:
            lock = RedisLock("it", server=client, prefix=prefix)

            async def hold(tasks: Any) -> None:
                try:
                    async with lock:
                        proxy.swallow_every(1, of={"EVALSHA"}, times=1)
                        thread.start(lock.acquire_blocking)
                        await until(lambda: lock.statistics().waiting)
                        monkeypatch.setattr(_lock, "release", release_and_wait)
                        if late:
                            tasks.cancel_scope.cancel()
                finally:
                    monkeypatch.undo()
                    outcomes.append("the block ended")
                await anyio.lowlevel.checkpoint()
                outcomes.append("and was not cancelled")

            with worker() as thread, anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(hold, tasks)
                assert isinstance(thread.result(), StoreUnavailable)
            assert not lock._state.pending
            await nobody_has(lock)
    assert ("and was not cancelled" in outcomes) is not late


async def test_a_release_during_a_renewal_that_finds_it_lost_tells_nobody(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[Any] = []
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=2) as client:
            lock = RedisLock("it", server=client, lease=1.5, on_loss=lost.append, prefix=over_redis()["prefix"])
            await lock.acquire()
            lease = lock.lease
            untrack(lock)
            proxy.delay(0.1)
            await until(lambda: lease.renewing)
            lock.release()
            await until(lambda: not lease.renewing)
            proxy.delay(0)
            await nobody_has(lock)
    assert not lost
    assert "was lost" not in caplog.text
    lease.lose("that does not matter any more")
    assert not lost


async def test_a_function_that_ends_the_program_on_a_loss_does_not_end_the_leases_of_other_threads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`sys.exit` in the thread that renews for all would end that thread, not the program."""

    def leave(_: object) -> None:
        raise SystemExit(1)

    lock, other = RedisLock("it", **over_redis(), lease=SHORT, on_loss=leave), RedisLock("other", **over_redis())
    with worker() as thread, worker() as bystander:
        assert bystander.do(other.acquire_blocking) is None
        kept = bystander.do(lambda: other.lease)
        assert thread.do(lock.acquire_blocking) is None
        lease = thread.do(lambda: lock.lease)
        untrack(lock)
        await until(lambda: "on_loss of lock 'it' failed" in caplog.text)
        assert lease.lost
        assert isinstance(thread.do(lock.release), LeaseLost)
        assert thread.do(lock.acquire_blocking) is None
        assert thread.do(lock.release) is None
        kept.check()
        assert bystander.do(other.release) is None
    await nobody_has(other)


def test_a_function_that_ends_the_program_on_a_loss_ends_the_loop_of_a_task() -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    async def main() -> None:
        async with lock:
            untrack(lock)
            await anyio.sleep_forever()

    lock = RedisLock("it", **over_redis(), lease=SHORT, on_loss=leave)
    with pytest.raises(SystemExit, match="3"):
        anyio.run(main)
    with worker() as thread:
        assert thread.do(lambda: lock.acquire_blocking(5)) is None
        assert thread.do(lock.release) is None


async def test_two_tasks_that_subscribe_at_once_share_a_subscription() -> None:
    where = over_redis()
    async with RedisClient(where["redis_url"]) as elsewhere:  # as another process would have it
        all_of_it = RedisSemaphore("it", 2, server=elsewhere, prefix=where["prefix"])
        semaphore = RedisSemaphore("it", 2, **where)
        got: list[int] = []

        async def take(number: int) -> None:
            async with semaphore:
                got.append(number)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks, all_of_it.hold(2):
                tasks.start_soon(take, 1)
                tasks.start_soon(take, 2)

                async def both_wait() -> bool:
                    return len((await semaphore.state()).waiting) == 2

                await until_server(both_wait)
                await until(
                    lambda: any(grant_channel.open for grant_channel in semaphore._state.grant_channels.values())
                )
                assert not got
    assert sorted(got) == [1, 2]


async def test_a_client_that_was_closed_says_so_at_the_next_lock() -> None:
    where = over_redis()
    async with RedisClient(where["redis_url"]) as client:
        lock = RedisLock("it", server=client, prefix=where["prefix"])
        async with lock:
            pass
    with pytest.raises(StoreUnavailable, match="closed"):
        await lock.acquire()
    assert not lock.locked
