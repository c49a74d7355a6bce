"""Keys of locks and limiters that somebody else has damaged: that costs the one lock or limiter, which is named."""

# What is in keys may be anything.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
import operator
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import msgspec
import pytest
import redis

from cuelight import RateLimitConfig
from cuelight.errors import LeaseLost, StoreRefused
from cuelight.redis import (
    RedisClient,
    RedisLock,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisSlidingWindow,
    RedisTokenBucket,
    fence_key,
    fenced_set,
)
from helpers import Backend, run_on
from helpers.lockable import until, until_server
from helpers.players import outcome
from helpers.redis_servers import RedisServer

TEXTS: Final = (
    b"",
    b" ",
    b"abc",
    b"\xff\xfe",
    b"nan",
    b"-nan",
    b"inf",
    b"-1",
    b"0",
    b"1.5",
    b"1e300",
    b"99999999999999999999",
    b"9" * 400,
    b"1:2:3",
    b"h:1:1:1:1:1:1",
    b"q:0:0:0:0:0:0",
    b"h:99999999999999999999:1:1:1:1:1",
    b"\x91" * 2000 + b"\xc0",
    b"x" * 10_000,
)
"""For the value of a field, or of a part of it."""

SCORES: Final = (0.0, -1.0, 0.5, 1e300, math.inf, -math.inf)

LEAVES: Final[tuple[Any, ...]] = (
    None,
    True,
    "x",
    -1,
    0,
    1.5,
    1e300,
    math.nan,
    math.inf,
    1 << 60,
    [],
    {},
    [[[[1]]]],
)
"""For what is packed."""

NAME: Final = "damaged-thing"

FINE: Final = RateLimitConfig(4, window_seconds=60)


@dataclass(frozen=True)
class Kind:
    """Something with keys.

    Attributes:
        prepare: has it held and waited for, by a client that then goes away.
        use: asks for it, and gives it back.
    """

    prepare: Callable[[RedisClient], Awaitable[None]]
    use: Callable[[RedisClient], Awaitable[None]]


def of_lock(make: Callable[..., Any]) -> Kind:
    """A lock: it has been given back once, is held, and is waited for."""

    async def prepare(server: RedisClient) -> None:
        async with RedisClient(f"redis://{server.name}") as second, RedisClient(f"redis://{server.name}") as third:
            async with make(third):
                pass
            lock, other = make(server), make(second)
            await lock.acquire()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.acquire)
                await until_server(partial(someone_waits, lock))
                await copy_keys(server)
                tasks.cancel_scope.cancel()
            lock.release()

    async def use(server: RedisClient) -> None:
        lock = make(server)
        await state_of(lock)
        await lock.acquire(timeout=0)
        lock.release()

    return Kind(prepare, use)


async def someone_waits(lock: Any) -> bool:
    return bool((await state_of(lock)).waiting)


async def state_of(lock: Any) -> Any:
    """What the server knows of it."""
    return await getattr(lock, "state")()  # noqa: B009


def of_limiter(make: Callable[..., Any]) -> Kind:
    """A limiter with one limit, which is used up, and waited for."""

    async def prepare(server: RedisClient) -> None:
        limiter = make(server)
        for _ in range(3):
            await limiter.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.acquire, 4)
            await until(lambda: limiter.statistics().waiting)
            await copy_keys(server)
            tasks.cancel_scope.cancel()
        await limiter.aclose()

    async def use(server: RedisClient) -> None:
        limiter = make(server)
        await limiter.try_acquire()
        await limiter.acquire(timeout=0)
        await limiter.resume()
        await limiter.aclose()

    return Kind(prepare, use)


def requests(server: RedisClient) -> RedisRateLimiter:
    return RedisRateLimiter(NAME, server=server, requests=FINE, tokens=FINE, concurrency=2)


async def requests_are_made(server: RedisClient) -> None:
    """One request is under way, one waits, and limits were set by hand."""
    limiter = requests(server)
    await limiter.update(tokens=RateLimitConfig(5, window_seconds=60))
    async with limiter.request(tokens=2), limiter.request(tokens=2), anyio.create_task_group() as tasks:

        async def wait() -> None:
            async with limiter.request(tokens=1):
                pass

        tasks.start_soon(wait)
        await until(lambda: limiter.statistics().waiting)
        await copy_keys(server)
        tasks.cancel_scope.cancel()
    await limiter.aclose()


async def request(server: RedisClient) -> None:
    limiter = requests(server)
    await limiter.remaining()
    await limiter.retry_after(tokens=1)
    async with limiter.request(timeout=0, tokens=1) as admission:
        admission.settle(tokens=0)
    await limiter.aclose()


LIMITERS: Final[dict[str, Callable[..., Any]]] = {
    "bucket": lambda server: RedisTokenBucket(NAME, FINE, server=server),
    "window": lambda server: RedisSlidingWindow(NAME, FINE, server=server),
    "counter": lambda server: RedisSlidingWindow(NAME, FINE, exact=False, server=server),
}

KINDS: Final[dict[str, Kind]] = {
    "lock": of_lock(lambda server: RedisLock(NAME, server=server)),
    "semaphore": of_lock(lambda server: RedisSemaphore(NAME, 2, server=server).hold(2)),
    "write": of_lock(lambda server: RedisReadWriteLock(NAME, server=server).write()),
    **{name: of_limiter(make) for name, make in LIMITERS.items()},
    "requests": Kind(requests_are_made, request),
}

COPIES: Final[dict[bytes, bytes]] = {}


async def copy_keys(server: RedisClient) -> None:
    """Keep what the keys are now."""
    COPIES.clear()
    for key in await server.execute("KEYS", "*"):
        COPIES[key] = await server.execute("DUMP", key)


def restore_keys(direct: redis.Redis) -> None:
    """Have the keys be again what they were."""
    direct.flushdb()
    for key, copy in COPIES.items():
        direct.restore(key, 0, copy)


Damage = Callable[[Any], object]


def damages(direct: Any) -> Iterator[tuple[str, Damage]]:
    """Everything that can be wrong with each of the keys, and what it is."""
    for key in sorted(COPIES):
        kind, name = direct.type(key).decode(), key.decode()
        yield f"{name} is gone", call("delete", key)
        yield f"{name} is of another type", _of_another_type(key, kind)
        yield from {"string": _of_string, "hash": _of_hash, "zset": _of_zset}[kind](direct, key, name)


def call(method: str, *args: Any) -> Callable[[Any], Any]:
    """Damage by one command."""
    return operator.methodcaller(method, *args)


def _of_another_type(key: bytes, kind: str) -> Damage:
    def change(direct: Any) -> None:
        direct.delete(key)
        direct.rpush(key, "x") if kind == "string" else direct.set(key, "x")

    return change


def _of_string(direct: Any, key: bytes, name: str) -> Iterator[tuple[str, Damage]]:
    for wrong in wrong_values(direct.get(key)):
        yield f"{name} is {wrong[:60]!r}", call("set", key, wrong)


def _of_hash(direct: Any, key: bytes, name: str) -> Iterator[tuple[str, Damage]]:
    for field, value in sorted(direct.hgetall(key).items()):
        yield f"{name}, {field!r} is gone", call("hdel", key, field)
        for wrong in wrong_values(value):
            yield f"{name}, {field!r} is {wrong[:60]!r}", call("hset", key, field, wrong)


def _of_zset(direct: Any, key: bytes, name: str) -> Iterator[tuple[str, Damage]]:
    for member, _ in direct.zrange(key, 0, -1, withscores=True):
        yield f"{name}, {member!r} is gone", call("zrem", key, member)
        for score in SCORES:
            yield f"{name}, {member!r} is at {score}", call("zadd", key, {member: score})
    for stranger in (b"", b"stranger", b"\xff\xfe", b"x" * 1000, b"1:x", b"-1:x", b"p:1"):
        for score in SCORES:
            yield f"{name} has {stranger[:20]!r} at {score}", call("zadd", key, {stranger: score})


def wrong_values(value: bytes) -> Iterator[bytes]:
    """A value, and each part of it, as something else."""
    yield from TEXTS
    try:
        packed = msgspec.msgpack.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        packed = None
    if isinstance(packed, dict | list):
        for wrong in wrong_leaves(packed):
            yield msgspec.msgpack.encode(wrong)
        return
    for separator in (b"|", b":"):
        parts = value.split(separator)
        for place in range(len(parts)) if len(parts) > 1 else ():
            yield separator.join(parts[:place] + parts[place + 1 :])
            for wrong_text in TEXTS[:13]:
                yield separator.join([*parts[:place], wrong_text, *parts[place + 1 :]])


def wrong_leaves(value: Any) -> Iterator[Any]:
    """What is packed, with one thing in it being something else, or gone."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: one for name, one in value.items() if name != key}
            for wrong in (*LEAVES, *wrong_leaves(inner)):
                yield {**value, key: wrong}
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield value[:place] + value[place + 1 :]
            for wrong in (*LEAVES, *wrong_leaves(inner)):
                yield [*value[:place], wrong, *value[place + 1 :]]


async def use_damaged(kind: Kind, url: str, direct: Any, every: int) -> list[str]:
    """Try all of them, or every n-th; returns what did not end as it should."""
    async with RedisClient(url) as server:
        await kind.prepare(server)
    restore_keys(direct)
    wrong: list[str] = []
    for what, damage in list(damages(direct))[::every]:
        restore_keys(direct)
        damage(direct)
        async with RedisClient(url, timeout=30) as server:
            with anyio.fail_after(20):
                error = await outcome(kind.use(server))
                if not isinstance(error, StoreRefused | TimeoutError | None):
                    wrong.append(f"{what}: {error!r:.300}")
                elif isinstance(error, StoreRefused) and NAME not in str(error):
                    wrong.append(f"{what} is not named: {error}")
                elif isinstance(error, StoreRefused):
                    direct.flushdb()  # as the message says
                    again = await outcome(kind.use(server))
                    if again is not None:
                        wrong.append(f"{what}, and it does not work afterwards: {again!r:.300}")
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_key_costs_the_lock_or_limiter_that_it_belongs_to(kind: str, backend: Backend) -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as direct:
        every = 5 if backend[0] == "trio" else 1  # what differs between loops is not what is read
        assert run_on(backend, use_damaged, KINDS[kind], server.url, direct, every) == []


def numbers_gone_wrong(value: Any) -> Iterator[Any]:
    """What is packed, with one of its numbers being none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            for wrong in numbers_gone_wrong(inner):
                yield {**value, key: wrong}
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            for wrong in numbers_gone_wrong(inner):
                yield [*value[:place], wrong, *value[place + 1 :]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from (math.nan, math.inf, -math.inf, 1e300, -1e300)


@pytest.mark.parametrize("kind", LIMITERS)
async def test_a_number_that_is_none_never_switches_a_limit_off(kind: str) -> None:
    direct: Any
    with RedisServer() as running, redis.Redis(port=running.port) as direct:
        async with RedisClient(running.url) as server:
            await KINDS[kind].prepare(server)
            restore_keys(direct)
            (key,) = [key for key in COPIES if key.endswith(b":state")]
            state = msgspec.msgpack.decode(direct.get(key))
            for wrong in numbers_gone_wrong({name: value for name, value in state.items() if name != "format"}):
                restore_keys(direct)
                direct.set(key, msgspec.msgpack.encode({**state, **wrong}))
                error = await outcome(LIMITERS[kind](server).acquire(timeout=0))
                assert isinstance(error, StoreRefused | TimeoutError), (wrong, error)


@pytest.mark.parametrize("token", [text for text in TEXTS if not text.strip().isdigit()])
async def test_a_damaged_fencing_token_is_refused_by_name(token: bytes) -> None:
    with RedisServer() as running:
        async with RedisClient(running.url) as server:
            await fenced_set(server, "total", "1", 5)
            await server.execute("SET", fence_key("total"), token)
            with pytest.raises(StoreRefused, match=r"total.* no fencing token"):
                await fenced_set(server, "total", "2", 6)
            await server.execute("DEL", fence_key("total"))
            await fenced_set(server, "total", "2", 6)
            with pytest.raises(LeaseLost):
                await fenced_set(server, "total", "3", 5)
