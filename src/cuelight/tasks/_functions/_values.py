"""Encoding of values as MessagePack, with extension types for values that it has no type for (see `_packing.py`).

Invariants:

1. `decode` returns every value that `encode` accepts, equal and of the same types. `encode` rejects all other values.
   If an annotation names a type, `_typed.py` decides which values are accepted.
2. `decode` raises only ValueError, whatever the bytes are. It also reads bytes that were written before there were
   extensions.
"""

# This module handles values of any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from cuelight._text import describe_error
from cuelight.tasks._functions._packing import PLAIN, Extension, Unstorable, encode_native, pack


def encode(value: Any, what: str = "the value") -> bytes:
    """Encode a value without an annotation.

    Args:
        value: None, bool, int of 64 bits, float, str, bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal,
            and list, tuple, set, frozenset and dict of these; nested at most 100 levels deep.
        what: a name for the value in the error message.

    Raises:
        TypeError: the value has another type; the message names the part, and an alternative.
    """
    try:
        return encode_native(value if type(value) in PLAIN else pack(value))
    except Unstorable as error:
        raise error.refuse(what) from None


def decode(data: bytes) -> Any:
    """Decode bytes that `encode` made; return None for empty bytes.

    Raises:
        ValueError: the bytes are not such a value.
    """
    if not data:
        return None
    try:
        return _DECODER.decode(data)
    except RecursionError:
        return _decoded_apart(data)
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(data, error) from error


def _decoded_apart(data: bytes) -> Any:
    """Decode in a new thread: the stack of this one may already be deep, which is not a fault of the bytes."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(_DECODER.decode(data))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if len(outcome) > 1:
        raise _unreadable(data, outcome[1]) from None
    return outcome[0]


def _unreadable(data: bytes, error: BaseException) -> ValueError:
    return ValueError(f"{bytes(data[:40])!r} is not what a task queue stores: {describe_error(error, 300)}")


def _moment(kind: type[datetime] | type[time], data: bytes) -> Any:
    parts: list[Any] = [*_PARTS.decode(data), None, None, None]
    wall, fold, offset, name, key = parts[:5]
    value: Any = kind.fromisoformat(wall)
    return value.replace(fold=fold, tzinfo=_zone(offset, name, key))


def _zone(offset: float | None, name: str | None, key: str | None) -> Any:
    if key is not None:
        from zoneinfo import ZoneInfo  # noqa: PLC0415 - it loads sysconfig, and only such values need it

        try:
            return ZoneInfo(key)
        except (KeyError, ValueError, OSError):  # this machine does not have the zone
            name = key
    if offset is None:
        return None
    return timezone(timedelta(seconds=offset)) if name is None else timezone(timedelta(seconds=offset), name)


_PARTS = msgspec.msgpack.Decoder(tuple[Any, ...])
_DELTA = msgspec.msgpack.Decoder(tuple[int, int, int])


def _unpack(code: int, data: memoryview) -> Any:
    """The value of an extension."""
    read = _READERS.get(code)
    if read is None:
        raise ValueError(f"the extension type {code} is not known: a later version may have written it")
    return read(bytes(data))


_DECODER = msgspec.msgpack.Decoder(ext_hook=_unpack)

_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    Extension.DATETIME: lambda data: _moment(datetime, data),
    Extension.DATE: lambda data: date.fromisoformat(data.decode()),
    Extension.TIME: lambda data: _moment(time, data),
    Extension.TIMEDELTA: lambda data: timedelta(*_DELTA.decode(data)),
    Extension.DECIMAL: lambda data: Decimal(data.decode()),
    Extension.UUID: lambda data: UUID(bytes=data),
    Extension.TUPLE: lambda data: tuple(_DECODER.decode(data)),
    Extension.SET: lambda data: set(_DECODER.decode(data)),
    Extension.FROZENSET: lambda data: frozenset(_DECODER.decode(data)),
    Extension.BYTEARRAY: bytearray,
    Extension.PAIRS: lambda data: dict(_DECODER.decode(data)),
}
