"""Packing of values for MessagePack: types that it does not have become extensions, or are rejected.

Invariant: `decode` of `_values.py` returns every value that `pack` accepts, equal and of the same types. All other
values are rejected: an enum member, a dataclass, an instance of a subclass of `dict` or `str`, values that are nested
too deeply.

The extension types, in the order of their codes. Bytes that were written without them are still readable.

| Code | Python type | Data |
|---|---|---|
| -1 | `datetime` in UTC | the timestamp of MessagePack |
| 1 | any other `datetime` | `[wall time, fold, offset, name, zone]`, without missing parts at the end |
| 2 | `date` | ISO 8601 text |
| 3 | `time` | as for 1 |
| 4 | `timedelta` | `[days, seconds, microseconds]` |
| 5 | `Decimal` | text |
| 6 | `UUID` | its 16 bytes |
| 7, 8, 9 | `tuple`, `set`, `frozenset` | an array; for sets, sorted by the bytes of the items |
| 10 | `bytearray` | its bytes |
| 11 | `dict` with keys for which MessagePack has no type | an array of pairs |
"""

# This module handles values of any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from cuelight._text import describe_error, safe_repr, type_name

DEEPEST: Final = 100
"""The maximum nesting depth of a value. Reading uses as many levels of Python's recursion limit."""

PLAIN: Final[frozenset[type]] = frozenset({str, int, float, bool, type(None), bytes})
"""Types without parts that MessagePack has."""


class Extension:
    """The codes of the extension types."""

    DATETIME: Final = 1
    DATE: Final = 2
    TIME: Final = 3
    TIMEDELTA: Final = 4
    DECIMAL: Final = 5
    UUID: Final = 6
    TUPLE: Final = 7
    SET: Final = 8
    FROZENSET: Final = 9
    BYTEARRAY: Final = 10
    PAIRS: Final = 11


_ENCODER = msgspec.msgpack.Encoder()


class Unstorable(Exception):
    """A part of a value cannot be stored. The packer of the whole value adds the path to the part.

    Attributes:
        reason: the type of the part, and an alternative.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._ways: list[str] = []

    def at(self, way: str) -> Unstorable:
        """Prepend a component to the path and return the exception."""
        self._ways.append(way)
        return self

    def refuse(self, what: str) -> TypeError:
        """The error to raise for a whole value with the name `what`."""
        ways = self._ways[::-1]
        shown = ways if len(ways) <= 10 else [*ways[:5], " ... ", *ways[-5:]]
        return TypeError(f"{what}{''.join(shown)} cannot be stored: {self.reason}")


def encode_native(packed: Any) -> bytes:
    """Encode a packed value.

    Raises:
        Unstorable: a part of it cannot be encoded, such as text with a lone surrogate, or an int of more than 64 bits.
    """
    try:
        return _ENCODER.encode(packed)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # UnicodeEncodeError, for a lone surrogate, is a ValueError.
        ways, part = _culprit(packed)
        unstorable = Unstorable(
            f"of type {type_name(part)}: {describe_error(error, 300)}: give plain values, or a name by which the task "
            f"finds it again (a path, a key)"
        )
        for way in reversed(ways):
            unstorable.at(way)
        raise unstorable from error


def pack(value: Any, room: int = DEEPEST) -> Any:
    """Replace all parts for which MessagePack has no type by extensions. Return the value itself if there are none.

    Args:
        value: the value.
        room: the maximum nesting depth.

    Raises:
        Unstorable: a part of it cannot be stored, or it is nested too deeply.
    """
    kind = type(value)
    if kind in PLAIN or _is_native(value, room):
        return value
    if not room:
        raise too_deep()
    if kind is dict:
        return pack_dict(value, pack, pack, room - 1)
    if kind is list:
        return _items(value, room)
    packer = _PACKERS.get(kind)
    if packer is None:
        raise _foreign(value)
    return packer(value, room)


def too_deep() -> Unstorable:
    """The error for a value that is nested too deeply."""
    return Unstorable(
        f"it is nested more than {DEEPEST} levels deep, or contains itself: give flat values, or text or bytes that "
        f"the task takes apart"
    )


def pack_dict(
    value: dict[Any, Any], key_of: Callable[[Any, int], Any], part_of: Callable[[Any, int], Any], room: int
) -> Any:
    """A dict with packed keys and values; an extension if MessagePack has no type for one of the keys."""
    pairs: list[tuple[Any, Any]] = []
    for key, part in value.items():
        try:
            packed = key if _is_native_key(key) else key_of(key, room)
            if type(packed) is list:  # a tuple, packed by its annotation
                packed = Ext(Extension.TUPLE, encode_native(packed))
        except Unstorable as error:
            raise error.at(f" (key {safe_repr(key, 60)})") from None
        try:
            pairs.append((packed, part_of(part, room)))
        except Unstorable as error:
            raise error.at(f"[{safe_repr(key, 60)}]") from None
    if any(type(key) is Ext for key, _ in pairs):
        return Ext(Extension.PAIRS, encode_native(pairs))
    return dict(pairs)


def pack_time(value: datetime | time) -> Any:
    """A time with its zone; None if the zone is of a type that cannot be stored."""
    wall, zone = value.replace(tzinfo=None, fold=0).isoformat(), value.tzinfo
    parts: list[Any] = [wall, value.fold]
    if type(zone) is timezone:
        arguments: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]
        offset, *name = arguments
        parts += [offset.total_seconds(), *name]
    elif zone is not None:
        key = _zone_key(zone)
        if key is None:
            return None
        offset = value.utcoffset()
        parts += [None if offset is None else offset.total_seconds(), None, key]
    return Ext(Extension.DATETIME if isinstance(value, datetime) else Extension.TIME, _ENCODER.encode(parts))


def _zone_key(zone: Any) -> str | None:
    """The name of a `zoneinfo.ZoneInfo`. A zone that was loaded from a file may have none."""
    if type(zone).__module__ != "zoneinfo" and type(zone).__name__ != "ZoneInfo":
        return None
    key: Any = getattr(zone, "key", None)
    return key if type(key) is str else None


def _is_native(value: Any, room: int) -> bool:
    """Whether MessagePack has types for all parts of a value."""
    kind = type(value)
    if kind is dict:
        if not room:
            return False
        for key in value:
            if type(key) is not str and not _is_native_key(key):
                return False
        for part in value.values():  # noqa: SIM110 - a generator takes twice the time
            if type(part) not in PLAIN and not _is_native(part, room - 1):
                return False
        return True
    if kind is list:
        if not room:
            return False
        for part in value:  # noqa: SIM110 - a generator takes twice the time
            if type(part) not in PLAIN and not _is_native(part, room - 1):
                return False
        return True
    return kind in PLAIN or (kind is datetime and value.tzinfo is UTC)


def _is_native_key(key: Any) -> bool:
    kind = type(key)
    return kind in PLAIN or (kind is tuple and all(map(_is_native_key, key)))


def _items(value: Any, room: int) -> list[Any]:
    packed: list[Any] = []
    for index, part in enumerate(value):
        try:
            packed.append(part if type(part) in PLAIN else pack(part, room - 1))
        except Unstorable as error:
            raise error.at(f"[{index}]") from None
    return packed


def _pack_tuple(value: tuple[Any, ...], room: int) -> Ext:
    return Ext(Extension.TUPLE, encode_native(_items(value, room)))


def _pack_set(value: set[Any] | frozenset[Any], room: int) -> Ext:
    parts = sorted(map(encode_native, _items(value, room)))
    code = Extension.SET if type(value) is set else Extension.FROZENSET
    return Ext(code, _ENCODER.encode([msgspec.Raw(part) for part in parts]))


def _pack_zoned(value: datetime | time, room: int) -> Any:  # noqa: ARG001 - same signature as the other packers
    packed = pack_time(value)
    if packed is None:
        raise Unstorable(
            f"it is a {type_name(value)} in a zone of type {type_name(value.tzinfo)}: give one in a "
            f"`datetime.timezone` or a `zoneinfo.ZoneInfo`"
        )
    return packed


def _pack_scalar(value: Any, room: int) -> Ext:  # noqa: ARG001 - same signature as the other packers
    """A value without parts, as text or bytes."""
    code, data_of = _SCALARS[type(value)]
    return Ext(code, data_of(value))


_SCALARS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    date: (Extension.DATE, lambda value: value.isoformat().encode()),
    timedelta: (Extension.TIMEDELTA, lambda value: _ENCODER.encode((value.days, value.seconds, value.microseconds))),
    Decimal: (Extension.DECIMAL, lambda value: str(value).encode()),
    UUID: (Extension.UUID, lambda value: value.bytes),
    bytearray: (Extension.BYTEARRAY, bytes),
}

_PACKERS: Final[dict[type, Callable[[Any, int], Any]]] = {
    **dict.fromkeys(_SCALARS, _pack_scalar),
    datetime: _pack_zoned,
    time: _pack_zoned,
    tuple: _pack_tuple,
    set: _pack_set,
    frozenset: _pack_set,
}


def _foreign(value: Any) -> Unstorable:
    """The error for a value of a type that would change on the way."""
    name = f"it is of type {type(value).__qualname__}"
    typed = "send it as an argument of a task function whose annotation names the type, or return it from one"
    if isinstance(value, Enum):
        return Unstorable(f"{name}, an enum, and would come back as its value: give `.value`, or {typed}")
    if is_dataclass(value) or isinstance(value, msgspec.Struct):
        return Unstorable(f"{name}, and would come back as a dict: give `msgspec.to_builtins(...)`, or {typed}")
    for base in (datetime, *_PACKERS, dict, list, bool, int, float, str, bytes):
        if isinstance(value, base):
            return Unstorable(
                f"{name}, and would come back as a {base.__name__}: give `{base.__name__}(...)`, or {typed}"
            )
    return Unstorable(f"{name}: give plain values, or a name by which the task finds it again (a path, a key)")


def _parts(value: Any) -> list[tuple[str, Any]]:
    """The parts of a value and their paths. Keys of a dict are parts, too."""
    whole: Any = value
    if isinstance(value, dict):
        return [
            *((f"[{safe_repr(key, 60)}]", part) for key, part in whole.items()),
            *((f" (key {safe_repr(key, 60)})", key) for key in whole),
        ]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", part) for index, part in enumerate(whole)]
    names: Any = getattr(type(value), "__struct_fields__", None) or getattr(type(value), "__dataclass_fields__", ())
    return [(f".{name}", getattr(value, name)) for name in names]


def _culprit(value: Any) -> tuple[list[str], Any]:
    """The path to the part of a value that cannot be encoded, and the part."""
    ways: list[str] = []
    while len(ways) <= DEEPEST:
        for way, part in _parts(value):
            try:
                _ENCODER.encode(part)
            except (TypeError, ValueError, OverflowError, RecursionError):
                ways.append(way)
                value = part
                break
        else:
            break
    return ways, value
