"""The loads: each is one round of work that must leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel

from cuelight import (
    Actor,
    ActorSystem,
    AskError,
    AsyncTokenBucket,
    AsyncWorkerPool,
    Channel,
    KeyedLimiter,
    LocalLock,
    LockManager,
    MemoryStore,
    Message,
    RateLimitConfig,
    Ref,
    Rejected,
    ReplyError,
    Request,
    StreamRequest,
    TaskQueue,
    TaskWorker,
    after,
    child,
    on,
    select,
    task,
)
from cuelight.redis import (
    RedisClient,
    RedisLock,
    RedisNode,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisStore,
    RedisTokenBucket,
)

__all__ = ["Load", "Loads"]

Load = Callable[[], Awaitable[None]]


class Crash(Message):
    pass


class Answer(Request[int]):
    seconds: float = 0.0


class Refuse(Request[int]):
    pass


class Count(StreamRequest[int]):
    upto: int


class Tick(Message):
    pass


class NotToday(ReplyError):
    pass


class Busy(Actor[Crash | Answer | Refuse | Count | Tick]):
    def __init__(self) -> None:
        self.every(0.05, Tick())

    @on(Crash)
    async def crash(self, message: Crash) -> None:
        raise ValueError("crash")

    @on(Answer)
    async def answer(self, message: Answer) -> int:
        await anyio.sleep(message.seconds)
        return 1

    @on(Refuse)
    async def refuse(self, message: Refuse) -> int:
        raise NotToday("not today")

    @on(Count)
    async def count(self, message: Count) -> AsyncIterator[int]:
        for number in range(message.upto):
            yield number

    @on(Tick)
    def tick(self, message: Tick) -> None:
        pass


@task(name="soak.sound", result_ttl=10)
async def sound(number: int) -> int:
    return number


@task(name="soak.flaky", result_ttl=10, max_retries=1)
async def flaky(number: int) -> int:
    raise ValueError(f"flaky {number}")


@task(name="soak.rejected", result_ttl=10)
async def rejected(number: int) -> int:
    raise Rejected(f"no {number}")


class Loads:
    """All loads of one run, and their long-lived structures."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names = 0
        self._users = KeyedLimiter[str, AsyncTokenBucket](lambda _: AsyncTokenBucket(RateLimitConfig(5, 1.0)))
        self._locks = LockManager()
        self._systems: list[ActorSystem] = []
        self._queues: list[TaskQueue] = []
        self.loads: dict[str, Load] = {}
        self.server: RedisClient | None = None

    async def begin(self, stack: AsyncExitStack, url: str | None) -> None:
        """Start the resources of the loads; they end with the stack."""
        system = await stack.enter_async_context(ActorSystem("soak", ask_timeout=20))
        pool = await stack.enter_async_context(AsyncWorkerPool(max_workers=8))
        self._systems.append(system)
        self.loads |= {
            "actors": lambda: self._actors(system),
            "channels": self._channels,
            "pool": lambda: self._pool(pool),
            "locks": self._local_locks,
            "keys": self._keys,
            "queue": await self._queue(stack, TaskQueue(MemoryStore())),
        }
        if url is not None:
            self.server = server = await stack.enter_async_context(RedisClient(url))
            self.loads |= {
                "redis locks": lambda: self._redis_locks(server),
                "redis limiters": lambda: self._redis_limiters(server),
                "redis queue": await self._queue(stack, TaskQueue(RedisStore(url, queue="soak"))),
                "remote actors": await self._remote_actors(stack, url),
            }

    def kept(self) -> dict[str, int]:
        """The sizes of the structures that live as long as the run."""
        for _ in range(10_000):
            _ = self._users["user 0"]  # keys are forgotten when others are looked up
        return {
            "keys of limiters": len(self._users),
            "locks of the manager": len(self._locks),
            "actors": sum(len(list(system.group("soak"))) for system in self._systems),
        }

    def limits(self) -> dict[str, int]:
        """The largest sizes of these structures at a moment of rest."""
        return {"keys of limiters": 200, "locks of the manager": 100, "actors": 0}

    def _name(self, what: str) -> str:
        """Return a new name."""
        self._names += 1
        return f"{what} {self._names}"

    # In this process.

    async def _actors(self, system: ActorSystem) -> None:
        ref = await system.spawn(child(Busy).with_options(restart="temporary"))
        system.group("soak").join(ref)
        for _ in range(20):
            assert await ref.ask(Answer()) == 1
        await self._trouble(ref)
        await self._end(ref)

    async def _trouble(self, ref: Ref[Any]) -> None:
        """Asks that time out or are cancelled, dropped or refused, and a stream that is left early."""
        try:
            await ref.ask(Answer(5), timeout=0.005)
        except TimeoutError:
            pass
        with anyio.move_on_after(0.002):
            await ref.ask(Answer(5))
        reply = ref.ask(Answer(5))
        reply.cancel()
        try:
            await reply
        except AskError:
            pass
        try:
            await ref.ask(Refuse())
        except ReplyError:
            pass
        async with ref.stream(Count(1000)) as stream:
            async for number in stream:
                if number == 5:
                    break

    async def _end(self, ref: Ref[Any]) -> None:
        how = self._random.randrange(3)
        if how == 0:
            await ref.tell(Crash())
        elif how == 1:
            await ref.kill()
        else:
            await ref.stop()
        await ref.ended()

    async def _channels(self) -> None:
        one, other = Channel[int](0), Channel[int](2)

        async def send() -> None:
            with anyio.move_on_after(0.02):
                for number in range(20):
                    await one.send(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            for _ in range(10):
                await select(one, other, after(0.005))
        one.close()
        other.close()

    async def _pool(self, pool: AsyncWorkerPool) -> None:
        async def work(number: int) -> int:
            if number % 7 == 0:
                raise ValueError(number)
            await anyio.lowlevel.checkpoint()
            return number

        results = await pool.map(work, range(50))
        assert sum(not result.success for result in results) == 8
        with anyio.move_on_after(0.001):
            await pool.map(work, range(1000))

    async def _local_locks(self) -> None:
        name = self._name("lock")

        async def use() -> None:
            with anyio.move_on_after(0.005):
                async with self._locks.acquire(name):
                    await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(use)
        lock = LocalLock(name)

        async def leave() -> None:
            await lock.acquire()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
        async with lock:  # its holder has ended
            pass

    async def _keys(self) -> None:
        for _ in range(200):
            self._users[self._name("address")].try_acquire()
        for number in range(20):
            self._users[f"user {number}"].try_acquire()

    async def _queue(self, stack: AsyncExitStack, queue: TaskQueue) -> Load:
        await stack.enter_async_context(queue)
        await stack.enter_async_context(TaskWorker(queue, [sound, flaky, rejected], concurrency=10))
        self._queues.append(queue)

        async def load() -> None:
            handles = [await queue.send(sound, number) for number in range(10)]
            await queue.send(flaky, 1)
            await queue.send(rejected, 1)
            await queue.send(sound.with_options(unique=self._name("unique"), delay=0.01), 1)
            assert [await handle.result() for handle in handles] == list(range(10))
            await queue.dead_letters.purge(everything=True)

        return load

    # Over Redis.

    async def _redis_locks(self, server: RedisClient) -> None:
        name = self._name("lock")
        lock = RedisLock(name, server=server, lease=2)

        async def use() -> None:
            with anyio.move_on_after(0.02):
                async with lock:
                    await anyio.sleep(0.002)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(use)
        async with RedisSemaphore(self._name("semaphore"), 2, server=server):
            pass
        read_write = RedisReadWriteLock(name, server=server)
        async with read_write.read():
            pass
        async with read_write.write():
            pass

    async def _redis_limiters(self, server: RedisClient) -> None:
        bucket = RedisTokenBucket(self._name("bucket"), RateLimitConfig(100, 1.0), server=server)
        for _ in range(5):
            await bucket.acquire()
        limiter = RedisRateLimiter(
            self._name("limiter"), server=server, requests=RateLimitConfig(100, 1.0), concurrency=2
        )
        async with limiter.request():
            pass
        await bucket.aclose()
        await limiter.aclose()

    async def _remote_actors(self, stack: AsyncExitStack, url: str) -> Load:
        messages: list[Any] = [Crash, Answer, Refuse, Count, NotToday]

        async def enter(name: str) -> ActorSystem:
            node = RedisNode(url, cluster="soak", messages=messages)
            return await stack.enter_async_context(ActorSystem(name, node=node, ask_timeout=20))

        one, other = await enter("one"), await enter("other")
        self._systems += [one, other]

        async def load() -> None:
            name = self._name("actor")
            await other.expose(await other.spawn(child(Busy).with_options(restart="temporary")), name)
            ref = await one.resolve(name, timeout=20)
            for _ in range(10):
                assert await ref.ask(Answer()) == 1
            await self._trouble(ref)
            await self._end(ref)

        return load
