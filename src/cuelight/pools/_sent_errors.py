"""Exceptions on their way out of a worker process, as bytes, and back.

An exception comes back as itself: of its class, with its arguments, attributes, notes, causes, and the exceptions in
it if it is a group. It is not pickled as a whole, because that would call its constructor with `args`, which is wrong
for every constructor that takes something else. Its class, the arguments of the class that Python itself provides, and
its attributes are pickled; a class that says itself how it is pickled has the say. What cannot be sent, or would not
come back as what it was, is replaced by a `RuntimeError` that names it and says why.

A worker process loads this file without its package: it imports the standard library alone.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NamedTuple

__all__ = ["Sent", "dump", "load"]

MOST: Final = 1000
"""Exceptions in one report: causes, contexts and members of groups, added up."""

DEPTH: Final = 50
"""How deep causes and groups are followed."""

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
    """One exception.

    Attributes:
        kind: "parts", "group" or "whole"; "" if it could not be sent.
        pickled: (class, fields, attributes), of a group (class, (message,), attributes), or the exception as a whole.
        name: module and name of its class.
        told: what it says; for people.
        why: why it could not be sent.
        cause: the place of its cause in the report, or -1.
        context: likewise, of what was being handled when it was raised.
        suppressed: its `__suppress_context__`.
        members: the places of the exceptions of a group.
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


# Out.


def dump(error: BaseException, describe: Callable[[BaseException], str]) -> list[tuple[Any, ...]]:
    """A report of an exception and of what belongs to it, in atoms; the exception itself comes first.

    Args:
        error: the exception.
        describe: makes one line of an exception, and never raises.
    """
    return [tuple(one) for one in _Report(describe).of(error)]


class _Report:
    def __init__(self, describe: Callable[[BaseException], str]) -> None:
        self._describe = describe
        self._places: dict[int, int] = {}
        self._sent: list[Sent | None] = []
        self._kept: list[BaseException] = []  # their identities must stay theirs

    def of(self, error: BaseException) -> list[Sent]:
        self._enter(error, 0)
        return [one for one in self._sent if one is not None]

    def _enter(self, error: BaseException | None, depth: int) -> int:
        """The place of an exception in the report; -1 for none, and for what is left out."""
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
    """Reads a field of an exception, whatever a subclass made of its name."""
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
    """The class in Python itself on which a class of exceptions is built."""
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
    """What the class in Python itself keeps of it: `args`, and such as `errno` and `filename`."""
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
        and name != "obj"  # of AttributeError: anything at all
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


# Back.


def load(report: list[tuple[Any, ...]], describe: Callable[[BaseException], str]) -> BaseException:
    """The exception of a report. Never raises, but for what ends programs.

    Args:
        report: what `dump` has made.
        describe: as for `dump`.
    """
    sent = [Sent(*one) for one in report]
    made: dict[int, BaseException] = {}
    # Members of a group come after it in the report, so that they are made before it.
    for place in range(len(sent) - 1, -1, -1):
        made[place] = _made(sent[place], made, describe)
    for place, one in enumerate(sent):
        error = made[place]
        try:
            if one.context >= 0:
                error.__context__ = made[one.context]
            if one.cause >= 0:
                error.__cause__ = made[one.cause]
            error.__suppress_context__ = one.suppressed
        except Exception:  # noqa: S112 - a property of its class: the chain of causes ends here
            continue
    return made[0]


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
    return RuntimeError(f"{one.told} (raised in a worker process; the {one.name} itself cannot be had here: {reason})")


def _in_main(name: str) -> str:
    """The name here of a class of the main program, which has another name in a worker process."""
    return f"__main__.{name.removeprefix('__mp_main__.')}" if name.startswith("__mp_main__.") else name


def _unpickled(one: Sent, made: dict[int, BaseException]) -> Any:
    found: Any = pickle.loads(one.pickled)  # noqa: S301 - from a process of our own
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
            if value is not None:  # None stands for "never set", which is more than None for some
                fields[name].__set__(error, value)
    slots = getattr(copyreg, "_slotnames")(cls)  # noqa: B009 - not in the stubs
    for name, value in attributes.items():
        if name in slots:
            object.__setattr__(error, name, value)
        else:
            _dict_of(error)[name] = value
    return error
