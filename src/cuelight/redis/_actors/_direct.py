"""The two ends of a direct connection: one node sends batches, the other one confirms them.

Each node opens a connection for the batches that it sends. So there are two connections between two nodes, and the two
directions are independent. Batches have the same numbers as in the inbox.

Invariants:
1. No batch is sent or accepted before both sides have proved that they know the secret of the accepting node.
2. A node whose lease has expired by its own clock neither sends nor accepts.
3. A batch is processed if it is the next one. A batch that was seen already is dropped. Any other batch ends the
   connection.
4. If part of a batch cannot be decoded, only that part is lost. A violation of these rules ends the connection, never
   the node.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from cuelight._log import get_log
from cuelight.redis._actors._connection import ConnectionHost
from cuelight.redis._actors._endpoint import (
    BadGreeting,
    Challenge,
    Hello,
    Proof,
    Welcome,
    nonce,
    pack_greeting,
    prove,
    proves,
    read_greeting,
)
from cuelight.redis._actors._frames import FORMAT

if TYPE_CHECKING:
    from cuelight.redis._actors._connection import NodeConnection
    from cuelight.redis._actors._directory import Directory

log = get_log("cuelight.redis")

LONGEST_BATCH: Final = 18 * 1024 * 1024
"""Maximum bytes of a batch on a connection: the longest possible message, and some more."""

CONFIRM: Final = 0.02
"""Seconds after which received batches are confirmed."""

CONFIRM_NOW: Final = 1 << 20
"""Received bytes after which they are confirmed immediately."""

_HEAD: Final = struct.Struct(">IQ")  # length of a batch, its number
_CONFIRMED: Final = struct.Struct(">Q")  # the number of the last batch that was processed


class SendingPeer(Protocol):
    """What an incoming connection asks of the node at its other end."""

    identity: str
    lost: bool
    seen: int
    incoming: Incoming | None

    def receive_direct(self, number: int, payload: bytes) -> bool: ...


class IncomingHost(ConnectionHost, Protocol):
    """What an incoming connection asks of the membership."""

    identity: str
    directory: Directory
    refused: int

    @property
    def fenced(self) -> bool: ...

    def peer(self, identity: str) -> SendingPeer: ...

    def is_lost_node(self, identity: str) -> bool: ...

    def check_inbox_soon(self) -> None: ...


class IncomingListener(Protocol):
    """Keeps the incoming connections that have not proved their identity yet."""

    def has_greeted(self, incoming: Incoming) -> None: ...

    def has_ended(self, incoming: Incoming) -> None: ...


class Incoming:
    """The accepting end.

    Attributes:
        peer: the node at the other end; None until it has proved its membership.
        since: the time at which the connection was accepted, on the clock of the loop.
    """

    def __init__(
        self, membership: IncomingHost, listener: IncomingListener, connection: NodeConnection, secret: bytes
    ) -> None:
        self.peer: SendingPeer | None = None
        self.since = membership.runtime.backend.time()
        self._membership, self._listener = membership, listener
        self._connection, self._secret = connection, secret
        self._buffer = bytearray()
        self._needed = _HEAD.size
        self._hello: Hello | None = None
        self._nonce = nonce()
        self._confirming = False
        self._unconfirmed = 0
        connection.on_data, connection.on_end = self._on_greeting, self._ended
        connection.begin()

    @property
    def has_ended(self) -> bool:
        return self._connection.ended

    def end(self, why: str) -> None:
        self._connection.end(why)

    def _ended(self, why: str) -> None:
        self._listener.has_ended(self)
        if self.peer is not None:
            log.debug("the connection from %s has ended: %s", self.peer.identity, why)
            if self.peer.incoming is self:
                self.peer.incoming = None

    def _on_greeting(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._hello is None and not self._challenge():
                return
            if self._is_proved():
                self._welcome()
        except BadGreeting as error:
            self._membership.refused += 1
            log.warning("%s refused a direct connection: %s", self._membership.identity, error)
            self.end(str(error))

    def _challenge(self) -> bool:
        hello = read_greeting(self._buffer, Hello)
        if hello is None:
            return False
        membership = self._membership
        if (hello.cluster, hello.target) != (membership.directory.cluster, membership.identity):
            raise BadGreeting("it is for another node")
        if hello.frames != FORMAT:
            raise BadGreeting(f"its frames have format {hello.frames}, this version speaks {FORMAT}")
        if membership.is_lost_node(hello.sender) or hello.sender == hello.target:
            raise BadGreeting("it comes from a node that is no member any more")
        self._hello = hello
        self._connection.write(pack_greeting(Challenge(self._nonce, self._prove("accepts"))))
        return True

    def _prove(self, who: str) -> bytes:
        assert self._hello is not None  # noqa: S101 - it was read
        return prove(self._secret, who, self._hello, self._nonce)

    def _is_proved(self) -> bool:
        proof = read_greeting(self._buffer, Proof)
        if proof is None:
            return False
        assert self._hello is not None  # noqa: S101 - it was read
        if not proves(proof.proof, self._secret, "connects", self._hello, self._nonce):
            raise BadGreeting("it does not know the secret")
        return True

    def _welcome(self) -> None:
        membership = self._membership
        assert self._hello is not None  # noqa: S101 - it was read
        if membership.fenced:
            self.end("the lease of this node has run out")
            return
        peer = membership.peer(self._hello.sender)
        before, self.peer, peer.incoming = peer.incoming, peer, self
        if before is not None:
            before.end("the other node has opened a new one")
        self._listener.has_greeted(self)
        membership.check_inbox_soon()  # earlier batches may still be in the inbox
        self._connection.on_data = self._on_batches
        self._connection.write(pack_greeting(Welcome(peer.seen)))
        if self._buffer:
            rest, self._buffer = bytes(self._buffer), bytearray()
            self._on_batches(rest)

    def _on_batches(self, data: bytes) -> None:
        self._unconfirmed += len(data)
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                self._confirm_soon()
                return
            data = bytes(buffer)
            buffer.clear()
        at, end = 0, len(data)
        while end - at >= _HEAD.size:
            length, number = _HEAD.unpack_from(data, at)
            if length > LONGEST_BATCH:
                self.end(f"it sent a batch of {length} bytes")
                return
            stop = at + _HEAD.size + length
            if stop > end:
                self._needed = stop - at
                break
            if not self._process(number, data[at + _HEAD.size : stop]):
                return
            at = stop
        else:
            self._needed = _HEAD.size
        if at < end:
            buffer += data[at:] if at else data
        self._confirm_soon()

    def _process(self, number: int, payload: bytes) -> bool:
        peer = self.peer
        assert peer is not None  # noqa: S101 - it was welcomed
        if self._membership.fenced or peer.lost:
            self.end("one of the two nodes is no member any more")
        elif not peer.receive_direct(number, payload):
            self.end(f"batch {number} came after {peer.seen}")
        return not self._connection.ended

    def _confirm_soon(self) -> None:
        if self._unconfirmed >= CONFIRM_NOW:
            self.confirm()
        elif not self._confirming:
            self._confirming = True
            self._membership.runtime.call_later(CONFIRM, self._confirm_later)

    def _confirm_later(self) -> None:
        self._confirming = False
        if self._unconfirmed:
            self.confirm()

    def confirm(self) -> None:
        """Report the last processed batch. If none is new, this shows that the node is alive."""
        if not self._connection.ended and self.peer is not None:
            self._unconfirmed = 0
            self._connection.write(_CONFIRMED.pack(self.peer.seen))


class OutgoingUser(Protocol):
    """Sends batches over an outgoing connection."""

    def connected(self, outgoing: Outgoing) -> None: ...

    def confirmed(self, outgoing: Outgoing) -> None: ...

    def disconnected(self, outgoing: Outgoing, why: str) -> None: ...

    def flush_soon(self) -> None: ...


class Outgoing:
    """The sending end.

    Attributes:
        greeted: set when both sides have given their proofs, or when the connection has ended.
        seen: the number of the last batch that the other node has reported as processed.
        problem: the reason why the connection has ended; "" before.
    """

    def __init__(self, user: OutgoingUser, hello: Hello, connection: NodeConnection, secret: bytes) -> None:
        """Greet the other node; `secret` is the one in its endpoint."""
        self.connection = connection
        self.greeted = anyio.Event()
        self.seen = 0
        self.problem = ""
        self._user, self._hello, self._secret = user, hello, secret
        self._buffer = bytearray()
        self._challenged = False
        connection.on_data, connection.on_end = self._on_greeting, self._ended
        connection.on_room = self._has_room
        connection.begin()
        connection.write(pack_greeting(self._hello))

    def end(self, why: str) -> None:
        self.connection.end(why)

    def _ended(self, why: str) -> None:
        self.problem = why
        self.greeted.set()
        self._user.disconnected(self, why)

    def _has_room(self) -> None:
        self._user.flush_soon()

    def _on_greeting(self, data: bytes) -> None:
        self._buffer += data
        try:
            if not self._challenged:
                challenge = read_greeting(self._buffer, Challenge)
                if challenge is None:
                    return
                if not proves(challenge.proof, self._secret, "accepts", self._hello, challenge.nonce):
                    raise BadGreeting("it does not know its own secret")
                self._challenged = True
                proof = prove(self._secret, "connects", self._hello, challenge.nonce)
                self.connection.write(pack_greeting(Proof(proof)))
            welcome = read_greeting(self._buffer, Welcome)
        except BadGreeting as error:
            log.warning("no direct connection to %s: %s", self._hello.target, error)
            self.end(str(error))
            return
        if welcome is not None:
            self.connection.on_data = self._on_batches
            self.seen = welcome.seen
            self.greeted.set()
            self._user.connected(self)
            if self._buffer:
                self._on_batches(b"")

    def _on_batches(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        whole = len(buffer) // _CONFIRMED.size * _CONFIRMED.size
        if whole:
            (self.seen,) = _CONFIRMED.unpack_from(buffer, whole - _CONFIRMED.size)
            del buffer[:whole]
            self._user.confirmed(self)

    def send(self, number: int, payload: bytes) -> None:
        """Send a batch of up to `LONGEST_BATCH` bytes after the previous one."""
        self.connection.write(_HEAD.pack(len(payload), number) + payload)
