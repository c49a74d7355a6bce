"""What a holder has, and how it learns that it has it no more."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import LockManager
from cuelight.errors import LeaseLost, LockNotHeld, StoreRefused, StoreUnavailable
from cuelight.redis import LockLease, LockState, RedisClient, RedisLock, RedisSemaphore, redis_locks
from cuelight.redis._locks._renewal import LeaseRenewer, _renewers, background_loop
from helpers import BACKENDS, run_on
from helpers.lockable import over_redis, until, until_server, worker
from helpers.players import outcome, settle
from helpers.redis_servers import RedisServer, shared_server
from helpers.tcp_proxy import TcpProxy

SHORT = 0.3


def untrack(lock: RedisLock) -> None:
    """Have the server forget a lock, as a promoted replica would that has not heard of it."""
    assert shared_server().command("DEL", *lock._state.names.keys).startswith(b":")


async def _waiting(lock: RedisLock) -> bool:
    return bool((await lock.state()).waiting)


async def _free(lock: RedisLock) -> bool:
    return not (await lock.state()).held


async def test_fences_grow_from_holder_to_holder() -> None:
    where = over_redis()
    fences: list[int] = []
    for _ in range(3):
        async with RedisLock("it", **where).hold() as lease:
            fences.append(lease.fence)
            lease.check()
            assert 9 < lease.remaining() <= 10
            assert not lease.lost
        with pytest.raises(LeaseLost, match="given back"):
            lease.check()
        assert lease.remaining() == 0
    untrack(RedisLock("it", **where))
    with worker() as thread:

        def take() -> int:
            with RedisLock("it", **where).hold() as lease:
                return lease.fence

        fences.append(thread.do(take))
    assert fences == sorted(set(fences))


async def test_the_lease_is_that_of_the_one_who_asks() -> None:
    lock = RedisLock("it", **over_redis())
    with pytest.raises(LockNotHeld, match="nobody holds it"):
        _ = lock.lease
    async with lock:
        assert isinstance(lock.lease, LockLease)
        assert "fence" in repr(lock.lease)
        with worker() as thread:
            assert isinstance(thread.do(lambda: lock.lease), LockNotHeld)


async def test_two_objects_of_one_name_are_one_lock() -> None:
    where = over_redis()
    one, two = RedisLock("it", **where), RedisLock("it", **where)
    async with one:
        assert two.locked
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, two.acquire(0.01))
        state = await two.state()
        assert (state.held, state.capacity, len(state.holders)) == (1, 1, 1)
    assert not two.locked
    assert (await one.state()).held == 0
    with worker() as thread:
        state = thread.do(one.state_blocking)
        assert isinstance(state, LockState)


async def test_a_lease_is_renewed_for_as_long_as_it_is_held() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    async with lock.hold() as lease:
        await anyio.sleep(SHORT * 3)
        lease.check()
        assert (await lock.state()).expired == 0
    with worker() as thread:

        def hold() -> None:
            with lock.hold() as lease:
                time.sleep(SHORT * 3)
                lease.check()

        assert thread.do(hold) is None
    assert (await lock.state()).expired == 0


async def test_loss_cancels_the_block_and_raises() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    reached = False
    with anyio.fail_after(5):
        with pytest.raises(LeaseLost, match=r"lock 'it'.*fence") as caught:
            async with lock.hold() as lease:
                untrack(lock)
                try:
                    await anyio.sleep_forever()
                finally:
                    assert lease.lost
                reached = True
        assert not reached
        assert isinstance(caught.value.__context__, anyio.get_cancelled_exc_class())
        assert not lock.locked
        async with lock:  # life goes on
            pass


async def test_loss_in_a_block_of_the_lock_itself_and_in_its_children() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    ended: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("child")

    with anyio.fail_after(5), pytest.raises(LeaseLost):
        async with lock:
            untrack(lock)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
                tasks.start_soon(child)
    assert ended == ["child", "child"]


async def test_an_error_of_a_body_that_lost_its_lease_is_the_context() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    with anyio.fail_after(5), pytest.raises(LeaseLost) as caught:
        async with lock:
            untrack(lock)
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("boom")
    assert isinstance(caught.value.__context__, ValueError)


async def test_a_cancellation_of_others_is_never_swallowed() -> None:
    """Neither without a loss, nor at the same moment as one."""
    for lose in (False, True):
        lock = RedisLock("it", **over_redis(), lease=SHORT)
        after = False
        with anyio.CancelScope() as outer:
            async with lock.hold() as lease:
                if lose:
                    untrack(lock)
                    try:
                        await anyio.sleep_forever()
                    finally:  # ours
                        assert lease.lost
                        outer.cancel()
                else:
                    outer.cancel()
                    await anyio.sleep_forever()
            after = True
        assert outer.cancelled_caught
        assert not after
        assert not lock.locked


def test_a_native_cancellation_is_never_swallowed() -> None:
    async def main() -> None:
        lock = RedisLock("it", **over_redis(), lease=SHORT)

        async def hold() -> None:
            async with lock:
                untrack(lock)
                try:
                    await anyio.sleep_forever()
                finally:
                    task.cancel()

        task = asyncio.ensure_future(hold())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not lock.locked

    run_on(BACKENDS["asyncio"], main)


@pytest.mark.parametrize("how", ["flag", "call"])
async def test_on_loss_may_flag_or_call_instead(how: str) -> None:
    calls: list[LockLease] = []
    lock = RedisLock("it", **over_redis(), lease=SHORT, on_loss="flag" if how == "flag" else calls.append)
    with pytest.raises(LeaseLost):
        async with lock.hold() as lease:
            untrack(lock)
            await until(lambda: lease.lost)
            await anyio.lowlevel.checkpoint()
            assert calls == ([lease] if how == "call" else [])
            with pytest.raises(LeaseLost):
                lease.check()


async def test_a_callback_that_fails_or_waits_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    other = RedisLock("other", **over_redis())

    def bad(_: LockLease) -> None:
        other.acquire_blocking()

    lock = RedisLock("it", **over_redis(), lease=SHORT, on_loss=bad)
    with worker() as thread, caplog.at_level(logging.WARNING, "cuelight.redis"):

        def hold() -> None:
            with lock.hold() as lease:
                untrack(lock)
                while not any("on_loss" in record.getMessage() for record in caplog.records):
                    time.sleep(0.001)
                assert lease.lost

        assert isinstance(thread.do(hold), LeaseLost)
    assert "neither take nor release" in caplog.text


async def test_a_thread_learns_of_a_loss_by_check_and_at_the_end() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    seen: list[Any] = []

    def hold() -> None:
        with lock.hold() as lease:
            untrack(lock)
            while not lease.lost:
                time.sleep(0.001)
            try:
                lease.check()
            except LeaseLost as error:
                seen.append(error)

    with worker() as thread:
        assert isinstance(thread.do(hold), LeaseLost)
        assert len(seen) == 1
        assert thread.do(lambda: lock.acquire_blocking(5)) is None
        assert thread.do(lock.release) is None


async def test_a_blocked_loop_is_caught_by_check() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    with pytest.raises(LeaseLost, match="not renewed in time"):
        async with lock.hold() as lease:
            time.sleep(SHORT * 1.2)  # noqa: ASYNC251 - what it is about
            lease.check()


async def test_release_of_what_was_lost_says_so() -> None:
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    await lock.acquire()
    lease = lock.lease
    untrack(lock)
    await until(lambda: lease.lost)
    with pytest.raises(LeaseLost):
        lock.release()
    assert not lock.locked
    with pytest.raises(LockNotHeld):
        lock.release()


async def test_a_block_whose_lease_was_given_away_unnoticed_raises_at_its_end() -> None:
    """The server knows better than the clock: it was asked before anything was renewed."""
    lock = RedisLock("it", **over_redis())
    with pytest.raises(LeaseLost):
        async with lock:
            untrack(lock)
    with worker() as thread:

        def hold() -> None:
            with lock:
                untrack(lock)

        assert isinstance(thread.do(hold), LeaseLost)


async def test_a_block_that_was_released_inside_says_so() -> None:
    lock = RedisLock("it", **over_redis())
    with pytest.raises(LockNotHeld):
        async with lock:
            lock.release()
    await anyio.lowlevel.checkpoint()
    assert not lock.locked


async def test_several_locks_of_a_manager_are_guarded_each() -> None:
    manager = LockManager(redis_locks(**over_redis(), lease=SHORT))
    a, b = manager.get_lock("a"), manager.get_lock("b")
    assert isinstance(a, RedisLock)
    assert isinstance(b, RedisLock)
    for victim in (a, b):
        with anyio.fail_after(5), pytest.raises(LeaseLost, match=f"lock '{victim.name}'"):
            async with manager.acquire_all(["b", "a"]):
                untrack(victim)
                await anyio.sleep_forever()
        assert manager.stats["active"] == 0
    with anyio.fail_after(5), pytest.raises(LeaseLost, match=r"lock '[ab]'"):
        async with manager.acquire_all(["b", "a"]):
            untrack(a)
            untrack(b)
            await anyio.sleep_forever()
    async with manager.acquire_all(["a", "b"], timeout=5):
        assert manager.stats["active"] == 2


async def test_a_lock_of_a_manager_that_is_held_is_not_forgotten() -> None:
    manager = LockManager(redis_locks(**over_redis()))
    await manager.get_lock("a").acquire()
    assert manager.stats["active"] == 1
    manager.get_lock("a").release()
    assert manager.stats["active"] == 0


# A server that is away.


async def _over_proxy(proxy: TcpProxy, test: Callable[[RedisLock], Awaitable[None]], lease: float) -> None:
    async with RedisClient(proxy.url, timeout=0.4) as client:
        await test(RedisLock("it", server=client, lease=lease, prefix=over_redis()["prefix"]))


async def test_a_server_that_is_away_for_less_than_the_lease_costs_nothing() -> None:
    async def test(lock: RedisLock) -> None:
        async with lock.hold() as lease:
            proxy.refuse()
            await anyio.sleep(0.8)
            proxy.heal()
            before = lease.until
            await until(lambda: lease.until > before + 0.3)
            lease.check()

    with TcpProxy(shared_server().port) as proxy:
        await _over_proxy(proxy, test, 2.5)


async def test_a_server_that_is_away_for_longer_costs_the_lease_and_nothing_else() -> None:
    async def test(lock: RedisLock) -> None:
        with anyio.fail_after(5), pytest.raises(LeaseLost, match="could not be renewed"):
            async with lock:
                proxy.refuse()
                await anyio.sleep_forever()
        assert isinstance(await outcome(lock.acquire(0.1)), StoreUnavailable)
        assert not lock.locked
        proxy.heal()
        await lock.acquire(5)
        lock.lease.check()
        lock.release()

    with TcpProxy(shared_server().port) as proxy:
        await _over_proxy(proxy, test, SHORT)


async def test_who_waits_in_line_sits_an_outage_out() -> None:
    async def test(lock: RedisLock) -> None:
        other = RedisLock("it", server=direct, lease=5, prefix=lock._state.names.tag.partition(":")[0])
        async with anyio.create_task_group() as tasks:
            await other.acquire()
            got = anyio.Event()

            async def wait() -> None:
                async with lock:
                    got.set()

            tasks.start_soon(wait)
            await until_server(partial(_waiting, other))
            proxy.refuse()
            await anyio.sleep(1)
            other.release()
            await anyio.sleep(0.05)
            assert not got.is_set()
            proxy.heal()
            with anyio.fail_after(5):
                await got.wait()

    async with RedisClient(shared_server().url) as direct:
        with TcpProxy(shared_server().port) as proxy:
            await _over_proxy(proxy, test, 5)


def test_a_server_that_was_killed_and_started_again_has_the_next_fence_greater() -> None:
    async def main() -> None:
        lock = RedisLock("it", server.url, lease=1)
        async with lock.hold() as lease:
            first = lease.fence
        with pytest.raises(LeaseLost):
            async with lock:
                server.kill()
                await anyio.to_thread.run_sync(server.start)
                await anyio.sleep_forever()
        async with lock.hold() as lease:
            assert lease.fence > first

    for name in ("asyncio", "trio"):
        with RedisServer() as server:
            run_on(BACKENDS[name], main)


# What is left.


async def test_a_task_that_ends_while_it_holds_has_it_given_back_to_others(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody in this process asks for it: the renewal notices."""
    lock = RedisLock("it", **over_redis(), lease=SHORT)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lock.acquire)
    await until_server(partial(_free, lock))
    assert "ended while it held lock 'it'" in caplog.text
    assert not lock.locked


async def test_the_thread_ends_when_nothing_is_held() -> None:
    lock = RedisLock("it", **over_redis())
    with worker() as thread:
        thread.do(lock.acquire_blocking)
        assert any(one.name == "cuelight redis locks" for one in threading.enumerate())
        thread.do(lock.release)
    await until(lambda: background_loop._renewer is None)
    await until(lambda: not any(one.name == "cuelight redis locks" for one in threading.enumerate()))


def test_renewers_end_with_their_loops() -> None:
    async def main() -> LeaseRenewer:
        async with RedisLock("it", **where):
            (renewer,) = (renewer for renewer in _renewers.values() if renewer.leases())
        await settle()
        assert renewer.idle
        return renewer

    where = over_redis()
    for name in BACKENDS:
        run_on(BACKENDS[name], main)
    assert len(_renewers) <= 2


async def test_bad_arguments_of_locks_over_redis_are_refused() -> None:
    wrong: Any
    for wrong, what in (
        ({"lease": 0}, "lease=0"),
        ({"lease": 1e9}, "lease="),
        ({"on_loss": "explode"}, "on_loss='explode'"),
        ({"lock_delay": -1}, "lock_delay=-1"),
        ({"wait_replicas": -1}, "wait_replicas=-1"),
        ({"redis_url": "http://there"}, "http"),
    ):
        with pytest.raises(ValueError, match=what):
            RedisLock("it", **wrong)
    with pytest.raises(ValueError, match="1 to 512"):
        RedisLock("")
    wrong = 5
    with pytest.raises(TypeError, match="name=5"):
        RedisLock(wrong)
    with pytest.raises(ValueError, match="max_concurrent=0"):
        RedisSemaphore("it", 0)


async def test_names_with_braces_and_colons_are_names_of_their_own() -> None:
    where = over_redis()
    names = ["{a}", "a", "a}", "{", "%7Ba%7D", "lock:a", "ä{ö}"]
    tags = {RedisLock(name, **where)._state.names.tag for name in names}
    assert len(tags) == len(names)
    assert not any("{" in tag or "}" in tag for tag in tags)
    for name in names:
        async with RedisLock(name, **where):
            pass


async def test_a_key_of_another_type_and_a_format_from_the_future_are_refused() -> None:
    lock = RedisLock("it", **over_redis())
    state, held = lock._state.names.keys[:2]
    server = shared_server()
    server.command("LPUSH", state, "something else")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await lock.acquire()
    assert not lock.locked
    server.command("DEL", state)
    async with lock:
        server.command("SET", held, "something else")  # alone it needs no more than its state
        error: list[Any] = []
        async with RedisClient(server.url) as client, anyio.create_task_group() as tasks:
            other = RedisLock("it", server=client, prefix=lock._state.names.tag.partition(":")[0])

            async def contend() -> None:
                error.append(await outcome(other.acquire()))

            tasks.start_soon(contend)
        assert isinstance(error[0], StoreRefused)
    server.command("DEL", state)
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await lock.acquire()
    assert server.command("DEL", held).startswith(b":1"), "what is not a lock's is not deleted"
    server.command("SET", state, "99:whatever it may hold then")
    with pytest.raises(StoreRefused, match="99"):
        await lock.acquire()
    with worker() as thread:
        assert isinstance(thread.do(lock.acquire_blocking), StoreRefused)
    server.command("SET", state, "nonsense")
    with pytest.raises(StoreRefused, match="CORRUPT state: nonsense"):
        await lock.acquire()
    server.command("DEL", state)
    async with lock:
        pass


async def test_processes_that_disagree_about_the_capacity_are_told() -> None:
    where = over_redis()
    semaphore = RedisSemaphore("it", 3, **where)
    with pytest.raises(ValueError, match="3 places elsewhere in this process, and 5 here"):
        RedisSemaphore("it", 5, **where)
    async with RedisClient(where["redis_url"]) as other:  # as another process would see it
        larger = RedisSemaphore("it", 5, server=other, prefix=where["prefix"])
        async with semaphore:
            with pytest.raises(StoreRefused, match="has 3 places for those who use it now, and 5 here"):
                await larger.acquire()
        async with larger.hold(5):
            pass
