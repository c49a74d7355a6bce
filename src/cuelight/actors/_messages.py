"""What actors send each other: values, and the types that tell a checker who answers what."""

from __future__ import annotations

from typing import Generic, Protocol, Self, TypeVar, dataclass_transform

import msgspec

__all__ = ["Answerable", "Answers", "Message", "ReplyType", "Request", "StreamRequest", "Streams"]

M_co = TypeVar("M_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ReplyType(Generic[R]):
    """Carries the type of a reply for type checkers, invariantly. It is never made."""

    value: R


class Answerable(Protocol[M_co, R_co]):
    """A message that is one of `M_co` and is answered with an `R_co`, or less than one. What `ask` takes.

    Covariant in the reply, so that an answer can stand where any object can, as in `print(await ref.ask(Total()))`.
    """

    def __message__(self) -> M_co: ...
    def __answer__(self) -> R_co: ...


class Answers(Protocol[M_co, R]):
    """A message that is one of `M_co` and is answered with exactly `R`; `Request` fulfils it. What `on` takes."""

    def __message__(self) -> M_co: ...
    def __reply__(self) -> ReplyType[R]: ...


class Streams(Protocol[M_co, R]):
    """A message that is one of `M_co` and is answered with a stream of `R`; `StreamRequest` fulfils it."""

    def __message__(self) -> M_co: ...
    def __chunk__(self) -> ReplyType[R]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes `class Add(Message): amount: int` frozen and tagged, for type checkers too."""


class Message(msgspec.Struct, metaclass=MessageMeta, frozen=True, tag=True):
    """A message that is told and not answered: a frozen, tagged `msgspec.Struct`.

    Equal values are equal messages. Subclass it and list the fields with their types.
    """


class Request(msgspec.Struct, Generic[R], metaclass=MessageMeta, frozen=True, tag=True):
    """A message that is answered with an `R`: `class Total(Request[int])`."""

    def __message__(self) -> Self:
        """For type checkers: this message itself."""
        return self

    def __reply__(self) -> ReplyType[R]:
        """For type checkers: the type of the reply."""
        return ReplyType()

    def __answer__(self) -> R:
        """For type checkers: the type of the reply. It cannot be called."""
        raise TypeError(f"{self!r} is answered by the actor that it is sent to")


class StreamRequest(msgspec.Struct, Generic[R], metaclass=MessageMeta, frozen=True, tag=True):
    """A message that is answered with many `R`, one after another, by an async generator handler."""

    def __message__(self) -> Self:
        """For type checkers: this message itself."""
        return self

    def __chunk__(self) -> ReplyType[R]:
        """For type checkers: the type of one chunk."""
        return ReplyType()
