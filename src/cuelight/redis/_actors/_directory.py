"""The keys of a cluster on the server, with one function for each script that uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from cuelight._text import safe_repr
from cuelight.errors import StoreRefused
from cuelight.redis._actors._frames import FORMAT
from cuelight.redis._client import Argument, Script, Server, read_reply

_PACKAGE: Final = "cuelight.redis._actors"
_JOIN: Final = Script.load(_PACKAGE, "join.lua")
_HEARTBEAT: Final = Script.load(_PACKAGE, "heartbeat.lua")
_REMOVE_NODE: Final = Script.load(_PACKAGE, "remove_node.lua")
_SEND: Final = Script.load(_PACKAGE, "send.lua")
_RECEIVE: Final = Script.load(_PACKAGE, "receive.lua")
_REGISTER_NAME: Final = Script.load(_PACKAGE, "register_name.lua")
_RESOLVE: Final = Script.load(_PACKAGE, "resolve.lua")

T = TypeVar("T")

ENTRIES_AT_ONCE: Final = 16

LARGEST: Final = (1 << 63) - 1
"""The greatest serial that fits into a frame."""

LONGEST: Final = 1000
"""Maximum characters shown of an entry that was not written by a node."""


class HeartbeatResult(NamedTuple):
    """The result of a beat.

    Attributes:
        member: whether this node is still a member.
        gone: the other nodes of the request that are no longer members.
        expired: members whose lease has expired.
        soonest: seconds until the next lease expires; None if there is no other member.
    """

    member: bool
    gone: list[str]
    expired: list[str]
    soonest: float | None


class InboxEntry(NamedTuple):
    """A received batch.

    Attributes:
        id: the ID of its entry in the stream.
        sender: the identity of the sending node.
        total: the bytes received so far, including this batch.
        format: the format of its payload.
        payload: the encoded frames.
        number: the number of the batch among those of its sender; 0 if it has none.
    """

    id: str
    sender: str
    total: int
    format: str
    payload: bytes
    number: int = 0


class Directory:
    """The operations of one node on the keys of its cluster. All keys are in one slot."""

    def __init__(self, server: Server, cluster: str, identity: str, *, lease: float, inbox: int, publish: str) -> None:
        self.server, self.cluster, self.identity = server, cluster, identity
        tag = "{cuelight:nodes:" + cluster + "}"
        self._format, self._members, self._names = f"{tag}:format", f"{tag}:members", f"{tag}:names"
        self._tag, self._inbox, self._publish = tag, inbox, publish
        self._lease = round(lease * 1000)
        self._ttl = max(60_000, 10 * self._lease)
        self.channel = self._channel(identity)

    def _node(self, identity: str) -> bytes:
        return _bytes(f"{self._tag}:node:{identity}")

    def _stream(self, identity: str) -> bytes:
        return _bytes(f"{self._tag}:inbox:{identity}")

    def _lost(self, identity: str) -> bytes:
        return _bytes(f"{self._tag}:lost:{identity}")

    def _channel(self, identity: str) -> str:
        return f"{self._tag}:wake:{identity}"

    def _read(self, asked: str, read: Callable[[Any], T], reply: Any) -> T:
        return read_reply(self.server.name, f"{asked} of the cluster {self.cluster!r}", read, reply)

    async def join(self, about: str, endpoint: bytes) -> None:
        """Enter the cluster.

        Args:
            about: a description of this node for people.
            endpoint: the endpoint for direct connections; empty if there is none.

        Raises:
            StoreRefused: a version of this library with another layout of keys created the cluster.
        """
        keys = (self._format, self._members, self._node(self.identity))
        reply = await self.server.run(_JOIN, keys, (self.identity, self._lease, self._ttl, FORMAT, about, endpoint))
        said, found = self._read("join", _said, reply)
        if said != "ok":
            raise StoreRefused(
                f"the cluster {self.cluster!r} in {self.server.name} has format {found}, this version speaks "
                f"{FORMAT}: run one version, or give the cluster another name"
            )

    async def endpoint_of(self, identity: str) -> bytes | None:
        """Return the endpoint that a node has published for direct connections; None if there is none."""
        reply = await self.server.execute("HGET", self._node(identity), "endpoint")
        return self._read(f"the endpoint of {identity}", bytes, reply) if reply else None

    def heartbeat(self, others: Sequence[str]) -> HeartbeatResult:
        """Renew the lease. Blocks."""
        keys = (
            self._format,
            self._members,
            self._names,
            self._node(self.identity),
            self._stream(self.identity),
        )
        args: tuple[Argument, ...] = (self.identity, self._lease, self._ttl, *map(_bytes, others))
        return self._read("beat", _beat, self.server.run_blocking(_HEARTBEAT, keys, args))

    def _removal(self, identity: str, *, force: bool) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
        keys: tuple[Argument, ...] = (self._format, self._members, self._names)
        own = (self._node(identity), self._stream(identity), self._lost(identity))
        return keys + own, (_bytes(identity), int(force), self._ttl)

    def remove_expired(self, identity: str) -> bool:
        """End the membership of a node whose lease has expired. Returns whether it is no longer a member. Blocks."""
        return bool(self.server.run_blocking(_REMOVE_NODE, *self._removal(identity, force=False)))

    async def leave(self, others: Sequence[str] = ()) -> None:
        """End this node's membership, and delete the records of which of its batches the nodes in `others` had read."""
        keys, args = self._removal(self.identity, force=True)
        await self.server.run(_REMOVE_NODE, (*keys, *map(self._lost, others)), args)

    async def read_of(self, identity: str) -> int:
        """Return the number of this node's last batch that a node had read before it was lost.

        The server records this for every member that had sent something, and keeps it for longer than a node can be a
        member without learning of the loss. So a missing record means that no batch of this node ever arrived there.
        """
        reply = await self.server.execute("HGET", self._lost(identity), self.identity)
        return self._read(f"what {identity} had read", int, reply or 0)

    async def forget(self, identity: str) -> None:
        """Delete the record for `read_of` once it is known."""
        await self.server.execute("HDEL", self._lost(identity), self.identity)

    async def send(self, target: str, number: int, payload: bytes) -> str:
        """Put a batch into an inbox. Returns `ok`, `full`, `gone` or `expelled`."""
        keys = (self._members, self._node(target), self._stream(target))
        args = (self.identity, _bytes(target), number, FORMAT, payload, self._inbox, self._ttl)
        reply = await self.server.run(_SEND, keys, (*args, self._publish, self._channel(target)))
        return self._read("send", _sent, reply)

    async def receive(self, last: str, total: int) -> list[InboxEntry] | None:
        """Return the entries after `last`, which is processed; None if this node is no longer a member."""
        keys = (self._members, self._node(self.identity), self._stream(self.identity))
        args = (self.identity, last, _after(last), total, ENTRIES_AT_ONCE)
        reply = await self.server.run(_RECEIVE, keys, args)
        return None if reply == 0 else self._read("receive", lambda it: [_entry(one) for one in it], reply)

    async def expose(self, name: str, serial: int, path: str, *, give: bool = True) -> str | None:
        """Register or remove a name. Returns its owner if the name is taken, else None.

        Raises:
            LookupError: this node is no longer a member.
        """
        keys = (self._members, self._names, self._node(self.identity))
        value = f"{self.identity} {serial} {path}"
        reply = await self.server.run(_REGISTER_NAME, keys, (self.identity, name, value, self._ttl, int(give)))
        said, owner = self._read("expose", _said, reply)
        if said == "expelled":
            raise LookupError(self.identity)
        return None if said == "ok" else owner

    async def resolve(self, name: str, limit: float) -> tuple[tuple[str, int, str] | None, list[str]]:
        """Return the address of a name; or None, and the names that exist."""
        keys = (self._members, self._names)
        reply = await self.server.run(_RESOLVE, keys, (name,), timeout=limit)
        return self._read(f"resolve {safe_repr(name)}", _resolved, reply)


def _beat(reply: Any) -> HeartbeatResult:
    if not reply[0]:
        return HeartbeatResult(False, [], [], None)
    _, gone, expired, soonest = reply
    return HeartbeatResult(True, _texts(gone), _texts(expired), None if int(soonest) < 0 else int(soonest) / 1000)


def _said(reply: Any) -> tuple[str, str]:
    """Return the first word and the rest."""
    return _text(reply[0]), " ".join(_texts(reply[1:]))


def _sent(reply: Any) -> str:
    said = _text(reply)
    if said not in {"ok", "full", "gone", "expelled"}:
        raise ValueError(said)
    return said


def _resolved(reply: Any) -> tuple[tuple[str, int, str] | None, list[str]]:
    return (_address(reply[0]), []) if reply[0] else (None, _texts(reply[1]))


def _address(value: Any) -> tuple[str, int, str]:
    identity, serial, path = bytes(value).decode().split(" ", 2)
    if not (identity and path and 0 < int(serial) <= LARGEST):
        raise ValueError(f"{serial} is the serial of no actor")
    return identity, int(serial), path


def _after(last: str) -> str:
    time, _, sequence = last.partition("-")
    return f"{time}-{int(sequence) + 1}"


def _entry(raw: Any) -> InboxEntry:
    identity, fields = _text(raw[0]), raw[1]
    if not re.fullmatch(r"\d{1,20}-\d{1,20}", identity):
        raise ValueError(f"{identity} is the name of no entry")
    try:
        _, sender, _, number, _, total, _, form, _, payload = fields
        return InboxEntry(identity, bytes(sender).decode(), int(total), _text(form), payload, _number(number))
    except (TypeError, ValueError):  # not written by a node
        return InboxEntry(identity, "nobody", 0, "none", safe_repr(fields, LONGEST).encode())


def _number(value: Any) -> int:
    """Return the number of a batch; 0 if the value is not a number."""
    try:
        return int(value)
    except ValueError:
        return 0


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    """Decode a string. Bytes that are not UTF-8 are kept, so that `_bytes` restores them."""
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
