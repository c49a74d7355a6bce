"""The scripts of the task store, their calls and their replies."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from cuelight._text import safe_str
from cuelight.errors import StoreRefused
from cuelight.redis._client import Script
from cuelight.redis._tasks._encoding import tag_of
from cuelight.tasks._stores._checks import queue_closed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cuelight.redis._client import Argument, Server

_PRELUDE: Final = ("keys.lua", "rows.lua", "fair_queue.lua", "limits.lua", "tasks.lua")
_END: Final = ("damage.lua", "commit.lua")


_CONSTANTS: Final = re.compile(
    r"^ *local ([A-Z_]+(?:, [A-Z_]+)*) = ([\w/\[\]-]+(?:, [\w/\[\]-]+)*)(?: +--.*)?\n", re.MULTILINE
)


def inlined(text: str) -> str:
    """Return a script with its constants in place of their names.

    Lua creates the functions of a script anew in each call, and looks up each local that one of them uses in the list
    of those used so far. With the constants as locals, this took 50 us for each call; without them it takes 30 us.
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
        name: the name of the script's own file.
        before: files that come before the general form.
    """
    parts = (*before, *_PRELUDE, name, *_END)
    text = "\n".join(files("cuelight.redis._tasks").joinpath(part).read_text("utf-8") for part in parts)
    return Script(inlined(text), name.removesuffix(".lua"))


ADD: Final = script_of("add.lua", "hand_over.lua", "add_at_once.lua")
SUBSCRIBE: Final = script_of("subscribe.lua")
QUERY: Final = script_of("query.lua")
RENEW: Final = script_of("renew.lua")
CHANGE: Final = script_of("change.lua")
EXCHANGE: Final = script_of("exchange.lua")

_TYPES: Final = Script(
    "local types = {} for index, key in ipairs(KEYS) do types[index] = redis.call('TYPE', key).ok end return types",
    "types",
)

_KINDS: Final = {
    **dict.fromkeys(("meta", "rows", "blobs", "side", "schedules"), "hash"),
    **dict.fromkeys(("ready", "delayed", "leases", "parked", "dead", "completed", "cancelled"), "zset"),
    **dict.fromkeys(("sequences", "deadlines", "waits", "turns", "gates", "ends", "tenants", "idle"), "zset"),
}
"""The keys in the order of `keys.lua`, and the type of each."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[float, int, int, Any]).decode


class ScriptCall(NamedTuple):
    """A step that is sent to the server."""

    script: Script
    asked: Any
    blobs: Sequence[bytes] = ()


class ScriptReply(NamedTuple):
    """The reply of the server to a step.

    Attributes:
        now: the server's time, in seconds since the epoch.
        version: the number of changes so far.
        claimable_version: the number of changes that may have made a task claimable.
        answer: the answer of the step.
        parts: the parts of the answer that are bytes.
    """

    now: float
    version: int
    claimable_version: int
    answer: Any
    parts: Sequence[bytes]


def keys_of(prefix: str, queue: str) -> list[str]:
    """Return all keys of a queue."""
    tag = tag_of(prefix, queue)
    return [f"{tag}:tasks:{name}" for name in _KINDS]


def channel_of(prefix: str, queue: str) -> str:
    """Return the channel on which waiting callers are notified of changes."""
    return f"{tag_of(prefix, queue)}:tasks:hints"


def arguments_of(call: ScriptCall, now: str, channel: str, publish: str) -> list[Argument]:
    """Return the script arguments of a call.

    Raises:
        ValueError: a text in it is not valid Unicode, or a number is too large.
    """
    try:
        asked = _encode(call.asked)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"the arguments of {call.script.name!r} cannot be sent: {error}") from error
    return [now, channel, publish, asked, *call.blobs]


def reply_of(raw: list[bytes], server: str, meta: str) -> ScriptReply:
    """Decode a reply.

    Raises:
        StoreRefused: the data is of a newer version, part of the queue is missing, or the answer cannot be read.
        PoolClosed: the queue takes no tasks.
    """
    try:
        return _reply_of(raw, server, meta)
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise StoreRefused(f"{server}: its answer about {meta} cannot be read: {safe_str(error)}") from error


def _reply_of(raw: list[bytes], server: str, meta: str) -> ScriptReply:
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
    now, version, claimable_version, answer = _decode(raw[1])
    return ScriptReply(now, version, claimable_version, answer, raw[2:])


async def check_keys(server: Server, keys: Sequence[Argument]) -> None:
    """Check that the keys are of the expected types. A checkpoint.

    Raises:
        StoreRefused: a key is of another type.
    """
    for key, kind, there in zip(keys, _KINDS.values(), await server.run(_TYPES, keys), strict=True):
        found = there.decode()
        if found not in ("none", kind):
            raise StoreRefused(
                f"{server.name}: {key!s} is of type {found}, not {kind}: it belongs to something else; "
                "give RedisStore another prefix, or delete that key"
            )
