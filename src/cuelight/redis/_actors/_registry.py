"""The types that may be sent. No other value is encoded or decoded: there is no pickle, and nothing is imported.

Invariants:
1. Received data becomes a value of a registered type, checked against its annotations, or is rejected.
2. A message is rejected where it is sent if that side can tell that it would be rejected.
"""

# The contents of users' messages and answers are Any here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from cuelight._text import safe_repr, safe_str
from cuelight.actors import Message, Ref, Request, StreamRequest
from cuelight.errors import MessageRefused, ReplyError, ends_the_program
from cuelight.redis._actors._errors import ErrorTypes, path_of

KINDS: Final = (Message, Request, StreamRequest, Exception)

Address = tuple[str, int, str]
"""The identity of a node, the serial of one of its actors, and the actor's path."""


class Registry:
    """The registered types by the names that identify them to other nodes."""

    def __init__(self, sources: Iterable[Any], max_message: int) -> None:
        """Collect the types.

        Args:
            sources: classes, and modules whose own messages and errors are registered.
            max_message: maximum bytes of one message or answer.

        Raises:
            TypeError: a source is neither a class nor a module, or cannot be decoded.
            ValueError: two types have the same name.
        """
        self._max = max_message
        self._names: dict[type[Any], str] = {}
        self._classes: dict[str, type[Any]] = {}
        self.errors = ErrorTypes()
        for source in sources:
            for kind in _classes_of(source):
                self._add(kind)

    def _add(self, kind: type[Any]) -> None:
        if issubclass(kind, Exception) and not issubclass(kind, ReplyError):
            self.errors.add(kind, path_of(kind))
            return
        name = _name_of(kind)
        other = self._classes.setdefault(name, kind)
        if other is not kind:
            raise ValueError(
                f"{_place(other)} and {_place(kind)} would both travel as {name!r}: give one of them a tag of its "
                f"own, as in `class {kind.__name__}(..., tag='other-name')`"
            )
        self._names[kind] = name
        if issubclass(kind, ReplyError):
            self.errors.add(kind, name)
            return
        try:
            name.encode()
            msgspec.msgpack.Decoder(kind)
            msgspec.msgpack.Decoder(answer_type(kind))
        except (TypeError, NameError, ValueError) as error:
            raise TypeError(f"{_place(kind)} cannot travel: {error}") from error

    def coder(self, address_of: Callable[[Ref[Any]], Address], ref_at: Callable[[Address], Ref[Any]]) -> Coder:
        """Return the coder for one membership. The functions convert between its refs and addresses."""
        return Coder(self._names, self._classes, self._max, address_of, ref_at)


class Coder:
    """Encodes and decodes messages and answers. Refs are encoded as addresses."""

    def __init__(
        self,
        names: dict[type[Any], str],
        classes: dict[str, type[Any]],
        max_message: int,
        address_of: Callable[[Ref[Any]], Address],
        ref_at: Callable[[Address], Ref[Any]],
    ) -> None:
        self._names, self._classes, self._max = names, classes, max_message
        self._address_of, self._ref_at = address_of, ref_at
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_other)
        self._messages: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._answers: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}

    def message(self, message: Any) -> tuple[str, bytes]:
        """Return the name and the encoding of a message.

        Raises:
            MessageRefused: it cannot be sent; the text gives the reason and a remedy.
        """
        name = self._names.get(type(message))
        if name is None:
            raise MessageRefused(
                f"{_place(type(message))} is not registered with this node: RedisNode(..., messages=[...]) takes "
                f"classes, and modules that define them; both sides must know it"
            )
        return name, self.body(message)

    def body(self, value: Any) -> bytes:
        """Encode a message or an answer.

        Raises:
            MessageRefused: it is too large, or contains a value that cannot be sent.
        """
        try:
            body = self._encoder.encode(value)
        except BaseException as error:  # from code of users, such as time zones
            if ends_the_program(error):
                raise
            raise MessageRefused(f"{_place(type(value))} cannot travel: {safe_str(error)}") from error
        if len(body) > self._max:
            raise MessageRefused(
                f"{_place(type(value))} has {len(body)} bytes, more than max_message={self._max}: send less at once, "
                f"or where the data is, or give both nodes a larger max_message"
            )
        return body

    def read(self, name: str, body: bytes) -> Any:
        """Decode a message.

        Raises:
            MessageRefused: this node does not know the name, or the data is not a valid message of that name.
        """
        kind = self._classes.get(name)
        if kind is None or issubclass(kind, ReplyError):
            raise MessageRefused(f"no message {name!r} is registered with this node")
        decoder = self._messages.get(name)
        if decoder is None:
            decoder = self._messages[name] = msgspec.msgpack.Decoder(kind, dec_hook=self._decode_other)
        return self._decoded(decoder, name, body)

    def answer(self, kind: type[Any], body: bytes) -> Any:
        """Decode the answer, or a chunk of it, to a request of this class.

        Raises:
            MessageRefused: the data is not a valid answer.
        """
        decoder = self._answers.get(kind)
        if decoder is None:
            decoder = msgspec.msgpack.Decoder(answer_type(kind), dec_hook=self._decode_other)
            self._answers[kind] = decoder
        return self._decoded(decoder, f"answer to {kind.__name__}", body)

    def _decoded(self, decoder: msgspec.msgpack.Decoder[Any], what: str, body: bytes) -> Any:
        if len(body) > self._max:
            raise MessageRefused(f"the {what} has {len(body)} bytes, more than max_message={self._max}")
        try:
            return decoder.decode(body)
        # A message's own __post_init__ may raise any error; the data is unusable in any case.
        except BaseException as error:
            if ends_the_program(error):
                raise
            raise MessageRefused(f"what came is no {what}: {safe_str(error)}") from error

    def _encode_other(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self._address_of(value)
        raise TypeError(f"{_place(type(value))} is none of the types that msgspec encodes, and no Ref")

    def _decode_other(self, kind: Any, value: Any) -> Any:
        if (get_origin(kind) or kind) is Ref:
            return self._ref_at(msgspec.convert(value, Address))
        raise TypeError(f"{kind!r} is none of the types that msgspec decodes")


def _classes_of(source: Any) -> Iterable[type[Any]]:
    if isinstance(source, ModuleType):
        found = [
            kind
            for kind in vars(source).values()
            if inspect.isclass(kind) and issubclass(kind, KINDS) and kind.__module__ == source.__name__
        ]
        if not found:
            raise TypeError(f"messages: the module {source.__name__} defines no message, request or exception")
        return found
    if inspect.isclass(source) and issubclass(source, KINDS) and source not in KINDS[:3]:
        return [source]
    raise TypeError(
        f"messages: {safe_repr(source)} is no subclass of Message, Request, StreamRequest or Exception, and no module "
        f"with some"
    )


def _name_of(kind: type[Any]) -> str:
    config = getattr(kind, "__struct_config__", None)
    return kind.__name__ if config is None else str(config.tag)


def answer_type(kind: type[Any]) -> Any:
    """Return the `R` of a `Request[R]`; Any if the class does not define it."""
    for owner in kind.__mro__:
        for base in vars(owner).get("__orig_bases__", ()):
            if get_origin(base) in {Request, StreamRequest}:
                (answer,) = get_args(base)
                return Any if isinstance(answer, TypeVar) else answer
    return Any


def _place(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
