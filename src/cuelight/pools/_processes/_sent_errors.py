"""Serialization of exceptions of a worker process to bytes, and back.

An exception keeps its class, arguments, attributes, notes and causes, and a group its exceptions. It is not pickled as
a whole, because unpickling would call its constructor with `args`, which is wrong for constructors with other
parameters. Instead its class, the fields of its built-in base class, and its attributes are pickled. A class that
defines its own pickling is pickled in its own way. An exception that cannot be sent, or would not come back unchanged,
is replaced by a `RuntimeError` with its name and the reason.

A worker process loads this file without its package, so it imports only the standard library.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NamedTuple

MOST: Final = 1000
"""Maximum number of exceptions in one report: causes, contexts and members of groups together."""

DEPTH: Final = 50
"""Maximum depth to which causes and groups are followed."""

_PICKLING: Final = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
    "__copyreg__",
)
_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL
_HEAP_TYPE: Final = 1 << 9


class Sent(NamedTuple):
    """One serialized exception.

    Attributes:
        kind: "parts", "group" or "whole"; "" if it could not be sent.
        pickled: (class, fields, attributes), for a group (class, (message,), attributes), or the exception as a whole.
        name: module and name of its class.
        told: its readable description.
        why: the reason for which it could not be sent.
        cause: the position of its cause in the report, or -1.
        context: the position of its context, the exception that was being handled when it was raised, or -1.
        suppressed: its `__suppress_context__`.
        members: the positions of the exceptions of a group.
    """

    kind: str
    pickled: bytes
    name: str
    told: str
    why: str
    cause: int
    context: int
    suppressed: bool
    members: tuple[int, ...]


# Serialization.


def dump(error: BaseException, describe: Callable[[BaseException], str]) -> list[tuple[Any, ...]]:
    """Make a report of an exception with its causes, contexts and members. The exception itself comes first.

    The report consists only of atoms.

    Args:
        error: the exception.
        describe: returns a description of an exception in one line, and never raises.
    """
    return [tuple(one) for one in _Report(describe).of(error)]


class _Report:
    def __init__(self, describe: Callable[[BaseException], str]) -> None:
        self._describe = describe
        self._places: dict[int, int] = {}
        self._sent: list[Sent | None] = []
        self._kept: list[BaseException] = []  # kept alive, so that no other object gets their `id`

    def of(self, error: BaseException) -> list[Sent]:
        self._enter(error, 0)
        return [one for one in self._sent if one is not None]

    def _enter(self, error: BaseException | None, depth: int) -> int:
        """Add an exception to the report. Returns its position; -1 for None and for exceptions beyond the limits."""
        if error is None:
            return -1
        if id(error) in self._places:
            return self._places[id(error)]
        if depth > DEPTH or len(self._sent) >= MOST:
            return -1
        place = self._places[id(error)] = len(self._sent)
        self._kept.append(error)
        self._sent.append(None)
        self._sent[place] = self._one(error, depth)
        return place

    def _one(self, error: BaseException, depth: int) -> Sent:
        kind, pickled, why = "", b"", ""
        members: tuple[int, ...] = ()
        try:
            kind, pickled = _pickled(error)
            if kind == "group":
                members = tuple(self._enter(one, depth + 1) for one in _members(error))
                if -1 in members:
                    kind, why, members = "", "it holds too many exceptions, or is nested too deep", ()
        except BaseException as raised:
            kind, pickled, why, members = "", b"", self._describe(raised), ()
        cause, context, suppressed = -1, -1, False
        try:
            cause = self._enter(_CAUSE(error), depth + 1)
            context = self._enter(_CONTEXT(error), depth + 1)
            suppressed = bool(_SUPPRESSED(error))
        except BaseException as raised:
            why = why or self._describe(raised)
        return Sent(kind, pickled, _name(error), self._describe(error), why, cause, context, suppressed, members)


def _getter(name: str) -> Callable[[BaseException], Any]:
    """Return a function that reads a field of an exception, even if a subclass redefines its name."""
    read: Callable[[BaseException], Any] = BaseException.__dict__[name].__get__
    return read


_CAUSE: Final = _getter("__cause__")
_CONTEXT: Final = _getter("__context__")
_SUPPRESSED: Final = _getter("__suppress_context__")
_members: Callable[[Any], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__["exceptions"].__get__
_message: Callable[[Any], str] = BaseExceptionGroup.__dict__["message"].__get__


def _name(error: BaseException) -> str:
    try:
        return f"{type(error).__module__}.{type(error).__qualname__}"[:300]
    except BaseException:
        return "an exception"


def _provided(cls: type[BaseException]) -> type[BaseException]:
    """The built-in base class of an exception class."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def _pickled(error: BaseException) -> tuple[str, bytes]:
    cls = type(error)
    base = _provided(cls)
    own = cls.__mro__[: cls.__mro__.index(base)]
    if cls in copyreg.dispatch_table or any(name in one.__dict__ for one in own for name in _PICKLING):
        return "whole", pickle.dumps(error, _PROTOCOL)
    if issubclass(cls, BaseExceptionGroup):
        group: Any = error
        return "group", pickle.dumps((cls, (_message(group),), _attributes(error)), _PROTOCOL)
    return "parts", pickle.dumps((cls, _fields(error, base), _attributes(error)), _PROTOCOL)


def _fields(error: BaseException, base: type[BaseException]) -> dict[str, Any]:
    """The fields of the built-in base class: `args`, and others such as `errno` and `filename`."""
    found: dict[str, Any] = {}
    for name, field in _fields_of(base).items():
        try:
            found[name] = field.__get__(error)
        except (AttributeError, TypeError):
            continue  # never set
    return found


def _fields_of(base: type[BaseException]) -> dict[str, Any]:
    kinds = (GetSetDescriptorType, MemberDescriptorType)
    return {
        name: field
        for cls in reversed(base.__mro__)
        for name, field in cls.__dict__.items()
        if isinstance(field, kinds)
        and not name.startswith("__")
        and name != "obj"  # a field of AttributeError that may hold any object
    }


def _attributes(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = dict(_dict_of(error))
    for name in getattr(copyreg, "_slotnames")(type(error)):  # noqa: B009 - not in the stubs
        try:
            found[name] = object.__getattribute__(error, name)
        except AttributeError:
            continue  # a slot that was never filled
    return found


def _dict_of(error: BaseException) -> dict[str, Any]:
    read: Any = BaseException.__dict__["__dict__"].__get__
    attributes: dict[str, Any] = read(error)
    return attributes


# Restoration.


def load(report: list[tuple[Any, ...]], describe: Callable[[BaseException], str]) -> BaseException:
    """Restore the exception of a report. Raises only exceptions that end the program.

    Args:
        report: a report that `dump` has made.
        describe: as for `dump`.
    """
    sent = [Sent(*one) for one in report]
    made: dict[int, BaseException] = {}
    # Members of a group come after it in the report. The reverse order restores them before the group.
    for place in range(len(sent) - 1, -1, -1):
        made[place] = _made(sent[place], made, describe)
    # Set by the descriptors of BaseException: assignment would call code of the class.
    for place, one in enumerate(sent):
        error = made[place]
        if one.context >= 0:
            _set("__context__", error, made[one.context])
        if one.cause >= 0:
            _set("__cause__", error, made[one.cause])
        _set("__suppress_context__", error, one.suppressed)
    return made[0]


def _set(name: str, error: BaseException, value: object) -> None:
    BaseException.__dict__[name].__set__(error, value)


def _made(one: Sent, made: dict[int, BaseException], describe: Callable[[BaseException], str]) -> BaseException:
    why = one.why
    if one.kind:
        try:
            error = _unpickled(one, made)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            why = describe(raised)
        else:
            if isinstance(error, BaseException) and _name(error) in {one.name, _in_main(one.name)}:
                return error
            why = f"it comes back as something else, of type {type(error).__name__}"
    reason = why or "unknown"
    return RuntimeError(
        f"{one.told} (raised in a worker process; the {one.name} itself cannot be restored here: {reason})"
    )


def _in_main(name: str) -> str:
    """The name in this process of a class of the main program, whose module has another name in a worker process."""
    return f"__main__.{name.removeprefix('__mp_main__.')}" if name.startswith("__mp_main__.") else name


def _unpickled(one: Sent, made: dict[int, BaseException]) -> Any:
    found: Any = pickle.loads(one.pickled)  # noqa: S301 - from a worker process of this program
    if one.kind == "whole":
        return found
    cls, given, attributes = found
    base: Any = _provided(cls)
    if one.kind == "group":
        error: Any = base.__new__(cls, *given, [made[place] for place in one.members])
    else:
        error = base.__new__(cls)
        fields = _fields_of(base)
        for name, value in given.items():
            if value is not None:  # None stands for "never set", which some fields distinguish from None
                fields[name].__set__(error, value)
    slots = getattr(copyreg, "_slotnames")(cls)  # noqa: B009 - not in the stubs
    for name, value in attributes.items():
        if name in slots:
            object.__setattr__(error, name, value)
        else:
            _dict_of(error)[name] = value
    return error
