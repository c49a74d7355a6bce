"""Nodes that are no members any more: removed by hand, or away for longer than their leases."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from cuelight import ActorNotFound, ActorSystem, NotStarted, Ref, StoreUnavailable
from cuelight.redis import NodeLost
from helpers.nodes import Add, Plain, Total, cluster_name, inside, node, node_of, pair, until
from helpers.redis_servers import RedisServer, shared_server
from helpers.tcp_proxy import TcpProxy

LEASE = 1.0


async def remove(system: ActorSystem) -> None:
    """Take the membership of a node away, as another would that found its lease run out."""
    await node_of(system)._membership.directory.leave()


async def resolved(system: ActorSystem, name: str, other_than: Ref[Any]) -> Ref[Any]:
    """The actor of this name, once it has another address."""
    found: list[Ref[Any]] = []

    async def look() -> bool:
        try:
            found[:] = [await system.resolve(name)]
        except (ActorNotFound, StoreUnavailable):
            return False
        return found[0] != other_than

    await until(look)
    return found[0]


async def test_what_is_sent_to_a_node_that_is_gone_fails_at_once() -> None:
    cluster = cluster_name()
    async with (
        ActorSystem("here", node=node(cluster, lease=60)) as here,
        ActorSystem("there", node=node(cluster, lease=60)) as there,
    ):
        own = await there.spawn(Plain)
        await there.expose(own, "counter")
        ref = await here.resolve("counter")
        await remove(there)
        await ref.tell(Add(1))
        with pytest.raises(NotStarted):
            await ref.ask(Total())
        assert isinstance(await ref.ended(), NodeLost)
        assert here.dead_letters.counts["node_lost"] == 1
        await until(lambda: node_of(there).statistics().incarnation == 2)  # at its next look into its inbox
        again = await resolved(here, "counter", ref)
        assert await again.ask(Total()) == 0


async def test_a_node_that_is_gone_hears_of_it_when_it_sends() -> None:
    cluster = cluster_name()
    async with (
        ActorSystem("here", node=node(cluster, lease=60)) as here,
        ActorSystem("there", node=node(cluster, lease=60)) as there,
    ):
        own = await there.spawn(Plain)
        await there.expose(own, "counter")
        ref = await here.resolve("counter")
        await remove(here)
        await ref.tell(Add(1))
        exit_ = await ref.ended()
        assert "this node was declared lost" in exit_.describe()
        with pytest.raises(NotStarted, match="was declared lost"):
            await ref.ask(Total())
        await until(lambda: node_of(here).statistics().incarnation == 2)
        assert await (await here.resolve("counter")).ask(Total()) == 0
        assert inside(own).total == 0


async def test_a_node_that_is_gone_hears_of_it_when_it_exposes() -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster, lease=60)) as here:
        own = await here.spawn(Plain)
        await remove(here)
        with pytest.raises(StoreUnavailable, match="was declared lost"):
            await here.expose(own, "counter")
        with pytest.raises(StoreUnavailable, match="not in its cluster now"):
            await here.resolve("counter")
        await until(lambda: node_of(here).statistics().joined)
        await here.expose(own, "counter")
        assert await here.resolve("counter") == own


async def test_a_name_that_was_taken_meanwhile_stays_with_its_new_owner() -> None:
    cluster = cluster_name()
    with TcpProxy(shared_server().port) as proxy:
        url = f"{proxy.url}?socket_timeout=0.5"
        async with (
            ActorSystem("here", node=node(cluster, lease=LEASE)) as here,
            ActorSystem("there", node=node(cluster, url=url, lease=LEASE)) as there,
        ):
            own, other = await there.spawn(Plain), await here.spawn(Plain)
            await there.expose(own, "counter")
            await there.expose(own, "spare")
            ref = await here.resolve("counter")
            proxy.refuse()
            await here.spawn(Plain)
            await until(lambda: not node_of(there).statistics().joined)
            exit_ = await ref.ended()
            assert isinstance(exit_, NodeLost)
            await here.expose(other, "counter")
            proxy.heal()
            assert await resolved(there, "counter", own) != own
            assert await here.resolve("counter") == other
            assert await (await resolved(here, "spare", ref)).ask(Total()) == 0
            assert node_of(there).statistics().exposed == 1


async def test_an_outage_longer_than_the_lease_is_survived_by_all() -> None:
    with RedisServer() as server:
        async with pair(url=f"{server.url}?socket_timeout=0.5", lease=LEASE) as (here, there):
            own, mine = await there.spawn(Plain), await here.spawn(Plain)
            await there.expose(own, "counter")
            await here.expose(mine, "mine")
            ref = await here.resolve("counter")
            assert await ref.ask(Total()) == 0
            server.kill()
            exit_ = await ref.ended()  # without a server: by the node's own clock
            assert isinstance(exit_, NodeLost)
            with pytest.raises(StoreUnavailable):
                await here.resolve("counter")
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(server.start)
            assert await (await resolved(here, "counter", ref)).ask(Total()) == 0
            assert await (await resolved(there, "mine", ref)).ask(Total()) == 0
            assert own.alive
            assert mine.alive
