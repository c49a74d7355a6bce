"""Encodes exceptions for other nodes, with arguments and fields, and restores them without pickle or imports.

Invariants:
1. An exception is restored as itself, with its original arguments and fields, or as a wrapper that names its class. No
   field ever gets a default instead of its original value.
2. Nothing here raises, whatever an exception contains and whatever data arrives.
"""

# The contents of users' exceptions are Any here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import builtins
import sys
from types import MemberDescriptorType
from typing import Any, Final

from cuelight._text import describe_error, safe_str, shortened, type_name
from cuelight.errors import CuelightError, ReplyError, ends_the_program
from cuelight.redis._actors._frames import LONGEST, Raised
from cuelight.tasks._functions._values import decode, encode

CAUSES: Final = 8
"""The number of causes that are encoded with an exception: its cause, the cause of that, and so on."""

NOTES: Final = 10
"""The number of notes that are encoded with an exception."""

LARGEST: Final = 64 * 1024
"""Maximum bytes of the arguments and fields of an exception."""

LEFT_OUT: Final = frozenset({"__notes__", "obj"})
"""Fields that are not encoded: notes are encoded separately, and `AttributeError.obj` may be any object."""


class RemoteError(CuelightError):
    """An exception of another node that could not be restored as itself; a note gives the reason.

    Attributes:
        kind: the name of its class on the other node.
        text: its text.
    """

    def __init__(self, kind: str, text: str) -> None:
        """Create the error.

        Args:
            kind: the name of the original class.
            text: the original text.
        """
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str]]:
        return type(self), (self.kind, self.text)


class ErrorTypes:
    """The exception classes that are restored as themselves: registered ones, built-in ones, and each `ReplyError`."""

    def __init__(self) -> None:
        self._names: dict[type[Any], str] = {}
        self._classes: dict[str, type[Any]] = {}

    def add(self, kind: type[Any], name: str) -> None:
        self._names[kind] = name
        self._classes[name] = kind

    def name(self, kind: type[Any]) -> str:
        """Return the name that identifies a class to other nodes; "" if there is none."""
        name = self._names.get(kind)
        if name is not None:
            return name
        path = path_of(kind)
        return path if _loaded(path) is kind else ""

    def find(self, name: str) -> type[Any] | None:
        """Return the class of a name; None if this node does not know it."""
        return self._classes.get(name) or _loaded(name)


def path_of(kind: type[Any]) -> str:
    """Return the module and the qualified name of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _loaded(path: str) -> type[Any] | None:
    """Return a built-in class, one of cuelight's, or a `ReplyError`, from a loaded module. Nothing is imported."""
    module, _, names = path.partition(":")
    found: Any = sys.modules.get(module)
    for name in names.split("."):
        found = vars(found).get(name) if found is not None and hasattr(found, "__dict__") else None
    if not isinstance(found, type) or not issubclass(found, Exception) or issubclass(found, BaseExceptionGroup):
        return None
    known = module in {builtins.__name__, CuelightError.__module__} or issubclass(found, ReplyError)
    return found if known and path_of(found) == path else None


def raised_of(error: BaseException, types: ErrorTypes, causes: int = CAUSES) -> Raised:
    """Encode an exception."""
    notes, cause = _notes_of(error), cause_of(error)
    raised = raised_of(cause, types, causes - 1) if cause is not None and causes else None
    if type(error) is RemoteError:
        return Raised(shortened(error.kind, LONGEST), shortened(error.text, LONGEST), notes=notes, cause=raised)
    kind, text = type_name(error), safe_str(error)[:LONGEST]
    name, body, why = "", b"", f"{kind} is no exception that travels"
    try:
        name = types.name(type(error))
        if name:
            body, why = _body_of(error), ""
        elif issubclass(type(error), Exception):
            why = f"{path_of(type(error))} is not registered with its node: RedisNode(..., messages=[...]) takes it"
    except BaseException as problem:  # from properties, metaclasses and values of users
        if ends_the_program(problem):
            raise
        name, why = "", f"it cannot travel with its fields: {describe_error(problem, 500)}"
    return Raised(shortened(kind, LONGEST), text, name, body, notes, shortened(why, LONGEST), raised)


def cause_of(error: BaseException) -> BaseException | None:
    """Return the cause of an exception, even if a subclass overrides `__cause__`."""
    return _CAUSE(error)  # type: ignore[no-any-return]


_CAUSE: Any = BaseException.__dict__["__cause__"].__get__
_ARGS: Any = BaseException.__dict__["args"].__get__
_DICT: Any = BaseException.__dict__["__dict__"].__get__


def _notes_of(error: BaseException) -> tuple[str, ...]:
    notes: Any = _DICT(error).get("__notes__")
    return tuple(safe_str(note, LONGEST // 4) for note in notes[:NOTES]) if type(notes) is list else ()


def _body_of(error: BaseException) -> bytes:
    """Encode the arguments and fields of an exception.

    Raises:
        TypeError: one of them cannot be encoded.
        ValueError: they are too large.
    """
    values = {"args": _ARGS(error), "fields": _fields_of(error)}
    try:
        body = encode(values, "")
    except TypeError:
        body = encode(_escaped(values), "")
    if len(body) > LARGEST:
        raise ValueError(f"its arguments and fields have {len(body)} bytes, more than {LARGEST}")
    return body


def _fields_of(error: BaseException) -> dict[str, Any]:
    fields = {name: value for name, value in _DICT(error).items() if name not in LEFT_OUT}
    for kind in type(error).__mro__:
        if kind is BaseException:
            break
        for name, slot in vars(kind).items():
            if isinstance(slot, MemberDescriptorType) and name not in LEFT_OUT:
                try:
                    value = slot.__get__(error)
                except AttributeError:  # never set
                    continue
                if value is not None or kind.__module__ != builtins.__name__:
                    fields[name] = value
    return fields


def _escaped(value: Any, room: int = 20) -> Any:
    """Return a value in which each text can be encoded."""
    kind = type(value)
    if kind is str:
        return shortened(value, len(value))
    if kind is dict and room:
        return {_escaped(key, room - 1): _escaped(part, room - 1) for key, part in value.items()}
    if kind in {list, tuple} and room:
        return kind(_escaped(part, room - 1) for part in value)
    return value


def restored(raised: Raised, types: ErrorTypes) -> Exception:
    """Restore an exception: as itself, or as a `RemoteError` with a note that gives the reason."""
    error: Exception | None = None
    why = raised.why
    if raised.name:
        try:
            kind = types.find(raised.name)
            why = f"{raised.name} is not known to this node: RedisNode(..., messages=[...]) takes it"
            error = None if kind is None else _remade(kind, raised.body)
        except BaseException as problem:  # from malformed fields and hooks of classes
            if ends_the_program(problem):
                raise
            why = f"its fields could not be read here: {describe_error(problem, 500)}"
    if error is None:
        error = RemoteError(raised.kind, raised.text)
        if why:
            error.add_note(why)
    for note in raised.notes[:NOTES]:
        error.add_note(note)
    if raised.cause is not None:
        error.__cause__ = restored(raised.cause, types)
    return error


def _remade(kind: type[Any], body: bytes) -> Exception:
    values = decode(body)
    args, fields = values["args"], values["fields"]
    base: Any = kind
    while base.__module__ != builtins.__name__:
        base = base.__base__  # the class that determines the memory layout
    # Only built-in constructors are called, never one of a user: it may require other arguments.
    error: Any = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in fields.items():
        slot = next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)
        if isinstance(slot, MemberDescriptorType):
            slot.__set__(error, value)
        else:
            _DICT(error)[str(name)] = value
    return error  # type: ignore[no-any-return]
