"""What the types of what goes over Redis promise. Not run: both type checkers must reject just the marked lines.

It is not called redis.py: the checkers would take it for the library of that name.
"""

from typing import assert_type

import cuelight
from cuelight import Actor, ActorSystem, BaseLock, BaseSemaphore, KeyedLimiter, LockManager, Message, RateLimitConfig, Ref, Request, TaskQueue, on
from cuelight.coordination import Decision, LockStatistics
from cuelight.redis import (
    Dedicated,
    DistributedLock,
    LockLease,
    LockState,
    NodeStatistics,
    Pipeline,
    RedisAdmission,
    RedisClient,
    RedisLeakyBucket,
    RedisLock,
    RedisNode,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisSlidingWindow,
    RedisStore,
    RedisTokenBucket,
    Script,
    Server,
    Subscription,
    TcpTransport,
    fence_key,
    fenced_set,
    fenced_set_blocking,
    redis_locks,
)
from cuelight.tasks import Store


async def asking(client: RedisClient, server: Server, script: Script) -> None:
    async with RedisClient("redis://localhost", timeout=1.5, decode_responses=True) as made:
        assert_type(made, RedisClient)
    server = client
    await server.execute("SET", "key", b"value", 5, 1.5)
    await server.run(script, ["key"], [5])
    server.execute_blocking("GET", "key")
    assert_type(server.name, str)
    async with client.dedicated() as mine:
        assert_type(mine, Dedicated)
        await mine.watch("key")
    assert_type(client.pipeline(), Pipeline)
    await client.set("key", "value", ex=5)
    assert_type(await server.subscribe("channel", lambda message: print(message[0]), lambda: None), Subscription)
    RedisClient(5)  # rejected
    RedisClient("redis://localhost", 5)  # rejected
    RedisClient(timeout="soon")  # rejected
    await server.execute("SET", "key", None)  # rejected
    await server.run("return 1")  # rejected
    await server.subscribe("channel", lambda: None, lambda: None)  # rejected
    async with client.dedicated as wrong:  # rejected
        pass
    with client:  # rejected
        pass
    client.name = "elsewhere"  # rejected


def storing(server: Server) -> None:
    RedisStore(server)
    RedisStore(object())  # rejected


async def keeping(client: RedisClient) -> None:
    store: Store = RedisStore(client, "mail", prefix="shop")
    TaskQueue(store)
    async with TaskQueue(RedisStore("redis://localhost")) as queue:
        print(queue)
    RedisStore()  # rejected
    RedisStore("redis://localhost", "mail", "shop")  # rejected
    RedisStore("redis://localhost", queue=5)  # rejected


async def locking(lock: RedisLock, client: RedisClient) -> None:
    async with lock as taken:
        assert_type(taken, RedisLock)
    with lock.hold(timeout=5) as held:
        assert_type(held, LockLease)
    async with lock.hold() as lease:
        assert_type(lease.fence, int)
        assert_type(lease.lost, bool)
        lease.check()
        await fenced_set(client, "key", "value", lease, ttl=5)
        fenced_set_blocking(client, "key", b"value", lease.fence)
        lease.lost = True  # rejected
        await fenced_set(client, "key", 5, lease)  # rejected
        await fenced_set(client, "key", "value", "lease")  # rejected
        fenced_set("redis://localhost", "key", "value", lease)  # rejected
    assert_type(await lock.state(), LockState)
    assert_type(lock.statistics(), LockStatistics)
    assert_type(fence_key("key"), str)
    anything: BaseLock = lock
    of_the_root: cuelight.DistributedLock = cuelight.RedisLock("name", redis_url="redis://localhost")
    assert_type(of_the_root, RedisLock)
    cuelight.RedisLocks  # rejected
    distributed: DistributedLock = RedisLock("name", "redis://localhost", lease=5, on_loss="flag")
    RedisLock("name", server=client, on_loss=lambda lost: print(lost.fence))
    print(anything, distributed, of_the_root)
    RedisLock()  # rejected
    RedisLock("name", client)  # rejected
    RedisLock("name", on_loss="ignore")  # rejected
    RedisLock("name", on_loss=lambda: None)  # rejected
    RedisLock("name", lease="long")  # rejected
    async with lock.hold as wrong:  # rejected
        pass


async def holding_several(semaphore: RedisSemaphore, rwlock: RedisReadWriteLock) -> None:
    base: BaseSemaphore = semaphore
    async with base, semaphore.hold(2) as held:
        assert_type(held.lease, LockLease)
    async with rwlock.read() as reader:
        assert_type(reader.lease, LockLease)
    with rwlock.write():
        rwlock.downgrade()
    manager = LockManager(redis_locks("redis://localhost", lease=5))
    async with manager.acquire_all(["a", "b"], timeout=5):
        pass
    RedisSemaphore("name", "redis://localhost")  # rejected
    RedisSemaphore("name", 3, lease=None)  # rejected
    async with rwlock:  # rejected
        pass
    LockManager(RedisLock("name"))  # rejected
    redis_locks(5)  # rejected


async def limiting(config: RateLimitConfig, client: RedisClient) -> None:
    bucket = RedisTokenBucket("mail", config, server=client, on_outage="open", chunk=10)
    RedisTokenBucket("mail", 5.0, 10, redis_url="redis://localhost")
    RedisLeakyBucket("mail", config)
    RedisSlidingWindow("mail", 5, 60.0, exact=False)
    await bucket.acquire(cost=3, timeout=1.5)
    assert_type(await bucket.try_acquire(), Decision)
    await bucket.update(config)
    assert_type(bucket.away, bool)
    RedisTokenBucket(config)  # rejected
    RedisTokenBucket("mail", config, on_outage="wait")  # rejected
    RedisTokenBucket("mail", config, url="redis://localhost")  # rejected
    RedisSlidingWindow("mail", config, chunk=10)  # rejected
    RedisLeakyBucket("mail", 5)  # rejected
    bucket.try_acquire().allowed  # rejected
    await bucket.acquire("all")  # rejected


llm = RedisRateLimiter("llm", tokens=RateLimitConfig(500, 1), concurrency=2, local_share=0.5)


@RedisTokenBucket("mail", 5.0)
async def greet(name: str) -> str:
    return name


@llm.limited(tokens=100)
async def count(text: str) -> int:
    return len(text)


async def several_limits() -> None:
    async with llm.request(tokens=5, timeout=1.0) as request:
        assert_type(request, RedisAdmission)
        request.settle(tokens=3)
    assert_type(await llm.remaining(), dict[str, int])
    await llm.observe({"Retry-After": "5"})
    assert_type(await greet("Ada"), str)
    assert_type(await count("Ada"), int)
    users = KeyedLimiter[str, RedisTokenBucket](lambda user: RedisTokenBucket(user, 5.0))
    assert_type(users["ann"], RedisTokenBucket)
    RedisRateLimiter("llm", tokens=5)  # rejected
    RedisRateLimiter("llm", algorithm="guess")  # rejected
    llm.request(tokens="many")  # rejected
    await greet(5)  # rejected
    users[5]  # rejected


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Counter(Actor[Add | Total]):
    @on(Add)
    def add(self, message: Add) -> None: ...

    @on(Total)
    def total(self, message: Total) -> int:
        return 0


async def talking(client: RedisClient) -> None:
    node = RedisNode("redis://localhost", cluster="shop", messages=[Add, Total], lease=5)
    RedisNode(client, messages=())
    async with ActorSystem("shop", node=node) as system:
        await system.expose(await system.spawn(Counter), "counter")
        far: Ref[Add | Total] = await system.resolve("counter", timeout=5)
        assert_type(await far.ask(Total()), int)
        await system.unexpose("counter")
        await far.ask(Add(5))  # rejected
        await system.expose("counter", far)  # rejected
        await system.resolve(far)  # rejected
    with ActorSystem.blocking(node=node) as blocking:
        assert_type(blocking.resolve("counter").ask(Total()), int)
    assert_type(node.statistics(), NodeStatistics)
    RedisNode("redis://localhost", messages=[Add], transport="redis")
    RedisNode("redis://localhost", messages=[Add], transport=TcpTransport("localhost", insecure=True))
    RedisNode("redis://localhost", messages=[Add], transport="tcp")  # rejected
    RedisNode("redis://localhost")  # rejected
    RedisNode("redis://localhost", messages=[5])  # rejected
    RedisNode("redis://localhost", messages=[Add()])  # rejected
    ActorSystem("shop", node="redis://localhost")  # rejected
    node.identity = "mine"  # rejected
