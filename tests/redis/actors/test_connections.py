"""A connection by itself: what breaks in the middle of something ends it once, with a reason."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from cuelight.redis._actors import _endpoint
from cuelight.redis._actors._connection import NodeConnection, Tls, connect_socket, connection_on
from cuelight.redis._actors._endpoint import (
    VERSION,
    BadGreeting,
    Endpoint,
    Proof,
    decode_endpoint,
    pack_greeting,
    read_greeting,
)
from cuelight.redis._actors._frames import FORMAT
from helpers.direct import Held, incoming_of, outgoing_of, peer_of
from helpers.nodes import Add, Plain, Total, directly, inside, node_of, pair, until

pytestmark = pytest.mark.transport("unix")


class Ends:
    """What a connection has said."""

    def __init__(self, connection: NodeConnection) -> None:
        self.came = b""
        self.why: list[str] = []
        self.room = 0
        connection.on_data = self._data
        connection.on_end = self.why.append
        connection.on_room = self._room
        connection.begin()

    def _data(self, data: bytes) -> None:
        self.came += data

    def _room(self) -> None:
        self.room += 1


@asynccontextmanager
async def connection(tls: Tls | None = None) -> AsyncGenerator[tuple[Any, Ends, socket.socket]]:
    """A connection of a node, what it says, and the other side."""
    async with pair() as (here, _):
        mine, theirs = socket.socketpair()
        for one in (mine, theirs):
            one.setblocking(False)
        made = connection_on(node_of(here)._membership, mine, tls)
        yield made, Ends(made), theirs
        made.end("the test is over")
        theirs.close()
        assert node_of(here).statistics().incarnation == 1


async def test_what_does_not_leave_at_once_leaves_later_in_order() -> None:
    async with connection() as (made, ends, theirs):
        sent = b"".join(bytes([number]) * 100_000 for number in range(30))
        for number in range(30):
            made.write(sent[number * 100_000 : (number + 1) * 100_000])
        assert made.waiting > 0
        came = bytearray()
        while len(came) < len(sent):
            await anyio.wait_readable(theirs)
            came += theirs.recv(1 << 20)
        assert came == sent
        await until(lambda: ends.room > 0)
        assert made.waiting == 0
        theirs.send(b"and back")
        await until(lambda: ends.came == b"and back")


async def test_a_connection_that_breaks_while_something_is_sent_ends_once_and_later() -> None:
    async with connection() as (made, ends, theirs):
        theirs.close()
        made.write(b"x")
        made.write(b"y")
        assert ends.why == []  # who writes is not called from within
        await until(lambda: ends.why)
        made.write(b"z")
        made.end("again")
        await anyio.sleep(0.01)
        assert len(ends.why) == 1


async def test_a_connection_that_breaks_while_something_waits_to_be_sent_ends() -> None:
    async with connection() as (made, ends, theirs):
        made.write(bytes(5_000_000))
        assert made.waiting > 0
        await anyio.sleep(0.01)
        theirs.close()
        await until(lambda: ends.why)
        assert made.waiting == 0


async def test_an_error_in_what_is_called_costs_the_membership_and_not_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pair(lease=60) as (here, there):
        ref, own = await _remote(here, there)

        def fail(_: bytes) -> None:
            raise ZeroDivisionError

        incoming_of(here, there)._connection.on_data = fail
        await ref.tell(Add(1))
        await until(lambda: node_of(there).statistics().incarnation == 2)
        assert own.alive
    assert "failed" in caplog.text


async def test_a_program_that_is_ended_by_what_comes_over_a_connection_ends_in_order() -> None:
    ended = False
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group on some loops
        async with pair(lease=60) as (here, there):
            ref, _ = await _remote(here, there)

            def exit_program(_: bytes) -> None:
                raise SystemExit(3)

            incoming_of(here, there)._connection.on_data = exit_program
            await ref.tell(Add(1))
            await anyio.sleep(10)
            ended = True
    assert not ended
    assert "SystemExit" in repr(caught.value)


async def test_a_membership_that_is_over_begins_no_connection() -> None:
    async with pair(lease=60) as (here, _):
        membership = node_of(here)._membership
        membership.removed("the test says so")
        mine, theirs = socket.socketpair()
        ends = Ends(connection_on(membership, mine, None))
        assert ends.why == ["this node has left its cluster"]
        assert mine.fileno() == -1
        theirs.close()


async def test_a_connection_that_ends_before_it_is_served_is_closed() -> None:
    async with connection() as (made, ends, _):
        made.end("at once")
        assert ends.why == ["at once"]
        made.soon(lambda: ends.why.append("never"))
        await until(lambda: made._socket.fileno() == -1)
        await anyio.sleep(0.01)
        assert ends.why == ["at once"]


async def _remote(here: Any, there: Any) -> tuple[Any, Any]:
    own = await there.spawn(Plain)
    await there.expose(own, "actor")
    ref = await here.resolve("actor")
    await ref.ask(Total())
    await directly(here, there)
    return ref, own


async def test_a_connection_to_a_node_that_was_lost_meanwhile_is_ended() -> None:
    async with pair(lease=60) as (here, there):
        await _remote(here, there)
        outgoing, peer = outgoing_of(here, there), peer_of(here, there)
        peer.delivery.disconnected(outgoing, "a moment")
        peer.lost = True
        peer.delivery.connected(outgoing)
        assert outgoing.problem == "the other node is no member any more"
        peer.lost = False


async def test_a_node_welcomes_nobody_when_its_lease_has_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair(lease=60) as (here, there):
        ref, own = await _remote(here, there)
        before = Held(incoming_of(here, there))
        heartbeat = node_of(there)._membership._heartbeat_thread
        renewed, heartbeat.renewed = heartbeat.renewed, float("-inf")
        outgoing_of(here, there).end("cut")
        delivery = peer_of(here, there).delivery
        delivery._connector._next = float("-inf")
        await ref.tell(Add(1))
        await until(lambda: delivery._connector._next > float("-inf"))  # it has failed
        assert outgoing_of(here, there) is None
        heartbeat.renewed = renewed
        before.release()
        await until(lambda: inside(own).amounts == [1])


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)  # pyright: ignore[reportUnknownMemberType]
    client = ssl.create_default_context()
    authority.configure_trust(client)  # pyright: ignore[reportUnknownMemberType]
    return server, client


async def test_what_is_written_before_tls_is_ready_comes_after_it() -> None:
    server, client = _contexts()
    async with pair() as (here, there):
        mine, theirs = socket.socketpair()
        for one in (mine, theirs):
            one.setblocking(False)
        first = connection_on(node_of(here)._membership, mine, Tls(client, server=False, hostname="localhost"))
        second = connection_on(node_of(there)._membership, theirs, Tls(server, server=True, hostname=None))
        ends, others = Ends(first), Ends(second)
        first.write(b"a" * 100_000)
        second.write(b"b")
        await until(lambda: len(others.came) == 100_000 and ends.came == b"b")
        first.write(b"c")
        await until(lambda: others.came[-1:] == b"c")
        first.end("enough")
        await until(lambda: others.why)


class Broken:
    """TLS of which a step fails."""

    def __init__(self, step: str) -> None:
        self._step = step

    def _do(self, step: str) -> None:
        if step == self._step:
            raise ssl.SSLError(f"no {step}")

    def begin(self) -> bytes:
        self._do("begin")
        return b""

    def encrypt(self, data: bytes) -> bytes:
        self._do("encrypt")
        return data

    def decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        self._do("decrypt")
        return data, b""


@pytest.mark.parametrize("step", ["begin", "encrypt", "decrypt"])
async def test_tls_that_fails_ends_its_connection(step: str) -> None:
    broken: Any = Broken(step)
    async with connection(broken) as (made, ends, theirs):
        made.write(b"x")
        if step == "decrypt":
            theirs.send(b"y")
        await until(lambda: ends.why)
        assert ends.why[0].startswith("TLS: ")


async def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        addresses = [nobody.getsockname(), ("127.0.0.1", port)]

        async def found(*_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(anyio, "getaddrinfo", found)
        endpoint = Endpoint(VERSION, FORMAT, b"", host="host", port=port)
        (await connect_socket(endpoint, unix=False)).close()
        addresses.pop()
        with pytest.raises(OSError, match="refused"):
            await connect_socket(endpoint, unix=False)
        addresses.clear()
        with pytest.raises(OSError, match="host has no address"):
            await connect_socket(endpoint, unix=False)


def test_what_the_directory_holds_is_an_endpoint_of_this_version_or_none() -> None:
    endpoint = Endpoint(VERSION, FORMAT, b"secret", "machine", "/path")
    assert decode_endpoint(endpoint.encode()) == endpoint
    assert "secret" not in repr(endpoint)
    for data in (b"", b"\xc1", b"\x91" * 5000, Endpoint(VERSION + 1, FORMAT, b"").encode()):
        assert decode_endpoint(data) is None
    assert decode_endpoint(Endpoint(VERSION, FORMAT + 1, b"").encode()) is None


def test_a_machine_without_a_boot_number_has_a_name_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", none)
    assert _endpoint.machine.__wrapped__().startswith(socket.gethostname())


def test_a_greeting_is_read_from_any_pieces_and_nothing_behind_it_is_taken() -> None:
    whole = pack_greeting(Proof(b"proof")) + b"rest"
    buffer, read = bytearray(), None
    for byte in whole:
        buffer.append(byte)
        read = read_greeting(buffer, Proof)
        if read is not None:
            break
    assert read == Proof(b"proof")
    assert whole.removeprefix(pack_greeting(Proof(b"proof"))) == b"rest"
    assert buffer == b""
    with pytest.raises(BadGreeting, match="version 9"):
        read_greeting(bytearray(b"cuelight\x00\x09\x00\x00"), Proof)
