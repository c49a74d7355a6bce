"""Conversion of the arguments of a task function to a payload, and back.

Invariants:

1. `unpack` accepts the result of `pack` and returns equal arguments. A call that is not possible, or that would change
   a value, is rejected when it is sent, not in a worker.
2. A payload contains arguments by name wherever the signature allows that, so a function accepts older payloads after
   its parameters were reordered. A payload that does not fit is rejected with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import cached_property
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec

from cuelight._text import safe_repr, safe_str
from cuelight.tasks._functions._packing import DEEPEST, PLAIN, Unstorable, encode_native
from cuelight.tasks._functions._typed import Packer, advice_on, packer_of
from cuelight.tasks._functions._unique_key import unique_key
from cuelight.tasks._functions._values import decode

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_WIDEST = 2**63 - 1
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ArgumentMismatch(TypeError):
    """A stored call does not fit the function: another version of the function made it, or it was written by hand."""


class _StoredCall(msgspec.Struct, forbid_unknown_fields=True):
    args: list[Any]
    kwargs: dict[str, Any]


class Parameters:
    """The signature of one function."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Read a signature.

        Args:
            function: the function.
            name: its name in error messages.

        Raises:
            TypeError: an annotation cannot be used, or the first parameter is `self`.
        """
        self._function, self._name = function, name
        self._signature = inspect.signature(function)
        given = self._signature.parameters.values()
        if any(parameter.name in {"self", "cls"} for parameter in list(given)[:1]):
            raise TypeError(
                f"{name} is a method: a worker in another process has no object to call it on; "
                "make the task a plain function"
            )
        self._positional = [parameter.name for parameter in given if parameter.kind in _POSITIONAL]
        self._only_positional = sum(parameter.kind is inspect.Parameter.POSITIONAL_ONLY for parameter in given)
        self._named = [*self._positional, *(p.name for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY)]
        self._required = {p.name for p in given if p.default is p.empty and p.name in self._named}
        self._rest = next((p.name for p in given if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
        self._more = next((p.name for p in given if p.kind is inspect.Parameter.VAR_KEYWORD), None)
        self._packers: dict[str, Packer] = {}
        # an annotation names an object that is defined later in the module: resolved at the first call
        with suppress(NameError):
            self._types  # noqa: B018 - evaluated now, so that a wrong annotation raises here

    @cached_property
    def _types(self) -> dict[str, Any]:
        """The annotations of the parameters, and that of "return"."""
        try:
            hints = get_type_hints(self._function, include_extras=True)
        except TypeError:  # not a function, but a partial or an object with `__call__`
            hints = get_type_hints(type(self._function).__call__, include_extras=True)
        if self._more is not None and str(get_origin(hints.get(self._more))).endswith("Unpack"):
            hints[self._more] = Any
        for name, hint in hints.items():
            try:
                msgspec.msgpack.Decoder(hint)
            except TypeError as error:
                what = "its result" if name == "return" else f"its parameter {name!r}"
                raise TypeError(
                    f"{self._name}: {what} cannot be read from a store: {error}{advice_on(hint)}"
                ) from error
        return hints

    @cached_property
    def _struct(self) -> type[msgspec.Struct]:
        """A class with all named parameters as fields, because msgspec caches the decoder of a class."""
        fields: list[tuple[str, Any, Any]] = [
            (f"p{index}", self._types.get(name, Any), msgspec.UNSET) for index, name in enumerate(self._named)
        ]
        renamed = {f"p{index}": name for index, name in enumerate(self._named)}
        return msgspec.defstruct("Arguments", fields, rename=renamed.get, forbid_unknown_fields=True)

    @cached_property
    def _plain(self) -> tuple[frozenset[type], ...] | None:
        """For each parameter the types whose values come back as they are; None if one cannot be given by its place."""
        if self._only_positional or len(self._positional) != len(self._named):
            return None
        hints = [self._types.get(name, Any) for name in self._positional]
        return tuple(_plain_types(hint) for hint in hints)

    @property
    def signature(self) -> str:
        """The signature as text."""
        return safe_str(self._signature, 500)

    @property
    def returns(self) -> Any:
        """The annotation of the result; `Any` without one.

        Raises:
            TypeError: an annotation is not available at run time.
        """
        self._resolve()
        return self._types.get("return", Any)

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The payload of a call.

        Raises:
            TypeError: the call does not fit the signature, or an argument has the wrong type or cannot be stored; the
                message names the function, the argument, its value and the accepted types.
        """
        self._resolve()
        if not kwargs and self._plain is not None and len(args) == len(self._plain):
            for value, kinds in zip(args, self._plain, strict=True):
                if type(value) not in kinds or not _fits(value):
                    break
            else:  # nobody can change them, and they come back as they are
                return {"args": [], "kwargs": dict(zip(self._positional, args, strict=True))}
        try:
            named, rest, more = self._sort(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}; it takes {self.signature}") from None
        sent = (named, rest, more)
        if not PLAIN.issuperset(map(type, (*named.values(), *rest, *more.values()))):
            named, rest, more = self._packed(named, rest, more)
        ahead = self._positional if rest else self._positional[: self._only_positional]
        plain: dict[str, Any] = {
            "args": [*(named[name] for name in ahead if name in named), *rest],
            "kwargs": {name: named[name] for name in self._named if name in named and name not in ahead} | more,
        }
        try:
            # A copy, so that later changes of the arguments have no effect, and a worker gets the values that were
            # checked.
            payload: dict[str, Any] = decode(encode_native(plain))
        except (Unstorable, ValueError):
            self._blame_for_storage(self._one_by_one(named, rest, more))
        try:
            self._convert(payload["args"], payload["kwargs"])
        except (TypeError, msgspec.ValidationError):
            self._blame(self._one_by_one(*sent), self._one_by_one(named, rest, more))
        return payload

    def _packed(
        self, named: dict[str, Any], rest: list[Any], more: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        """The arguments, each packed according to its annotation."""
        packed: list[Any] = []
        for name, value in self._one_by_one(named, rest, more):
            try:
                packed.append(self._packer_of(self._parameter_of(name))(value, DEEPEST))
            except Unstorable as error:
                raise error.refuse(f"{self._name}: the argument {name}") from None
        first, second = len(named), len(named) + len(rest)
        return (
            dict(zip(named, packed[:first], strict=True)),
            packed[first:second],
            dict(zip(more, packed[second:], strict=True)),
        )

    def _parameter_of(self, name: str) -> str:
        """The parameter to which an argument belongs."""
        return name if name in self._named else str(self._rest if name.startswith("*") else self._more)

    def _packer_of(self, parameter: str) -> Packer:
        """The packer of a parameter, or of "return"."""
        packer = self._packers.get(parameter)
        if packer is None:
            packer = self._packers[parameter] = packer_of(self._types.get(parameter, Any))
        return packer

    def encode_result(self, value: Any) -> bytes:
        """Encode a return value.

        Raises:
            TypeError: a part of it cannot be stored, or would change on the way.
        """
        try:
            return encode_native(value if type(value) in PLAIN else self._packer_of("return")(value, DEEPEST))
        except Unstorable as error:
            raise error.refuse(f"the result of {self._name}") from None

    def unique_key(self, payload: dict[str, Any]) -> str:
        """The key of a payload that `pack` made: the same for all calls with equal arguments."""
        args, kwargs = self._convert(payload["args"], payload["kwargs"])
        bound = self._signature.bind(*args, **kwargs)
        return unique_key(self._name, {**self._defaults(bound.arguments), **bound.arguments})

    def _defaults(self, given: Container[str]) -> dict[str, Any]:
        """The defaults of the missing parameters, converted as if they had been passed explicitly."""
        found: dict[str, Any] = {}
        for name in self._named:
            if name not in given:
                default = self._signature.parameters[name].default
                with suppress(Unstorable, ValueError, TypeError):  # a sentinel, which cannot be passed explicitly
                    packed = self._packer_of(name)(default, DEEPEST)
                    found[name] = msgspec.convert(decode(encode_native(packed)), self._types.get(name, Any))
        return found

    def unpack(self, payload: Any) -> Arguments:
        """The arguments of a payload, converted to the types in the annotations.

        Raises:
            ArgumentMismatch: the payload does not fit the signature.
            TypeError: the payload is not a call.
        """
        self._resolve()
        try:
            call = msgspec.convert(payload, _StoredCall)
        except msgspec.ValidationError:
            raise TypeError(
                f"{self._name}: {short_repr(payload)} is not a call: give {{'args': [...], 'kwargs': {{...}}}}"
            ) from None
        try:
            return self._convert(call.args, call.kwargs)
        except (TypeError, msgspec.ValidationError) as error:
            reason = safe_str(error)
        sent = ", ".join(
            [*map(short_repr, call.args), *(f"{name}={short_repr(value)}" for name, value in call.kwargs.items())]
        )
        raise ArgumentMismatch(
            f"{self._name}: the task was sent as ({sent}) and does not fit {self.signature}: {reason}; "
            "it was made for another version of the function, or by hand"
        )

    def _resolve(self) -> None:
        try:
            self._struct  # noqa: B018 - evaluated now, if that was not possible before
        except NameError as error:
            raise TypeError(
                f"{self._name}: {error}: its annotations are needed when it is called; import what they name, "
                "not only under TYPE_CHECKING"
            ) from error

    def _sort(
        self, args: tuple[Any, ...] | list[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        """Split arguments into named parameters, the rest for `*args`, and the rest for `**kwargs`.

        Raises:
            TypeError: the exception that Python raises for such a call.
        """
        named = dict(zip(self._positional, args, strict=False))
        rest = list(args[len(self._positional) :])
        more: dict[str, Any] = {}
        wrong = bool(rest) and self._rest is None
        only_positional = self._positional[: self._only_positional]
        for name, value in kwargs.items():
            if name in self._named and name not in only_positional:
                wrong = wrong or name in named
                named[name] = value
            else:
                more[name] = value
        if wrong or (more and self._more is None) or not self._required <= named.keys():
            self._signature.bind(*args, **kwargs)  # raises Python's own error
            raise TypeError(f"cannot be called with {args} and {kwargs}")  # pragma: no cover - bind has raised
        return named, rest, more

    def _convert(self, args: list[Any], kwargs: dict[str, Any]) -> Arguments:
        """The call with plain values."""
        named, rest, more = self._sort(args, kwargs)
        values = msgspec.structs.astuple(msgspec.convert(named, self._struct))
        named = {name: value for name, value in zip(self._named, values, strict=True) if value is not msgspec.UNSET}
        if rest and self._rest is not None:
            rest = msgspec.convert(rest, list[self._types.get(self._rest, Any)])  # type: ignore[misc]
        if more and self._more is not None:
            more = msgspec.convert(more, dict[str, self._types.get(self._more, Any)])  # type: ignore[misc]
        ahead = self._positional if rest else self._positional[: self._only_positional]
        front = [named.pop(name) for name in ahead if name in named]
        return (*front, *rest), {**named, **more}

    def _one_by_one(self, named: dict[str, Any], rest: list[Any], more: dict[str, Any]) -> list[tuple[str, Any]]:
        return [
            *named.items(),
            *((f"*{self._rest}[{index}]", value) for index, value in enumerate(rest)),
            *more.items(),
        ]

    def _blame_for_storage(self, arguments: list[tuple[str, Any]]) -> NoReturn:
        """Raise a `TypeError` that names the argument that cannot be stored."""
        for name, value in arguments:
            try:
                decode(encode_native(value))
            except Unstorable as error:
                raise error.refuse(f"{self._name}: the argument {name}") from None
            except ValueError as error:  # for example, a dataclass as a key
                raise TypeError(
                    f"{self._name}: the argument {name} cannot be stored: it could not be read again: {error}"
                ) from None
        raise TypeError(f"{self._name}: the arguments cannot be stored")  # pragma: no cover - one is wrong

    def _blame(self, given: list[tuple[str, Any]], packed: list[tuple[str, Any]]) -> NoReturn:
        """Raise a `TypeError` that names the wrong argument."""
        for (name, value), (_, stored) in zip(given, packed, strict=True):
            hint = self._types.get(self._parameter_of(name), Any)
            try:
                msgspec.convert(decode(encode_native(stored)), hint)
            except msgspec.ValidationError as error:
                raise TypeError(
                    f"{self._name}: {name}={short_repr(value)} is not of type {inspect.formatannotation(hint)}: {error}"
                ) from None
        raise TypeError(f"{self._name}: the arguments do not fit {self.signature}")  # pragma: no cover - one is wrong


def _plain_types(hint: Any) -> frozenset[type]:
    """The plain types of which a value that fits an annotation comes back as it is."""
    if hint is Any:
        return PLAIN
    parts = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    return frozenset(kind for kind in PLAIN if any(part is kind for part in parts))


def _fits(value: Any) -> bool:
    """Whether a value of a plain type is certain to be stored: no int of many bits, no text with surrogates."""
    return value.isascii() if type(value) is str else type(value) is not int or -_WIDEST <= value <= _WIDEST


def short_repr(value: Any) -> str:
    """The representation of a value for a message, shortened to about 100 characters."""
    return safe_repr(value, 100)
