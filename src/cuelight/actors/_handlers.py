"""The decorator `@on`, and the table of handlers that each actor class gets when it is defined."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, get_args, get_origin, overload

from cuelight.actors._messages import Answers, ControlMessage, Message, Streams

A = TypeVar("A")
Q = TypeVar("Q")
R = TypeVar("R")
MsgT = TypeVar("MsgT", bound=Message | ControlMessage)

HOOKS = ("started", "stopped", "restarting")


@overload
def on(
    kind: Callable[..., Streams[Q, R]], /
) -> Callable[[Callable[[A, Q], AsyncIterator[R]]], Callable[[A, Q], AsyncIterator[R]]]: ...
@overload
def on(
    kind: Callable[..., Answers[Q, R]], /
) -> Callable[[Callable[[A, Q], R] | Callable[[A, Q], Awaitable[R]]], Callable[[A, Q], Any]]: ...
@overload
def on(
    kind: type[MsgT], /
) -> Callable[[Callable[[A, MsgT], None] | Callable[[A, MsgT], Awaitable[None]]], Callable[[A, MsgT], Any]]: ...
def on(kind: Any, /) -> Any:
    """Mark a method as the handler of one kind of message, including its subclasses.

    The method may be `def` or `async def`; for a `StreamRequest` it is an async generator. Its return value is the
    reply to a `Request`; type checkers compare it with the declared reply type.

    Args:
        kind: a `Message`, `Request` or `StreamRequest` class, or `Terminated`.

    Raises:
        TypeError: `kind` is not a class, as in `@on` without parentheses.
    """
    if not isinstance(kind, type):
        raise TypeError(f"@on({kind!r}): name the class of the message, as in @on(Add)")

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__on__ = kind  # type: ignore[attr-defined]
        return function

    return mark


class HandlerTable:
    """The properties of an actor class that a cell needs.

    Attributes:
        calls: maps message classes to handlers. Subclasses are added when they first occur.
        async_calls: the part of `calls` with `async def` handlers.
        plain_calls: the part of `calls` with `def` handlers.
        streaming: the message classes whose handler is an async generator.
        plain: whether no method of the class can suspend, so that no task is ever needed.
        own_run: whether the class overrides `run`.
        hooks: the names among `started`, `stopped` and `restarting` that the class overrides.
    """

    __slots__ = ("async_calls", "calls", "hooks", "name", "own_run", "plain", "plain_calls", "streaming")

    def __init__(self, cls: type[Any], base: type[Any]) -> None:
        self.name = cls.__name__
        self.calls = _marked(cls, base)
        self.streaming = {kind for kind, call in self.calls.items() if inspect.isasyncgenfunction(call)}
        self.async_calls = {kind: call for kind, call in self.calls.items() if inspect.iscoroutinefunction(call)}
        others = self.calls.keys() - self.async_calls.keys() - self.streaming
        self.plain_calls = {kind: self.calls[kind] for kind in others}
        self.own_run = cls.run is not base.run
        self.hooks = frozenset(hook for hook in HOOKS if getattr(cls, hook) is not getattr(base, hook))
        for hook in self.hooks:
            _check_hook(cls, hook)
        self.plain = not (
            self.own_run
            or self.streaming
            or self.async_calls
            or any(inspect.iscoroutinefunction(getattr(cls, hook)) for hook in self.hooks)
        )

    def find(self, kind: type[Any]) -> Callable[..., Any] | None:
        """Return the handler of a class that is not in `calls` yet: that of its nearest base. Add it to `calls`."""
        for base in kind.__mro__[1:]:
            call = self.calls.get(base)
            if call is not None:
                self.calls[kind] = call
                if base in self.streaming:
                    self.streaming.add(kind)
                else:
                    (self.async_calls if base in self.async_calls else self.plain_calls)[kind] = call
                return call
        return None


def _marked(cls: type[Any], base: type[Any]) -> dict[type[Any], Callable[..., Any]]:
    """Return the handlers of a class, including inherited ones. An overridden handler method stays a handler.

    Raises:
        TypeError: a handler has the name of an attribute of every actor, or cannot be called with a message.
    """
    names: dict[type[Any], str] = {}
    for owner in reversed(cls.__mro__):
        own: dict[type[Any], str] = {}
        for name, value in vars(owner).items():
            kind = getattr(value, "__on__", None)
            if kind is None:
                continue
            if kind in own:
                raise TypeError(
                    f"{owner.__name__} handles {kind.__name__} twice, in {own[kind]} and {name}: keep one of them"
                )
            own[kind] = name
            if name in vars(base):
                raise TypeError(
                    f"{owner.__name__}.{name} handles {kind.__name__} and hides {base.__name__}.{name}, which every "
                    f"actor has: give the method another name"
                )
            _check_handler(owner, name, value)
        names.update(own)
    return {kind: getattr(cls, name) for kind, name in names.items()}


def _check_handler(owner: type[Any], name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"{owner.__name__}.{name}{signature} cannot handle a message: it must take one argument besides self, the "
            f"message"
        ) from None


def _check_hook(cls: type[Any], hook: str) -> None:
    function = getattr(cls, hook)
    if not callable(function):
        raise TypeError(f"{cls.__name__}.{hook} is a hook of Actor: name your attribute otherwise")
    wanted = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if len(wanted) != 2 and not any(p.kind is p.VAR_POSITIONAL for p in wanted):
        raise TypeError(f"{cls.__name__}.{hook} must take one argument, why: def {hook}(self, why) -> None")


def message_types(cls: type[Any], base: type[Any]) -> tuple[type[Any], ...] | None:
    """Return the classes in `Actor[...]` of a class definition, or None if it has type variables or no classes."""
    for declared in (one for owner in cls.__mro__ for one in vars(owner).get("__orig_bases__", ())):
        if get_origin(declared) is base:
            (given,) = get_args(declared)
            union = get_origin(given) in {typing.Union, types.UnionType}
            members = get_args(given) if union else (given,)
            members = tuple(get_origin(member) or member for member in members)
            known = all(isinstance(member, type) and member is not Any for member in members)
            return members if known else None
    return None


def check_handlers(cls: type[Any], base: type[Any], table: HandlerTable) -> None:
    """Compare the handlers of a class with its declared messages.

    Raises:
        TypeError: a message of the union has no handler, or a handler is for a message that is not in the union.
    """
    taken = message_types(cls, base)
    if taken is None or table.own_run:
        return
    for member in taken:
        if not any(issubclass(member, kind) for kind in table.calls):
            raise TypeError(
                f"{cls.__name__} takes {member.__name__} but does not handle it: add a method with "
                f"@on({member.__name__}), or take it out of Actor[...]"
            )
    for kind, call in table.calls.items():
        if not issubclass(kind, ControlMessage) and not any(issubclass(kind, member) for member in taken):
            raise TypeError(
                f"{cls.__name__}.{call.__name__} handles {kind.__name__}, which is not in Actor[...]: add it there"
            )
