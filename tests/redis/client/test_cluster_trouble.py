"""A cluster in which something is wrong: slots that nobody has, servers that disagree, that hang, that are gone."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import redis
from redis.exceptions import AskError

from cuelight.errors import StoreUnavailable
from cuelight.redis import RedisClient, Script
from cuelight.redis._client._cluster import slot_of_key
from helpers.redis_servers import RedisCluster, RedisServer, free_port, shared_server, until
from helpers.tcp_proxy import TcpProxy

READ = Script("return redis.call('GET', KEYS[1])", "read")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Its servers serve what they have, whatever is the matter with the others, and never give one up."""
    with RedisCluster("--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000") as running:
        yield running


def key_on(number: int, prefix: str) -> str:
    """A key of the server with this number."""
    return next(f"{prefix}{n}" for n in range(10_000) if slot_of_key(f"{prefix}{n}") * 3 // 16384 == number)


def set_slot(server: RedisServer, key: str, *words: str) -> None:
    assert server.command("CLUSTER", "SETSLOT", str(slot_of_key(key)), *words) == b"+OK\r\n"


async def whole(cluster: RedisCluster) -> None:
    """Return when all servers think that all is well, and agree."""

    def well() -> bool:
        seen = {server.command("CLUSTER", "SLOTS") for server in cluster.servers}
        states = [server.command("CLUSTER", "INFO") for server in cluster.servers]
        return len(seen) == 1 and all(b"cluster_state:ok" in state and b"slots_ok:16384" in state for state in states)

    await until(well, lambda: [server.command("CLUSTER", "SLOTS") for server in cluster.servers])


async def test_tasks_that_find_no_slots_ask_for_them_once(cluster: RedisCluster) -> None:
    with TcpProxy(cluster.servers[0].port) as proxy:
        async with RedisClient(f"redis+cluster://127.0.0.1:{proxy.port}") as client:
            async with anyio.create_task_group() as group:
                for n in range(20):
                    group.start_soon(client.execute, "GET", f"once{n}")
            assert proxy.commands["CLUSTER"] == 1


async def test_what_concerns_all_servers_of_a_cluster_goes_to_all(cluster: RedisCluster) -> None:
    script = Script("return 'everywhere'")
    async with RedisClient(cluster.url) as client:

        def loaded() -> set[bytes]:
            return {server.command("SCRIPT", "EXISTS", script.sha) for server in cluster.servers}

        loads: list[Callable[[], Awaitable[Any]]] = [
            lambda: client.execute_command("SCRIPT LOAD", script.text),
            lambda: client.execute(b"script", b"load", script.text),
            lambda: anyio.to_thread.run_sync(client.execute_blocking, "SCRIPT", "LOAD", script.text),
        ]
        for load in loads:
            await load()
            assert loaded() == {b"*1\r\n:1\r\n"}
            client.execute_blocking("SCRIPT FLUSH", "SYNC")
            assert loaded() == {b"*1\r\n:0\r\n"}
        with pytest.raises(redis.ResponseError, match="compiling"):
            await client.execute("SCRIPT", "LOAD", "this is no Lua")
        with pytest.raises(redis.ResponseError, match="compiling"):
            client.execute_blocking("SCRIPT", "LOAD", "this is no Lua")


async def test_a_pipeline_follows_a_slot_that_is_on_its_way(cluster: RedisCluster) -> None:
    first, second, _ = cluster.servers
    key = key_on(0, "moving-pipeline")
    async with RedisClient(cluster.url) as client, RedisClient(cluster.url) as stale:
        for one in (client, stale):
            await one.execute("SET", key, "before")
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), first, second, finish=False))
        for n, transaction in enumerate((True, False)):
            pipe: Any = client.pipeline(transaction)
            assert await pipe.get(key).set(key, n).incr(key).execute() == [b"%d" % n if n else b"before", True, n + 1]
        assert first.command("CLUSTER", "COUNTKEYSINSLOT", str(slot_of_key(key))) == b":0\r\n"
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), first, second))
        loose: Any = stale.pipeline(transaction=False)
        assert await loose.get(key).incr(key).execute() == [b"2", 3]
        assert await client.pipeline().execute_command("GET", key).execute() == [b"3"]
        await client.execute("DEL", key)
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), second, first))
    await whole(cluster)


@pytest.mark.parametrize("disagreement", ["both say that it is the other's", "one gives and the other does not take"])
async def test_servers_that_send_a_command_to_and_fro_are_unavailable_until_they_agree(
    cluster: RedisCluster, disagreement: str
) -> None:
    first, second, _ = cluster.servers
    key = key_on(0, "disputed")
    one, two = cluster.identity(first), cluster.identity(second)
    async with RedisClient(cluster.url, timeout=5) as client:
        await client.execute("GET", key)
        client.execute_blocking("GET", key)
        if "both" in disagreement:
            set_slot(first, key, "NODE", two)
        else:
            set_slot(first, key, "MIGRATING", two)
        with pytest.raises(StoreUnavailable, match="MOVED"):
            await client.execute("GET", key)
        with pytest.raises(StoreUnavailable, match="MOVED"):
            client.execute_blocking("GET", key)
        for transaction in (True, False):
            with pytest.raises(AskError):
                await client.pipeline(transaction).execute_command("SET", key, 1).execute()
        got: list[Any] = []

        async def insist() -> None:
            got.append(await client.run(READ, [key]))

        async with anyio.create_task_group() as group:
            refused = first.command("INFO", "errorstats")
            group.start_soon(insist)
            await until(lambda: first.command("INFO", "errorstats") != refused)
            assert got == []
            set_slot(first, key, "NODE", one)
        assert got == [None]
        assert client.run_blocking(READ, [key]) is None
    await whole(cluster)


async def test_a_slot_that_nobody_has_is_unavailable_until_somebody_has_it(cluster: RedisCluster) -> None:
    key = key_on(0, "nobodys")
    slot = str(slot_of_key(key))
    for server in cluster.servers:
        assert server.command("CLUSTER", "DELSLOTS", slot) == b"+OK\r\n"
    async with RedisClient(cluster.url) as client:
        with pytest.raises(StoreUnavailable, match=f"CLUSTERDOWN nobody has slot {slot}"):
            await client.execute("GET", key)
        with pytest.raises(StoreUnavailable, match=f"CLUSTERDOWN nobody has slot {slot}"):
            client.execute_blocking("GET", key)
        assert await client.execute("GET", key_on(1, "nobodys")) is None
        assert cluster.servers[0].command("CLUSTER", "ADDSLOTS", slot) == b"+OK\r\n"
        assert await client.run(READ, [key]) is None
        assert client.run_blocking(READ, [key]) is None
    await whole(cluster)


async def test_a_server_that_hangs_fails_its_part_of_a_pipeline(cluster: RedisCluster) -> None:
    first = cluster.servers[0]
    keys = [key_on(n, "part") for n in range(3)]
    async with RedisClient(cluster.url, timeout=0.4, connect_timeout=0.4) as client:

        async def replies() -> list[Any]:
            pipe: Any = client.pipeline(transaction=False)
            for key in keys:
                pipe.set(key, 1)
            return list(await pipe.execute(raise_on_error=False))

        assert await replies() == [True, True, True]
        assert client.execute_blocking("GET", keys[0]) == b"1"
        first.freeze()
        # Over the connection that there was, and then because there is no other.
        for _ in range(2):
            lost, *others = await replies()
            assert isinstance(lost, redis.TimeoutError)
            assert others == [True, True]
        with pytest.raises(redis.TimeoutError):
            await client.pipeline().execute_command("SET", keys[0], 2).execute()
        with pytest.raises(StoreUnavailable):
            client.execute_blocking("GET", keys[0])
        assert client.execute_blocking("GET", keys[1]) == b"1"
        first.thaw()
        await whole(cluster)
        assert await replies() == [True, True, True]
        assert client.run_blocking(READ, [keys[0]]) == b"1"
        await client.flushall()


async def test_a_subscriber_is_led_to_the_server_that_has_its_slot_now(cluster: RedisCluster) -> None:
    first, second, _ = cluster.servers
    key, other = key_on(0, "heard"), key_on(0, "stays")
    async with RedisClient(cluster.url) as stale, RedisClient(cluster.url) as speaker:
        heard: list[bytes | None] = []
        stays: list[bytes | None] = []
        await stale.subscribe(other, stays.append, lambda: stays.append(None))
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), first, second))
        await stale.subscribe(key, heard.append, lambda: heard.append(None))
        await speaker.publish(key, b"1")
        await until(lambda: heard == [b"1"])
        # The server that said so is asked for everything anew.
        await until(lambda: stays == [None])
        await speaker.publish(other, b"2")
        await until(lambda: stays == [None, b"2"])
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), second, first))
    await whole(cluster)


async def test_subscribers_of_a_server_that_hung_join_those_of_the_one_that_took_over(cluster: RedisCluster) -> None:
    first, second, third = cluster.servers
    key = key_on(0, "taken over")
    async with RedisClient(cluster.url, timeout=0.5, connect_timeout=0.5, health_check_interval=60) as client:
        early: list[bytes | None] = []
        late: list[bytes | None] = []
        await client.subscribe(key, early.append, lambda: early.append(None))
        one, two = cluster.identity(first), cluster.identity(second)
        first.freeze()
        set_slot(second, key, "IMPORTING", one)
        set_slot(second, key, "NODE", two)
        set_slot(third, key, "NODE", two)
        await until(lambda: _answers(client, key))
        subscription = await client.subscribe(key, late.append, lambda: late.append(None))
        assert early == []
        first.thaw()
        await until(lambda: early == [None])
        await client.publish(key, b"both")
        await until(lambda: early[-1:] == late[-1:] == [b"both"], lambda: (early, late))
        subscription.close()
        await client.publish(key, b"one")
        await until(lambda: early == [None, b"both", b"one"], lambda: (early, late))
        assert late[-1] == b"both"
        await anyio.to_thread.run_sync(lambda: cluster.move(slot_of_key(key), second, first))
    await whole(cluster)


async def _answers(client: RedisClient, key: str) -> bool:
    try:
        await client.execute("GET", key)
    except StoreUnavailable:
        return False
    return True


async def test_a_cluster_that_is_silent_or_away_is_unavailable_for_channels_and_threads() -> None:
    async with RedisClient(f"redis+cluster://127.0.0.1:{free_port()}", timeout=0.3) as client:
        with pytest.raises(StoreUnavailable, match="no server of the cluster knows its slots"):
            await client.publish("ch", b"hello")
        with pytest.raises(StoreUnavailable):
            client.execute_blocking("GET", "k")
    with TcpProxy(shared_server().port) as one, TcpProxy(shared_server().port) as other:
        one.silence()
        other.silence()
        async with RedisClient(f"redis+cluster://127.0.0.1:{one.port},127.0.0.1:{other.port}", timeout=0.2) as client:
            with pytest.raises(StoreUnavailable, match=r"did not begin to listen to 'ch' within 0.2 s"):
                await client.subscribe("ch", lambda _: None, lambda: None)


async def test_a_server_without_slots_says_so_until_it_has_them() -> None:
    """The slots of a server that never met another have no address: it does not know its own."""
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        async with RedisClient(f"redis+cluster://127.0.0.1:{server.port}", timeout=10) as client:
            with pytest.raises(StoreUnavailable, match="knows no slots yet"):
                await client.execute("GET", "k")
            for command in (("GET", "k"), ("PING",)):
                with pytest.raises(StoreUnavailable, match="knows no slots yet"):
                    client.execute_blocking(*command)
            server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            assert await client.run(READ, ["k"]) is None
            assert client.run_blocking(READ, ["k"]) is None


async def test_a_single_server_is_no_cluster_for_threads_either() -> None:
    with RedisServer() as server:
        async with RedisClient(f"redis+cluster://127.0.0.1:{server.port}", timeout=1) as client:
            with pytest.raises(redis.ResponseError, match="cluster support disabled"):
                client.execute_blocking("GET", "k")
