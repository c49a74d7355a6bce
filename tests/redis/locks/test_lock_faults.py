"""Replies that get lost, connections that are cut, servers that pause: nothing is taken twice, nothing stays taken."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.errors import LeaseLost, LockTimeout
from cuelight.redis import RedisClient, RedisLock, RedisSemaphore
from helpers.lockable import over_redis, until, until_server
from helpers.redis_servers import RedisServer, shared_server
from helpers.tcp_proxy import TcpProxy


async def free(lock: RedisLock) -> None:
    """Wait until the server has nobody who holds it or waits."""

    async def is_free() -> bool:
        state = await lock.state()
        return not state.held and not state.waiting

    await until_server(is_free)


async def _turns(make: Callable[[], RedisLock], disturb: Callable[[int], object], tasks: int, turns: int) -> list[int]:
    """Tasks and a thread that take turns while something disturbs them; the fences, in the order of their holds."""
    fences: list[int] = []
    inside: list[int] = []
    lock = make()

    def enter(fence: int) -> None:
        assert not inside
        inside.append(fence)
        fences.append(fence)
        disturb(len(fences))

    async def work() -> None:
        for _ in range(turns):
            async with lock.hold() as lease:
                enter(lease.fence)
                await anyio.lowlevel.checkpoint()
                inside.clear()

    def work_blocking() -> None:
        for _ in range(turns):
            with lock.hold() as lease:
                enter(lease.fence)
                inside.clear()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, work_blocking)
            for _ in range(tasks):
                group.start_soon(work)
    return fences


@pytest.mark.parametrize("manner", ["swallow", "cut before", "cut after"])
async def test_lost_replies_neither_take_it_twice_nor_leave_it_taken(manner: str) -> None:
    where = over_redis()
    with TcpProxy(shared_server().port) as proxy:
        if manner == "swallow":
            proxy.swallow_every(9, of={"EVALSHA", "EVAL"}, times=4)
        else:
            proxy.cut_every(5, before=manner == "cut before", of={"EVALSHA", "EVAL"}, times=10)
        async with RedisClient(proxy.url, timeout=1.0) as client:
            fences = await _turns(
                lambda: RedisLock("it", server=client, prefix=where["prefix"]), lambda _: None, tasks=3, turns=6
            )
            assert proxy.faults >= 4
            proxy.heal()
            await free(RedisLock("it", **where))
    assert len(fences) == 24
    assert fences == sorted(set(fences))


async def test_connections_that_are_killed_and_scripts_that_are_flushed() -> None:
    where = over_redis()
    server = shared_server()

    def disturb(turn: int) -> None:
        if turn % 6 == 0:
            server.command("SCRIPT", "FLUSH")
        if turn % 8 == 0:
            server.command("CLIENT", "KILL", "TYPE", "normal")
        if turn % 10 == 0:
            server.command("CLIENT", "KILL", "TYPE", "pubsub")

    async with RedisClient(where["redis_url"]) as client:
        fences = await _turns(lambda: RedisLock("it", server=client, prefix=where["prefix"]), disturb, tasks=3, turns=6)
        await free(RedisLock("it", server=client, prefix=where["prefix"]))
    assert fences == sorted(set(fences))


async def test_a_server_that_pauses_for_less_than_the_lease_costs_nothing() -> None:
    with RedisServer() as server:
        lock = RedisLock("it", server.url, lease=1.5)
        async with lock.hold() as lease:
            server.command("CLIENT", "PAUSE", "700", "ALL")
            before = lease.until
            await until(lambda: lease.until > before)
            lease.check()


async def test_a_server_that_is_frozen_past_the_lease_is_noticed_by_the_clock() -> None:
    with RedisServer() as server:
        async with RedisClient(server.url, timeout=0.5) as client:
            lock = RedisLock("it", server=client, lease=0.4)
            with anyio.fail_after(5), pytest.raises(LeaseLost):
                async with lock:
                    server.freeze()
                    try:
                        await anyio.sleep_forever()
                    finally:
                        server.thaw()
            async with lock:
                pass


async def _steps(where: dict[str, Any], stop_at: int, cancel: bool) -> bool:
    """Somebody takes it, gives it back and takes it again while another contends. Returns whether it got through."""
    lock, rival = RedisLock("it", **where), RedisLock("it", **where)
    through = False
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def victim() -> None:
            nonlocal through
            with scope:
                async with lock.hold():
                    await anyio.lowlevel.checkpoint()
                async with lock:
                    await anyio.lowlevel.checkpoint()
                through = True

        async def contend() -> None:
            for _ in range(2):
                async with rival:
                    await anyio.lowlevel.checkpoint()

        tasks.start_soon(victim)
        tasks.start_soon(contend)
        for _ in range(stop_at):
            await anyio.lowlevel.checkpoint()
        if cancel:
            scope.cancel()
    return through


async def test_cancelled_at_every_pass_of_the_loop_it_is_given_back() -> None:
    where = over_redis()
    # On a machine that is busy elsewhere a loop may pass very often before the server answers.
    for step in (*range(0, 400, 7), *(400 << power for power in range(1, 12))):
        with anyio.fail_after(10):
            through = await _steps(where, step, cancel=True)
        await free(RedisLock("it", **where))
        if through:
            break
    else:
        raise AssertionError("the cancellation always came too early")


def _process_of(where: dict[str, Any]) -> RedisClient:
    """A client of its own, and so a core of its own: this stands for another process, but for its name."""
    return RedisClient(where["redis_url"])


async def test_a_waiter_on_the_server_that_is_cancelled_or_late_leaves_its_line() -> None:
    where = over_redis()
    async with _process_of(where) as one, _process_of(where) as two:
        holder = RedisLock("it", server=one, prefix=where["prefix"])
        other = RedisLock("it", server=two, prefix=where["prefix"])
        async with holder:
            for _ in range(3):
                with pytest.raises(LockTimeout, match="process"):
                    await other.acquire(0.03)
                with anyio.move_on_after(0.03) as scope:
                    await other.acquire()
                assert scope.cancelled_caught

            async def nobody_waits() -> bool:
                return not (await holder.state()).waiting

            await until_server(nobody_waits)
        async with other:
            pass


# How many calls it takes.


def _calls(server: RedisServer) -> int:
    text = server.command("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r"cmdstat_evalsha?:calls=(\d+)", text))


async def _count(server: RedisServer, work: Callable[[], Coroutine[Any, Any, int]]) -> float:
    server.command("CONFIG", "RESETSTAT")
    grants = await work()
    return _calls(server) / grants


async def test_a_lock_takes_few_calls_and_nobody_polls() -> None:
    with RedisServer() as server:

        async def alone() -> int:
            lock = RedisLock("alone", server.url)
            for _ in range(20):
                async with lock:
                    pass
            return 20

        async def together() -> int:
            clients = [RedisClient(server.url) for _ in range(4)]

            async def work(client: RedisClient) -> None:
                lock = RedisLock("together", server=client)
                for _ in range(25):
                    async with lock:
                        await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                for client in clients:
                    tasks.start_soon(work, client)
            for client in clients:
                await client.aclose()
            return 100

        async def held_long() -> int:
            async with RedisClient(server.url) as one, RedisClient(server.url) as two:
                lock, other = RedisLock("long", server=one), RedisLock("long", server=two)
                async with anyio.create_task_group() as tasks, lock:
                    tasks.start_soon(other.acquire)
                    await anyio.sleep(1)
                    assert _calls(server) <= 4  # acquire; acquire and, once it listens, again: then it sleeps
            return 1

        assert await _count(server, alone) <= 2.2
        assert await _count(server, together) <= 3.3
        await _count(server, held_long)


async def test_every_key_has_a_time_to_live_and_nothing_grows() -> None:
    with RedisServer() as server:
        lock, semaphore = RedisLock("it", server.url), RedisSemaphore("it", 3, server.url)
        for _ in range(30):
            async with RedisLock("it", server.url), semaphore.hold(2), semaphore:
                pass
        async with lock, RedisClient(server.url) as client:
            keys = await client.execute("KEYS", "*")
            assert len(keys) == 4  # who is alone is in the state; of the semaphore, members and gone are there, too
            for key in keys:
                assert await client.execute("PTTL", key) > 0
            for names in (lock._state.names, semaphore._state.names):
                assert await client.execute("HLEN", names.keys[3]) <= 2


async def test_storm_of_threads_and_tasks_with_time_outs_over_two_clients() -> None:
    """As two processes: nothing overlaps, and at the end nobody holds it."""
    where = over_redis()
    rng = random.Random(5)
    inside: list[str] = []
    got = 0

    def enter(who: str) -> None:
        nonlocal got
        inside.append(who)
        assert inside == [who]
        got += 1
        inside.remove(who)

    async with _process_of(where) as one, _process_of(where) as two:
        locks = [RedisLock("it", server=server, prefix=where["prefix"]) for server in (one, two)]

        def in_thread(lock: RedisLock) -> None:
            for _ in range(15):
                try:
                    lock.acquire_blocking(rng.random() * 0.02)
                except LockTimeout:
                    continue
                enter(threading.current_thread().name)
                lock.release()

        async def in_task(lock: RedisLock, number: int) -> None:
            for _ in range(15):
                with anyio.move_on_after(rng.random() * 0.03):
                    async with lock:
                        enter(f"task {number}")

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for lock in locks:
                    tasks.start_soon(anyio.to_thread.run_sync, in_thread, lock)
                    for number in range(2):
                        tasks.start_soon(in_task, lock, number + id(lock))
        for lock in locks:
            await free(lock)
    assert got
