"""A membership that ends at the wrong moment, a server that is full, a client that raises: nothing hangs or stays."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import redis

from cuelight import ActorNotFound, ActorSystem, NotStarted, Ref, StoreUnavailable, Unknown, child
from cuelight.redis import NodeLost, RedisClient
from cuelight.redis._actors import _membership, _node
from cuelight.redis._actors._directory import Directory
from helpers.nodes import Add, Blob, Log, Plain, Player, Slow, Total, cluster_name, inside, node, node_of, pair, until
from helpers.redis_servers import RedisServer, shared_server
from helpers.tcp_proxy import TcpProxy

LEASE = 1.0


async def remote(here: ActorSystem, there: ActorSystem, kind: Any = Plain, *args: Any) -> tuple[Ref[Any], Ref[Any]]:
    """An actor there: its ref as it is seen from here, and its own."""
    own = await there.spawn(kind, *args)
    await there.expose(own, "actor")
    return await here.resolve("actor"), own


@asynccontextmanager
async def through_a_proxy(lease: float, query: str = "") -> AsyncGenerator[tuple[TcpProxy, ActorSystem, ActorSystem]]:
    """Two systems, of which the first reaches the server through a proxy."""
    cluster = cluster_name()
    with TcpProxy(shared_server().port) as proxy:
        async with (
            ActorSystem("here", node=node(cluster, url=proxy.url + query, lease=lease)) as here,
            ActorSystem("there", node=node(cluster, lease=lease)) as there,
        ):
            yield proxy, here, there


async def remove(system: ActorSystem) -> None:
    """Take the membership of a node away, as another would that found its lease run out."""
    await node_of(system)._membership.directory.leave()


@pytest.mark.transport("redis")
async def test_what_is_sent_just_before_a_node_is_lost_is_not_sent_late() -> None:
    async with pair(lease=60) as (here, there):
        ref, own = await remote(here, there)
        assert await ref.ask(Total()) == 0
        membership = node_of(here)._membership
        ref.tell_nowait(Add(1))
        reply = ref.ask(Total())
        membership._inbox_changed.set()  # something has come for it just now, too
        membership.removed("the test says so")
        with pytest.raises(NotStarted, match="the test says so"):
            await reply
        assert here.dead_letters.counts["node_lost"] == 1
        await until(lambda: node_of(here).statistics().incarnation == 2)
        assert await (await here.resolve("actor")).ask(Total()) == 0
        assert inside(own).amounts == []


async def test_a_node_that_hears_twice_that_it_is_lost_joins_once_again() -> None:
    async with ActorSystem("here", node=node(cluster_name(), lease=60)) as here:
        own = await here.spawn(Plain)
        await remove(here)
        refused: list[str] = []

        async def expose(name: str) -> None:
            with pytest.raises(StoreUnavailable, match="was declared lost"):
                await here.expose(own, name)
            refused.append(name)

        async with anyio.create_task_group() as group:
            for name in ("a", "b"):
                group.start_soon(expose, name)
        assert sorted(refused) == ["a", "b"]
        await until(lambda: node_of(here).statistics().incarnation == 2 and not node_of(here)._rejoining)
        await here.expose(own, "a")
        assert node_of(here).statistics().incarnation == 2


async def test_an_idle_node_learns_from_its_heartbeat_that_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_membership, "POLL", 60.0)  # it does not look into its inbox
    async with pair(lease=LEASE) as (there, here):
        ref, own = await remote(there, here)
        assert await ref.ask(Total()) == 0  # so it listens already, and nothing else will wake it
        peer = node_of(here)._membership.peer(node_of(there).identity)
        await until(lambda: peer.is_drained and not peer._credit_scheduled)
        await remove(here)
        await until(lambda: node_of(here).statistics().incarnation == 2)
        assert await resolved_again(here) == own


async def resolved_again(system: ActorSystem) -> Ref[Any]:
    with anyio.fail_after(10):
        while True:
            try:
                return await system.resolve("actor", timeout=5)
            except StoreUnavailable:  # it is still on its way back
                await anyio.sleep(0.01)


@pytest.mark.transport("redis")  # else the command that is lost may be the one that looks up the node's address
async def test_requests_to_a_node_that_is_gone_are_unknown_if_nobody_can_say_what_it_had_read() -> None:
    log = Log()
    async with through_a_proxy(LEASE, "?socket_timeout=0.5") as (proxy, here, there):
        ref, _ = await remote(here, there, Player, log)
        begun = ref.ask(Slow(60, "a"))
        await until(lambda: log.lines == ["begin a"])
        proxy.swallow_every(1, of={"HGET"}, times=1)  # what it had read is asked with this, and lost
        await remove(there)
        await until(lambda: proxy.faults == 1)
        # Its heart goes on telling that the node is gone.
        never = ref.ask(Total())
        await ref.tell(Add(1))
        with pytest.raises(Unknown, match="may have handled Slow"):
            await begun
        with pytest.raises(NotStarted, match="never saw Total"):
            await never
        assert here.dead_letters.counts["node_lost"] == 1
        assert isinstance(await ref.ended(), NodeLost)
        assert node_of(here).statistics().incarnation == 1


async def test_messages_that_wait_for_room_when_their_node_leaves_are_handled_all_the_same() -> None:
    cluster, log = cluster_name(), Log()
    async with ActorSystem("there", node=node(cluster, lease=LEASE)) as there:
        own = await there.spawn(child(Player, log).with_options(capacity=1))
        await there.expose(own, "actor")
        blocker = own.ask(Slow(60, "block"))
        async with ActorSystem("here", node=node(cluster, lease=LEASE)) as here:
            ref = await here.resolve("actor")
            for amount in range(1, 6):
                await ref.tell(Add(amount))
            await until(lambda: own.statistics().waiting_senders == 4)
        await until(lambda: node_of(there).statistics().peers == 0)
        blocker.cancel()
        assert await own.ask(Total()) == 15
        assert log.lines[-5:] == [f"add {amount}" for amount in range(1, 6)]


@pytest.mark.transport("redis")
async def test_what_finds_no_room_in_the_inbox_of_a_node_that_dies_is_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_node, "INBOX", 2000)
    cluster = cluster_name()
    with TcpProxy(shared_server().port) as proxy:
        url = f"{proxy.url}?socket_timeout=0.5"
        async with (
            ActorSystem("here", node=node(cluster, lease=LEASE, max_message=1500)) as here,
            ActorSystem("there", node=node(cluster, lease=LEASE, max_message=1500, url=url)) as there,
        ):
            ref, _ = await remote(here, there)
            assert await ref.ask(Total()) == 0
            proxy.silence()
            for number in range(3):
                before = node_of(here).statistics().sent
                await ref.tell(Blob(bytes(1200)))
                if number < 2:  # each in a batch of its own, the second of which finds no room
                    await until(lambda before=before: node_of(here).statistics().sent > before)  # type: ignore[misc]
            assert isinstance(await ref.ended(), NodeLost)
            assert here.dead_letters.counts["node_lost"] == 3
            proxy.heal()


@pytest.mark.transport("redis")
async def test_nodes_wait_for_a_server_without_memory_and_say_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_membership, "POLL", 0.05)
    with RedisServer() as server:
        async with pair(url=server.url, lease=20.0) as (here, there):
            ref, own = await remote(here, there)
            assert await ref.ask(Total()) == 0
            server.command("CONFIG", "SET", "maxmemory", "1")
            for amount in (1, 2):
                await ref.tell(Add(amount))
            reply = ref.ask(Total())

            def complaints(text: str) -> int:
                return sum(text in record.message for record in caplog.records)

            await until(lambda: complaints("nothing can be sent to there-") and complaints("cannot read what") == 2)
            await anyio.sleep(1.2)  # it is tried again and again
            assert complaints("nothing can be sent to") == 1
            assert complaints("cannot read what comes, and goes on trying: ") == 2  # each node
            assert inside(own).amounts == []
            server.command("CONFIG", "SET", "maxmemory", "0")
            assert await reply == 3
            assert inside(own).amounts == [1, 2]
            assert node_of(here).statistics().incarnation == node_of(there).statistics().incarnation == 1


async def test_an_actor_that_ends_while_it_is_exposed_leaves_no_name() -> None:
    async with through_a_proxy(60) as (proxy, here, there):
        own, other = await here.spawn(Plain), await there.spawn(Plain)
        proxy.delay(0.2)
        before = proxy.commands["EVALSHA"] + proxy.commands["EVAL"]
        async with anyio.create_task_group() as group:

            async def expose() -> None:
                with pytest.raises(ActorNotFound, match="has ended"):
                    await here.expose(own, "actor")

            group.start_soon(expose)
            await until(lambda: proxy.commands["EVALSHA"] + proxy.commands["EVAL"] > before)
            await own.kill("too early")
        proxy.heal()
        assert node_of(here).statistics().exposed == 0

        await until(lambda: node_of(here)._tasks == 0)  # it has been taken back
        await there.expose(other, "actor")


async def test_an_actor_that_ends_while_its_name_is_taken_back_makes_no_difference() -> None:
    async with through_a_proxy(60) as (proxy, here, there):
        own = await here.spawn(Plain)
        await here.expose(own, "actor")
        proxy.delay(0.2)
        before = proxy.commands["EVALSHA"]
        async with anyio.create_task_group() as group:
            group.start_soon(here.unexpose, "actor")
            await until(lambda: proxy.commands["EVALSHA"] > before)
            await own.kill("just now")
        proxy.heal()
        with pytest.raises(ActorNotFound, match="has given none"):
            await here.unexpose("actor")
        with pytest.raises(ActorNotFound):
            await there.resolve("actor")


async def test_a_name_that_is_resolved_just_as_the_node_is_lost_leads_to_nobody() -> None:
    async with through_a_proxy(60) as (proxy, here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        proxy.delay(0.2)
        before = proxy.commands["EVALSHA"] + proxy.commands["EVAL"]
        found: list[Ref[Any]] = []

        async def resolve() -> None:
            found.append(await here.resolve("actor"))

        async with anyio.create_task_group() as group:
            group.start_soon(resolve)
            await until(lambda: proxy.commands["EVALSHA"] + proxy.commands["EVAL"] > before)
            node_of(here)._membership.removed("the test says so")
        proxy.heal()
        (ref,) = found
        assert isinstance(await ref.ended(), NodeLost)
        with pytest.raises(NotStarted, match="was declared lost"):
            await ref.ask(Total())
        await until(lambda: node_of(here).statistics().incarnation == 2)
        assert await (await here.resolve("actor")).ask(Total()) == 0


class Sealed(Exception):
    pass


class Vault(redis.CredentialProvider):
    """Where a password comes from, unless it is sealed."""

    sealed = False

    def get_credentials(self) -> tuple[str]:
        if self.sealed:
            raise Sealed("the vault is sealed")
        return ("secret",)


@asynccontextmanager
async def with_a_vault() -> AsyncGenerator[tuple[RedisServer, Vault, RedisClient]]:
    """A server that asks for a password, and a client that gets it from a vault."""
    with RedisServer("--requirepass", "secret") as server:
        vault = Vault()
        async with RedisClient(f"redis://127.0.0.1:{server.port}", credential_provider=vault) as client:
            yield server, vault, client


def seal(server: RedisServer, vault: Vault) -> None:
    """Have all connections made anew, which fails from now on."""
    vault.sealed = True
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"AUTH secret\r\nCLIENT KILL TYPE normal SKIPME yes\r\n")
        received = b""
        while received.count(b"\r\n") < 2:
            received += connection.recv(100)


async def test_a_node_whose_client_raises_joins_again_when_it_does_not() -> None:
    async with with_a_vault() as (server, vault, client):
        mine = node(cluster_name(), redis=client, lease=LEASE)
        async with ActorSystem("here", node=mine) as here:
            own, other = await here.spawn(Plain), await here.spawn(Plain)
            await here.expose(own, "own")
            await here.expose(other, "other")
            seal(server, vault)
            await until(lambda: not mine.statistics().joined)
            await other.kill("while the node is away")
            vault.sealed = False
            await until(lambda: mine.statistics().joined and not node_of(here)._rejoining)
            assert await here.resolve("own") == own
            with pytest.raises(ActorNotFound, match="there are 'own'"):
                await here.resolve("other")


@pytest.mark.parametrize(
    ("step", "says"),
    [("expose", "could not be taken back"), ("leave", "could not take leave of its cluster")],
)
async def test_a_node_whose_client_raises_at_the_end_leaves_nothing_behind(
    step: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_a_vault() as (server, vault, client):
        mine = node(cluster_name(), redis=client, lease=10.0)
        async with ActorSystem("here", node=mine) as here:
            await here.expose(await here.spawn(Plain), "own")
            take: Any = getattr(Directory, step)

            async def sealed(*args: Any, **kwargs: Any) -> Any:
                seal(server, vault)
                return await take(*args, **kwargs)

            monkeypatch.setattr(Directory, step, sealed)
        assert not [thread for thread in threading.enumerate() if "heart" in thread.name]
    assert says in caplog.text
