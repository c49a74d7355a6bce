"""The keys for `unique=True`: one key for each set of arguments.

Invariant: arguments that are equal and of the same types have the same key, in every process, on every platform, and in
whatever order a dict or a set yields its items. The arguments are compared as a worker gets them: an explicit default
value makes no difference, and an int that is passed for a float is a float.
"""

# This module handles values of any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from math import isnan
from typing import Any

import msgspec

from cuelight.tasks._functions._packing import Unstorable, encode_native, pack


def unique_key(name: str, arguments: Mapping[str, Any]) -> str:
    """The key of a call.

    Args:
        name: the name of the function.
        arguments: the arguments by parameter name, as a worker gets them, including default values.
    """
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, and is rarely needed

    return f"{name}:{sha256(_bytes_of(dict(arguments))).hexdigest()}"


def _bytes_of(value: Any) -> bytes:
    """The same bytes for equal values of one type. Each kind of value has a different first letter."""
    kind = type(value)
    if kind is float:
        return b"f" + encode_native(float("nan") if isnan(value) else value + 0.0)  # -0.0 is 0.0
    if issubclass(kind, dict):
        return _joined(b"d", sorted(_joined(b"p", map(_bytes_of, pair)) for pair in value.items()))
    if issubclass(kind, set | frozenset):
        return _joined(b"s", sorted(map(_bytes_of, value)))
    if isinstance(value, msgspec.Struct):
        names = type(value).__struct_fields__
        return _object(kind, {name: getattr(value, name) for name in names})
    if is_dataclass(value):
        return _object(kind, {field.name: getattr(value, field.name, None) for field in fields(value)})
    if issubclass(kind, list | tuple):
        return _joined(b"t" if issubclass(kind, tuple) else b"l", map(_bytes_of, value))
    if kind is datetime and value.tzinfo is not None:
        value = value.astimezone(UTC)
    if kind is Decimal and value.is_finite():
        value = _shortest(value)
    try:
        packed = pack(value)
    except Unstorable:  # for example, an enum member
        packed = value
    return kind.__name__.encode() + b"=" + encode_native(packed)


def _object(kind: type, parts: dict[str, Any]) -> bytes:
    return b"o" + encode_native(kind.__qualname__) + _bytes_of(parts)


def _joined(letter: bytes, parts: Any) -> bytes:
    """The parts, each with its length before it, so that no two different lists of parts have the same result."""
    return letter + b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _shortest(number: Decimal) -> str:
    """A number without trailing zeros: 1.10 becomes 1.1."""
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    shorter = text.rstrip("0")
    if not shorter:
        return "0"
    return f"{'-' if sign else ''}{shorter}e{int(exponent) + len(text) - len(shorter)}"
