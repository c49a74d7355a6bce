"""Limiters over Redis when answers get lost, the server is away, or something else lies under their keys."""

import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import msgspec
import pytest

from cuelight.coordination import KeyedLimiter, RateLimitConfig
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import Argument, RedisClient, Script
from cuelight.redis._limits import RedisRateLimiter, RedisSlidingWindow, RedisTokenBucket
from helpers.limiters import unique, until
from helpers.redis_servers import RedisServer, shared_server
from helpers.tcp_proxy import TcpProxy

SLOW = RateLimitConfig(1000, 1_000_000.0)  # nothing comes back while a test runs


async def permits_are(limiter: RedisRateLimiter, free: int) -> bool:
    return (await limiter.remaining())["concurrency"] == free


async def is_left(bucket: RedisTokenBucket, units: int) -> bool:
    return (await bucket.try_acquire(0)).remaining == units


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    async with RedisClient(shared_server().url) as client:
        yield client


@pytest.fixture
def server() -> Any:
    """One that a test may stop."""
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.mark.parametrize("kind", ["cut before", "cut after"])
async def test_lost_answers_charge_nothing_twice_and_lose_no_permit(client: RedisClient, kind: str) -> None:
    """Connections end before or after every seventh answer: 60 requests cost 60, and all permits are back."""
    name = unique()
    with TcpProxy(shared_server().port) as proxy:
        proxy.cut_every(7, before=kind == "cut before", of={"EVALSHA", "EVAL"})
        async with RedisClient(proxy.url) as unlucky:
            limiter = RedisRateLimiter(name, server=unlucky, tokens=SLOW, concurrency=4)
            with anyio.fail_after(25):
                async with anyio.create_task_group() as group:

                    async def work(real: int) -> None:
                        async with limiter.request(tokens=10) as request:
                            request.settle(tokens=real)

                    for number in range(60):
                        group.start_soon(work, 5 + number % 3)
                proxy.heal()
                await limiter.aclose()
        assert proxy.faults > 5
    # Nobody else knows this limiter: what a new one sees is what the server counted.
    fresh = RedisRateLimiter(name, server=client, tokens=SLOW, concurrency=4)
    await until(lambda: permits_are(fresh, 4))
    assert await fresh.remaining() == {"tokens": 1000 - sum(5 + number % 3 for number in range(60)), "concurrency": 4}


async def test_a_permit_is_handed_on_by_a_message_and_not_by_polling() -> None:
    """Long before anybody would look again by itself, and with three or four calls for each request."""
    with RedisServer() as server:
        async with RedisClient(server.url) as client:
            limiter = RedisRateLimiter("one", server=client, concurrency=2, lease=60.0)

            async def work() -> None:
                async with limiter.request():
                    await anyio.sleep(0.002)

            with anyio.fail_after(15):
                async with anyio.create_task_group() as group:
                    for _ in range(200):
                        group.start_soon(work)
            stats = server.command("INFO", "commandstats").decode()
            calls = int(stats.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])
            # Asked, asked again when the server knew how to tell, told and asked, ended.
            assert 200 * 3 - 2 <= calls <= 200 * 4 + 10
            await limiter.aclose()


class Late:
    """A server that beats reach after everything else that is sent meanwhile, as when a connection is lost."""

    def __init__(self, client: RedisClient) -> None:
        self._client, self.go = client, anyio.Event()
        self.name = client.name

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        if script.name == "renew":
            await self.go.wait()
        return await self._client.run(script, keys, args, timeout=timeout)


async def test_a_beat_that_comes_late_brings_no_permit_back(client: RedisClient) -> None:
    """It says which permits are held, because the server had taken this process for dead; one of them has ended."""
    late = Late(client)
    server: Any = late
    limiter = RedisRateLimiter(unique(), server=server, concurrency=2, lease=0.3)
    with anyio.fail_after(15):
        first, second = limiter.request(), limiter.request()
        await first.__aenter__()
        await second.__aenter__()
        loop_client = limiter._loop_client()
        loop_client._maybe_expired = True
        loop_client._wake_background()
        await until(lambda: loop_client._asserted)
        await first.__aexit__(None, None, None)
        late.go.set()
        await until(lambda: not loop_client._asserted)
        await until(lambda: permits_are(limiter, 1))
        await second.__aexit__(None, None, None)
        await until(lambda: permits_are(limiter, 2))


async def test_a_request_cancelled_at_any_moment_charges_nothing_in_the_end(client: RedisClient) -> None:
    """Cancelled after ever longer times, granted or not: the charges and the permits are those of who went through."""
    limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW, concurrency=3)
    assert (await limiter.remaining())["tokens"] == 1000
    through = set[int]()

    async def work(number: int) -> None:
        with anyio.move_on_after(number / 1000 if number % 6 else math.inf):
            async with limiter.request(tokens=3):
                through.add(number)
                await anyio.sleep(0.002)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(120):
                group.start_soon(work, number)
        left = await limiter.remaining()
    assert left == {"tokens": 1000 - 3 * len(through), "concurrency": 3}
    assert limiter.statistics().waiting == 0
    assert through >= {*range(0, 120, 6)}


async def test_a_server_that_is_away_for_three_seconds_stops_nobody_for_good(server: RedisServer) -> None:
    async with RedisClient(server.url) as client:
        limiter = RedisRateLimiter("one", server=client, tokens=SLOW, concurrency=2, lease=2.0)
        done: list[int] = []

        async def work(number: int) -> None:
            while True:
                try:
                    async with limiter.request(tokens=1):
                        await anyio.sleep(0.05)
                except StoreUnavailable:
                    continue
                done.append(number)
                return

        with anyio.fail_after(25):
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(work, number)
                await until(lambda: len(done) >= 4)
                await anyio.to_thread.run_sync(server.kill)
                await anyio.sleep(3)
                await anyio.to_thread.run_sync(server.start)
            await until(lambda: permits_are(limiter, 2))
            left = await limiter.remaining()
        assert sorted(done) == [*range(20)]
        # The server keeps what it has acknowledged. What it did not can only have been charged in excess.
        assert left["tokens"] <= 1000 - 20
        await limiter.aclose()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_server_that_is_away_lets_requests_through_if_so_wanted(
    server: RedisServer, frozen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, or frozen: then `open` counts nothing, `local` a share, `closed` raises; and all come back."""
    caplog.set_level(logging.WARNING, "cuelight.redis")
    async with RedisClient(server.url, timeout=1.0) as client:
        options: dict[str, Any] = {"server": client, "outage_after": 0.3}
        shared: dict[str, Any] = options | {"on_outage": "local"}
        opened = RedisTokenBucket("open", SLOW, on_outage="open", **options)
        local = RedisTokenBucket("local", SLOW, local_share=0.01, **shared)
        closed = RedisTokenBucket("closed", SLOW, **options)
        several = RedisRateLimiter(
            "several", tokens=SLOW, concurrency=10, on_outage="local", local_share=0.1, **options
        )
        for bucket in (opened, local, closed):
            await bucket.acquire(1000)
        await anyio.to_thread.run_sync(server.freeze if frozen else server.kill)
        with anyio.fail_after(20):
            for _ in range(200):
                await opened.acquire(500)
            assert (opened.away, opened.uncounted) == (True, 200)
            allowed = [(await local.try_acquire()).allowed for _ in range(12)]
            assert allowed == [True] * 10 + [False] * 2, "a hundredth of the limit"
            async with several.request(tokens=500) as request:
                request.settle(tokens=5)
                with pytest.raises(TimeoutError):
                    async with several.request(timeout=0):
                        pass
            with pytest.raises(StoreUnavailable):
                await closed.try_acquire()
            await anyio.to_thread.run_sync(server.thaw if frozen else server.start)
            while opened.away or local.away or several.away:
                await opened.acquire(0)
                await local.try_acquire()
                async with several.request():
                    pass
                await anyio.sleep(0.05)
            assert not (await opened.try_acquire()).allowed, "the server knows what it knew"
            assert not (await closed.try_acquire()).allowed
        for bucket in (opened, local, closed):
            await bucket.aclose()
        await several.aclose()
    assert "limiter open: its server is away, requests are let through uncounted" in caplog.text
    assert "limiter open: its server is back" in caplog.text


async def test_those_that_wait_outlast_a_server_that_forgets_all() -> None:
    """Flushed, with scripts: they line up again, and a permit that is held is counted again."""
    with RedisServer() as server:
        async with RedisClient(server.url) as client:
            limiter = RedisRateLimiter("one", server=client, tokens=RateLimitConfig(10, 2.0), concurrency=2, lease=0.6)
            with anyio.fail_after(20):
                async with limiter.request(tokens=10), anyio.create_task_group() as group:

                    async def wait() -> None:
                        async with limiter.request(tokens=10):
                            pass

                    group.start_soon(wait)
                    await until(lambda: limiter.statistics().waiting)
                    await client.execute("FLUSHALL")
                    await client.execute("SCRIPT", "FLUSH")
                    await until(lambda: permits_are(limiter, 1))
            await limiter.aclose()


async def test_what_is_not_of_a_limiter_is_refused(client: RedisClient) -> None:
    bucket = RedisTokenBucket(unique(), SLOW, server=client)
    state = bucket._limiter_config.keys("x")[0]
    await client.execute("SET", state, "something")
    with pytest.raises(StoreRefused, match="is no state of a limiter: something else wrote to its key"):
        await bucket.acquire()
    await client.execute("DEL", state)
    await client.execute("RPUSH", state, "something")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await bucket.acquire()
    await client.execute("DEL", state)
    await client.execute("SET", state, msgspec.msgpack.encode({"format": 2}))
    with pytest.raises(StoreRefused, match="is of format 2, which this version of cuelight does not know"):
        await bucket.acquire()
    await client.execute("DEL", state)
    await bucket.acquire()
    with pytest.raises(StoreRefused, match="is in use as a limiter of 'token_bucket limit', and this one is of 'slid"):
        await RedisSlidingWindow(bucket.name, SLOW, server=client).try_acquire()


async def test_a_limit_that_others_have_set_is_learned_with_the_next_answer(client: RedisClient) -> None:
    name = unique()
    one, other = (RedisTokenBucket(name, RateLimitConfig(10, 100.0), server=client) for _ in range(2))
    await one.acquire()
    await other.update(RateLimitConfig(4, 50.0, 2))
    with pytest.raises(ValueError, match="the limits were changed, and never let more than 2 through at once now"):
        await one.acquire(5)
    assert one.config == RateLimitConfig(4, 50.0, 2)
    with pytest.raises(ValueError, match=r"cost=5: <RedisTokenBucket .* 4 in 50 s, burst 2 on .*> never lets more"):
        await one.acquire(5)


async def test_names_with_braces_are_names_like_others(client: RedisClient) -> None:
    for name in ("{a}b", "}{", "a}b", "%7Ba}b", "é" * 100):
        bucket = RedisTokenBucket(name, SLOW, server=client, prefix=unique())
        assert (await bucket.try_acquire(10)).remaining == 990
        (key,) = {key.split("}")[0] for key in bucket._limiter_config.keys("x")}
        assert key.startswith("{")
        assert "{" not in key[1:]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"name": ""}, ValueError, "name='': give 1 to 512 characters"),
        ({"name": 5}, TypeError, "name=5: the name of a limiter is a str"),
        ({"on_outage": "wait"}, ValueError, "on_outage='wait': it is one of closed, open, local"),
        ({"local_share": 2}, ValueError, "local_share=2: give a share of the limits, at most 1"),
        ({"lease": 0}, ValueError, "lease=0"),
        ({"chunk": 0}, ValueError, "chunk=0: give 1 or more"),
        ({"chunk": 1001}, ValueError, "chunk=1001: .* never lets more than 1000"),
        ({"outage_after": 0}, ValueError, "outage_after=0"),
    ],
)
def test_bad_options_of_a_limiter_over_redis_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        RedisTokenBucket(options.pop("name", "x"), SLOW, **options)


# A limiter for each key.


async def test_a_limiter_over_redis_for_each_key_is_forgotten_when_nobody_uses_it(client: RedisClient) -> None:
    """What counts is on the server, so the limit of a key that comes back is what it was."""
    prefix = unique()
    users = KeyedLimiter[str, RedisTokenBucket](
        lambda user: RedisTokenBucket(user, RateLimitConfig(2, 1000.0), server=client, prefix=prefix)
    )
    for user in ("ann", "bob"):
        await users[user].acquire()
    held = users["bob"]
    async with anyio.create_task_group() as group:
        group.start_soon(users["ann"].acquire, 2)
        await until(lambda: users["ann"].statistics().waiting)
        assert users.forget_idle() == 1
        assert "ann" in repr(users["ann"])
        assert len(users) == 1
        group.cancel_scope.cancel()
    assert users.forget_idle() == 1
    assert (await users["ann"].try_acquire(2)).allowed is False
    assert (await held.try_acquire()).remaining == 0
    assert users["bob"] is held
    assert len(users) == 2


# Chunks.


async def test_chunks_let_through_a_chunk_too_many_for_each_at_most(client: RedisClient) -> None:
    name, config, chunk = unique(), RateLimitConfig(2000, 1.0, 100), 50
    buckets = [RedisTokenBucket(name, config, chunk=chunk, server=client) for _ in range(3)]
    taken, began = 0, time.monotonic()
    async with anyio.create_task_group() as group:

        async def take(bucket: RedisTokenBucket) -> None:
            nonlocal taken
            while time.monotonic() < began + 0.5:
                await bucket.acquire()
                taken += 1

        for bucket in buckets * 3:
            group.start_soon(take, bucket)
    took = time.monotonic() - began
    assert 100 + 2000 * 0.5 * 0.5 < taken <= 100 + 2000 * took + chunk * len(buckets)
    assert sum(bucket.statistics().admitted for bucket in buckets) == taken


async def test_what_is_not_spent_of_a_chunk_goes_back(client: RedisClient) -> None:
    """When nobody came for half a second, or the limiter is closed."""
    name = unique()
    one, other = (RedisTokenBucket(name, SLOW, chunk=400, server=client) for _ in range(2))
    await one.acquire(3)
    assert (await RedisTokenBucket(name, SLOW, server=client).try_acquire(0)).remaining == 600
    await until(lambda: is_left(other, 997))
    await other.acquire(7)
    assert (await other.try_acquire(1)).remaining == 392
    await other.aclose()
    assert (await one.try_acquire(0)).remaining == 989
