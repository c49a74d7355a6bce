"""Times that callers set hold while the server is away, whatever the client's own time-out is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem, RateLimitConfig
from cuelight.errors import LockTimeout, StoreRefused, StoreUnavailable
from cuelight.redis import (
    RedisClient,
    RedisLeakyBucket,
    RedisLock,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisSlidingWindow,
    RedisTokenBucket,
    Script,
)
from cuelight.redis._client import Server
from helpers.lockable import over_redis, until, worker
from helpers.nodes import node
from helpers.players import outcome
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy

LONG = 120.0
"""Seconds, the time-out of clients here: longer than any test may take."""

SHORT = 0.05
"""Seconds that callers set."""

FINE = RateLimitConfig(1000, window_seconds=1)

ECHO = Script("return ARGV[1]", "echo")

AWAY: dict[str, Callable[[TcpProxy], None]] = {"refused": TcpProxy.refuse, "silent": TcpProxy.silence}


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy(shared_server().port) as running:
        yield running


def patient(proxy: TcpProxy) -> RedisClient:
    """A client that would wait for longer than the test."""
    return RedisClient(proxy.url, timeout=LONG, connect_timeout=LONG)


Call = Callable[[], Awaitable[Any]]


def calls_with_a_limit(server: RedisClient) -> dict[str, Call]:
    """Everything that takes a time-out, waiting for a server."""
    prefix = over_redis()["prefix"]
    lock = RedisLock("it", server=server, prefix=prefix)

    async def request() -> None:
        limiter = RedisRateLimiter("it", server=server, prefix=prefix, requests=FINE, concurrency=2)
        async with limiter.request(timeout=SHORT):
            pass

    async def in_a_thread(call: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(call)

    return {
        "lock": partial(lock.acquire, SHORT),
        "lock, at once": partial(lock.acquire, 0),
        "lock, in a block": lock.hold(SHORT).__aenter__,
        "semaphore": partial(RedisSemaphore("it", 2, server=server, prefix=prefix).acquire, 2, SHORT),
        "read": partial(RedisReadWriteLock("it", server=server, prefix=prefix).read().acquire, SHORT),
        "write": partial(RedisReadWriteLock("it", server=server, prefix=prefix).write().acquire, SHORT),
        "lock of a thread": partial(in_a_thread, partial(lock.acquire_blocking, SHORT)),
        "token bucket": partial(RedisTokenBucket("b", FINE, server=server, prefix=prefix).acquire, 1, SHORT),
        "token bucket in chunks": partial(
            RedisTokenBucket("c", FINE, chunk=10, server=server, prefix=prefix).acquire, 1, SHORT
        ),
        "leaky bucket": partial(RedisLeakyBucket("l", FINE, server=server, prefix=prefix).acquire, 1, SHORT),
        "sliding window": partial(RedisSlidingWindow("s", FINE, server=server, prefix=prefix).acquire, 1, SHORT),
        "request": request,
    }


KINDS = list(calls_with_a_limit(RedisClient()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("away", AWAY)
async def test_time_outs_hold_while_the_server_is_away(proxy: TcpProxy, away: str, kind: str) -> None:
    AWAY[away](proxy)
    async with patient(proxy) as server:
        with anyio.fail_after(LONG / 4):
            assert isinstance(await outcome(calls_with_a_limit(server)[kind]()), StoreUnavailable)


@pytest.mark.parametrize("kind", KINDS)
async def test_time_outs_hold_when_the_server_goes_away(proxy: TcpProxy, kind: str) -> None:
    """There was a connection, so that nothing says that the server has gone."""
    async with patient(proxy) as server:
        await server.execute("PING")
        await anyio.to_thread.run_sync(server.execute_blocking, "PING")
        proxy.silence()
        with anyio.fail_after(LONG / 4):
            assert isinstance(await outcome(calls_with_a_limit(server)[kind]()), StoreUnavailable)


async def test_who_waits_in_line_is_late_in_time_though_the_server_goes_away(proxy: TcpProxy) -> None:
    where = over_redis()
    holder = RedisLock("it", **where)
    async with patient(proxy) as server, holder, anyio.create_task_group() as tasks:
        with worker() as thread:
            lock = RedisLock("it", server=server, prefix=where["prefix"])
            again = RedisLock("other", server=server, prefix=where["prefix"])
            outcomes: list[Any] = []

            async def wait() -> None:
                outcomes.append(await outcome(lock.acquire(1)))

            tasks.start_soon(wait)
            thread.start(lambda: again.acquire_blocking(0))
            assert thread.result() is None
            await until(lambda: any(ear.open for ear in lock._state.grant_channels.values()))
            proxy.silence()
            with anyio.fail_after(LONG / 4):
                await until(lambda: outcomes)
            assert isinstance(outcomes[0], LockTimeout)


@pytest.mark.parametrize("mode", ["open", "local"])
async def test_a_request_in_a_hurry_goes_without_a_server_that_is_not_taken_to_be_away(
    proxy: TcpProxy, mode: Any
) -> None:
    proxy.silence()
    async with patient(proxy) as server:
        bucket = RedisTokenBucket("it", FINE, server=server, on_outage=mode, outage_after=LONG)
        with anyio.fail_after(LONG / 4):
            await bucket.acquire(timeout=SHORT)
        assert (bucket.uncounted, bucket.away) == (1, False)


async def test_a_name_is_resolved_in_time_or_not_at_all(proxy: TcpProxy) -> None:
    async with patient(proxy) as server, ActorSystem("here", node=node("c", redis=server, lease=LONG)) as system:
        proxy.silence()
        with anyio.fail_after(LONG / 4):
            assert isinstance(await outcome(system.resolve("nobody", timeout=SHORT)), StoreUnavailable)
        proxy.heal()


# Blocks, and programs.


@pytest.mark.parametrize("manner", ["task", "thread", "cancelled"])
async def test_leaving_a_block_does_not_wait_long_for_a_server_that_is_away(proxy: TcpProxy, manner: str) -> None:
    where = over_redis()
    async with patient(proxy) as server:
        lock = RedisLock("it", server=server, prefix=where["prefix"], lease=LONG)

        def block() -> None:
            with lock:
                proxy.silence()

        with anyio.fail_after(LONG / 4):
            if manner == "thread":
                await anyio.to_thread.run_sync(block)
            else:
                with anyio.CancelScope() as scope:
                    async with lock:
                        proxy.silence()
                        if manner == "cancelled":
                            scope.cancel()
                            await anyio.sleep_forever()
        assert not lock.locked
        proxy.heal()
        other = RedisLock("it", **where)
        with anyio.fail_after(LONG / 4):  # given back as soon as the server is there again
            await other.acquire()
        other.release()


async def test_a_request_that_is_cancelled_does_not_wait_again_for_a_server_that_is_away(proxy: TcpProxy) -> None:
    proxy.silence()
    async with patient(proxy) as server:
        bucket = RedisTokenBucket("it", FINE, server=server)
        with anyio.move_on_after(0.3) as scope:
            await bucket.acquire()
        assert scope.cancelled_caught
        assert bucket._loop_client()._calls.away


PROGRAM = """
import sys
from cuelight.redis import RedisLock
lock = RedisLock("it", sys.argv[1] + "?socket_timeout=1000&socket_connect_timeout=1000", lease=60)
try:
    lock.acquire_blocking(timeout=0.1)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("away", AWAY)
def test_a_program_that_holds_nothing_ends_though_its_server_is_away(proxy: TcpProxy, away: str) -> None:
    AWAY[away](proxy)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, proxy.url], capture_output=True, text=True, timeout=LONG / 4, check=True
    )
    assert (ended.stdout, ended.stderr) == ("StoreUnavailable\n", "")


# The seam.


def seam_calls(server: Server, seconds: float) -> dict[str, Call]:
    """Every method of a server that takes a limit."""

    async def in_a_thread(call: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(call)

    def nothing(*_: object) -> None:
        pass

    return {
        "execute": partial(server.execute, "GET", "k", timeout=seconds),
        "execute, blocking": partial(server.execute, "BLPOP", "no such list", "0", timeout=seconds),
        "run": partial(server.run, ECHO, ("k",), ("hello",), timeout=seconds),
        "execute_blocking": partial(in_a_thread, partial(server.execute_blocking, "GET", "k", timeout=seconds)),
        "run_blocking": partial(in_a_thread, partial(server.run_blocking, ECHO, ("k",), ("hello",), timeout=seconds)),
        "subscribe": partial(server.subscribe, "channel", nothing, nothing, timeout=seconds),
    }


SEAM = list(seam_calls(RedisClient(), 0))


@pytest.mark.parametrize("call", SEAM)
@pytest.mark.parametrize("away", AWAY)
async def test_a_call_ends_with_the_time_that_its_caller_has(proxy: TcpProxy, away: str, call: str) -> None:
    AWAY[away](proxy)
    async with patient(proxy) as server:
        with anyio.fail_after(LONG / 4):
            assert isinstance(await outcome(seam_calls(server, SHORT)[call]()), StoreUnavailable)
        proxy.heal()
        with anyio.fail_after(LONG / 4):  # what was on its way may have been cut just now
            while call != "execute, blocking":
                if not isinstance(await outcome(seam_calls(server, LONG)[call]()), StoreUnavailable):
                    break


@pytest.mark.parametrize("call", SEAM)
@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_a_time_that_is_none_is_refused(call: str, seconds: float) -> None:
    async with RedisClient(shared_server().url) as server:
        error = await outcome(seam_calls(server, seconds)[call]())
    assert isinstance(error, ValueError)
    assert "give seconds, 0 or more" in str(error)


async def test_callers_in_a_hurry_do_not_keep_a_slow_server_from_being_reached(proxy: TcpProxy) -> None:
    """An attempt to connect goes on when those who wait for it give up."""
    proxy.delay(0.3)
    async with patient(proxy) as server:
        for _ in range(3):
            assert isinstance(await outcome(server.execute("PING", timeout=0.02)), StoreUnavailable)
        proxy.delay(0)
        with anyio.fail_after(LONG / 4):
            assert await server.execute("PING") == b"PONG"
    assert proxy.accepted == 1


async def test_all_who_wait_for_a_connection_fail_together(proxy: TcpProxy) -> None:
    """One after the other, the last would wait as often as there are others before it."""
    proxy.silence()
    async with RedisClient(proxy.url, timeout=LONG, connect_timeout=0.5) as server:
        outcomes: list[Any] = []

        async def call() -> None:
            outcomes.append(await outcome(server.execute("PING")))

        with anyio.fail_after(LONG / 4):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(call)
    assert {type(one) for one in outcomes} == {StoreUnavailable}
    assert len(set(map(id, outcomes))) == 20  # each with a trace of its own
    assert proxy.accepted == 1


async def test_a_client_that_is_closed_while_it_connects_fails_who_waits(proxy: TcpProxy) -> None:
    proxy.silence()
    server = patient(proxy)
    outcomes: list[Any] = []

    async def call() -> None:
        outcomes.append(await outcome(server.execute("PING")))

    with anyio.fail_after(LONG / 4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(lambda: proxy.accepted)
            await server.aclose()
        outcomes.append(await outcome(server.execute("PING")))
    assert [str(one).partition(": ")[2] for one in outcomes] == ["the client was closed"] * 2


class Credentials:
    """Asked for each connection; raises what it was given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def get_credentials(self) -> tuple[str, str]:
        raise self.error

    async def get_credentials_async(self) -> tuple[str, str]:
        raise self.error


async def test_what_a_credential_provider_raises_is_for_who_waits() -> None:
    class Odd(BaseException):
        pass

    for error in (KeyError("no such secret"), Odd("neither"), StoreRefused("not now")):
        provider: Any = Credentials(error)
        async with RedisClient(shared_server().url, credential_provider=provider) as server:
            with pytest.raises(type(error), match=r"no such secret|neither|not now"):
                await server.execute("PING")
            with pytest.raises(type(error)):
                await server.execute("PING")
