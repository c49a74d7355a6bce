"""Limiters over Redis that are closed, used from several loops, or whose server is away at an odd moment."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from cuelight.coordination import RateLimitConfig
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient
from cuelight.redis._limits import RedisRateLimiter, RedisSlidingWindow, RedisTokenBucket, _calls
from helpers import BACKENDS, run_on
from helpers.limiters import unique, until
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy

SLOW = RateLimitConfig(1000, 1_000_000.0)  # nothing comes back while a test runs


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    async with RedisClient(shared_server().url) as client:
        yield client


def test_a_limiter_over_redis_needs_a_loop() -> None:
    bucket = RedisTokenBucket(unique(), SLOW, redis_url=shared_server().url)
    with pytest.raises(RuntimeError, match="no asyncio or trio event loop runs here"):
        bucket.acquire().send(None)


async def test_a_limiter_that_was_closed_says_so_and_is_closed_twice_without_harm(client: RedisClient) -> None:
    used = RedisTokenBucket(unique(), SLOW, server=client, chunk=10)
    await used.acquire()
    unused = RedisRateLimiter(unique(), server=client, tokens=SLOW)
    calls: list[Callable[[], Awaitable[Any]]] = [used.acquire, used.try_acquire, unused.remaining, unused.resume]
    for limiter in (used, unused):
        await limiter.aclose()
        await limiter.aclose()
    for call in calls:
        with pytest.raises(RuntimeError, match="is closed"):
            await call()
    assert used.statistics().admitted == 1


def test_what_loops_did_that_have_ended_still_counts() -> None:
    name, url = unique(), shared_server().url
    bucket = RedisTokenBucket(name, SLOW, redis_url=url, chunk=10)

    async def main() -> None:
        await bucket.acquire()

    for count, loop in enumerate(["asyncio", "trio", "asyncio"], 1):
        run_on(BACKENDS[loop], main)
        assert bucket.statistics().admitted == count
    assert len(bucket._loop_clients) <= 2


async def test_a_limiter_is_closed_in_one_loop_while_others_have_used_it(client: RedisClient) -> None:
    bucket = RedisTokenBucket(unique(), SLOW, server=client, chunk=10)
    closed, used = threading.Event(), threading.Event()
    errors: list[Any] = []

    async def elsewhere() -> None:
        await bucket.acquire()
        used.set()
        await anyio.to_thread.run_sync(closed.wait)
        with pytest.raises(RuntimeError, match="is closed"):
            await bucket.acquire()
        errors.append("refused")

    thread = threading.Thread(target=lambda: anyio.run(elsewhere))
    thread.start()
    await anyio.to_thread.run_sync(used.wait)
    await bucket.aclose()
    closed.set()
    await anyio.to_thread.run_sync(thread.join)
    assert errors == ["refused"]


async def test_what_is_in_stock_goes_back_when_a_limiter_is_closed(client: RedisClient) -> None:
    name = unique()
    bucket = RedisTokenBucket(name, SLOW, server=client, chunk=100)
    await bucket.acquire()
    await bucket.acquire()  # of what is in stock
    assert (await bucket.try_acquire(0)).remaining == 900
    await bucket.aclose()
    fresh = RedisTokenBucket(name, SLOW, server=client)
    assert (await fresh.try_acquire(0)).remaining == 998


async def test_who_waits_for_a_chunk_is_late_when_others_wait_for_longer(client: RedisClient) -> None:
    bucket = RedisTokenBucket(unique(), RateLimitConfig(10, 1000.0), server=client, chunk=10)
    await bucket.acquire(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bucket.acquire)
        await until(lambda: bucket.statistics().waiting == 1)
        with pytest.raises(TimeoutError, match=r"others wait for units, longer than 0.02 s"):
            await bucket.acquire(timeout=0.02)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("chunk", [None, 10])
async def test_a_server_that_refuses_connections_lets_requests_through_uncounted(chunk: int | None) -> None:
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.1) as client:
            bucket = RedisTokenBucket(unique(), SLOW, server=client, chunk=chunk, on_outage="open")
            proxy.refuse()
            await bucket.acquire()
            assert bucket.away
            decision = await bucket.try_acquire(3)
            assert (decision.allowed, decision.remaining) == (True, 1000)
            assert bucket.uncounted == 2


async def test_headers_of_an_answer_are_learned_or_the_server_is_away() -> None:
    headers = {"Retry-After": "30"}
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.1) as client:
            closed = RedisRateLimiter(unique(), server=client, tokens=SLOW)
            others = [
                RedisRateLimiter(unique(), server=client, tokens=SLOW, on_outage="open"),
                RedisRateLimiter(unique(), server=client, tokens=SLOW, on_outage="local"),
            ]
            proxy.refuse()
            await closed.observe({"Content-Type": "text/plain"})  # nothing to learn
            with pytest.raises(StoreUnavailable):
                await closed.observe(headers)
            for limiter in others:
                await limiter.observe(headers)


async def test_a_pause_is_one_of_this_process_too(client: RedisClient) -> None:
    bucket = RedisTokenBucket(unique(), SLOW, server=client, on_outage="local")
    assert bucket._local is not None
    assert 30 <= await bucket.pause_for(30, jitter=0) < 31
    assert not bucket._local.try_acquire().allowed
    assert not (await bucket.try_acquire()).allowed
    await bucket.resume()
    assert bucket._local.try_acquire().allowed
    assert (await bucket.try_acquire()).allowed


async def test_limits_are_changed_only_where_there_are_such(client: RedisClient) -> None:
    limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW)
    with pytest.raises(ValueError, match="does not count what is under way"):
        await limiter.update(concurrency=3)
    await limiter.update(tokens=RateLimitConfig(500, 1_000_000.0))
    assert (await limiter.remaining())["tokens"] <= 500


async def test_a_request_is_settled_from_another_thread_after_its_block(client: RedisClient) -> None:
    limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW)
    async with limiter.request(tokens=100) as request:
        pass
    await anyio.to_thread.run_sync(lambda: request.settle(tokens=40))

    async def is_settled() -> bool:
        return (await limiter.remaining())["tokens"] == 960

    await until(is_settled)


async def test_what_the_server_will_not_settle_is_said_and_not_tried_for_ever(
    client: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else wrote to the keys of a limiter while a request was under way."""
    limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW)
    async with limiter.request(tokens=100) as request:
        request.settle(tokens=40)
        for key in limiter._loop_client()._calls._keys:
            await client.execute("SET", key, "something else")
    assert "could not settle a request" in caplog.text
    caplog.clear()
    request.settle(tokens=30)
    await until(lambda: "could not settle a request" in caplog.text)
    await until(lambda: not limiter._loop_client().busy)
    caplog.clear()
    with pytest.raises(StoreRefused):
        await limiter.remaining()


def test_numbers_that_no_server_can_count_are_refused() -> None:
    with pytest.raises(ValueError, match="two counters on Redis take max_requests"):
        RedisSlidingWindow(unique(), RateLimitConfig(10**9, 10.0**6), exact=False)
    with pytest.raises(ValueError, match="more than a lifetime to come back"):
        RedisTokenBucket(unique(), RateLimitConfig(1, 10.0**6, 10**9))


async def test_what_could_not_be_settled_in_time_is_settled_when_the_server_is_back() -> None:
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.1) as client:
            limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW)
            async with limiter.request(tokens=100) as request:
                request.settle(tokens=40)
                proxy.refuse()
            assert limiter._loop_client().busy
            proxy.heal()
            await limiter.aclose()
            async with RedisClient(shared_server().url) as direct:
                fresh = RedisRateLimiter(limiter.name, server=direct, tokens=SLOW)
                assert await fresh.remaining() == {"tokens": 960}


async def test_what_cannot_be_settled_for_long_is_given_up_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_calls, "LONGEST_RETRY", 0.05)
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.1) as client:
            limiter = RedisRateLimiter(unique(), server=client, tokens=SLOW)
            async with limiter.request(tokens=100) as request:
                request.settle(tokens=40)
                proxy.refuse()
            await until(lambda: not limiter._loop_client().busy)
    assert "gave up to settle a request" in caplog.text


async def test_a_permit_outlasts_a_server_that_is_away(client: RedisClient) -> None:
    name = unique()
    with TcpProxy(shared_server().port) as proxy:
        async with RedisClient(proxy.url, timeout=0.05) as unlucky:
            limiter = RedisRateLimiter(name, server=unlucky, concurrency=1, lease=0.3)
            other = RedisRateLimiter(name, server=client, concurrency=1, lease=0.3)
            async with limiter.request():
                proxy.refuse()

                async def is_free() -> bool:
                    return (await other.remaining())["concurrency"] == 1

                await until(is_free)  # it is taken for dead
                proxy.heal()

                async def is_held() -> bool:
                    return (await other.remaining())["concurrency"] == 0

                await until(is_held)  # and is there again
            await until(is_free)
            await limiter.aclose()


async def test_a_lease_that_the_server_refuses_to_renew_is_said(
    client: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RedisRateLimiter(unique(), server=client, concurrency=1, lease=0.3)
    async with limiter.request():
        for key in limiter._loop_client()._calls._keys:
            await client.execute("SET", key, "something else")
        await until(lambda: "its lease is not renewed" in caplog.text)
        assert await client.execute("DEL", *limiter._loop_client()._calls._keys) > 0
    await until(lambda: not limiter._loop_client().busy)
    caplog.clear()


def test_a_request_whose_coroutine_is_thrown_away_charges_nothing_in_the_end() -> None:
    """As the garbage collector does with one that nobody awaits to its end."""

    async def main() -> None:
        async with RedisClient(shared_server().url) as client:
            bucket = RedisTokenBucket(unique(), SLOW, server=client)
            await bucket.acquire(0)
            request = bucket.acquire(10)
            request.send(None)
            request.close()
            await until(lambda: not bucket._loop_client().busy)
            assert (await bucket.try_acquire(0)).remaining == 1000

    run_on(BACKENDS["asyncio"], main)


async def test_a_limiter_may_have_a_clock_of_its_own(client: RedisClient) -> None:
    now = 10**15
    bucket = RedisTokenBucket(unique(), RateLimitConfig(1, 60.0), server=client, _clock=lambda: now)
    await bucket.acquire()
    assert not (await bucket.try_acquire()).allowed
    now += 60_000_000
    assert (await bucket.try_acquire()).allowed
