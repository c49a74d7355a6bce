"""Servers that are away, connections that end, replies that get lost, and nodes that are cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from cuelight import ActorNotFound, ActorSystem, NotStarted, Ref, StoreUnavailable, Unknown
from cuelight.errors import UnknownTimeout
from cuelight.redis import NodeLost
from helpers.nodes import (
    Add,
    Log,
    Plain,
    Player,
    Seen,
    Slow,
    Total,
    Watcher,
    cluster_name,
    inside,
    node,
    node_of,
    pair,
    until,
)
from helpers.redis_servers import RedisServer
from helpers.tcp_proxy import TcpProxy

LEASE = 1.0
SLACK = 1.0
"""Seconds that a busy machine may take to notice."""
QUICK = "?socket_timeout=0.5&socket_connect_timeout=3"


@pytest.fixture(scope="module")
def durable() -> Iterator[RedisServer]:
    """A server that keeps what it has acknowledged."""
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def proxy(durable: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(durable.port) as running:
        yield running


async def counter(there: ActorSystem, here: ActorSystem, kind: Any = Plain, *args: Any) -> tuple[Ref[Any], Ref[Any]]:
    own = await there.spawn(kind, *args)
    await there.expose(own, "counter")
    return await here.resolve("counter"), own


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_a_server_that_is_away_for_three_seconds_costs_nothing(durable: RedisServer, how: str) -> None:
    async with pair(url=durable.url + QUICK) as (here, there):
        ref, own = await counter(there, here)
        await ref.tell(Add(0))
        assert await ref.ask(Total()) == 0
        if how == "frozen":
            durable.freeze()
        else:
            durable.kill()
        reply = ref.ask(Total())
        for amount in range(1, 101):
            await ref.tell(Add(amount))
        await anyio.sleep(3)
        if how == "frozen":
            durable.thaw()
        else:
            await anyio.to_thread.run_sync(durable.start)
        assert await reply == 0
        assert await ref.ask(Total()) == 5050
        assert inside(own).amounts == list(range(101))
        assert node_of(here).statistics().incarnation == node_of(there).statistics().incarnation == 1


@pytest.mark.parametrize("kind", ["cut before", "cut after", "swallow", "kill clients", "flush scripts"])
async def test_messages_arrive_once_and_in_order_whatever_gets_lost(
    durable: RedisServer, proxy: TcpProxy, kind: str
) -> None:
    async with pair(url=proxy.url + QUICK, lease=20.0) as (here, there):
        ref, own = await counter(there, here)
        if kind.startswith("cut"):
            proxy.cut_every(3, before=kind == "cut before", of={"EVALSHA"})
        elif kind == "swallow":
            proxy.swallow_every(5, of={"EVALSHA"}, times=4)
        told = 300
        for amount in range(told):
            await ref.tell(Add(amount))
            if amount % 10 == 0:
                await anyio.sleep(0.002)
            if kind == "kill clients" and amount % 50 == 0:
                durable.command("CLIENT", "KILL", "TYPE", "normal" if amount % 100 else "pubsub")
            if kind == "flush scripts" and amount % 50 == 0:
                durable.command("SCRIPT", "FLUSH")
        assert await ref.ask(Total(), timeout=20) == sum(range(told))
        assert inside(own).amounts == list(range(told))
        assert proxy.faults or kind in {"kill clients", "flush scripts"}
        proxy.heal()


async def test_a_server_that_forgot_everything_makes_nodes_join_again() -> None:
    with RedisServer() as server:
        async with pair(url=server.url + QUICK, lease=LEASE) as (here, there):
            ref, own = await counter(there, here)
            assert await ref.ask(Total()) == 0
            server.kill()
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: not ref.alive)
            assert isinstance(await ref.ended(), NodeLost)
            again: list[Ref[Any]] = []

            async def resolved() -> bool:
                try:
                    again[:] = [await here.resolve("counter")]
                except (ActorNotFound, StoreUnavailable):
                    return False
                return True

            await until(resolved)
            assert await again[0].ask(Total()) == 0
            assert own.alive


@pytest.mark.transport("redis")
async def test_a_node_that_is_cut_off_is_lost_and_hears_of_it_when_it_is_back(
    durable: RedisServer, proxy: TcpProxy
) -> None:
    cluster, log = cluster_name(), Log()
    async with (
        ActorSystem("here", node=node(cluster, url=durable.url, lease=LEASE)) as here,
        ActorSystem("there", node=node(cluster, url=proxy.url + QUICK, lease=LEASE)) as there,
    ):
        ref, own = await counter(there, here, Player, log)
        mine = await here.spawn(Plain)
        await here.expose(mine, "mine")
        theirs = await there.resolve("mine")
        watcher = await here.spawn(Watcher, ref)
        begun = ref.ask(Slow(60, "a"))
        await until(lambda: log.lines == ["begin a"])
        proxy.silence()
        await anyio.sleep(0.05)
        cut_off = time.monotonic()
        for amount in range(3):
            await ref.tell(Add(amount))
        never = ref.ask(Total())
        with pytest.raises(Unknown, match="may have handled Slow"):  # it was read
            await begun
        assert time.monotonic() - cut_off < LEASE + SLACK
        with pytest.raises(NotStarted, match="never saw Total"):  # safe to send again
            await never
        assert here.dead_letters.counts["node_lost"] == 3
        (seen,) = await watcher.ask(Seen())
        assert seen.startswith("lost with its node there-")
        with pytest.raises(NotStarted, match="lost with its node"):
            await ref.ask(Total())
        with pytest.raises(ActorNotFound):
            await here.resolve("counter")
        # The other side has noticed by its own clock, without any server.
        await until(lambda: log.lines[-1].startswith("cancelled a"))
        await until(lambda: not theirs.alive)
        with pytest.raises((StoreUnavailable, ActorNotFound)):
            await there.resolve("mine")
        proxy.heal()
        back = await here.resolve("counter", timeout=10)  # by another identity, and with its name
        assert back != ref
        assert await back.ask(Total()) == 0  # what was never read was not done late either
        assert node_of(there).statistics().incarnation == 2
        assert await (await there.resolve("mine")).ask(Total()) == 0
        assert own.alive


async def test_a_blocked_loop_is_not_taken_for_a_dead_node(durable: RedisServer) -> None:
    async with pair(url=durable.url, lease=LEASE) as (here, there):
        ref, _ = await counter(there, here)
        assert await ref.ask(Total()) == 0
        time.sleep(2.2 * LEASE)  # noqa: ASYNC251 - that is the point
        assert await ref.ask(Total()) == 0
        assert ref.alive
        assert node_of(there).statistics().incarnation == 1


async def test_a_silent_node_makes_time_outs_unknown(durable: RedisServer, proxy: TcpProxy) -> None:
    cluster, log = cluster_name(), Log()
    async with (
        ActorSystem("here", node=node(cluster, url=durable.url, lease=20.0)) as here,
        ActorSystem("there", node=node(cluster, url=proxy.url + QUICK, lease=20.0)) as there,
    ):
        ref, _ = await counter(there, here, Player, log)
        reply = ref.ask(Slow(60, "a"), timeout=0.3)
        await until(lambda: log.lines == ["begin a"])
        proxy.silence()
        began = time.monotonic()
        with pytest.raises(UnknownTimeout, match="did not say within 1 s"):
            await reply
        assert time.monotonic() - began < 2.5
        proxy.heal()
        assert await ref.ask(Total()) == 0


async def test_a_late_reply_of_another_node_is_counted_never_delivered(durable: RedisServer) -> None:
    class Meddler(Log):
        def __init__(self) -> None:
            super().__init__()
            self.lines = self  # type: ignore[assignment]

        def append(self, line: str) -> None:
            if line == "end a":  # the handler is about to answer, and the asker gives up just now
                reply.cancel()

    async with pair(url=durable.url) as (here, there):
        ref, _ = await counter(there, here, Player, Meddler())
        reply = ref.ask(Slow(0.0, "a"))
        await until(lambda: here.late_replies == 1)
        with pytest.raises(Unknown):
            await reply


async def test_a_system_ends_though_its_server_is_away() -> None:
    with RedisServer() as server:
        async with pair(url=server.url + QUICK, lease=LEASE) as (here, there):
            ref, _ = await counter(there, here)
            assert await ref.ask(Total()) == 0
            server.kill()
            await ref.tell(Add(1))
            began = time.monotonic()
        assert time.monotonic() - began < 8 * LEASE


async def test_watchers_hear_of_a_node_that_left_in_order(durable: RedisServer) -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster, url=durable.url)) as here:
        async with ActorSystem("there", node=node(cluster, url=durable.url)) as there:
            ref, _ = await counter(there, here)
            watcher = await here.spawn(Watcher, ref)
            assert await ref.ask(Total()) == 0
        assert await watcher.ask(Seen()) in (["shut down"], [])
        await until(lambda: inside(watcher).exits)
        assert await watcher.ask(Seen()) == ["shut down"]
