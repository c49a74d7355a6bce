"""Who waits for a lock over Redis, while answers are late, servers are away, and loops and programs end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from redis.exceptions import ResponseError

from cuelight.errors import LeaseLost, LockHeld, LockTimeout, StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, RedisLock
from cuelight.redis._locks import _acquire, _lock, _renewal
from cuelight.redis._locks._renewal import BackgroundLoop
from cuelight.redis._locks._script import LEASE_SCRIPT
from helpers import BACKENDS, Backend, run_on
from helpers.lockable import over_redis, until, until_blocking, until_server, worker
from helpers.players import outcome
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy


def held(lock: RedisLock) -> bool:
    """Whether the server has anybody who holds it or waits."""
    state = lock.state_blocking()
    return bool(state.held or state.waiting)


async def in_line(lock: RedisLock, many: int = 1) -> None:
    """Wait until so many wait on the server."""

    async def so_many() -> bool:
        return len((await lock.state()).waiting) == many

    await until_server(so_many)


def listens(lock: RedisLock) -> bool:
    """Whether anybody in this process knows that it is in line, and listens for its turn."""
    return any(grant_channel.open for grant_channel in lock._state.grant_channels.values())


# Answers that are late, and a server that is away.


@pytest.mark.parametrize("how", ["task", "thread", "at once"])
async def test_a_server_that_always_answers_too_late_for_the_lease_is_unavailable(how: str) -> None:
    with TcpProxy(shared_server().port) as proxy, worker() as thread:
        async with RedisClient(proxy.url, timeout=2) as client:
            prefix = over_redis()["prefix"]
            lock = RedisLock("it", server=client, lease=0.1, prefix=prefix)
            await client.execute("PING")  # so that there is a connection
            thread.do(lambda: client.execute_blocking("PING"))
            proxy.delay(0.06)
            if how == "task":
                error = await outcome(lock.acquire())
            else:
                error = thread.do(lock.acquire_blocking if how == "thread" else lock.acquire_nowait)
            proxy.delay(0)
            assert isinstance(error, StoreUnavailable)
            assert re.search("longer to answer than half the lease on lock 'it', which is 0.1 s", str(error))
            assert not lock.locked
            with anyio.fail_after(5):
                async with lock:
                    pass


@pytest.mark.parametrize("how", ["task", "thread", "at once"])
async def test_an_answer_that_was_late_once_is_asked_for_anew(how: str) -> None:
    with TcpProxy(shared_server().port) as proxy, worker() as thread:
        async with RedisClient(proxy.url, timeout=5) as client:
            lock = RedisLock("it", server=client, lease=0.6, prefix=over_redis()["prefix"])
            await client.execute("PING")  # so that there is a connection
            thread.do(lambda: client.execute_blocking("PING"))
            proxy.delay(0.4)
            async with anyio.create_task_group() as tasks:
                if how == "task":
                    tasks.start_soon(lock.acquire)
                else:
                    thread.start(lock.acquire_blocking if how == "thread" else lock.acquire_nowait)
                await until(lambda: proxy.commands["EVALSHA"] >= 2)
                proxy.delay(0)
            if how != "task":
                assert thread.result() is None
            assert lock.locked
            if how != "task":
                thread.do(lambda: lock.lease.check())
                assert thread.do(lock.release) is None


async def test_time_that_is_up_during_an_outage_is_a_time_out() -> None:
    where = over_redis()
    errors: list[Any] = []
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(where["redis_url"]) as direct, RedisClient(proxy.url, timeout=0.2) as client:
            holder = RedisLock("it", server=direct, prefix=where["prefix"])
            lock = RedisLock("it", server=client, prefix=where["prefix"])
            async with holder, anyio.create_task_group() as tasks:

                async def wait() -> None:
                    errors.append(await outcome(lock.acquire(0.6)))

                tasks.start_soon(wait)
                await until(lambda: listens(lock))
                proxy.refuse()
                await until(lambda: errors)
                proxy.heal()
    assert isinstance(errors[0], LockTimeout)
    assert "did not get lock 'it' within 0.6 s" in str(errors[0])


async def test_a_thread_that_waits_in_line_sits_an_outage_out(caplog: pytest.LogCaptureFixture) -> None:
    where = over_redis()
    with TcpProxy(shared_server().port) as proxy, worker() as thread:
        async with RedisClient(where["redis_url"]) as direct, RedisClient(proxy.url, timeout=0.2) as client:
            holder = RedisLock("it", server=direct, prefix=where["prefix"])
            lock = RedisLock("it", server=client, lease=1.5, prefix=where["prefix"])
            await holder.acquire()
            thread.start(lock.acquire_blocking)
            await until(lambda: listens(lock))
            proxy.refuse()
            await until(lambda: "goes on waiting for lock 'it'" in caplog.text)
            holder.release()
            proxy.heal()
            assert await anyio.to_thread.run_sync(thread.result) is None
            assert thread.do(lambda: lock.lease.check()) is None
            assert thread.do(lock.release) is None


async def test_who_is_kept_out_by_a_lock_delay_is_told_that_nobody_holds_it() -> None:
    where = over_redis()
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.2) as client:
            lock = RedisLock("it", server=client, lease=0.1, lock_delay=60, prefix=where["prefix"])
            with pytest.raises(LeaseLost):
                async with lock:
                    proxy.refuse()
                    await anyio.sleep_forever()
        other = RedisLock("it", **where)

        async def nobody() -> bool:
            return not (await other.state()).held

        await until_server(nobody)
        with pytest.raises(LockTimeout, match="nobody holds it"):
            await other.acquire(0.02)
        with pytest.raises(LockHeld, match="nobody holds it"):
            other.acquire_nowait()


# What the server says.


async def test_an_acquisition_that_others_gave_back_is_refused() -> None:
    """Somebody told the server that it is over while it stood in line: it does not wait for ever."""
    where = over_redis()
    async with RedisClient(where["redis_url"]) as client:
        holder, lock = RedisLock("it", server=client, prefix=where["prefix"]), RedisLock("it", **where, lease=0.6)
        state = holder._state
        errors: list[Any] = []

        async def wait() -> None:
            errors.append(await outcome(lock.acquire()))

        with anyio.fail_after(5):
            async with holder, anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await in_line(holder)
                (member,) = await client.execute("ZRANGE", state.names.keys[2], 0, -1)
                number = (await client.execute("HGET", state.names.keys[3], member)).split(b":")[1]
                await client.run(
                    LEASE_SCRIPT, state.names.keys, ["lower", state.names.channels, 1, 1, member, number, 0]
                )
        assert isinstance(errors[0], StoreRefused)
        assert "was given back already" in str(errors[0])
        assert not lock.locked


async def test_a_state_of_which_a_key_was_deleted_is_refused_by_name() -> None:
    """As an eviction of volatile keys does."""
    where = over_redis()
    async with RedisClient(where["redis_url"]) as client:
        holder, lock = RedisLock("it", server=client, prefix=where["prefix"]), RedisLock("it", **where)
        for key, what in (
            (3, "CORRUPT member .*: (none|x), not q"),
            (2, "CORRUPT line: 1 wait in it, and it is empty"),
        ):
            await holder.acquire()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome, lock.acquire())
                await in_line(holder)
                await client.execute("DEL", holder._state.names.keys[key])
                for ask in ("lower", "look") if key == 3 else ("lower",):
                    with pytest.raises(StoreRefused, match=f"{what}.*delete .*:state and its neighbours"):
                        await holder._state.ask(ask)
                tasks.cancel_scope.cancel()
            # What gives up is not known to be in line any more: the script must not look for it for ever.
            await until(lambda: not lock._state.pending)
            assert await client.execute("PING") == b"PONG"
            assert await client.execute("DEL", *holder._state.names.keys) > 0
            holder.release()
            assert not lock.locked
            await until(lambda: not lock._state.pending)
        async with lock, anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, holder.acquire(0.01))


async def test_a_lock_whose_state_alone_was_deleted_begins_anew() -> None:
    """Its neighbours would count what nothing counts any more."""
    where = over_redis()
    async with RedisClient(where["redis_url"]) as client:
        holder, lock = RedisLock("it", server=client, prefix=where["prefix"], lease=0.9), RedisLock("it", **where)
        fences: list[int] = []

        async def wait() -> None:
            async with lock:
                fences.append((await lock.state()).fence)

        async with anyio.create_task_group() as tasks:
            with pytest.raises(LeaseLost):
                async with holder:
                    fences.append((await holder.state()).fence)
                    tasks.start_soon(wait)
                    await in_line(holder)
                    await client.execute("DEL", holder._state.names.keys[0])
                    await anyio.sleep_forever()
        assert fences[0] < fences[1]
        await until(lambda: not holder._state.pending)
        await holder.acquire()
        assert (await holder.state()).held == 1
        await client.execute("DEL", holder._state.names.keys[0])
        holder.release()
        await until(lambda: not holder._state.pending)
        async with lock:
            assert (await lock.state()).held == 1


async def test_what_is_wrong_in_a_call_itself_is_not_blamed_on_the_state() -> None:
    lock = RedisLock("it", **over_redis())
    with pytest.raises(ResponseError, match="BADARG operation nonsense"):
        await lock._state.ask("nonsense")
    with worker() as thread:
        assert isinstance(thread.do(lambda: lock._state.ask_blocking("nonsense")), ResponseError)
    assert not lock.locked


@pytest.mark.parametrize("how", ["loop", "thread"])
async def test_a_lock_taken_at_once_asks_for_replicas_too(how: str) -> None:
    lock = RedisLock("it", **over_redis(), wait_replicas=1, lease=0.3)
    with worker() as thread:
        if how == "loop":
            with pytest.raises(StoreRefused, match=r"0 replicas .* wait_replicas=1"):
                lock.acquire_nowait()
        else:
            assert isinstance(thread.do(lock.acquire_nowait), StoreRefused)
    assert not lock.locked
    await until(lambda: not lock._state.pending)


# Loops and programs that end.


@contextmanager
def a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Generator[BackgroundLoop]:
    """The thread that keeps leases, for a program of its own: that can end, and the tests go on."""
    own = BackgroundLoop()
    with monkeypatch.context() as patch:
        for module in (_lock, _acquire, _renewal):
            patch.setattr(module, "background_loop", own)
        yield own
        own.end()
        until_blocking(lambda: own._renewer is None)


def test_a_program_that_ends_gives_back_what_nobody_will_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the main thread holds, the daemons and those that have ended; not what other threads still hold."""
    where = over_redis()
    locks = [RedisLock(name, **where, lease=60) for name in ("of the main thread", "of a daemon", "of one that ended")]
    still = RedisLock("of a thread", **where, lease=60)
    has, go = threading.Event(), threading.Event()

    def hold() -> None:
        with still:
            has.set()
            go.wait(10)
            still.lease.check()

    with a_thread_of_its_own(monkeypatch) as own, worker() as daemon:
        locks[0].acquire_blocking()
        assert daemon.do(locks[1].acquire_blocking) is None
        ended, thread = threading.Thread(target=locks[2].acquire_blocking), threading.Thread(target=hold)
        ended.start()
        ended.join()
        thread.start()
        has.wait(10)
        assert all(held(lock) for lock in locks)
        own.end()
        until_blocking(lambda: not any(held(lock) for lock in locks))
        assert held(still)
        go.set()
        thread.join()
        until_blocking(lambda: own._renewer is None)
        assert not held(still)


def test_a_program_that_ends_without_its_server_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    where = over_redis()
    with TcpProxy(shared_server().port) as proxy, a_thread_of_its_own(monkeypatch) as own:
        client = RedisClient(proxy.url, timeout=0.2)
        lock = RedisLock("it", server=client, lease=60, prefix=where["prefix"])
        lock.acquire_blocking()
        proxy.refuse()
        began = time.monotonic()
        own.end()
        until_blocking(lambda: own._renewer is None)
        assert time.monotonic() - began < 5
        assert not lock._state.pending
        assert "lock 'it' could not be given back yet" in caplog.text
        client.close()
    assert held(RedisLock("it", **where))  # until its lease is over


def test_what_a_program_holds_that_has_ended_is_left_to_its_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No thread can be started any more: that is said, and raises nothing."""
    lock = RedisLock("it", **over_redis())
    lock.acquire_blocking()
    lease = lock.lease
    own = BackgroundLoop()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_SHUTTING_DOWN", True)
        own.flush(lock._state)
    assert "lock 'it' could not be given back: the program ends. Its lease will run out" in caplog.text
    lease.check()
    lock.release()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("during", ["acquire", "release"])
def test_a_thread_that_is_interrupted_has_it_given_back(during: str) -> None:
    """As Ctrl+C does in the main thread, while the server does not answer."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    where = over_redis()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with TcpProxy(shared_server().port) as proxy:
            client = RedisClient(proxy.url, timeout=3)
            lock = RedisLock("it", server=client, prefix=where["prefix"])
            with lock:
                pass
            if during == "release":
                lock.acquire_blocking()
            proxy.swallow_every(1, of={"EVALSHA"}, times=1)

            def send() -> None:
                until_blocking(lambda: proxy.faults)
                os.kill(os.getpid(), signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(Interrupt):
                lock.acquire_blocking() if during == "acquire" else lock.release()
            sender.join()
            assert not lock.locked
            until_blocking(lambda: not held(RedisLock("it", **where)))
            with lock:
                pass
            client.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def _stop_at(stage: str, lock: RedisLock, proxy: TcpProxy, holder: RedisLock) -> Callable[[], bool]:
    """Have a task of a loop stop at a stage; returns what tells that it is there."""
    if stage == "asked":
        proxy.swallow_every(1, of={"EVALSHA", "EVAL"}, times=1)
        return lambda: bool(proxy.faults)
    if stage == "in line":
        return lambda: listens(lock)
    return lambda: lock._state.newest_lease(next(iter(lock._state.held()), None), 1) is not None


@pytest.mark.parametrize("stage", ["asked", "in line", "holds it"])
def test_a_task_whose_loop_was_closed_leaves_nothing_on_the_server(
    stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the loop was closed in the midst of; nobody has to wait for a lease to end."""
    where = over_redis()
    loop = asyncio.new_event_loop()
    with TcpProxy(shared_server().port) as proxy, worker() as thread, worker() as rival:
        client = RedisClient(proxy.url)
        lock = RedisLock("it", server=client, lease=60, prefix=where["prefix"])
        holder = RedisLock("it", **where)
        loop.run_until_complete(client.execute("PING"))
        if stage == "in line":
            assert rival.do(holder.acquire_blocking) is None
        arrived = _stop_at(stage, lock, proxy, holder)

        async def hold() -> None:
            await lock.acquire()
            await asyncio.Event().wait()

        async def look() -> None:
            while not await asyncio.to_thread(arrived):  # noqa: ASYNC110 - a server tells
                await asyncio.sleep(0.002)

        task = loop.create_task(hold())
        loop.run_until_complete(asyncio.wait_for(look(), 10))
        loop.close()
        thread.start(lock.acquire_blocking)  # takes what nobody will give back
        if stage == "in line":
            until_blocking(lambda: "ended while it held lock 'it'" in caplog.text)
            assert rival.do(holder.release) is None
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()
        del task
        assert thread.result() is None
        assert thread.do(lambda: lock.lease.check()) is None
        assert thread.do(lock.release) is None
        until_blocking(lambda: not held(holder))
        client.close()


def test_a_lock_is_waited_for_in_one_loop_after_the_other() -> None:
    where = over_redis()
    lock = RedisLock("it", **where)

    def wait_in(backend: Backend) -> None:
        async def main() -> None:
            async with RedisClient(where["redis_url"]) as client, anyio.create_task_group() as tasks:
                async with RedisLock("it", server=client, prefix=where["prefix"]):
                    tasks.start_soon(lock.acquire)
                    await in_line(lock)
                await until(lambda: lock.locked and not lock._state.pending)

        run_on(backend, main)
        lock.acquire_nowait()  # the task that had it has ended
        lock.release()

    for name in ("asyncio", "trio", "asyncio"):
        wait_in(BACKENDS[name])
        assert len(lock._state.grant_channels) <= 2, "the ears of loops that have ended are kept"
