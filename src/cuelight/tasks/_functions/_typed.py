"""Packing of values with an annotation, so that they come back as the annotated type or are rejected.

msgspec decodes a stored value as the type in the annotation. By itself, it would reduce a `Circle` to its base class
`Shape`, accept a `UUID` as a `str`, and drop keys that a `TypedDict` does not have, without an error. A packer checks a
value against its annotation and rejects these cases. Where the annotation leaves the type open (`Any`, `dict`), it
packs like `_values.pack`.

Invariant: a value that a packer accepts and msgspec then converts loses nothing, apart from differences that the
annotation allows: a list may be passed as a tuple, and an int for a float.
"""

# This module handles values of any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, is_typeddict
from uuid import UUID

import msgspec
from msgspec import inspect as kinds

from cuelight.tasks._functions._packing import PLAIN, Unstorable, encode_native, pack, pack_dict, pack_time, too_deep

Packer = Callable[[Any, int], Any]
"""Gets a value and its maximum nesting depth, and returns the value to encode. Raises `Unstorable`."""

_LOOKS_LIKE_ANOTHER: Final = (Enum, date, time, timedelta, UUID, Decimal)
"""MessagePack has no types for these, so msgspec writes them as text or numbers."""

_COLLECTIONS: Final = (list, tuple, set, frozenset)

_CLASSES: Final[dict[type, tuple[type, ...]]] = {
    kinds.NoneType: (type(None),),
    kinds.BoolType: (bool,),
    kinds.IntType: (int,),
    kinds.FloatType: (float, int),
    kinds.StrType: (str,),
    kinds.BytesType: (bytes, bytearray, memoryview),
    kinds.ByteArrayType: (bytes, bytearray, memoryview),
    kinds.MemoryViewType: (bytes, bytearray, memoryview),
    kinds.DateTimeType: (datetime, str),
    kinds.DateType: (date, str),
    kinds.TimeType: (time, str),
    kinds.TimeDeltaType: (timedelta, str, int, float),
    kinds.UUIDType: (UUID, str, bytes),
    kinds.DecimalType: (Decimal, str, int, float),
    kinds.ListType: _COLLECTIONS,
    kinds.VarTupleType: _COLLECTIONS,
    kinds.TupleType: _COLLECTIONS,
    kinds.SetType: _COLLECTIONS,
    kinds.FrozenSetType: _COLLECTIONS,
    kinds.DictType: (dict,),
    kinds.TypedDictType: (dict,),
}
"""The accepted classes for an annotation, the usual one first. `EnumType` and types with fields accept one class."""

_HAS_FIELDS: Final = (kinds.StructType, kinds.DataclassType, kinds.NamedTupleType)


def packer_of(annotation: Any) -> Packer:
    """The packer of an annotation. An annotation that msgspec cannot describe is treated as `Any`."""
    try:
        described = kinds.type_info(annotation)
    except Exception:  # for example, `Unpack[...]`
        return pack
    return _Packers().of(described)


class _Packers:
    """The packers of one annotation and its parts."""

    def __init__(self) -> None:
        self._known: dict[int, Packer] = {}

    def of(self, node: Any) -> Packer:  # noqa: PLR0911 - one line per kind
        """The packer of a type. Packers are created on demand, because a class may have fields of its own type."""
        kind = type(node)
        if kind is kinds.Metadata:
            return self.of(node.type)
        if kind in {kinds.AnyType, kinds.CustomType}:
            return pack
        if kind in {kinds.DateTimeType, kinds.TimeType}:
            return partial(_pack_zoned, _classes_of(node))
        if kind is kinds.UnionType:
            return partial(self._pack_union, node.types)
        if kind in _HAS_FIELDS:
            return partial(self._pack_object, node)
        if kind is kinds.TypedDictType:
            return partial(self._pack_fields, node)
        if kind is kinds.DictType:
            return partial(_pack_pairs, self.of(node.key_type), self.of(node.value_type))
        if kind is kinds.TupleType:
            return partial(_pack_collection, [self.of(item) for item in node.item_types])
        if _classes_of(node) is _COLLECTIONS:
            return partial(_pack_collection, self.of(node.item_type))
        return partial(_pack_scalar, _classes_of(node))

    def _pack_union(self, nodes: Sequence[Any], value: Any, room: int) -> Any:
        """Pack a value as the member of the union to which it belongs."""
        kind = type(value)
        fits = [node for node in nodes if _fits(kind, node)]
        for node in fits:
            if _classes_of(node)[:1] == (kind,):
                return self._packer(node)(value, room)
        if not fits and issubclass(kind, dict):
            fits = [node for node in nodes if type(node) in _HAS_FIELDS and _has_tag_of(node, value)]
        if fits:
            return self._packer(fits[0])(value, room)
        _refuse_disguise(value, tuple(one for node in nodes for one in _classes_of(node)))
        return value

    def _pack_object(self, node: Any, value: Any, room: int) -> Any:
        """Pack an instance of a class with fields."""
        kind, wanted = type(value), _class_of(node)
        if kind is not wanted:
            if issubclass(kind, wanted):
                raise Unstorable(
                    f"it is of type {kind.__qualname__}, and would come back as a {wanted.__qualname__}, the type in "
                    f"the annotation, without what {kind.__qualname__} adds: annotate {kind.__qualname__}, or give a "
                    f"{wanted.__qualname__}"
                )
            if issubclass(kind, dict) or (node.__class__ is kinds.NamedTupleType and kind in _COLLECTIONS):
                return self._pack_fields(node, value, room)
            if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__struct_fields__") or issubclass(kind, tuple):
                raise Unstorable(f"it is of type {kind.__qualname__}, not {wanted.__qualname__}")
            return value
        packed, changed = [], False
        for field in node.fields:
            part = getattr(value, field.name, msgspec.UNSET)
            try:
                packed.append(self._packer(field.type)(part, room - 1) if room else _raise(too_deep()))
            except Unstorable as error:
                raise error.at(f".{field.name}") from None
            changed = changed or packed[-1] is not part
        return _object_of(node, packed) if changed else value

    def _pack_fields(self, node: Any, value: Any, room: int) -> Any:
        """Pack a dict for a class with fields, or a collection for a named tuple."""
        if not issubclass(type(value), dict):
            return _pack_collection([self._packer(field.type) for field in node.fields], value, room)
        fields = {field.encode_name: field.type for field in node.fields}
        tag = getattr(node, "tag_field", None)
        unknown = [key for key in value if key not in fields and key != tag]
        if unknown:
            keys = ", ".join(map(repr, unknown[:5]))
            raise Unstorable(
                f"{_class_of(node).__qualname__} has no {keys}, which would be lost: leave it out, or annotate it"
            )
        packed: dict[Any, Any] = {}
        for key, part in value.items():
            try:
                if not room:
                    raise too_deep()
                packed[key] = self._packer(fields[key])(part, room - 1) if key in fields else part
            except Unstorable as error:
                raise error.at(f"[{key!r}]") from None
        return packed

    def _packer(self, node: Any) -> Packer:
        packer = self._known.get(id(node))
        if packer is None:
            packer = self._known[id(node)] = self.of(node)
        return packer


def _raise(error: Exception) -> Any:
    raise error


def _object_of(node: Any, packed: list[Any]) -> Any:
    """An object with packed fields, in the form in which msgspec encodes it."""
    parts = {
        field.encode_name: part for field, part in zip(node.fields, packed, strict=True) if part is not msgspec.UNSET
    }
    tagged = getattr(node, "tag_field", None) is not None
    if node.__class__ is kinds.NamedTupleType:
        return packed
    if getattr(node, "array_like", False):
        return [node.tag, *packed] if tagged else packed
    return {node.tag_field: node.tag, **parts} if tagged else parts


def _pack_scalar(classes: tuple[type, ...], value: Any, room: int) -> Any:  # noqa: ARG001 - same signature as the other packers
    if type(value) not in PLAIN:
        _refuse_disguise(value, classes)
    return value


def _pack_zoned(classes: tuple[type, ...], value: Any, room: int) -> Any:
    """Pack a time in a zone other than UTC together with its zone, if the type of the zone can be stored."""
    if type(value) not in {datetime, time} or value.tzinfo is None or value.tzinfo is UTC:
        return _pack_scalar(classes, value, room)
    packed = pack_time(value)
    return value if packed is None else packed


def _pack_pairs(key_of: Packer, part_of: Packer, value: Any, room: int) -> Any:
    if not issubclass(type(value), dict):
        return _pack_scalar((), value, room)
    if PLAIN.issuperset(map(type, value)) and PLAIN.issuperset(map(type, value.values())):
        return value
    if not room:
        raise too_deep()
    return pack_dict(value, key_of, part_of, room - 1)


def _pack_collection(item: Packer | list[Packer], value: Any, room: int) -> Any:
    if not issubclass(type(value), _COLLECTIONS):
        return _pack_scalar((), value, room)
    if issubclass(type(value), set | frozenset):  # equal arguments must have equal bytes
        value = sorted(value, key=_order_of)
    if PLAIN.issuperset(map(type, value)):
        return value
    if not room:
        raise too_deep()
    packers = item if isinstance(item, list) else [item] * len(value)
    if len(packers) < len(value):  # msgspec reports the superfluous items
        packers = [*packers, *[pack] * (len(value) - len(packers))]
    packed: list[Any] = []
    for index, (packer, part) in enumerate(zip(packers, value, strict=False)):
        try:
            packed.append(packer(part, room - 1))
        except Unstorable as error:
            raise error.at(f"[{index}]") from None
    return packed


def _order_of(value: Any) -> bytes:
    """A sort key for the items of a set that is the same in every process."""
    try:
        return encode_native(value)
    except Unstorable:  # rejected later, with the path to it
        return b""


def _refuse_disguise(value: Any, classes: tuple[type, ...]) -> None:
    """Reject a value that would be written as text or a number, if values of its kind are not expected."""
    kind = type(value)
    if issubclass(kind, _LOOKS_LIKE_ANOTHER) and not issubclass(kind, classes):
        wanted = " or ".join(dict.fromkeys(one.__name__ for one in classes[:3])) or "what the annotation says"
        raise Unstorable(f"it is of type {kind.__qualname__}, not {wanted}: convert it first")


def _classes_of(node: Any) -> tuple[type, ...]:
    """The classes whose instances are accepted for a type, the usual one first."""
    kind = type(node)
    if kind is kinds.Metadata:
        return _classes_of(node.type)
    if kind is kinds.LiteralType:
        return tuple({type(one) for one in node.values})
    if kind is kinds.EnumType or kind in _HAS_FIELDS:
        return (_class_of(node),)
    if kind in {kinds.AnyType, kinds.CustomType}:
        return (object,)
    return _CLASSES.get(kind, (object,))


def _class_of(node: Any) -> Any:
    """The class of a type with fields, without the arguments of a generic class."""
    return get_origin(node.cls) or node.cls


def _fits(kind: type, node: Any) -> bool:
    return issubclass(kind, _classes_of(node)) and not (
        kind is bool and bool not in _classes_of(node) and object not in _classes_of(node)
    )


def _has_tag_of(node: Any, value: dict[Any, Any]) -> bool:
    """Whether a dict that is passed for one of several classes has the tag of this class."""
    tag_field = getattr(node, "tag_field", None)
    return tag_field is None or value.get(tag_field) == node.tag


def advice_on(annotation: Any) -> str:
    """Advice for an annotation that msgspec cannot read, to append to its error; empty if there is none."""
    pending = [annotation]
    while pending:
        one = pending.pop()
        members = get_args(one)
        pending += members
        if get_origin(one) not in {Union, UnionType}:
            continue
        classes = [member for member in members if _is_class_with_fields(member)]
        if len(classes) > 1 and not all(map(_is_tagged, classes)):
            names = " and ".join(member.__name__ for member in classes)
            return (
                f"; to distinguish {names}, make them msgspec structs with a tag, as in "
                f"`class {classes[0].__name__}(msgspec.Struct, tag=True)`"
            )
    return ""


def _is_class_with_fields(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        is_typeddict(annotation)
        or any(hasattr(annotation, name) for name in ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__"))
    )


def _is_tagged(annotation: Any) -> bool:
    config = getattr(annotation, "__struct_config__", None)
    return config is not None and config.tag is not None
