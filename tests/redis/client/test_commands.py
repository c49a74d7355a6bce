"""redis-py's command methods over our connections give what they give over redis-py's own."""

# redis-py's methods are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio

from cuelight.errors import StoreRefused
from cuelight.redis import RedisClient
from cuelight.redis._client import _command_info
from helpers.redis_servers import RedisServer, redis_binary, valkey_binary

SEVEN = hashlib.sha1(b"return 7").hexdigest()

Step = Callable[[Any], Any]

STEPS: dict[str, list[Step]] = {
    "strings": [
        lambda c: c.set("k", "v", ex=10, nx=True),
        lambda c: c.set("k", "w", nx=True),
        lambda c: c.set("k", b"\xff\x00", get=True),
        lambda c: c.get("k"),
        lambda c: c.get("missing"),
        lambda c: c.mset({"a": 1, "b": 2.5}),
        lambda c: c.mget("a", "b", "missing"),
        lambda c: c.mget([]),
        lambda c: c.incr("a", 3),
        lambda c: c.incrbyfloat("b", 0.25),
        lambda c: c.append("k", "x"),
        lambda c: c.strlen("k"),
        lambda c: c.getrange("k", 0, 1),
        lambda c: c.setbit("bits", 7, 1),
        lambda c: c.bitcount("bits"),
        lambda c: c.getex("k", ex=5),
        lambda c: c.getdel("k"),
        lambda c: c.lcs("a", "b"),
    ],
    "keys": [
        lambda c: c.set("k", "v"),
        lambda c: c.expire("k", 100),
        lambda c: c.ttl("k"),
        lambda c: c.persist("k"),
        lambda c: c.exists("k", "missing"),
        lambda c: c.type("k"),
        lambda c: c.rename("k", "l"),
        lambda c: c.scan(0, match="*", count=10),
        lambda c: c.keys("*"),
        lambda c: c.randomkey(),
        lambda c: c.object("encoding", "l"),
        lambda c: c.copy("l", "m"),
        lambda c: c.unlink("l", "m"),
        lambda c: c.dbsize(),
    ],
    "hashes": [
        lambda c: c.hset("h", mapping={"x": "1", "y": 2}),
        lambda c: c.hget("h", "x"),
        lambda c: c.hmget("h", "x", "missing"),
        lambda c: c.hgetall("h"),
        lambda c: c.hincrby("h", "x", 4),
        lambda c: c.hincrbyfloat("h", "y", 0.5),
        lambda c: c.hscan("h"),
        lambda c: c.hkeys("h"),
        lambda c: c.hexists("h", "x"),
        lambda c: c.hdel("h", "x", "y"),
    ],
    "lists": [
        lambda c: c.rpush("l", "a", "b", "c"),
        lambda c: c.lrange("l", 0, -1),
        lambda c: c.lpos("l", "b"),
        lambda c: c.blpop("l", timeout=1),
        lambda c: c.lpop("l", 2),
        lambda c: c.blpop(["l"], timeout=0.01),
        lambda c: c.rpush("l", "a"),
        lambda c: c.blmove("l", "m", 1, "LEFT", "RIGHT"),
        lambda c: c.lmpop(1, "m", direction="LEFT"),
        lambda c: c.rpush("l", "a"),
        lambda c: c.blmpop(1, 1, "l", direction="LEFT"),
        lambda c: c.blmpop(0.01, 1, "l", direction="LEFT"),
    ],
    "sets": [
        lambda c: c.sadd("s", "a", "b"),
        lambda c: c.smembers("s"),
        lambda c: c.sismember("s", "a"),
        lambda c: c.smismember("s", ["a", "z"]),
        lambda c: c.sscan("s"),
        lambda c: c.srem("s", "a"),
        lambda c: c.sinter("s", "s"),
    ],
    "sorted sets": [
        lambda c: c.zadd("z", {"a": 1, "b": 2.5, "c": 3}),
        lambda c: c.zrange("z", 0, -1, withscores=True),
        lambda c: c.zrangebyscore("z", 0, 3, withscores=True),
        lambda c: c.zscore("z", "b"),
        lambda c: c.zmscore("z", ["a", "missing"]),
        lambda c: c.zincrby("z", 2, "a"),
        lambda c: c.zrank("z", "c"),
        lambda c: c.zscan("z"),
        lambda c: c.zpopmin("z"),
        lambda c: c.bzpopmin("z", timeout=1),
        lambda c: c.bzpopmin("nothing", timeout=0.01),
        lambda c: c.zrandmember("z", 1, withscores=True),
    ],
    "streams": [
        lambda c: c.xgroup_create("st", "g", "$", mkstream=True),
        lambda c: c.xadd("st", {"a": 1}, id="1-1"),
        lambda c: c.xadd("st", {"a": 2}, id="1-2"),
        lambda c: c.xlen("st"),
        lambda c: c.xrange("st"),
        lambda c: c.xread({"st": "0"}, block=10),
        lambda c: c.xread({"st": "$"}, block=10),
        lambda c: c.xreadgroup("g", "one", {"st": ">"}, count=2, block=10),
        lambda c: c.xreadgroup("g", "one", {"st": ">"}),
        lambda c: c.xpending("st", "g"),
        lambda c: c.xclaim("st", "g", "two", 0, ["1-1"]),
        lambda c: c.xautoclaim("st", "g", "two", 0),
        lambda c: c.xack("st", "g", "1-1"),
        lambda c: c.xinfo_groups("st"),
        lambda c: c.xinfo_stream("st"),
        lambda c: c.xtrim("st", maxlen=1),
    ],
    "scripts": [
        lambda c: c.eval("return {KEYS[1], ARGV[1], 3, false, redis.status_reply('FINE')}", 1, "k", "a"),
        lambda c: c.script_load("return 7"),
        lambda c: c.evalsha(SEVEN, 0),
        lambda c: c.eval("return redis.error_reply('BOOM it broke')", 0),
        lambda c: c.eval("return redis.call('no such thing')", 0),
        lambda c: c.script_exists(SEVEN),
        lambda c: c.register_script("return ARGV[1]")(args=["again"]),
    ],
    "others": [
        lambda c: c.ping(),
        lambda c: c.echo("hello"),
        lambda c: c.config_get("maxmemory*"),
        lambda c: c.client_getname(),
        lambda c: c.command_count(),
        lambda c: c.geoadd("geo", (13.361389, 38.115556, "Palermo")),
        lambda c: c.geopos("geo", "Palermo"),
        lambda c: c.geosearch("geo", longitude=13, latitude=38, radius=100, unit="km", withdist=True),
        lambda c: c.pfadd("hll", "a", "b"),
        lambda c: c.pfcount("hll"),
        lambda c: c.acl_whoami(),
        lambda c: c.pubsub_numsub("nobody"),
        lambda c: c.publish("nobody", "hello"),
        lambda c: c.execute_command("ping"),
    ],
    "errors": [
        lambda c: c.set("k", "v"),
        lambda c: c.lpush("k", "v"),
        lambda c: c.incr("k"),
        lambda c: c.execute_command("NOSUCH", "x"),
        lambda c: c.execute_command("GET"),
        lambda c: c.set("k", object()),
        lambda c: c.xgroup_create("st", "g"),
        lambda c: c.evalsha("0" * 40, 0),
        lambda c: c.config_set("maxmemory-policy", "nonsense"),
        lambda c: c.execute_command("BLPOP", "k", "soon"),
        lambda c: c.execute_command("BLMPOP"),
        lambda c: c.execute_command("XREAD", "BLOCK"),
        lambda c: c.execute_command("XREAD", "COUNT", 1),
    ],
}
BINARIES = [valkey_binary(), *([binary] if (binary := redis_binary()) else [])]


@pytest.fixture(scope="module", params=BINARIES, ids=[path.rpartition("/")[2] for path in BINARIES])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(binary=request.param) as running:
        yield running


async def outcome(client: Any, step: Step) -> Any:
    try:
        result: Any = step(client)
        return await result if isinstance(result, Awaitable) else result
    except (redis.RedisError, UnicodeDecodeError) as error:
        return type(error), str(error) if isinstance(error, redis.ResponseError) else None


async def outcomes(client: Any, family: str) -> list[Any]:
    await client.flushall()
    await client.script_flush()
    return [await outcome(client, step) for step in STEPS[family]]


@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "str"])
@pytest.mark.parametrize("family", STEPS)
async def test_command_methods_reply_as_redis_py_replies(server: RedisServer, family: str, decode: bool) -> None:
    async def by_redis_py() -> list[Any]:
        async with redis.asyncio.Redis.from_url(server.url, protocol=3, decode_responses=decode) as client:
            return await outcomes(client, family)

    expected = await anyio.to_thread.run_sync(lambda: asyncio.run(by_redis_py()))
    async with RedisClient(server.url, decode_responses=decode) as client:
        got = await outcomes(client, family)
    for step, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours == theirs, f"step {step} of {family}"
        assert type(ours) is type(theirs), f"step {step} of {family}"


async def test_arguments_may_be_any_kind_of_bytes(server: RedisServer) -> None:
    async with RedisClient(server.url) as client:
        await client.delete("h")
        await client.execute_command("hset", "h", "x", memoryview(b"1"))
        await client.execute_command("hset", bytearray(b"h"), "y", bytearray(b"2"))
        assert await client.hgetall("h") == {b"x": b"1", b"y": b"2"}


async def test_a_pipeline_replies_as_that_of_redis_py(server: RedisServer) -> None:
    def fill(pipe: Any) -> Any:
        return pipe.flushall().set("a", 1).incr("a").get("a").hset("h", mapping={"x": 1}).hgetall("h").lpush("a", 1)

    async def by_redis_py(transaction: bool) -> list[Any]:
        async with redis.asyncio.Redis.from_url(server.url, protocol=3) as client:
            replies: list[Any] = await fill(client.pipeline(transaction)).execute(raise_on_error=False)
            return replies

    for transaction in (True, False):
        expected = await anyio.to_thread.run_sync(lambda: asyncio.run(by_redis_py(transaction)))  # noqa: B023
        async with RedisClient(server.url) as client, client.pipeline(transaction) as pipe:
            got = await fill(pipe).execute(raise_on_error=False)
            assert len(pipe) == 0
            with pytest.raises(redis.ResponseError) as refused:
                await fill(pipe).execute()
        assert got[:-1] == expected[:-1]
        assert type(got[-1]) is type(expected[-1])
        assert refused.value.__notes__ == ["command 7 of 7 of the pipeline: LPUSH"]


async def test_a_transaction_fails_when_what_it_watches_has_changed(server: RedisServer) -> None:
    async with RedisClient(server.url) as client:
        await client.set("a", 1)
        async with client.dedicated() as mine:
            await mine.watch("a")
            await client.incr("a")
            with pytest.raises(redis.WatchError):
                await mine.pipeline().execute_command("INCR", "a").execute()
            await mine.watch("a")
            assert await mine.pipeline().execute_command("INCR", "a").execute() == [3]
        with pytest.raises(redis.ResponseError, match="unknown command"):
            await client.pipeline().execute_command("SET", "a", 9).execute_command("NOSUCH").execute()
        assert await client.get("a") == b"3"


async def test_commands_of_one_pass_of_the_loop_are_sent_in_one_piece(server: RedisServer) -> None:
    async with RedisClient(server.url) as client:

        async def add() -> None:
            await client.incr("n")

        await client.delete("n")
        before = await client.info("stats")
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(add)
        after = await client.info("stats")
        assert await client.get("n") == b"500"
        # Two reads of the server for all of them, one or two for each INFO; it may cut a piece in two.
        reads = after["total_reads_processed"] - before["total_reads_processed"]
        assert reads <= 10


async def test_a_dedicated_connection_is_its_own(server: RedisServer) -> None:
    async with RedisClient(server.url) as client, client.dedicated() as mine:
        await mine.execute("SELECT", 5)
        await mine.set("only", "here")
        assert await mine.execute("GET", "only") == b"here"
        assert await client.get("only") is None
        assert await mine.wait(0, 10) == 0
        await mine.flushdb()


async def test_a_pipeline_collects_however_it_is_written(server: RedisServer) -> None:
    async with RedisClient(server.url) as client:
        pipe: Any = client.pipeline()
        assert pipe  # also while it is empty: `pipe or client.pipeline()` keeps it
        assert await pipe.execute() == []
        assert await pipe.set("a", 1) is pipe
        await pipe.incr("a")
        assert len(pipe) == 2
        assert await pipe.execute() == [True, 2]
        assert await pipe.execute() == []


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_command_with_nothing_to_ask_for_spoils_no_pipeline(server: RedisServer, transaction: bool) -> None:
    async with RedisClient(server.url) as client:
        pipe: Any = client.pipeline(transaction)
        assert await pipe.set("a", 1).mget([]).get("a").execute() == [True, [], b"1"]
        assert await pipe.mget([]).execute() == [[]]


async def test_a_dedicated_connection_has_pipelines_errors_and_watches_that_are_forgotten(server: RedisServer) -> None:
    async with RedisClient(server.url) as client, client.dedicated() as mine:
        await mine.set("a", "x")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            await mine.execute("LPUSH", "a", 1)
        with pytest.raises(redis.ResponseError, match="not an integer"):
            await mine.incr("a")
        pipe: Any = mine.pipeline(transaction=False)
        assert await pipe.set("a", 1).incr("a").execute() == [True, 2]
        await mine.watch("a")
        await client.set("a", 5)
        await mine.unwatch()
        assert await mine.pipeline().execute_command("INCR", "a").execute() == [6]


def test_names_of_commands_that_come_from_people_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[Any, int] = {}
    monkeypatch.setattr(_command_info, "_command_kinds", known)
    for n in range(3000):
        assert _command_info.command_kind(f"INVENTED{n}") == _command_info.PLAIN
    assert len(known) == 2000
    assert _command_info.command_kind("blpop") == _command_info.MAY_BLOCK
    assert _command_info.command_kind("watch") == _command_info.REFUSED
