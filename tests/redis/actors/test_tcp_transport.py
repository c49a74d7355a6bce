"""Nodes that connect over TCP, with TLS or without."""

# trustme says little of what its functions take.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from cuelight import ActorSystem
from cuelight.redis import TcpTransport
from cuelight.redis._actors import _connection, _connector, _socket_file
from helpers.direct import traffic
from helpers.nodes import Add, Blob, Plain, Total, cluster_name, directly, inside, node, node_of, pair, until

pytestmark = pytest.mark.transport("unix")


@pytest.fixture(autouse=True)
def no_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all nodes were on machines of their own."""
    monkeypatch.setattr(_socket_file, "_bases", lambda: iter([]))


def contexts(authority: trustme.CA, trusted: trustme.CA | None = None, name: str = "localhost") -> dict[str, Any]:
    """Of TLS, for a node with a certificate of an authority that trusts those of another."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(server)
    client = ssl.create_default_context()
    (trusted or authority).configure_trust(client)
    return {"ssl_server": server, "ssl_client": client}


async def talk(here: ActorSystem, there: ActorSystem) -> None:
    own = await there.spawn(Plain)
    await there.expose(own, "actor")
    ref = await here.resolve("actor")
    assert await ref.ask(Total()) == 0
    await directly(here, there)
    before = traffic(here, there)
    for amount in range(200):
        await ref.tell(Add(amount))
    for _ in range(5):
        await ref.tell(Blob(bytes(700_000)))
    assert await ref.ask(Total()) == sum(range(200)) + 3_500_000
    assert inside(own).amounts == list(range(200))
    after = traffic(here, there)
    assert after.sent_directly >= before.sent_directly + 200


async def test_nodes_talk_over_tcp_with_tls() -> None:
    cluster, authority = cluster_name(), trustme.CA()
    nodes = [node(cluster, transport=TcpTransport("localhost", **contexts(authority))) for _ in range(2)]
    async with pair(here=nodes[0], there=nodes[1]) as (here, there):
        assert node_of(here).statistics().endpoint.startswith("tcp:localhost:")
        await talk(here, there)


async def test_a_certificate_may_have_a_name_of_its_own() -> None:
    cluster, authority = cluster_name(), trustme.CA()
    options = contexts(authority, name="nodes.example")
    nodes = [
        node(cluster, transport=TcpTransport("127.0.0.1", server_hostname="nodes.example", **options)) for _ in "ab"
    ]
    async with pair(here=nodes[0], there=nodes[1]) as (here, there):
        await talk(here, there)


async def test_tcp_without_tls_has_to_be_asked_for() -> None:
    with pytest.raises(ValueError, match="insecure=True"):
        TcpTransport("localhost")
    cluster = cluster_name()
    nodes = [node(cluster, transport=TcpTransport("127.0.0.1", insecure=True)) for _ in range(2)]
    async with pair(here=nodes[0], there=nodes[1]) as (here, there):
        await talk(here, there)


async def exchange(here: ActorSystem, there: ActorSystem) -> None:
    own = await there.spawn(Plain)
    await there.expose(own, "actor")
    ref = await here.resolve("actor")
    for amount in range(10):
        await ref.tell(Add(amount))
        assert await ref.ask(Total()) == sum(range(amount + 1))


OTHERS: dict[str, Callable[[trustme.CA], Any]] = {
    "another authority": lambda _: TcpTransport("localhost", **contexts(trustme.CA())),
    "another name": lambda authority: TcpTransport("localhost", **contexts(authority, name="elsewhere.example")),
    "no TLS": lambda _: TcpTransport("localhost", insecure=True),
    "no TCP": lambda _: "unix",
}


@pytest.mark.parametrize("what", list(OTHERS))
async def test_nodes_that_do_not_trust_each_other_talk_through_the_server(what: str) -> None:
    cluster, authority = cluster_name(), trustme.CA()
    mine = TcpTransport("localhost", **contexts(authority))
    async with pair(here=node(cluster, transport=mine), there=node(cluster, transport=OTHERS[what](authority))) as both:
        here, there = both
        await exchange(here, there)
        assert traffic(here, there).sent_directly == 0
        await until(lambda: not node_of(here)._membership._peers[node_of(there).identity].delivery._connector._busy)
        assert node_of(here).statistics().incarnation == 1


async def test_what_is_no_tls_costs_its_connection() -> None:
    cluster, authority = cluster_name(), trustme.CA()
    nodes = [node(cluster, transport=TcpTransport("localhost", **contexts(authority))) for _ in range(2)]
    async with pair(here=nodes[0], there=nodes[1]) as (here, there):
        await talk(here, there)
        endpoint = node_of(there)._membership.listener.endpoint
        stranger = await _connection.connect_socket(endpoint, unix=False)
        stranger.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
        strangers = node_of(there)._membership.listener._unproved
        await until(lambda: not strangers)
        stranger.close()
        assert traffic(here, there).connects == 1


async def test_an_address_that_is_taken_is_told_of_when_the_node_joins() -> None:
    cluster = cluster_name()
    first = node(cluster, transport=TcpTransport("127.0.0.1", insecure=True))
    async with ActorSystem("first", node=first):
        port = int(first.statistics().endpoint.rpartition(":")[2])
        second = node(cluster, transport=TcpTransport("127.0.0.1", port, insecure=True))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: "):
            async with ActorSystem("second", node=second):
                pass
    again = node(cluster, transport=TcpTransport("127.0.0.1", port, insecure=True, advertise="localhost"))
    async with ActorSystem("again", node=again):
        assert again.statistics().endpoint == f"tcp:localhost:{port}"


async def test_a_node_that_listens_everywhere_says_the_name_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine.example")
    mine = node(cluster_name(), transport=TcpTransport("0.0.0.0", insecure=True))
    async with ActorSystem("here", node=mine):
        assert mine.statistics().endpoint.startswith("tcp:machine.example:")


async def test_an_address_that_leads_nowhere_leaves_the_server_as_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connector, "ATTEMPT_TIMEOUT", 0.3)
    cluster = cluster_name()
    lost = TcpTransport("127.0.0.1", insecure=True, advertise="nowhere.invalid")
    mine = TcpTransport("127.0.0.1", insecure=True)
    async with pair(here=node(cluster, transport=mine), there=node(cluster, transport=lost)) as (here, there):
        await exchange(here, there)
        assert traffic(here, there).sent_directly == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": ""}, "host=''"),
        ({"host": None}, "host=None"),
        ({"port": -1}, "port=-1"),
        ({"port": True}, "port=True"),
        ({"port": 70_000}, "port=70000"),
        ({"insecure": False}, "insecure=True"),
        ({"ssl_server": ssl.create_default_context()}, "not both"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_what_makes_no_sense_for_tcp_is_refused(options: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"host": "localhost", "insecure": True, **options}
    with pytest.raises(ValueError, match=says):
        TcpTransport(**given)


def test_what_is_no_context_or_transport_is_refused() -> None:
    wrong: Any = "cert.pem"
    with pytest.raises(TypeError, match="ssl_server is a str"):
        TcpTransport("localhost", ssl_server=wrong)
    with pytest.raises(ValueError, match="transport='tcp': give 'unix', 'redis' or a TcpTransport"):
        node("a", transport="tcp")
    assert repr(TcpTransport("localhost", 7, insecure=True)) == "TcpTransport('localhost', 7, insecure=True)"
