"""Where a node accepts direct connections, and the greetings by which two nodes authenticate each other.

The connecting node gives its own identity and that of the node that it wants. The accepting node proves that it knows
the secret in its directory entry, then the connecting node proves it too. Each proof covers both identities and a
random number from each side, so that no proof can be used twice or sent back.
"""

from __future__ import annotations

import functools
import hmac
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cuelight.redis._actors._frames import FORMAT

VERSION: Final = 1
"""The version of the protocol of direct connections. Nodes of different versions communicate through the server."""

MAGIC: Final = b"cuelight"
LONGEST_GREETING: Final = 2000
NONCE: Final = 16
SECRET: Final = 32

_HEAD: Final = struct.Struct(">8sHH")  # magic, version, length of the rest

G = TypeVar("G")


class BadGreeting(ValueError):
    """The other side sent a greeting that is invalid here."""


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """An endpoint at which a node accepts direct connections.

    Attributes:
        version: the version of the protocol.
        frames: the format of the frames.
        secret: the secret that both sides must know.
        machine: the machine that has the Unix socket.
        path: the path of the Unix socket; "" if there is none.
        host: the host for TCP; "" if the node does not accept TCP.
        port: the port for TCP.
        tls: whether TCP connections use TLS.
    """

    version: int
    frames: int
    secret: bytes
    machine: str = ""
    path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False

    def __str__(self) -> str:
        unix = f"unix:{self.path}" if self.path else ""
        tcp = f"tcp:{self.host}:{self.port}" if self.host else ""
        return f"{unix} {tcp}".strip()

    def __repr__(self) -> str:
        return f"<endpoint {self}>"  # without the secret

    def encode(self) -> bytes:
        """Encode the endpoint for the directory."""
        return msgspec.msgpack.encode(self)


_endpoint: Final = msgspec.msgpack.Decoder(Endpoint)


def decode_endpoint(data: bytes) -> Endpoint | None:
    """Decode an endpoint of the directory. Returns None if it is malformed or of an unsupported version."""
    try:
        found = _endpoint.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if (found.version, found.frames) == (VERSION, FORMAT) else None


@functools.cache
def machine() -> str:
    """Return a text that identifies machine and user. Nodes with the same text can use each other's Unix sockets."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = ""
    user = os.getuid() if hasattr(os, "getuid") else ""
    return f"{socket.gethostname()} {boot} {user}"


def new_secret() -> bytes:
    """Return a new secret for one incarnation of a node."""
    return secrets.token_bytes(SECRET)


def nonce() -> bytes:
    """Return a random number that was never used before."""
    return secrets.token_bytes(NONCE)


# The greetings before the first batch. Each is sent once, in this order.


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """From the connecting node."""

    frames: int
    cluster: str
    sender: str
    target: str
    nonce: bytes


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    """From the accepting node."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """From the connecting node."""

    proof: bytes


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """From the accepting node, which now expects batches. `seen` is the number of the last batch that it has."""

    seen: int


def prove(secret: bytes, who: str, hello: Hello, second: bytes) -> bytes:
    """Return the proof of knowing a secret.

    Args:
        secret: the secret of the accepting node.
        who: the side that gives the proof, "connects" or "accepts".
        hello: the first greeting.
        second: the random number of the accepting node.
    """
    said = msgspec.msgpack.encode([who, VERSION, hello, second])
    return hmac.digest(secret, said, "sha256")


def proves(proof: bytes, secret: bytes, who: str, hello: Hello, second: bytes) -> bool:
    """Return whether a proof is valid. Takes the same time for every proof."""
    return hmac.compare_digest(proof, prove(secret, who, hello, second))


def pack_greeting(greeting: Hello | Challenge | Proof | Welcome) -> bytes:
    """Encode a greeting."""
    body = msgspec.msgpack.encode(greeting)
    return _HEAD.pack(MAGIC, VERSION, len(body)) + body


def read_greeting(buffer: bytearray, kind: type[G]) -> G | None:
    """Remove a greeting from the start of the buffer and return it; None while it is incomplete.

    Raises:
        BadGreeting: the buffer contains something else.
    """
    if not MAGIC.startswith(bytes(buffer[: len(MAGIC)])):
        raise BadGreeting("what came is no greeting of a node")
    if len(buffer) < _HEAD.size:
        return None
    _, version, length = _HEAD.unpack_from(buffer)
    if version != VERSION:
        raise BadGreeting(f"it speaks version {version} of direct connections, this one speaks {VERSION}")
    if length > LONGEST_GREETING:
        raise BadGreeting(f"its greeting has {length} bytes")
    end = _HEAD.size + length
    if len(buffer) < end:
        return None
    body = bytes(buffer[_HEAD.size : end])
    del buffer[:end]
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadGreeting(f"its greeting makes no sense: {error}") from None
