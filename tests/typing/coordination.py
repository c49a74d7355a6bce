"""What the types of locks and limiters promise. Not run: both type checkers must reject just the marked lines."""

from typing import Any, assert_type

from cuelight import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket, BaseLock, BaseSemaphore, KeyedLimiter, Limit, LocalLock, LocalSemaphore, LockManager, RateLimitConfig, RateLimiter, ReadWriteLock, Semaphore
from cuelight.coordination import Admission, Decision, LockStatistics
from cuelight.coordination import gcra


async def locking(lock: LocalLock, anything: BaseLock) -> None:
    async with lock as taken:
        assert_type(taken, LocalLock)
    with anything as held:
        assert_type(held, BaseLock)
    await lock.acquire(timeout=5)
    lock.acquire_blocking(0.5)
    lock.acquire_nowait()
    assert_type(lock.statistics(), LockStatistics)
    assert_type(lock.locked, bool)
    LocalLock(5)  # rejected
    LocalLock("name", True)  # rejected
    await lock.acquire("soon")  # rejected
    lock.acquire_nowait(5)  # rejected
    lock.locked = True  # rejected
    BaseLock()  # rejected


async def managing(manager: LockManager) -> None:
    assert_type(manager.get_lock("a"), BaseLock)
    async with manager.acquire("a", timeout=5) as one, manager.acquire_all({"b", "c"}) as several:
        assert_type(one.names, tuple[str, ...])
        print(several)
    with manager.acquire_all(name for name in "abc"):
        print(manager.stats["active"])

    def make(name: str, /, *, debug: bool | None = None) -> BaseLock:
        return LocalLock(name, debug=debug)

    LockManager(make)
    LockManager(LocalLock)
    manager.get_lock(5)  # rejected
    manager.acquire_all([1, 2])  # rejected
    await manager.acquire("a")  # rejected
    LockManager(ReadWriteLock)  # rejected


async def reading_and_writing(lock: ReadWriteLock) -> None:
    async with lock.read() as side:
        assert_type(side, BaseLock)
    with lock.write():
        lock.downgrade()
    async with lock:  # rejected
        pass
    ReadWriteLock(writer_preference="yes")  # rejected


async def using_places(places: Semaphore) -> None:
    assert_type(places, LocalSemaphore)
    base: BaseSemaphore = places
    async with base, places.hold(2) as held:
        assert_type(held, BaseLock)
    await places.acquire(2, timeout=1)
    places.release(2)
    Semaphore(max_concurrent="3")  # rejected
    await places.acquire(1.5)  # rejected
    LocalSemaphore(3, "name")  # rejected


async def limiting(config: RateLimitConfig) -> None:
    bucket = AsyncTokenBucket(config)
    AsyncTokenBucket(5.0, 10)
    AsyncSlidingWindow(5, 60.0, exact=False)
    AsyncLeakyBucket(config, clock=lambda: 0.0)
    await bucket.acquire(cost=3, timeout=1.5)
    assert_type(bucket.try_acquire(), Decision)
    assert_type(bucket.try_acquire().retry_after, float)
    bucket.update(config)
    RateLimitConfig(1.5, 60)  # rejected
    AsyncLeakyBucket(5)  # rejected
    await bucket.acquire(1.5)  # rejected
    bucket.update(5)  # rejected
    with bucket:  # rejected
        pass
    config.max_requests = 5  # rejected
    assert_type(gcra(0, 0, 1, 5, 1), tuple[bool, int, int])


bucket = AsyncTokenBucket(RateLimitConfig(5, 1))
limiter = RateLimiter(requests=RateLimitConfig(5, 1), tokens=RateLimitConfig(500, 1), concurrency=2)


@bucket
async def greet(name: str) -> str:
    return name


def length(text: str) -> int:
    return len(text)


@bucket.limited(cost=length, timeout=5)
async def translate(text: str) -> str:
    return text


@limiter.limited(tokens=100)
async def count(text: str, times: int = 1) -> int:
    return len(text) * times


@bucket  # rejected
def plain() -> None: ...


async def decorated() -> None:
    assert_type(await greet("Ada"), str)
    assert_type(await translate("Ada"), str)
    assert_type(await count("Ada", times=2), int)
    await greet(5)  # rejected
    await count("Ada", loud=True)  # rejected


async def several_limits(config: RateLimitConfig) -> None:
    async with limiter.request(tokens=5, timeout=1.0, refund_on_failure=True) as request:
        assert_type(request, Admission)
        request.settle(tokens=3)
        assert_type(request.costs, dict[str, int])
    limiter.update(concurrency=5, tokens=config)
    limiter.observe({"Retry-After": "5"})
    RateLimiter(tokens=5)  # rejected
    RateLimiter(algorithm="guess", tokens=config)  # rejected
    limiter.request(tokens="many")  # rejected
    limiter.request(5)  # rejected
    limiter.update(tokens=5)  # rejected


async def by_key(config: RateLimitConfig) -> None:
    users = KeyedLimiter[str, AsyncTokenBucket](lambda user: AsyncTokenBucket(config))
    assert_type(users["ann"], AsyncTokenBucket)

    def make(user: int) -> RateLimiter:
        return RateLimiter(requests=RateLimitConfig(user, 1))

    numbered = KeyedLimiter(make)
    assert_type(numbered[5], RateLimiter)
    users[5]  # rejected
    numbered["ann"]  # rejected
    KeyedLimiter[list[str], AsyncTokenBucket]  # rejected
    KeyedLimiter[str, LocalLock]  # rejected


def of_tasks(config: RateLimitConfig, anything: Any) -> None:
    assert_type(Limit.from_config("k", config, max_concurrent=3, cost=1.5), Limit)
    Limit.from_config("k", anything)
    Limit.from_config("k", 5)  # rejected
    Limit.from_config("k", config, 3)  # rejected
