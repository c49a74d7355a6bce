"""A client that a user has already carries everything as ours does."""

# Clients of others are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import coredis
import pytest
import redis
import redis.asyncio
from coredis.retry import NoRetryPolicy
from redis.credentials import CredentialProvider

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, Script, Server, use_coredis, use_redis_py
from helpers.redis_servers import RedisServer, shared_server, until
from helpers.tcp_proxy import TcpProxy

ECHO = Script("return {ARGV[1], redis.call('GET', KEYS[1])}")
KINDS = ("ours", "redis-py", "coredis")


@asynccontextmanager
async def server_over(kind: str, url: str, timeout: float = 5.0) -> AsyncGenerator[Server]:
    if kind == "ours":
        async with RedisClient(url, timeout=timeout) as client:
            yield client
    elif kind == "redis-py":
        async with redis.asyncio.Redis.from_url(url, protocol=3, decode_responses=True) as theirs:
            server: Any = use_redis_py(theirs, timeout=timeout)
            yield server
            await server.aclose()
    else:
        async with coredis.Redis.from_url(url, retry_policy=NoRetryPolicy(), decode_responses=True) as theirs:
            server = use_coredis(theirs, timeout=timeout)
            yield server
            await server.aclose()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, anyio_backend_name: str) -> str:
    if request.param == "redis-py" and anyio_backend_name == "trio":
        return "ours"  # redis-py runs on asyncio only
    name: str = request.param
    return name


async def test_a_server_replies_alike_over_every_client(kind: str) -> None:
    async with server_over(kind, shared_server().url) as server:
        assert await server.execute("SET", "k", b"\xff") == b"OK"
        assert await server.execute("GET", "k") == b"\xff"
        assert await server.execute("DEL", "h", "z", "l") is not None
        await server.execute("HSET", "h", "a", 1, "b", 2.5)
        assert await server.execute("HGETALL", "h") == {b"a": b"1", b"b": b"2.5"}
        await server.execute("ZADD", "z", 1.5, "m")
        assert await server.execute("ZSCORE", "z", "m") == 1.5
        assert await server.execute("SCRIPT", "EXISTS", "0" * 40) == [0]
        await server.execute("SCRIPT", "FLUSH")
        for _ in range(2):
            assert await server.run(ECHO, ["k"], ["a"]) == [b"a", b"\xff"]
            assert server.run_blocking(ECHO, ["k"], ["a"]) == [b"a", b"\xff"]
        assert server.execute_blocking("GET", "k") == b"\xff"
        assert await server.execute("BLPOP", "l", 0.01) is None
        assert server.name == f"127.0.0.1:{shared_server().port}/0"
        heard: list[bytes] = []
        await server.subscribe("ch", heard.append, lambda: None)
        await server.publish("ch", b"hello")
        await until(lambda: heard == [b"hello"])


async def test_a_server_fails_alike_over_every_client(kind: str) -> None:
    async with server_over(kind, shared_server().url) as server:
        await server.execute("SET", "k", "v")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            await server.execute("LPUSH", "k", "x")
        with pytest.raises(redis.ResponseError, match="BOOM it broke"):
            await server.run(Script("return redis.error_reply('BOOM it broke')"))
        with pytest.raises(redis.ResponseError):
            await server.execute("SET", "k")
        with pytest.raises(ValueError, match="dedicated"):
            await server.execute("SELECT", 1)
    with RedisServer("--maxmemory", "1mb") as full:
        async with server_over(kind, full.url) as server:
            with pytest.raises(StoreRefused, match="OOM"):
                for n in range(100):
                    await server.execute("SET", n, "x" * 100_000)


async def test_lost_replies_are_asked_for_again_by_run_only(kind: str) -> None:
    with TcpProxy(shared_server().port) as proxy:
        async with server_over(kind, proxy.url, timeout=2.0) as server:
            await server.execute("SET", "count", 0)
            proxy.cut_every(1, of={"INCR"}, times=1)
            with pytest.raises(StoreUnavailable):
                await server.execute("INCR", "count")
            assert proxy.commands["INCR"] == 1
            await server.run(ECHO, ["count"], ["a"])
            proxy.cut_every(2, of={"EVALSHA"}, times=2)
            for _ in range(6):
                assert await server.run(ECHO, ["count"], ["a"]) == [b"a", b"1"]
            assert proxy.faults == 3


async def test_a_plugged_client_that_waits_too_long_is_unavailable_and_serves_on(kind: str) -> None:
    with TcpProxy(shared_server().port) as proxy:
        async with server_over(kind, proxy.url, timeout=0.3) as server:
            await server.execute("PING")
            proxy.swallow_every(1, of={"ECHO"})
            with pytest.raises(StoreUnavailable, match=r"no reply within 0\.3 s|nothing came"):
                await server.execute("ECHO", "lost")
            proxy.heal()
            assert (await server.run(ECHO, ["none"], ["next"]))[0] == b"next"


async def test_a_plugged_client_of_a_unix_socket_has_it_for_channels_and_threads_too(kind: str) -> None:
    path = shared_server().path
    async with server_over(kind, f"unix://{path}?db=2") as server:
        await server.execute("SET", "where", "two")
        assert server.execute_blocking("GET", "where") == b"two"
        assert server.name == f"{path}/2"
        heard: list[bytes] = []
        await server.subscribe("ch", heard.append, lambda: None)
        await server.publish("ch", b"hello")
        await until(lambda: heard == [b"hello"])


def test_credentials_that_a_plugged_client_cannot_reach_are_as_a_server_that_it_cannot() -> None:
    class Away(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise OSError("no way to the vault")

    async def main() -> None:
        port = shared_server().port
        async with redis.asyncio.Redis(port=port, protocol=3, credential_provider=Away()) as theirs:
            with pytest.raises(StoreUnavailable, match="no way to the vault"):
                await use_redis_py(theirs).execute("PING")

    asyncio.run(main())


def test_a_client_that_cannot_be_plugged_in_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RedisClient\(url\) instead"):
        use_redis_py(redis.asyncio.RedisCluster(host="127.0.0.1", port=1))
    with pytest.raises(ValueError, match=r"NoRetryPolicy\(\)"):
        use_coredis(coredis.Redis())
    with pytest.raises(ValueError, match=r"RedisClient\(url\) instead"):
        use_coredis(object())

    async def speaks_resp2() -> None:
        async with redis.asyncio.Redis.from_url(shared_server().url, protocol=2) as theirs:
            with pytest.raises(ValueError, match="protocol=3"):
                await use_redis_py(theirs).execute("PING")

    asyncio.run(speaks_resp2())


def test_a_plugged_client_stays_in_its_loop() -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(shared_server().url, protocol=3) as theirs:
            server = use_redis_py(theirs)
            await server.execute("PING")

            def elsewhere() -> None:
                with pytest.raises(RuntimeError, match="another event loop"):
                    anyio.run(server.execute, "PING")

            await anyio.to_thread.run_sync(elsewhere)

    asyncio.run(main())
