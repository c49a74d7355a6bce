"""A cluster in one event loop: sends commands to the servers of their slots, and reloads slots that have moved.

The invariants:

1. A command is sent a second time only if the first server said that it did nothing (MOVED, ASK).
2. When a server replies MOVED or cannot be reached, the slots are reloaded before the next command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight.mailbox import TaskGroup
from cuelight.redis._client._node import Node
from cuelight.redis._client._push import PushLine
from cuelight.redis._client._route import Route
from cuelight.redis._client._settings import Address, Settings, place
from cuelight.redis._client._slots import KeyTable, SlotMap, concerns_all, keys_of, redirection, slot_of_key, slots_of

_HOPS: Final = 5
_LOST: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ClusterDownError)


class ClusterRoute(Route):
    def __init__(self, settings: Settings, on_end: Callable[[Any], object]) -> None:
        super().__init__(settings, on_end)
        self._nodes: dict[Address, Node] = {}
        self._lines: dict[Address, PushLine] = {}
        self._map = SlotMap((), "")
        self._keys: KeyTable | None = None
        self._lock = anyio.Lock()
        self._stale = True
        self._sharded = False

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:

            async def here() -> Address:
                return address

            node = self._nodes[address] = Node(self._settings, self.wires, here)
        return node

    async def _known(self) -> tuple[SlotMap, KeyTable]:
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
        said: list[str] = []
        for address in dict.fromkeys((*self._map.primaries, *self._settings.addresses)):
            node = self._node(address)
            replies: list[Any] = []
            try:
                # The key positions of commands do not change: COMMAND is sent only once.
                for command in (("CLUSTER", "SLOTS"), ("COMMAND",))[: 1 if self._keys else 2]:
                    reply = await node.call(command)
                    if isinstance(reply, Exception):
                        raise reply
                    replies.append(reply)
            except redis_errors.AuthenticationError:
                raise
            except _LOST as error:
                said.append(f"{place(address)}: {error}")
                continue
            if replies[0]:
                self._sharded = node.version >= (7, 0)
                return slots_of(replies[0], address), self._keys or keys_of(replies[1], address)
            said.append(f"{place(address)}: it knows no slots yet")
        raise redis_errors.ConnectionError(f"no server of the cluster knows its slots: {'; '.join(said)}")

    async def _owner(self, slot: int | None) -> Address:
        owner = (await self._known())[0].owner(slot)
        if owner is None:
            self._stale = True
            raise redis_errors.ClusterDownError(f"nobody has slot {slot}", status_code="CLUSTERDOWN")
        return owner

    async def call(self, command: Sequence[Any]) -> Any:
        """Send one command to the server of its slot and follow redirections."""
        if concerns_all(command):
            return await self._call_everywhere(command)
        slot = (await self._known())[1].slot_of(command)
        address = await self._owner(slot)
        reply: Any = None
        for _ in range(_HOPS):
            reply = await self._call_at(address, command)
            if isinstance(reply, redis_errors.MovedError):
                address = self._moved(reply, address)
            elif isinstance(reply, redis_errors.AskError):
                there = redirection(reply, address)
                reply = (await self._node(there).call_block([("ASKING",), command]))[1]
                if not isinstance(reply, redis_errors.MovedError):
                    break
                address = self._moved(reply, there)
            else:
                break
        return reply

    async def _call_at(self, address: Address, command: Sequence[Any]) -> Any:
        try:
            reply = await self._node(address).call(command)
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
        for address in (await self._known())[0].primaries:
            reply = await self._call_at(address, command)
            if isinstance(reply, Exception):
                break
        return reply

    async def call_block(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write to the server of their slot. Without MULTI they may belong to several slots."""
        table = (await self._known())[1]
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
            replies = await self._node(address).call_block(commands)
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
                received = await self.call_block([commands[one] for one in part])
            except redis_errors.RedisError as error:
                received = [error] * len(part)
            for one, reply in zip(part, received, strict=True):
                replies[one] = reply

        async with TaskGroup() as group:
            for part in parts.values():
                group.start_soon(send, part)
        return replies

    async def node_of(self, command: Sequence[Any]) -> Node:
        """The server of a command's slot."""
        return self._node(await self._owner((await self._known())[1].slot_of(command)))

    async def line_of(self, channel: str) -> PushLine:
        """The connection to the server of a channel's slot."""
        return self._line(await self._owner(slot_of_key(channel)))

    def _line(self, address: Address) -> PushLine:
        line = self._lines.get(address)
        if line is None:
            node = self._node(address)
            line = self._lines[address] = self.keep(
                PushLine(lambda on_push: node.open(on_push=on_push), sharded=True, on_loss=self._hand_over)
            )
        return line

    async def _hand_over(self, line: PushLine) -> None:
        """Before `line` connects, move the channels that belong to other servers now."""
        self._stale = True
        await self._known()
        for name, topic in list(line.topics.items()):
            there = self._line(await self._owner(slot_of_key(name)))
            if there is not line:
                del line.topics[name]
                there.adopt(topic)

    async def publish_with(self) -> str:
        """Return SPUBLISH if the servers support it."""
        await self._known()
        return "SPUBLISH" if self._sharded else "PUBLISH"
