"""The scripts of the task store, and how one is called: what goes to the server, and what comes back."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from cuelight._text import safe_str
from cuelight.errors import StoreRefused
from cuelight.redis._client import Script
from cuelight.redis._tasks._cards import tag_of
from cuelight.tasks._checks import queue_closed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cuelight.redis._client import Argument, Server

__all__ = [
    "ADD",
    "ARM",
    "ASK",
    "BEAT",
    "CHANGE",
    "EXCHANGE",
    "Call",
    "Reply",
    "arguments_of",
    "channel_of",
    "check_keys",
    "keys_of",
    "reply_of",
    "script_of",
]

_PRELUDE: Final = ("book.lua", "rows.lua", "tenants.lua", "lanes.lua", "tasks.lua")
_END: Final = ("damage.lua", "reply.lua")


_CONSTANTS: Final = re.compile(
    r"^ *local ([A-Z_]+(?:, [A-Z_]+)*) = ([\w/\[\]-]+(?:, [\w/\[\]-]+)*)(?: +--.*)?\n", re.MULTILINE
)


def inlined(text: str) -> str:
    """A script with its constants in place of their names.

    Lua makes its functions anew in each call, and looks for each local that one of them uses in the list of those that
    are used so far: with its constants as locals a script took 50 us for nothing, without them 30.
    """
    values: dict[str, str] = {}

    def take(found: re.Match[str]) -> str:
        values.update(zip(found[1].split(", "), found[2].split(", "), strict=True))
        return ""

    text = _CONSTANTS.sub(take, text)
    return re.sub(r"'[^'\n]*'|--.*|\b[A-Z_]+\b", lambda found: values.get(found[0], found[0]), text)


def script_of(name: str, *before: str) -> Script:
    """Read a script from its files.

    Args:
        name: of the file that is its own.
        before: files that come before the general form.
    """
    parts = (*before, *_PRELUDE, name, *_END)
    text = "\n".join(files("cuelight.redis._tasks").joinpath(part).read_text("utf-8") for part in parts)
    return Script(inlined(text), name.removesuffix(".lua"))


ADD: Final = script_of("add.lua", "add_at_once.lua")
ARM: Final = script_of("arm.lua")
ASK: Final = script_of("ask.lua")
BEAT: Final = script_of("beat.lua")
CHANGE: Final = script_of("change.lua")
EXCHANGE: Final = script_of("exchange.lua")

_TYPES: Final = Script(
    "local types = {} for index, key in ipairs(KEYS) do types[index] = redis.call('TYPE', key).ok end return types",
    "types",
)

_KINDS: Final = {
    **dict.fromkeys(("meta", "rows", "blobs", "side", "schedules"), "hash"),
    **dict.fromkeys(("ready", "delayed", "leases", "parked", "dead", "completed", "cancelled"), "zset"),
    **dict.fromkeys(("sequences", "deadlines", "waits", "turns", "gates", "ends", "tenants"), "zset"),
}
"""The keys in the order of `book.lua`, and of which type each is."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[float, int, int, Any]).decode


class Call(NamedTuple):
    """One step on its way to the server."""

    script: Script
    asked: Any
    blobs: Sequence[bytes] = ()


class Reply(NamedTuple):
    """What the server answered.

    Attributes:
        now: its time, in seconds since the epoch.
        version: how often anything has changed.
        stirred: how often something may have become claimable.
        answer: of the step.
        parts: what is bytes in it.
    """

    now: float
    version: int
    stirred: int
    answer: Any
    parts: Sequence[bytes]


def keys_of(prefix: str, queue: str) -> list[str]:
    """All keys of a queue."""
    tag = tag_of(prefix, queue)
    return [f"{tag}:tasks:{name}" for name in _KINDS]


def channel_of(prefix: str, queue: str) -> str:
    """Where those who wait are told that something has changed."""
    return f"{tag_of(prefix, queue)}:tasks:hints"


def arguments_of(call: Call, now: str, channel: str, publish: str) -> list[Argument]:
    """What is sent for a call.

    Raises:
        ValueError: a text in it is no Unicode, or a number is too large.
    """
    try:
        asked = _encode(call.asked)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"the arguments of {call.script.name!r} cannot be sent: {error}") from error
    return [now, channel, publish, asked, *call.blobs]


def reply_of(raw: list[bytes], server: str, meta: str) -> Reply:
    """What came back.

    Raises:
        StoreRefused: another version has written there, a part of the queue is gone, or the answer cannot be read.
        PoolClosed: the queue takes no tasks.
    """
    try:
        return _reply_of(raw, server, meta)
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise StoreRefused(f"{server}: its answer about {meta} cannot be read: {safe_str(error)}") from error


def _reply_of(raw: list[bytes], server: str, meta: str) -> Reply:
    status = raw[0]
    if status == b"closed":
        raise queue_closed()
    if status == b"future":
        raise StoreRefused(
            f"{server}: {meta} has format {raw[1].decode()}, which is that of a newer version of Cuelight: "
            "update this one"
        )
    if status == b"broken":
        raise StoreRefused(
            f"{server}: {meta} is gone and tasks are there: the server has evicted it "
            "(set maxmemory-policy noeviction), or somebody has deleted it"
        )
    if status == b"damaged":
        raise StoreRefused(
            f"{server}: the field {raw[1].decode()!r} of {meta} is damaged, no queue has written that: set it to what "
            "it was, or delete the field"
        )
    now, version, stirred, answer = _decode(raw[1])
    return Reply(now, version, stirred, answer, raw[2:])


async def check_keys(server: Server, keys: Sequence[Argument]) -> None:
    """Look whether the keys are ours. A checkpoint.

    Raises:
        StoreRefused: one is of another type.
    """
    for key, kind, there in zip(keys, _KINDS.values(), await server.run(_TYPES, keys), strict=True):
        found = there.decode()
        if found not in ("none", kind):
            raise StoreRefused(
                f"{server.name}: {key!s} is of type {found}, not {kind}: it belongs to something else; "
                "give RedisStore another prefix, or delete that key"
            )
