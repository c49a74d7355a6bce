"""Clusters without any input or output: which slot a command belongs to, and which server a slot."""

# redis-py's exceptions and its table of slots are not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from cuelight.redis._client._faults import read_reply
from cuelight.redis._client._settings import Address, place

__all__ = ["KeyTable", "SlotMap", "concerns_all", "keys_of", "redirection", "slot_of_key", "slots_of"]

_EVERYWHERE: Final = frozenset({"FLUSHALL", "FLUSHDB", "SCRIPT FLUSH", "SCRIPT LOAD"})

_COUNTED: Final[Mapping[str, int]] = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "BLMPOP", "BZMPOP"), 2),
    **dict.fromkeys(("LMPOP", "SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZMPOP", "ZUNION"), 1),
}
"""Where commands say how many keys follow."""


def concerns_all(command: Sequence[Any]) -> bool:
    """Whether a command is for all primaries; its name may be in one word or in two."""
    words = _text(command[0]).upper().split()
    if words == ["SCRIPT"] and len(command) > 1:
        words.append(_text(command[1]).upper())
    return " ".join(words) in _EVERYWHERE


def slot_of_key(key: Any) -> int:
    """The slot of a key, by its hash tag if it has one."""
    data: bytes = key if isinstance(key, bytes) else str(key).encode()
    slot: int = key_slot(data)
    return slot


class KeyTable:
    """Where commands have their first key; that tells the slot, and the server sees to it that all are in one."""

    def __init__(self, reply: Sequence[Any]) -> None:
        """Read it from a server.

        Args:
            reply: to COMMAND.
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
        """The slot of a command; None if it has no key."""
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
    """Which server has which slot."""

    def __init__(self, reply: Sequence[Any], asked: Address) -> None:
        """Read it from a server.

        Args:
            reply: to CLUSTER SLOTS.
            asked: who replied, since servers that do not know their own address leave it out.
        """
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in reply:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError(f"slots {first} to {last}")
            owner = _address(primary[0], primary[1], asked)
            self._owners[first : last + 1] = [owner] * (last + 1 - first)
        self.primaries: tuple[Address, ...] = tuple(dict.fromkeys(one for one in self._owners if one is not None))

    def owner(self, slot: int | None) -> Address | None:
        """Who has a slot; for None anyone. None if nobody has it."""
        return self.primaries[0] if slot is None else self._owners[slot]


def slots_of(reply: Any, asked: Address) -> SlotMap:
    """What a server says to CLUSTER SLOTS.

    Raises:
        StoreRefused: it makes no sense.
    """
    return read_reply(place(asked), "CLUSTER SLOTS", lambda it: SlotMap(it, asked), reply)


def keys_of(reply: Any, asked: Address) -> KeyTable:
    """What a server says to COMMAND.

    Raises:
        StoreRefused: it makes no sense.
    """
    return read_reply(place(asked), "COMMAND", KeyTable, reply)


def redirection(error: Any, asked: Address) -> Address:
    """Where to go after MOVED or ASK.

    Args:
        error: the reply, as redis-py takes it apart.
        asked: who replied.
    """
    return _address(error.host, error.port, asked)


def _address(host: Any, port: Any, asked: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    if not name or name == "?":
        name = asked[0] if not isinstance(asked, str) else "localhost"
    return str(name), int(port)


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
