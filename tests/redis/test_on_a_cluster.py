"""What runs on one server runs on a cluster: the keys of each thing are in one slot, and its hints find their way."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from cuelight import ActorSystem, RateLimitConfig, Task, TaskQueue, TaskWorker
from cuelight.redis import (
    RedisClient,
    RedisLock,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisStore,
    fenced_set,
)
from helpers.nodes import Add, Player, Total, cluster_name, node
from helpers.redis_servers import RedisCluster

LONG = 30.0  # seconds: a lease, and no test waits for its end


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as one:
        yield one


async def test_tasks_go_through_a_cluster(cluster: RedisCluster) -> None:
    done: list[int] = []

    async def work(payload: int) -> None:
        done.append(payload)

    # Several queues, so that each server has some.
    for name in ("red", "green", "blue"):
        done.clear()
        async with TaskQueue(RedisStore(cluster.url, queue=name)) as queue:
            async with TaskWorker(queue, {"work": work}, lease=LONG):
                with anyio.fail_after(10):
                    await queue.enqueue(Task(task_type="work", payload=0))
                    await queue.enqueue_many([Task(task_type="work", payload=number) for number in range(1, 50)])
                    await queue.drain()
            assert sorted(done) == list(range(50))


async def hold(lock: RedisLock, fences: list[int]) -> None:
    async with lock.hold() as lease:
        fences.append(lease.fence)


async def test_a_lock_is_handed_over_in_a_cluster_by_a_message(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as one, RedisClient(cluster.url) as two:
        for name in ("red", "green", "blue"):
            first, second = (RedisLock(name, server=server, lease=LONG) for server in (one, two))
            fences: list[int] = []
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group, first.hold() as lease:
                    fences.append(lease.fence)
                    group.start_soon(hold, second, fences)
                    while not (await first.state()).waiting:  # noqa: ASYNC110 - a server tells nobody who waits
                        await anyio.sleep(0.005)
            assert len(fences) == 2
            assert fences[0] < fences[1]
            await fenced_set(one, f"value of {name}", "new", fences[1])


async def test_semaphores_and_read_write_locks_are_held_in_a_cluster(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as server:
        async with RedisSemaphore("rooms", 3, server=server).hold(2):
            pass
        both = RedisReadWriteLock("book", server=server)
        async with both.read():
            pass
        async with both.write():
            pass


async def test_limits_are_kept_in_a_cluster(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as server:
        for name in ("red", "green", "blue"):
            requests, tokens = RateLimitConfig(100, 60), RateLimitConfig(1000, 60)
            limiter = RedisRateLimiter(name, server=server, requests=requests, tokens=tokens)
            with anyio.fail_after(10):
                async with limiter.request(tokens=400) as request:
                    request.settle(tokens=500)
            await limiter.aclose()


async def test_actors_talk_over_a_cluster(cluster: RedisCluster) -> None:
    name = cluster_name()
    async with (
        ActorSystem("here", node=node(name, url=cluster.url)) as here,
        ActorSystem("there", node=node(name, url=cluster.url)) as there,
    ):
        await there.expose(await there.spawn(Player), "player")
        with anyio.fail_after(10):
            player = await here.resolve("player", timeout=5)
            await player.tell(Add(5))
            await player.tell(Add(6))
            assert await player.ask(Total()) == 11
