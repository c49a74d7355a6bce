"""Where a node accepts direct connections, as it says in the directory, and how two nodes make sure of each other.

The node that connects says who it is and whom it wants, the other one proves that it knows the secret that its entry in
the directory holds, then the first one proves it too. Each proof covers both identities and a random number of
either side, so that none can be used twice or sent back.
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

__all__ = [
    "BadGreeting",
    "Challenge",
    "Endpoint",
    "Hello",
    "Proof",
    "VERSION",
    "Welcome",
    "decode_endpoint",
    "machine",
    "new_secret",
    "nonce",
    "pack_greeting",
    "prove",
    "proves",
    "read_greeting",
]

VERSION: Final = 1
"""Of what goes over a direct connection. Nodes of different versions talk through the server."""

MAGIC: Final = b"cuelight"
LONGEST_GREETING: Final = 2000
NONCE: Final = 16
SECRET: Final = 32

_HEAD: Final = struct.Struct(">8sHH")  # magic, version, length of the rest

G = TypeVar("G")


class BadGreeting(ValueError):
    """What the other side says is not what it has to say here."""


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """Where a node accepts direct connections.

    Attributes:
        version: of what goes over them.
        frames: the format of the frames in it.
        secret: that both sides must know.
        machine: on which the Unix socket is.
        path: of the Unix socket; "" if there is none.
        host: for TCP; "" if it accepts none.
        port: for TCP.
        tls: whether TCP goes with TLS.
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
        """For the directory."""
        return msgspec.msgpack.encode(self)


_endpoint: Final = msgspec.msgpack.Decoder(Endpoint)


def decode_endpoint(data: bytes) -> Endpoint | None:
    """An endpoint of the directory; None if it is none, or of a version that this one does not speak."""
    try:
        found = _endpoint.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if (found.version, found.frames) == (VERSION, FORMAT) else None


@functools.cache
def machine() -> str:
    """Which machine and user this is: those with the same can use each other's Unix sockets."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = ""
    user = os.getuid() if hasattr(os, "getuid") else ""
    return f"{socket.gethostname()} {boot} {user}"


def new_secret() -> bytes:
    """A secret for one incarnation of a node."""
    return secrets.token_bytes(SECRET)


def nonce() -> bytes:
    """A number that was never used before."""
    return secrets.token_bytes(NONCE)


# What is said before the first batch, each once and in this order.


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Of the node that connects."""

    frames: int
    cluster: str
    sender: str
    target: str
    nonce: bytes


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    """Of the node that is connected to."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """Of the node that connects."""

    proof: bytes


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """Of the node that is connected to: batches come from now on. `seen`: the number of the last that it has."""

    seen: int


def prove(secret: bytes, who: str, hello: Hello, second: bytes) -> bytes:
    """The proof of knowing a secret.

    Args:
        secret: of the node that is connected to.
        who: "connects" or "accepts": the side that proves it.
        hello: which began it.
        second: the number of the node that is connected to.
    """
    said = msgspec.msgpack.encode([who, VERSION, hello, second])
    return hmac.digest(secret, said, "sha256")


def proves(proof: bytes, secret: bytes, who: str, hello: Hello, second: bytes) -> bool:
    """Whether it is that proof. Takes the same time whatever it is."""
    return hmac.compare_digest(proof, prove(secret, who, hello, second))


def pack_greeting(greeting: Hello | Challenge | Proof | Welcome) -> bytes:
    """One step, as bytes."""
    body = msgspec.msgpack.encode(greeting)
    return _HEAD.pack(MAGIC, VERSION, len(body)) + body


def read_greeting(buffer: bytearray, kind: type[G]) -> G | None:
    """One step, taken from the beginning of what came; None while it is not complete.

    Raises:
        BadGreeting: it is something else.
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
