"""Nodes on each kind of server, and from blocking code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuelight import ActorSystem
from cuelight.redis import RedisClient, RedisNode
from helpers.nodes import Add, Count, Plain, Player, Total, cluster_name, node, pair, until
from helpers.redis_servers import RedisCluster, RedisServer, redis_binary, shared_server, valkey_binary

BINARIES = [binary for binary in (valkey_binary(), redis_binary()) if binary is not None]


@pytest.fixture(scope="module", params=BINARIES, ids=lambda binary: Path(binary).name)
def single(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Each kind of server that this machine has."""
    with RedisServer(binary=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def sharded() -> Iterator[RedisCluster]:
    """A cluster of three servers."""
    with RedisCluster() as cluster:
        yield cluster


async def talk(url: str) -> None:
    async with pair(url=url) as (here, there):
        own = await there.spawn(Player)
        await there.expose(own, "player")
        ref = await here.resolve("player")
        for amount in range(1000):
            await ref.tell(Add(amount))
        assert await ref.ask(Total()) == sum(range(1000))
        assert [number async for number in ref.stream(Count(40))] == list(range(40))
        await own.stop()
        await until(lambda: not ref.alive or ref.statistics().queued == 0)


async def test_nodes_run_on_each_kind_of_server(single: RedisServer) -> None:
    await talk(single.url)


async def test_nodes_run_on_a_sharded_cluster(sharded: RedisCluster) -> None:
    began = time.monotonic()
    await talk(sharded.url)
    assert time.monotonic() - began < 5  # so hints arrive: without them every step would take a second


async def test_nodes_share_a_client_that_stays_open() -> None:
    cluster = cluster_name()
    async with RedisClient(shared_server().url) as client:
        options: dict[str, Any] = {"cluster": cluster, "messages": [Add, Total]}
        async with (
            ActorSystem("here", node=RedisNode(client, **options)) as here,
            ActorSystem("there", node=RedisNode(client, **options)) as there,
        ):
            await there.expose(await there.spawn(Plain), "counter")
            counter = await here.resolve("counter")
            await counter.tell(Add(3))
            assert await counter.ask(Total()) == 3
        assert await client.execute("PING") in {b"PONG", "PONG"}


def test_blocking_code_exposes_and_resolves() -> None:
    cluster = cluster_name()
    with (
        ActorSystem.blocking("one", node=node(cluster)) as one,
        ActorSystem.blocking("two", backend="trio", node=node(cluster)) as two,
    ):
        one.expose(one.spawn(Plain), "counter")
        counter = two.resolve("counter", timeout=5)
        counter.tell(Add(3))
        assert counter.ask(Total()) == 3
