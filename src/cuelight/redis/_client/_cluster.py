"""A cluster in one event loop: sends commands to the servers of their slots, and reloads slots that have moved.

The invariants:

1. A command is sent a second time only if the first server said that it did nothing (MOVED, ASK).
2. When a server replies MOVED or cannot be reached, the slots are reloaded before the next command.
"""

# redis-py's exceptions and its table of slots are not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from cuelight.mailbox import TaskGroup
from cuelight.redis._client._errors import read_reply
from cuelight.redis._client._pubsub import PubSubConnection
from cuelight.redis._client._server_connections import ServerConnections
from cuelight.redis._client._settings import Address, Settings, format_address
from cuelight.redis._client._topology import Topology

# The slots of a cluster, without I/O: the slot of a command, and the server of a slot.


FOR_ALL_PRIMARIES: Final = frozenset({"FLUSHALL", "FLUSHDB", "SCRIPT FLUSH", "SCRIPT LOAD"})

KEY_COUNT_POSITIONS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "BLMPOP", "BZMPOP"), 2),
    **dict.fromkeys(("LMPOP", "SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZMPOP", "ZUNION"), 1),
}
"""The positions at which commands state the number of keys that follow."""


def is_for_all_primaries(command: Sequence[Any]) -> bool:
    """Return whether a command is for all primaries. Its name may be one word or two."""
    words = _text(command[0]).upper().split()
    if words == ["SCRIPT"] and len(command) > 1:
        words.append(_text(command[1]).upper())
    return " ".join(words) in FOR_ALL_PRIMARIES


def slot_of_key(key: Any) -> int:
    """Return the slot of a key, by its hash tag if it has one."""
    data: bytes = key if isinstance(key, bytes) else str(key).encode()
    slot: int = key_slot(data)
    return slot


class KeyTable:
    """The position of each command's first key. It determines the slot; the server checks that all keys are in it."""

    def __init__(self, reply: Sequence[Any]) -> None:
        """Read the positions from a server's reply.

        Args:
            reply: the reply to COMMAND.
        """
        self._first: dict[str, int] = {}
        for entry in reply:
            self._add(entry)
            for inner in entry[9] if len(entry) > 9 else ():  # since Redis 7
                self._add(inner)

    def _add(self, entry: Sequence[Any]) -> None:
        name = entry[0].decode().upper().replace("|", " ")
        self._first[name] = int(entry[3])

    def slot_of(self, command: Sequence[Any]) -> int | None:
        """Return the slot of a command; None if it has no key."""
        words = [*_text(command[0]).split(), *command[1:]]
        name = words[0].upper()
        place = KEY_COUNT_POSITIONS.get(name)
        if place is not None:
            place = place + 1 if len(words) > place + 1 and int(words[place]) else 0
        elif name in {"XREAD", "XREADGROUP"}:
            place = next((n + 1 for n, word in enumerate(words) if _text(word).upper() == "STREAMS"), 0)
        else:
            inner = f"{name} {_text(words[1]).upper()}" if len(words) > 1 else name
            place = self._first.get(inner, self._first.get(name, 0))
        return slot_of_key(words[place]) if 0 < place < len(words) else None


class SlotMap:
    """The server of each slot."""

    def __init__(self, reply: Sequence[Any], asked: Address) -> None:
        """Read the servers from a reply.

        Args:
            reply: the reply to CLUSTER SLOTS.
            asked: the address of the server that replied; servers that do not know their own address leave it out.
        """
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in reply:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError(f"slots {first} to {last}")
            owner = _address(primary[0], primary[1], asked)
            self._owners[first : last + 1] = [owner] * (last + 1 - first)
        self.primaries: tuple[Address, ...] = tuple(dict.fromkeys(one for one in self._owners if one is not None))

    def owner(self, slot: int | None) -> Address | None:
        """Return the server of a slot, or any server for None. Returns None if no server has the slot."""
        return self.primaries[0] if slot is None else self._owners[slot]


def slots_of(reply: Any, asked: Address) -> SlotMap:
    """Read the reply to CLUSTER SLOTS.

    Raises:
        StoreRefused: the reply is malformed.
    """
    return read_reply(format_address(asked), "CLUSTER SLOTS", lambda it: SlotMap(it, asked), reply)


def keys_of(reply: Any, asked: Address) -> KeyTable:
    """Read the reply to COMMAND.

    Raises:
        StoreRefused: the reply is malformed.
    """
    return read_reply(format_address(asked), "COMMAND", KeyTable, reply)


def redirection(error: Any, asked: Address) -> Address:
    """Return the address in a MOVED or ASK reply.

    Args:
        error: the reply, as parsed by redis-py.
        asked: the address of the server that replied.
    """
    return _address(error.host, error.port, asked)


def _address(host: Any, port: Any, asked: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    if not name or name == "?":
        name = asked[0] if not isinstance(asked, str) else "localhost"
    return str(name), int(port)


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)


_HOPS: Final = 5
_LOST: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ClusterDownError)


class Cluster(Topology):
    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self._servers: dict[Address, ServerConnections] = {}
        self._pubsubs: dict[Address, PubSubConnection] = {}
        self._map = SlotMap((), "")
        self._keys: KeyTable | None = None
        self._lock = anyio.Lock()
        self._stale = True
        self._sharded = False

    def _server_connections(self, address: Address) -> ServerConnections:
        server_connections = self._servers.get(address)
        if server_connections is None:

            async def here() -> Address:
                return address

            server_connections = self._servers[address] = ServerConnections(self._settings, self.connections, here)
        return server_connections

    async def _load_slots(self) -> tuple[SlotMap, KeyTable]:
        """Return the slots. Reload them first if they may have changed."""
        if self._stale or self._keys is None:
            async with self._lock:
                if self._keys is not None and not self._stale:
                    return self._map, self._keys  # another task reloaded them meanwhile
                self._map, self._keys = await self._ask()
                self._stale = False
                return self._map, self._keys
        return self._map, self._keys

    async def _ask(self) -> tuple[SlotMap, KeyTable]:
        answers: list[str] = []
        for address in dict.fromkeys((*self._map.primaries, *self._settings.addresses)):
            server_connections = self._server_connections(address)
            replies: list[Any] = []
            try:
                # The key positions of commands do not change: COMMAND is sent only once.
                for command in (("CLUSTER", "SLOTS"), ("COMMAND",))[: 1 if self._keys else 2]:
                    reply = await server_connections.call(command)
                    if isinstance(reply, Exception):
                        raise reply
                    replies.append(reply)
            except redis_errors.AuthenticationError:
                raise
            except _LOST as error:
                answers.append(f"{format_address(address)}: {error}")
                continue
            if replies[0]:
                self._sharded = server_connections.version >= (7, 0)
                return slots_of(replies[0], address), self._keys or keys_of(replies[1], address)
            answers.append(f"{format_address(address)}: it knows no slots yet")
        raise redis_errors.ConnectionError(f"no server of the cluster knows its slots: {'; '.join(answers)}")

    async def _owner(self, slot: int | None) -> Address:
        owner = (await self._load_slots())[0].owner(slot)
        if owner is None:
            self._stale = True
            raise redis_errors.ClusterDownError(f"nobody has slot {slot}", status_code="CLUSTERDOWN")
        return owner

    async def call(self, command: Sequence[Any]) -> Any:
        """Send one command to the server of its slot and follow redirections."""
        if is_for_all_primaries(command):
            return await self._call_everywhere(command)
        slot = (await self._load_slots())[1].slot_of(command)
        address = await self._owner(slot)
        reply: Any = None
        for _ in range(_HOPS):
            reply = await self._call_at(address, command)
            if isinstance(reply, redis_errors.MovedError):
                address = self._moved(reply, address)
            elif isinstance(reply, redis_errors.AskError):
                there = redirection(reply, address)
                reply = (await self._server_connections(there).call_many([("ASKING",), command]))[1]
                if not isinstance(reply, redis_errors.MovedError):
                    break
                address = self._moved(reply, there)
            else:
                break
        return reply

    async def _call_at(self, address: Address, command: Sequence[Any]) -> Any:
        try:
            reply = await self._server_connections(address).call(command)
        except _LOST:
            self._stale = True
            raise
        if isinstance(reply, _LOST):
            self._stale = True
        return reply

    def _moved(self, error: redis_errors.MovedError, asked: Address) -> Address:
        self._stale = True
        return redirection(error, asked)

    async def _call_everywhere(self, command: Sequence[Any]) -> Any:
        reply: Any = None
        for address in (await self._load_slots())[0].primaries:
            reply = await self._call_at(address, command)
            if isinstance(reply, Exception):
                break
        return reply

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write to the server of their slot. Without MULTI they may belong to several slots."""
        table = (await self._load_slots())[1]
        slots = {slot for command in commands if (slot := table.slot_of(command)) is not None}
        atomic = commands[0][0] == "MULTI"
        if len(slots) > 1:
            if atomic:
                raise redis_errors.ClusterCrossSlotError(
                    "the keys of a transaction are in several slots", status_code="CROSSSLOT"
                )
            return await self._call_by_slot(commands, table)
        slot = next(iter(slots), None)
        address, first = await self._owner(slot), list[Sequence[Any]]()
        replies: list[Any] = []
        for _ in range(_HOPS):
            replies = (await self._block_at(address, [*first, *commands]))[len(first) :]
            elsewhere = next((reply for reply in replies if isinstance(reply, redis_errors.AskError)), None)
            if elsewhere is None:
                break
            if isinstance(elsewhere, redis_errors.MovedError):  # a subclass of AskError
                address, first = self._moved(elsewhere, address), []
            else:
                address, first = redirection(elsewhere, address), [("ASKING",)]
            if not atomic:
                # Only commands that did nothing are sent again.
                return [
                    await self.call(command) if isinstance(reply, redis_errors.AskError) else reply
                    for command, reply in zip(commands, replies, strict=True)
                ]
        return replies

    async def _block_at(self, address: Address, commands: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            replies = await self._server_connections(address).call_many(commands)
        except _LOST:
            self._stale = True
            raise
        if any(isinstance(reply, _LOST) for reply in replies):
            self._stale = True
        return replies

    async def _call_by_slot(self, commands: Sequence[Sequence[Any]], table: KeyTable) -> list[Any]:
        """Send the commands of each slot in one write, so that they keep their order. Slots are served concurrently."""
        replies: list[Any] = [None] * len(commands)
        parts: dict[int | None, list[int]] = {}
        for number, command in enumerate(commands):
            parts.setdefault(table.slot_of(command), []).append(number)

        async def send(part: list[int]) -> None:
            try:
                received = await self.call_many([commands[one] for one in part])
            except redis_errors.RedisError as error:
                received = [error] * len(part)
            for one, reply in zip(part, received, strict=True):
                replies[one] = reply

        async with TaskGroup() as group:
            for part in parts.values():
                group.start_soon(send, part)
        return replies

    async def server_of(self, command: Sequence[Any]) -> ServerConnections:
        """The server of a command's slot."""
        return self._server_connections(await self._owner((await self._load_slots())[1].slot_of(command)))

    async def pubsub_of(self, channel: str) -> PubSubConnection:
        """The connection to the server of a channel's slot."""
        return self._pubsub(await self._owner(slot_of_key(channel)))

    def _pubsub(self, address: Address) -> PubSubConnection:
        pubsub = self._pubsubs.get(address)
        if pubsub is None:
            server_connections = self._server_connections(address)
            pubsub = self._pubsubs[address] = self.start_pubsub(
                PubSubConnection(
                    lambda on_push: server_connections.open(on_push=on_push), sharded=True, on_loss=self._move_channels
                )
            )
        return pubsub

    async def _move_channels(self, pubsub: PubSubConnection) -> None:
        """Before `pubsub` connects, move the channels that belong to other servers now."""
        self._stale = True
        await self._load_slots()
        for name, pubsub_channel in list(pubsub.channels.items()):
            there = self._pubsub(await self._owner(slot_of_key(name)))
            if there is not pubsub:
                del pubsub.channels[name]
                there.adopt(pubsub_channel)

    async def publish_with(self) -> str:
        """Return SPUBLISH if the servers support it."""
        await self._load_slots()
        return "SPUBLISH" if self._sharded else "PUBLISH"
