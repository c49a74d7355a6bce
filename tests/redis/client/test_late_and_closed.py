"""What is late, what broke while nobody looked, and what is closed at an inconvenient moment."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import http.server
import math
import threading
from collections.abc import Generator, Iterator
from typing import Any

import anyio
import pytest
import redis

from cuelight.errors import StoreUnavailable
from cuelight.redis import RedisClient, Script
from helpers.redis_servers import RedisServer, Sentinel, shared_server, until
from helpers.tcp_proxy import TcpProxy

WRITE = Script("redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]", "write")


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy(shared_server().port) as running:
        yield running


async def test_a_reply_that_takes_too_long_fails_its_command_and_not_the_connection(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.5) as client:
        await client.execute("SET", "big", "x" * 400_000)
        proxy.slow_down(100_000)
        pipe: Any = client.pipeline(transaction=False)
        pipe.echo("small").get("big").get("big")
        got: list[Any] = []

        async def collect() -> None:
            got.extend(await pipe.execute(raise_on_error=False))

        async with anyio.create_task_group() as group:
            group.start_soon(collect)
            await until(lambda: proxy.commands["ECHO"] == 1)
            with pytest.raises(StoreUnavailable, match=r"there was no reply within 0.5 s"):
                await client.execute("GET", "big")
        assert got[0] == b"small"
        assert [type(late) for late in got[1:]] == [redis.TimeoutError] * 2
        # What was given up is still on its way: it is dropped, and what is asked for next gets its own.
        proxy.slow_down(math.inf)
        assert await client.execute("ECHO", "next") == b"next"
        assert proxy.accepted == 1


async def test_a_dedicated_connection_ends_with_a_command_that_is_late(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.2) as client, client.dedicated() as mine:
        proxy.swallow_every(1, of={"ECHO"})
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"there was no reply within 0.2 s"):
                await mine.execute("ECHO", "lost")
        assert proxy.commands["ECHO"] == 1


async def test_a_dedicated_connection_ends_with_a_command_that_is_cancelled(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url) as client, client.dedicated() as mine:
        await mine.execute("DEL", "line")
        async with anyio.create_task_group() as group:
            group.start_soon(mine.execute, "BLPOP", "line", 0)
            await until(lambda: proxy.commands["BLPOP"] == 1)
            group.cancel_scope.cancel()
        with pytest.raises(StoreUnavailable, match="a command was cancelled on this connection"):
            await mine.execute("PING")
        # The server does not serve it any more, either: nothing is taken for nobody.
        await until(lambda: proxy.connections == 0)
        assert await client.execute("RPUSH", "line", 1) == 1


async def test_a_connection_over_which_comes_what_nobody_asked_for_ends(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url) as client, client.dedicated() as mine:
        assert await mine.execute("MONITOR") == b"OK"
        assert await client.execute("ECHO", "seen by the monitor") == b"seen by the monitor"
        await until(lambda: mine._connection.error is not None)
        with pytest.raises(StoreUnavailable, match="a reply that nobody asked for"):
            await mine.execute("PING")


def test_a_script_that_a_thread_runs_is_given_up_when_its_time_is_over(proxy: TcpProxy) -> None:
    client = RedisClient(proxy.url, timeout=0.3)
    proxy.refuse()
    with pytest.raises(StoreUnavailable):
        client.run_blocking(WRITE, ["k"], ["lost"])
    assert proxy.accepted >= 2
    client.close()
    with pytest.raises(StoreUnavailable, match="the client was closed"):
        client.run_blocking(WRITE, ["k"], ["lost"])


async def test_a_command_that_blocks_for_a_time_fails_when_that_and_the_time_out_are_over(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.2) as client:
        assert await client.execute("BLPOP", "nothing-there", 0.01) is None
        proxy.swallow_every(1, of={"BLPOP"})
        with pytest.raises(StoreUnavailable, match=r"there was no reply within 0.1 s and 0.2 s"):
            await client.execute("BLPOP", "nothing-there", 0.1)
        proxy.heal()
        assert await client.execute("BLPOP", "nothing-there", 0.01) is None


async def test_a_command_that_blocks_for_ever_waits_while_the_server_shows_that_it_lives(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=5, health_check_interval=0.02) as client:
        await client.execute("DEL", "line")
        got: list[Any] = []

        async def wait() -> None:
            got.append(await client.execute("BLPOP", "line", 0))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: proxy.commands["BLPOP"] == 1 and proxy.commands["PING"] >= 3)
            assert got == []
            await client.execute("RPUSH", "line", "late")
        assert got == [[b"line", b"late"]]


async def test_a_connection_that_broke_while_it_was_idle_is_not_used_again(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url) as client:
        for n in range(3):
            assert await client.execute("BLPOP", "nothing-there", 0.01) is None
            assert proxy.accepted == n + 1
            proxy.cut()
            await until(lambda: not client._topology().connections.all)


async def test_a_client_that_is_closed_while_it_connects_has_no_connection_afterwards(proxy: TcpProxy) -> None:
    client = RedisClient(proxy.url)
    proxy.delay(0.3)
    failed: list[str] = []

    async def ask() -> None:
        with pytest.raises(StoreUnavailable, match="the client was closed"):
            await client.execute("PING")
        failed.append("closed")

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await until(lambda: proxy.accepted == 1)
        await client.aclose()
    assert failed == ["closed"]
    await until(lambda: proxy.connections == 0)


async def test_a_client_that_is_closed_before_it_could_begin_leaves_nothing(proxy: TcpProxy) -> None:
    for _ in range(5):
        client = RedisClient(proxy.url)
        failed: list[str] = []

        async def ask(client: RedisClient = client, failed: list[str] = failed) -> None:
            with pytest.raises(StoreUnavailable, match="the client was closed"):
                await client.execute("PING")
            failed.append("closed")

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(client.aclose)
        assert failed == ["closed"]
        await until(lambda: client._topologies == {})  # noqa: B023 - it is asked in this round
    assert proxy.connections == 0


async def test_a_client_is_closed_from_a_thread_while_a_loop_uses_it(proxy: TcpProxy) -> None:
    client = RedisClient(proxy.url)
    failed: list[str] = []

    async def block() -> None:
        with pytest.raises(StoreUnavailable, match="the client was closed"):
            await client.execute("BLPOP", "nothing-there", 0)
        failed.append("closed")

    async with anyio.create_task_group() as group:
        group.start_soon(block)
        await until(lambda: proxy.commands["BLPOP"] == 1)
        await anyio.to_thread.run_sync(client.close)
    assert failed == ["closed"]
    await until(lambda: proxy.connections == 0)
    assert client._topologies == {}
    client.close()


async def test_who_closes_what_has_ended_meanwhile_is_told_at_once() -> None:
    client = RedisClient(shared_server().url)
    await client.execute("PING")
    topology = client._topology()
    await client.aclose()
    told: list[str] = []
    # As another thread would that found it just before.
    topology.end(lambda: told.append("ended"))
    assert told == ["ended"]


def test_a_client_asks_for_an_event_loop_where_there_is_none() -> None:
    coroutine = RedisClient(shared_server().url).execute("PING")
    with pytest.raises(RuntimeError, match=r"no event loop runs here: use the blocking methods, or anyio.run"):
        coroutine.send(None)


@contextlib.contextmanager
def web_server() -> Generator[int]:
    """One that logs nothing; its port."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


async def test_a_server_of_another_kind_is_unavailable_and_named() -> None:
    with web_server() as port:
        async with RedisClient(f"redis://127.0.0.1:{port}", timeout=1) as client:
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}.*what came is not RESP"):
                await client.execute("PING")


async def test_a_primary_that_became_a_replica_is_left_for_the_one_that_sentinels_name() -> None:
    with RedisServer() as old, RedisServer() as new, Sentinel(old.port) as sentinel:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}"
        async with RedisClient(f"{url}/other", timeout=0.5) as client:
            with pytest.raises(StoreUnavailable, match="does not know 'other'"):
                client.execute_blocking("PING")
        async with RedisClient(f"{url}/main", timeout=5) as client:
            assert await client.run(WRITE, ["k"], ["before"]) == b"before"
            assert client.execute_blocking("GET", "k") == b"before"
            old.command("REPLICAOF", "127.0.0.1", str(new.port))
            with pytest.raises(StoreUnavailable, match="this server is the primary no more"):
                await client.execute("SET", "k", "lost")
            with pytest.raises(StoreUnavailable, match="this server is the primary no more"):
                client.execute_blocking("SET", "k", "lost")
            for transaction in (True, False):
                with pytest.raises(redis.ConnectionError, match="this server is the primary no more"):
                    await client.pipeline(transaction).execute_command("SET", "k", "lost").execute()
            sentinel.command("SENTINEL", "REMOVE", "main")
            sentinel.command("SENTINEL", "MONITOR", "main", "127.0.0.1", str(new.port), "1")
            assert await client.run(WRITE, ["k"], ["after"]) == b"after"
            assert client.run_blocking(WRITE, ["k"], ["after all"]) == b"after all"
            assert new.command("GET", "k") == b"$9\r\nafter all\r\n"
