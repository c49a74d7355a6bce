"""Nodes that connect directly: which way messages go, and that it makes no difference which."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem, NotStarted, Ref, Unknown
from cuelight.redis import NodeLost
from cuelight.redis._actors import _delivery, _membership
from cuelight.redis._actors._frames import CancelFrame
from helpers.direct import Held, incoming_of, outgoing_of, peer_of, traffic
from helpers.nodes import (
    Add,
    Blob,
    Plain,
    Player,
    Total,
    cluster_name,
    directly,
    inside,
    node,
    node_of,
    pair,
    until,
)
from helpers.redis_servers import RedisServer
from helpers.tcp_proxy import TcpProxy

pytestmark = pytest.mark.transport("unix")


async def remote(here: ActorSystem, there: ActorSystem, kind: Any = Plain, *args: Any) -> tuple[Ref[Any], Ref[Any]]:
    """An actor there, once both nodes talk directly: its ref as it is seen from here, and its own."""
    own = await there.spawn(kind, *args)
    await there.expose(own, "actor")
    ref = await here.resolve("actor")
    await ref.ask(Total())
    await directly(here, there)
    return ref, own


async def test_nodes_of_one_machine_talk_directly_once_they_have_talked() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        assert node_of(here).statistics().endpoint.startswith("unix:/")
        before = traffic(here, there)
        for amount in range(100):
            await ref.tell(Add(amount))
        assert await ref.ask(Total()) == sum(range(100))
        after = traffic(here, there)
        assert after.sent_directly >= before.sent_directly + 101
        assert after.sent_by_inbox == before.sent_by_inbox
        assert after.received_by_inbox == before.received_by_inbox
        assert (after.connects, after.sends_directly, after.receives_directly) == (1, True, True)
        assert traffic(there, here).received_directly >= 101
        assert inside(own).amounts == list(range(100))


@pytest.mark.parametrize(("one", "other"), [("redis", "unix"), ("unix", "redis"), ("redis", "redis")])
async def test_nodes_of_which_one_does_not_connect_talk_through_the_server(one: str, other: str) -> None:
    cluster = cluster_name()
    here, there = node(cluster, transport=one), node(cluster, transport=other)
    async with pair(here=here, there=there) as (this, that):
        own = await that.spawn(Plain)
        await that.expose(own, "actor")
        ref = await this.resolve("actor")
        for amount in range(10):
            await ref.tell(Add(amount))
            assert await ref.ask(Total()) == sum(range(amount + 1))
        seen = traffic(this, that)
        # A node that accepts connections of others need not make any itself.
        assert (seen.sent_directly, seen.received_directly) == (0, 0)
        assert (seen.sends_directly, seen.connects) == (False, 0)
        assert seen.sent_by_inbox >= 20


@pytest.mark.parametrize("kind", ["cut by the sender", "cut by the receiver", "held", "all"])
async def test_messages_keep_their_order_and_arrive_once_whatever_becomes_of_connections(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuelight.redis._actors._connector.LONGEST_DELAY", 0.05)
    luck = random.Random(kind)
    told = 600
    async with pair(lease=60) as (here, there):
        ref, own = await remote(here, there)
        back, mine = await here.spawn(Plain), await here.spawn(Player)
        await here.expose(back, "back")
        theirs = await there.resolve("back")

        async def tell(to: Ref[Any]) -> None:
            for amount in range(told):
                await to.tell(Add(amount))
                if amount % 7 == 0:
                    await anyio.sleep(0.002)
                if amount % 50 == 0:
                    await to.ask(Total())

        async def disturb(sender: ActorSystem, receiver: ActorSystem) -> None:
            while True:
                await until(lambda: outgoing_of(sender, receiver) and incoming_of(sender, receiver))
                await anyio.sleep(luck.uniform(0.0, 0.03))
                if outgoing_of(sender, receiver) is None or incoming_of(sender, receiver) is None:
                    continue
                what = kind if kind != "all" else luck.choice(["cut by the sender", "cut by the receiver", "held"])
                if what == "cut by the sender":
                    outgoing_of(sender, receiver).end("cut")
                elif what == "cut by the receiver":
                    incoming_of(sender, receiver).end("cut")
                else:
                    held = Held(incoming_of(sender, receiver))
                    await anyio.sleep(luck.uniform(0.0, 0.2))
                    held.release()

        async with anyio.create_task_group() as group:
            group.start_soon(disturb, here, there)
            group.start_soon(disturb, there, here)
            async with anyio.create_task_group() as tellers:
                tellers.start_soon(tell, ref)
                tellers.start_soon(tell, theirs)
            group.cancel_scope.cancel()
        assert await ref.ask(Total()) == await theirs.ask(Total()) == sum(range(told))
        assert inside(own).amounts == inside(back).amounts == list(range(told))
        assert traffic(here, there).connects > 1
        assert traffic(here, there).sent_by_inbox > 0
        assert mine.alive


async def test_nodes_talk_over_connections_while_the_server_is_away() -> None:
    with RedisServer() as server:
        async with pair(url=f"{server.url}?socket_timeout=0.5", lease=20.0) as (here, there):
            ref, own = await remote(here, there)
            server.freeze()
            for amount in range(100):
                await ref.tell(Add(amount))
            with anyio.fail_after(2):
                assert await ref.ask(Total()) == 4950
            # A connection that ends is made anew only with the server, and what was on it goes through that.
            outgoing_of(here, there).end("cut")
            for amount in range(100, 200):
                await ref.tell(Add(amount))
            reply = ref.ask(Total())
            await anyio.sleep(3)
            assert inside(own).amounts == list(range(100))
            server.thaw()
            assert await reply == sum(range(200))
            assert inside(own).amounts == list(range(200))
            assert node_of(here).statistics().incarnation == node_of(there).statistics().incarnation == 1


async def test_a_batch_that_the_server_does_not_take_goes_over_a_connection() -> None:
    with RedisServer() as server:
        cluster = cluster_name()
        with TcpProxy(server.port) as proxy:
            async with (
                ActorSystem("here", node=node(cluster, url=f"{proxy.url}?socket_timeout=5", lease=60)) as here,
                ActorSystem("there", node=node(cluster, url=server.url, lease=60)) as there,
            ):
                ref, own = await remote(here, there)
                outgoing = outgoing_of(here, there)
                delivery = peer_of(here, there).delivery
                # The same connection goes and comes back, while the server is silent.
                delivery.disconnected(outgoing, "a moment")
                proxy.silence()
                await ref.tell(Add(1))
                await until(lambda: delivery._flushing and delivery._kept_batches)
                delivery.connected(outgoing)
                await until(lambda: inside(own).amounts == [1])
                proxy.heal()
                assert await ref.ask(Total()) == 1
                await until(lambda: peer_of(here, there).is_drained)
                assert inside(own).amounts == [1]


async def test_a_node_whose_lease_has_run_out_neither_sends_nor_hears() -> None:
    async with pair(lease=60) as (here, there):
        ref, own = await remote(here, there)
        before, heartbeat = traffic(there, here), node_of(there)._membership._heartbeat_thread
        renewed, heartbeat.renewed = heartbeat.renewed, float("-inf")
        peer = peer_of(there, here)
        peer.send(CancelFrame(1_000_000, overdue=False))
        peer.delivery.flush_soon(now=True)
        await anyio.sleep(0.1)
        assert traffic(there, here).sent_directly == before.sent_directly
        await ref.tell(Add(1))
        await until(lambda: incoming_of(here, there) is None)
        assert traffic(there, here).received_directly == before.received_directly
        assert peer.has_frames
        heartbeat.renewed = renewed
        await until(lambda: inside(own).amounts == [1])  # the server, which has the last word, has let it read this
        await until(lambda: not peer.has_frames)  # and what waited is not forgotten


async def test_what_was_on_a_connection_to_a_node_that_is_lost_is_unknown_and_what_comes_after_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_membership, "POLL", 60.0)
    async with pair(lease=60) as (here, there):
        ref, own = await remote(here, there)
        node_of(there)._membership.check_inbox_soon = lambda: None  # it does not look into its inbox
        held = Held(incoming_of(here, there))
        first = ref.ask(Total())
        await until(lambda: outgoing_of(here, there) is None)  # nothing was confirmed for 100 ms
        later = ref.ask(Total())
        await until(lambda: peer_of(here, there).is_drained)
        await node_of(there)._membership.directory.leave()
        await ref.tell(Add(1))
        with pytest.raises(Unknown, match="may have handled Total"):
            await first
        with pytest.raises(NotStarted, match="never saw Total"):
            await later
        assert isinstance(await ref.ended(), NodeLost)
        assert held.data
        assert inside(own).amounts == []
        del node_of(there)._membership.check_inbox_soon
        node_of(there)._membership.check_inbox_soon()


async def test_what_waits_when_a_node_hears_that_it_is_lost_is_never_sent() -> None:
    async with pair(lease=60) as (here, there):
        ref, own = await remote(here, there)
        ref.tell_nowait(Add(1))  # in the next pass it would be on the connection
        node_of(here)._membership.removed("the test says so")
        assert here.dead_letters.counts["node_lost"] == 1
        await until(lambda: node_of(here).statistics().incarnation == 2)
        assert await (await here.resolve("actor")).ask(Total()) == 0
        assert inside(own).amounts == []


async def test_a_peer_that_does_not_read_is_sent_no_more_than_a_window_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_delivery, "SILENT", 10**9)  # it is not left
    cluster = cluster_name()
    async with pair(here=node(cluster), there=node(cluster)) as (here, there):
        ref, own = await remote(here, there)
        async with ActorSystem("third", node=node(cluster)) as third:
            await third.expose(await third.spawn(Plain), "third")
            other = await here.resolve("third")
            await other.ask(Total())
            held = Held(incoming_of(here, there))
            told = 0

            async def tell() -> None:
                nonlocal told
                while told < 30:
                    await ref.tell(Blob(bytes(900_000)))
                    told += 1

            async with anyio.create_task_group() as group:
                group.start_soon(tell)
                await until(lambda: told == 30)
                sent = sum(map(len, held.data)) + outgoing_of(here, there).connection.waiting
                assert sent <= _delivery.WINDOW + 2_000_000
                assert await other.ask(Total()) == 0
                assert await other.ask(Total()) == 0
            held.release()
            assert await ref.ask(Total()) == 30 * 900_000
            assert inside(own).total == 30 * 900_000


async def test_a_batch_that_is_too_large_for_a_connection_goes_through_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_delivery, "LONGEST_BATCH", 100_000)
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        before = traffic(here, there)
        await ref.tell(Add(1))
        await ref.tell(Blob(bytes(200_000)))
        await ref.tell(Add(2))
        assert await ref.ask(Total()) == 200_003
        assert inside(own).amounts == [1, 2]
        assert traffic(here, there).sent_by_inbox > before.sent_by_inbox
        assert node_of(here).statistics().incarnation == 1


async def test_a_node_that_leaves_has_sent_everything_before() -> None:
    cluster = cluster_name()
    async with ActorSystem("there", node=node(cluster)) as there:
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        async with ActorSystem("here", node=node(cluster)) as here:
            ref = await here.resolve("actor")
            await ref.ask(Total())
            await directly(here, there)
            for amount in range(500):
                await ref.tell(Add(amount))
        await until(lambda: len(inside(own).amounts) == 500)
        assert inside(own).amounts == list(range(500))
