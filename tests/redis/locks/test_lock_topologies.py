"""Locks in a cluster, and on every server there is: the hand-off by a message, too."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio
import pytest

from cuelight.coordination import LockManager
from cuelight.redis import RedisClient, RedisLock, redis_locks
from helpers.lockable import until_server, worker
from helpers.redis_servers import RedisCluster, RedisServer, redis_binary, valkey_binary

BINARIES = [binary for binary in (valkey_binary(), redis_binary()) if binary is not None]


@pytest.fixture(scope="module", params=["cluster", "single"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cluster":
        with RedisCluster(binary=BINARIES[-1]) as cluster:
            yield cluster.url
    else:
        with RedisServer(binary=BINARIES[-1]) as server:
            yield server.url


async def test_a_lock_is_handed_over_by_a_message(url: str) -> None:
    """Between two clients, as between two processes; of several names, so that each server of a cluster has some."""
    async with RedisClient(url) as one, RedisClient(url) as two:
        for number in range(5):
            name = f"lock {number}"
            first, second = RedisLock(name, server=one), RedisLock(name, server=two)
            entered = anyio.Event()

            async def enter(second: RedisLock = second, entered: anyio.Event = entered) -> None:
                async with second:
                    entered.set()

            async def in_line(first: RedisLock = first) -> bool:
                return bool((await first.state()).waiting)

            async with anyio.create_task_group() as tasks:
                async with first:
                    tasks.start_soon(enter)
                    await until_server(in_line)
                    await anyio.sleep(0.05)  # by now it listens
                began = time.monotonic()
                with anyio.fail_after(5):
                    await entered.wait()
                assert time.monotonic() - began < 1  # far before it would ask by itself, which is after 3.3 s


async def test_several_locks_in_several_slots_are_taken_together(url: str) -> None:
    async with RedisClient(url) as client:
        manager = LockManager(redis_locks(server=client))
        async with manager.acquire_all(f"lock {number}" for number in range(5)):
            assert manager.stats["active"] == 5
        with worker() as thread:

            def enter() -> float:
                with manager.acquire_all(f"lock {number}" for number in range(5)):
                    return manager.stats["active"]

            assert thread.do(enter) == 5
        assert manager.stats["active"] == 0
