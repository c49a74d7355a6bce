"""Who connects to a node and is none, breaks off, or talks nonsense: it costs that connection."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from cuelight import ActorSystem, Ref
from cuelight.redis._actors import _endpoint, _listener
from cuelight.redis._actors._endpoint import (
    Challenge,
    Hello,
    Proof,
    Welcome,
    nonce,
    pack_greeting,
    prove,
    read_greeting,
)
from cuelight.redis._actors._frames import FORMAT
from helpers.direct import incoming_of, outgoing_of, peer_of, traffic
from helpers.nodes import Add, Plain, Total, cluster_name, directly, inside, node, node_of, pair, until

pytestmark = pytest.mark.transport("unix")


async def remote(here: ActorSystem, there: ActorSystem) -> tuple[Ref[Any], Ref[Any]]:
    own = await there.spawn(Plain)
    await there.expose(own, "actor")
    ref = await here.resolve("actor")
    await ref.ask(Total())
    await directly(here, there)
    return ref, own


class Stranger:
    """Somebody who connects to the socket of a node."""

    def __init__(self, system: ActorSystem) -> None:
        membership = node_of(system)._membership
        self.membership, self.endpoint = membership, membership.listener.endpoint
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.endpoint.path)
        self.socket.setblocking(False)
        self.buffer = bytearray()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.send(data)

    def hello(self, sender: str = "stranger", **fields: Any) -> Hello:
        target = self.membership.identity
        return Hello(**{**_hello(self.membership.directory.cluster, sender, target), **fields})

    async def hear(self, kind: type[Any]) -> Any:
        """The next step of the other side."""
        while (step := read_greeting(self.buffer, kind)) is None:
            await self._more()
        return step

    async def _more(self) -> None:
        await anyio.wait_readable(self.socket)
        data = self.socket.recv(65536)
        assert data, "it was closed"
        self.buffer += data

    async def is_closed(self) -> bool:
        """Wait until the other side has closed it, whatever it says before."""
        while True:
            await anyio.wait_readable(self.socket)
            try:
                if not self.socket.recv(65536):
                    return True
            except ConnectionResetError:
                return True

    async def become(self, sender: str) -> None:
        """Be taken for a node."""
        hello = self.hello(sender)
        self.say(pack_greeting(hello))
        challenge = await self.hear(Challenge)
        self.say(pack_greeting(Proof(prove(self.endpoint.secret, "connects", hello, challenge.nonce))))
        await self.hear(Welcome)


def _hello(cluster: str, sender: str, target: str) -> dict[str, Any]:
    return {"frames": FORMAT, "cluster": cluster, "sender": sender, "target": target, "nonce": nonce()}


GARBAGE: dict[str, bytes] = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
    "another version": struct.pack(">8sHH", b"cuelight", 2, 0),
    "too long": struct.pack(">8sHH", b"cuelight", 1, 60_000),
    "no msgpack": struct.pack(">8sHH", b"cuelight", 1, 3) + b"\xc1\xc1\xc1",
    "other fields": struct.pack(">8sHH", b"cuelight", 1, 1) + b"\x90",
    "deep": struct.pack(">8sHH", b"cuelight", 1, 2000) + b"\x91" * 2000,
    "no Unicode": struct.pack(">8sHH", b"cuelight", 1, 12) + b"\x95\x01\xa2\xff\xfe\xa1a\xa1b\xc4\x00" + b"\x00",
}


@pytest.mark.parametrize("what", list(GARBAGE))
async def test_what_is_no_greeting_is_refused_and_counted(what: str) -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        with Stranger(there) as stranger:
            stranger.say(GARBAGE[what])
            assert await stranger.is_closed()
        assert node_of(there).statistics().refused == 1
        await ref.tell(Add(1))
        assert await ref.ask(Total()) == 1
        assert traffic(here, there).connects == 1


@pytest.mark.parametrize(
    "fields", [{"target": "another"}, {"cluster": "another"}, {"frames": FORMAT + 1}], ids=lambda it: next(iter(it))
)
async def test_a_greeting_for_another_node_is_refused(fields: dict[str, Any]) -> None:
    async with pair() as (here, there):
        await remote(here, there)
        with Stranger(there) as stranger:
            stranger.say(pack_greeting(stranger.hello(**fields)))
            assert await stranger.is_closed()
        assert node_of(there).statistics().refused == 1


async def test_who_does_not_know_the_secret_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        with Stranger(there) as stranger:
            hello = stranger.hello(node_of(here).identity)
            stranger.say(pack_greeting(hello))
            challenge = await stranger.hear(Challenge)
            for wrong in (prove(b"guessed", "connects", hello, challenge.nonce), challenge.proof):
                with Stranger(there) as other:
                    other.say(pack_greeting(hello))
                    await other.hear(Challenge)
                    other.say(pack_greeting(Proof(wrong)))
                    assert await other.is_closed()
        assert node_of(there).statistics().refused == 2
        assert "does not know the secret" in caplog.text
        assert traffic(here, there).connects == 1
        assert await ref.ask(Total()) == 0


async def test_a_socket_that_does_not_know_the_secret_is_not_talked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # The impostor has the socket of the node that is looked for, and sees all that is said to that.
    monkeypatch.setattr(_listener, "new_secret", lambda: b"another")
    encode = _endpoint.Endpoint.encode
    cluster = cluster_name()
    async with ActorSystem("there", node=node(cluster)) as there:
        monkeypatch.undo()
        client, directory = node_of(there)._server, node_of(there)._membership.directory
        told = msgspec.structs.replace(node_of(there)._membership.listener.endpoint, secret=b"the right one")
        await client.execute("HSET", directory._node(directory.identity), "endpoint", encode(told))
        async with ActorSystem("here", node=node(cluster)) as here:
            own = await there.spawn(Plain)
            await there.expose(own, "actor")
            ref = await here.resolve("actor")
            for amount in range(10):
                await ref.tell(Add(amount))
                await ref.ask(Total())
            assert traffic(here, there).sent_directly == 0
            assert inside(own).amounts == list(range(10))


async def test_those_who_say_nothing_or_too_little_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listener, "PROOF_TIMEOUT", 0.2)
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        with Stranger(there) as silent, Stranger(there) as slow, Stranger(there) as half:
            slow.say(b"cuel")
            half.say(pack_greeting(half.hello()))
            await half.hear(Challenge)
            for stranger in (silent, slow, half):
                assert await stranger.is_closed()
        assert await ref.ask(Total()) == 0
        assert traffic(here, there).connects == 1


async def test_thousands_of_unproved_connections_hold_up_no_node() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        listener = node_of(there)._membership.listener
        with ExitStack() as stack:
            for number in range(2000):
                # In a thread: who connects waits while as many others do as the system lets wait.
                stranger = stack.enter_context(await anyio.to_thread.run_sync(Stranger, there))
                assert len(listener._unproved) <= _listener.MAX_UNPROVED
                if number % 500 == 499:
                    outgoing_of(here, there).end("cut")  # and a node has to get through among them
                    assert await ref.ask(Total()) == 0
                    await directly(here, there)
                if number >= 300:
                    stranger.socket.close()  # this process has its limits, too
        await until(lambda: len(listener._unproved) <= _listener.MAX_UNPROVED)
        assert await ref.ask(Total()) == 0


async def test_a_node_without_descriptors_goes_on_with_the_connections_that_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_listener, "ACCEPT_RETRY", 0.01)
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        membership = node_of(there)._membership

        class Full:
            """A socket whose process has no descriptor left, at first."""

            def __init__(self) -> None:
                self.calls = 0
                self.mine, self.theirs = socket.socketpair()
                self.mine.setblocking(False)

            def fileno(self) -> int:
                return self.mine.fileno()

            def accept(self) -> Any:
                self.calls += 1
                if self.calls == 1:
                    raise OSError(24, "Too many open files")
                if self.calls == 2:
                    raise ConnectionAbortedError(103, "it went away")
                self.mine.recv(1)
                raise BlockingIOError

        full: Any = Full()
        full.theirs.send(b"x")
        membership.start_beside(lambda: membership.listener._accept(full, lambda: None))
        await until(lambda: full.calls == 3)
        assert "cannot accept connections now" in caplog.text
        assert await ref.ask(Total()) == 0
    full.mine.close()
    full.theirs.close()


BREACHES = {
    "a length of 4 GiB": struct.pack(">IQ", 2**32 - 1, 1),
    "a number out of order": struct.pack(">IQ", 1, 7) + b"\x90",
    "a number that is none": struct.pack(">IQ", 1, 2**64 - 1) + b"\x90",
}


@pytest.mark.parametrize("what", list(BREACHES))
async def test_a_batch_that_breaks_the_rules_costs_its_connection(what: str) -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        with Stranger(there) as stranger:
            await stranger.become("other")
            stranger.say(BREACHES[what])
            assert await stranger.is_closed()
        assert await ref.ask(Total()) == 0
        assert traffic(here, there).connects == 1
        assert node_of(there).statistics().incarnation == 1


async def test_what_cannot_be_decoded_on_a_connection_costs_that_frame() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        serial = own._cell.serial
        one = msgspec.msgpack.encode(Add(1))
        payloads = [
            b"",
            b"\xc1" * 50,
            b"\x91" * 100_000,
            msgspec.msgpack.encode([[1, serial, "Add", one], [99, 1], [1, serial, "Add", b"\xc1"], {"a": 1}]),
            msgspec.msgpack.encode([[1, serial, "Add", one]]),
        ]
        # A member that does not connect itself: the connection of a node that is no member would soon be ended.
        other = node(node_of(there)._membership.directory.cluster, transport="redis")
        async with ActorSystem("other", node=other) as member:
            sender = node_of(member).identity
            with Stranger(there) as stranger:
                await stranger.become(sender)
                for number, payload in enumerate(payloads, 1):
                    for part in (struct.pack(">IQ", len(payload), number), payload):
                        if part:
                            await anyio.to_thread.run_sync(_send_all, stranger.socket, part)
                await until(lambda: inside(own).total == 2)
                assert node_of(there)._membership.peer(sender).incoming is not None
                # Sent again, in pieces: it was seen.
                for byte in struct.pack(">IQ", len(payloads[-1]), 5) + payloads[-1]:
                    stranger.say(bytes([byte]))
                    await anyio.lowlevel.checkpoint()
                stranger.buffer.clear()
                await until(lambda: node_of(there)._membership.peer(sender).incoming._unconfirmed == 0)
                assert inside(own).total == 2
        assert await ref.ask(Total()) == 2


def _send_all(connected: socket.socket, data: bytes) -> None:
    connected.setblocking(True)
    connected.sendall(data)
    connected.setblocking(False)


async def test_a_new_connection_of_a_node_takes_the_place_of_its_old_one() -> None:
    async with pair() as (here, there):
        await remote(here, there)
        before = incoming_of(here, there)
        with Stranger(there) as stranger:
            await stranger.become(node_of(here).identity)  # a stranger that knows the secret may be any node
            assert before.has_ended
        await until(lambda: outgoing_of(here, there) is None)


async def test_a_node_that_was_lost_cannot_connect_any_more() -> None:
    async with pair(lease=60) as (here, there):
        await remote(here, there)
        node_of(there)._membership.node_lost(node_of(here).identity)
        assert peer_of(here, there).delivery is not None
        for _ in range(2):  # while it is buried, and after that
            with Stranger(there) as stranger:
                stranger.say(pack_greeting(stranger.hello(node_of(here).identity)))
                assert await stranger.is_closed()
            await until(lambda: node_of(here).identity not in node_of(there)._membership._peers)


async def test_a_node_that_confirms_what_was_never_sent_is_talked_to_through_the_server() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        outgoing = outgoing_of(here, there)
        outgoing._on_batches(struct.pack(">Q", 10**6))
        assert outgoing.problem
        before = traffic(here, there)
        for amount in range(20):
            await ref.tell(Add(amount))
            assert await ref.ask(Total()) == sum(range(amount + 1))
        assert traffic(here, there).sent_directly == before.sent_directly
