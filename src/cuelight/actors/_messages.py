"""The messages of actors: values, and types that let a type checker match requests with replies."""

from __future__ import annotations

from typing import Generic, Protocol, Self, TypeVar, dataclass_transform

import msgspec

from cuelight._text import describe_error

M_co = TypeVar("M_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ReplyType(Generic[R]):
    """Carries the type of a reply for type checkers, invariantly. It has no instances outside of type checking."""

    value: R


class Answerable(Protocol[M_co, R_co]):
    """A message of type `M_co` with a reply of type `R_co` or of a subtype. This is the parameter type of `ask`.

    It is covariant in the reply, so that an answer can be used where any object is accepted, as in `print(await
    ref.ask(Total()))`.
    """

    def __message__(self) -> M_co: ...
    def __answer__(self) -> R_co: ...


class Answers(Protocol[M_co, R]):
    """A message of type `M_co` with a reply of exactly type `R`, such as a `Request`. The parameter type of `on`."""

    def __message__(self) -> M_co: ...
    def __reply__(self) -> ReplyType[R]: ...


class Streams(Protocol[M_co, R]):
    """A message of type `M_co` that is answered with a stream of `R`, such as a `StreamRequest`."""

    def __message__(self) -> M_co: ...
    def __chunk__(self) -> ReplyType[R]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes classes such as `class Add(Message): amount: int` frozen and tagged, also for type checkers."""


class Message(msgspec.Struct, metaclass=MessageMeta, frozen=True, tag=True):
    """A message without a reply: a frozen, tagged `msgspec.Struct`.

    Messages with equal values are equal. Subclass it and list the fields with their types.
    """


class Request(msgspec.Struct, Generic[R], metaclass=MessageMeta, frozen=True, tag=True):
    """A message with a reply of type `R`, as in `class Total(Request[int])`."""

    def __message__(self) -> Self:
        """Return this message, for type checkers."""
        return self

    def __reply__(self) -> ReplyType[R]:
        """Return the type of the reply, for type checkers."""
        return ReplyType()

    def __answer__(self) -> R:
        """Declare the type of the reply, for type checkers. It cannot be called."""
        raise TypeError(f"{self!r} is answered by the actor that it is sent to")


class StreamRequest(msgspec.Struct, Generic[R], metaclass=MessageMeta, frozen=True, tag=True):
    """A message that is answered with a stream of `R` values, by an async generator handler."""

    def __message__(self) -> Self:
        """Return this message, for type checkers."""
        return self

    def __chunk__(self) -> ReplyType[R]:
        """Return the type of one chunk, for type checkers."""
        return ReplyType()


# The reasons why an actor starts and ends: values that hooks, watchers and supervisors receive.


class Start(msgspec.Struct, frozen=True):
    """The reason why an incarnation starts. The `started` hook receives it."""


class Spawned(Start, frozen=True):
    """The first incarnation."""


class WasRestarted(Start, frozen=True):
    """A later incarnation.

    Attributes:
        after: the exit of the previous incarnation.
        restarts: the number of restarts since this actor was last healthy, including this one.
    """

    after: Exit
    restarts: int


class Exit(msgspec.Struct, frozen=True):
    """The reason why an incarnation ended.

    The `stopped` and `restarting` hooks, watchers and supervisors receive it.
    """

    @property
    def abnormal(self) -> bool:
        """Whether a `transient` actor is restarted after this exit."""
        return False

    def describe(self) -> str:
        """Return the reason in words."""
        return type(self).__name__.lower()


class Stopped(Exit, frozen=True):
    """The actor was asked to stop, or its `run` returned."""


class ShutDown(Exit, frozen=True):
    """The actor's supervisor or system stopped it."""

    def describe(self) -> str:
        """Return the reason in words."""
        return "shut down"


class Killed(Exit, frozen=True):
    """The actor was killed: the running handler was cancelled and the queue was dropped.

    Attributes:
        why: the killer or the cause, in words.
    """

    why: str = ""

    def describe(self) -> str:
        """Return the reason in words."""
        return f"killed ({self.why})" if self.why else "killed"


class Crashed(Exit, frozen=True):
    """The actor raised an exception.

    Attributes:
        error: the exception, with its traceback.
        message: the message that it was handling, or None outside of messages.
    """

    error: BaseException
    message: object = None

    @property
    def abnormal(self) -> bool:
        """True: a `transient` actor is restarted."""
        return True

    def describe(self) -> str:
        """Return the reason in words."""
        return f"crashed: {describe_error(self.error)}"


class ControlMessage(msgspec.Struct, frozen=True):
    """A message that the runtime sends to an actor. It overtakes other messages and is never a dead letter."""
