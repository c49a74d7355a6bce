"""The slots of a cluster, without I/O: the slot of a command, and the server of a slot."""

# redis-py's exceptions and its table of slots are not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from cuelight.redis._client._faults import read_reply
from cuelight.redis._client._settings import Address, place

_EVERYWHERE: Final = frozenset({"FLUSHALL", "FLUSHDB", "SCRIPT FLUSH", "SCRIPT LOAD"})

_COUNTED: Final[Mapping[str, int]] = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "BLMPOP", "BZMPOP"), 2),
    **dict.fromkeys(("LMPOP", "SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZMPOP", "ZUNION"), 1),
}
"""The positions at which commands state the number of keys that follow."""


def concerns_all(command: Sequence[Any]) -> bool:
    """Return whether a command is for all primaries. Its name may be one word or two."""
    words = _text(command[0]).upper().split()
    if words == ["SCRIPT"] and len(command) > 1:
        words.append(_text(command[1]).upper())
    return " ".join(words) in _EVERYWHERE


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
        place = _COUNTED.get(name)
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
    return read_reply(place(asked), "CLUSTER SLOTS", lambda it: SlotMap(it, asked), reply)


def keys_of(reply: Any, asked: Address) -> KeyTable:
    """Read the reply to COMMAND.

    Raises:
        StoreRefused: the reply is malformed.
    """
    return read_reply(place(asked), "COMMAND", KeyTable, reply)


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
