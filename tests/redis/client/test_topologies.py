"""Sentinels and clusters: real ones, with fail-overs and slots that move."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import anyio
import pytest
import redis

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, Script
from cuelight.redis._client._cluster import slot_of_key
from helpers.redis_servers import RedisCluster, RedisServer, Sentinel, redis_binary, until, valkey_binary

READ = Script("return redis.call('GET', KEYS[1])", "read")
WRITE = Script("redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]", "write")
BINARIES = [valkey_binary(), *([binary] if (binary := redis_binary()) else [])]


@pytest.fixture(scope="module", params=BINARIES, ids=[path.rpartition("/")[2] for path in BINARIES])
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    with RedisCluster(binary=request.param) as running:
        yield running


def key_on(cluster: RedisCluster, number: int, prefix: str = "k") -> str:
    """A key of the server with this number."""
    return next(f"{prefix}{n}" for n in range(10_000) if slot_of_key(f"{prefix}{n}") * 3 // 16384 == number)


def test_slots_are_found_by_hash_tag_as_servers_find_them(cluster: RedisCluster) -> None:
    for key in ("", "a", "{a}b", "b{a}", "{}a", "{a", "a}{", "{a}{b}", "ключ", "{{a}}"):
        reply = cluster.servers[0].command("CLUSTER", "KEYSLOT", key)
        assert int(reply[1:].strip()) == slot_of_key(key), key


async def test_commands_find_their_server(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as client:
        keys = [key_on(cluster, n) for n in range(3)]
        for key in keys:
            await client.set(key, key)
            assert await client.get(key) == key.encode()
            assert client.execute_blocking("GET", key) == key.encode()
            assert await client.run(READ, [key]) == key.encode()
            assert client.run_blocking(READ, [key]) == key.encode()
            await client.xgroup_create(f"stream{{{key}}}", "g", mkstream=True)
            await client.xadd(f"stream{{{key}}}", {"a": 1}, id="1-1")
            assert await client.xreadgroup("g", "c", {f"stream{{{key}}}": ">"}, block=5000)
            assert await client.blpop([f"none{{{key}}}"], timeout=0.01) is None
            assert await client.object("encoding", key)
            assert await client.zunion([f"z{{{key}}}", f"y{{{key}}}"]) == []
        sizes = [server.command("DBSIZE") for server in cluster.servers]
        assert sizes == [b":2\r\n"] * 3
        async with client.dedicated(keys[1]) as mine:
            assert await mine.get(keys[1]) == keys[1].encode()
        assert await client.ping()
        await client.flushall()
        assert [server.command("DBSIZE") for server in cluster.servers] == [b":0\r\n"] * 3


async def test_keys_in_two_slots_are_refused_in_a_cluster(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as client:
        one, two = key_on(cluster, 0), key_on(cluster, 1)
        for keys in ((one, two), (f"{one}x", one)):
            with pytest.raises(StoreRefused, match=r"CROSSSLOT.*the same hash tag"):
                await client.run(READ, keys)
            with pytest.raises(StoreRefused, match="CROSSSLOT"):
                client.run_blocking(READ, keys)
        pipe = client.pipeline().execute_command("SET", one, 1).execute_command("SET", two, 1)
        with pytest.raises(redis.ResponseError, match="several slots"):
            await pipe.execute()
        assert await client.exists(one) == 0
        loose = client.pipeline(transaction=False).execute_command("SET", one, 1).execute_command("SET", two, 2)
        assert await loose.execute_command("GET", one).execute() == [True, True, b"1"]
        whole = client.pipeline().execute_command("SET", one, 5).execute_command("GET", one)
        assert await whole.execute() == [True, b"5"]
        await client.flushall()


async def test_a_slot_that_moves_is_followed(cluster: RedisCluster) -> None:
    first, second, _ = cluster.servers
    key = key_on(cluster, 0, "moving")
    slot = slot_of_key(key)
    async with RedisClient(cluster.url) as client, RedisClient(cluster.url) as stale:
        heard: list[bytes | None] = []
        for one in (client, stale):
            await one.run(WRITE, [key], ["before"])
            assert one.execute_blocking("GET", key) == b"before"
        await client.subscribe(key, heard.append, lambda: heard.append(None))
        await client.publish(key, b"1")
        # On the way: the old owner says ASK, which holds for one command.
        await anyio.to_thread.run_sync(lambda: cluster.move(slot, first, second, finish=False))
        assert await client.execute("GET", key) == b"before"
        assert client.execute_blocking("GET", key) == b"before"
        await client.run(WRITE, [key], ["during"])
        await anyio.to_thread.run_sync(lambda: cluster.move(slot, first, second))
        for one in (client, stale):
            assert await one.execute("GET", key) == b"during"
            assert one.execute_blocking("GET", key) == b"during"
            assert await one.run(READ, [key]) == b"during"

        async def told() -> bool:
            return None in heard

        await until(told)
        await stale.publish(key, b"2")

        async def both() -> bool:
            return heard == [b"1", None, b"2"]

        await until(both)
        await anyio.to_thread.run_sync(lambda: cluster.move(slot, second, first))
        assert await client.pipeline().execute_command("GET", key).execute() == [b"during"]
        await client.flushall()


async def test_channels_of_a_cluster_are_heard_from_every_server(cluster: RedisCluster) -> None:
    async with RedisClient(cluster.url) as client, RedisClient(cluster.url) as speaker:
        heard: list[bytes] = []
        for n in range(3):
            await client.subscribe(key_on(cluster, n), heard.append, lambda: None)
        for n in range(3):
            await speaker.publish(key_on(cluster, n), b"%d" % n)

        async def all_heard() -> bool:
            return sorted(heard) == [b"0", b"1", b"2"]

        await until(all_heard)


async def test_a_cluster_that_lacks_a_server_serves_the_other_slots() -> None:
    with RedisCluster("--cluster-require-full-coverage", "no") as own:
        async with RedisClient(own.url, timeout=1) as client:
            keys = [key_on(own, n) for n in range(3)]
            for key in keys:
                await client.run(WRITE, [key], ["v"])
            own.servers[0].kill()
            with pytest.raises(StoreUnavailable):
                await client.run(READ, [keys[0]])
            for key in keys[1:]:
                assert await client.run(READ, [key]) == b"v"
                assert client.run_blocking(READ, [key]) == b"v"
            own.servers[0].start()
            async with RedisClient(own.url, timeout=10) as patient:
                assert await patient.run(READ, [keys[0]]) is None


async def test_a_single_server_is_no_cluster() -> None:
    with RedisServer() as server:
        async with RedisClient(f"redis+cluster://127.0.0.1:{server.port}", timeout=1) as client:
            with pytest.raises(redis.ResponseError, match="cluster support disabled"):
                await client.execute("GET", "k")


@contextmanager
def attached(primary: RedisServer) -> Generator[Sentinel]:
    """A sentinel that knows the replica: it asks for such rarely, so it begins when there is one."""
    deadline = time.monotonic() + 20
    while b"state=online" not in primary.command("INFO", "replication"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Sentinel(primary.port) as sentinel:
        yield sentinel


async def test_the_primary_that_sentinels_name_is_followed() -> None:
    with (
        RedisServer("--repl-diskless-sync-delay", "0") as primary,
        RedisServer("--replicaof", "127.0.0.1", str(primary.port)) as replica,
        RedisServer() as bystander,
        attached(primary) as sentinel,
    ):
        places = f"127.0.0.1:1,127.0.0.1:{sentinel.port}"
        async with RedisClient(f"redis+sentinel://{places}/main/2", timeout=2) as client:
            assert client.name == f"{places}/main/2"
            await client.run(WRITE, ["k"], ["before"])
            assert client.execute_blocking("GET", "k") == b"before"
            heard: list[bytes | None] = []
            await client.subscribe("ch", heard.append, lambda: heard.append(None))
            async with client.dedicated() as mine:
                await mine.set("copied", 1)
                assert await mine.wait(1, 5000) == 1

            async def known() -> bool:
                return b"num-slaves\r\n$1\r\n1" in sentinel.command("SENTINEL", "MASTER", "main")

            await until(known)
            primary.kill()

            async def again() -> bool:
                try:
                    return bool(await client.run(WRITE, ["k"], ["after"]) == b"after")
                except (StoreUnavailable, StoreRefused):
                    return False

            await until(again)
            assert client.run_blocking(READ, ["k"]) == b"after"
            with redis.Redis(port=replica.port, db=2) as direct:
                assert direct.get("k") == b"after"
            await client.publish("ch", b"new")

            async def told() -> bool:
                await client.publish("ch", b"new")
                return None in heard and heard[-1] == b"new"

            await until(told)
        async with RedisClient(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", timeout=0.5) as client:
            with pytest.raises(StoreUnavailable, match="does not know 'other'"):
                await client.execute("PING")
        async with RedisClient(f"redis+sentinel://127.0.0.1:{bystander.port}/main", timeout=0.5) as client:
            with pytest.raises(StoreUnavailable, match=r"(?i)unknown command"):
                await client.execute("PING")
