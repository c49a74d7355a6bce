"""How asks fail and actors end, as words that travel and back. Errors travel as class and text, never as objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuelight._log import get_log
from cuelight._text import describe_error, safe_str, type_name
from cuelight.actors import Crashed, Exit, Killed, ShutDown, Stopped
from cuelight.errors import (
    ActorCrashed,
    CuelightError,
    DeadlockError,
    Interrupted,
    InterruptedTimeout,
    MessageRefused,
    NotStarted,
    NotStartedTimeout,
    ReplyError,
    Unknown,
    UnknownTimeout,
)
from cuelight.redis._actors._frames import Ended, Fail
from cuelight.redis._actors._registry import Registry

__all__ = ["NodeLost", "RemoteError", "ended_frame", "error_of", "exit_of", "fail_frame"]

log = get_log("cuelight.redis")

LONGEST: Final = 4000
"""Characters of an error's text that travel."""

OUTCOMES: Final[dict[str, type[CuelightError]]] = {
    kind.__name__: kind
    for kind in (
        ActorCrashed,
        DeadlockError,
        Interrupted,
        InterruptedTimeout,
        NotStarted,
        NotStartedTimeout,
        Unknown,
        UnknownTimeout,
    )
}


class RemoteError(CuelightError):
    """An exception that was raised on another node.

    Attributes:
        kind: the name of its class there.
        text: its text.
    """

    def __init__(self, kind: str, text: str) -> None:
        """Say what was raised.

        Args:
            kind: the name of its class.
            text: its text.
        """
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str]]:
        return type(self), (self.kind, self.text)


class NodeLost(Exit, frozen=True):
    """The node of the actor has left the cluster or was lost: killed, cut off, or silent beyond its lease.

    Attributes:
        node: its identity.
        why: what is known, in words.
    """

    node: str
    why: str = ""

    @property
    def abnormal(self) -> bool:
        """True: those who are linked to it crash."""
        return True

    def describe(self) -> str:
        """The reason in words."""
        return f"lost with its node {self.node}" + (f" ({self.why})" if self.why else "")


def _words(error: BaseException) -> tuple[str, str]:
    if isinstance(error, RemoteError):
        return error.kind, error.text[:LONGEST]
    return type_name(error), safe_str(error)[:LONGEST]


def fail_frame(number: int, error: BaseException, registry: Registry) -> Fail:
    """What an asker is sent in the place of an answer."""
    cause = None if error.__cause__ is None else _words(error.__cause__)
    kind = next((one.__name__ for one in type(error).__mro__ if OUTCOMES.get(one.__name__) is one), None)
    if kind is None and isinstance(error, ReplyError):
        name = registry.name(type(error))
        text = safe_str(error) if name or type(error) is ReplyError else describe_error(error)
        return Fail(number, name or "ReplyError", text[:LONGEST], cause)
    if kind is None:
        kind, cause = "Interrupted", _words(error)
    return Fail(number, kind, safe_str(error)[:LONGEST], cause)


def error_of(frame: Fail, registry: Registry) -> CuelightError:
    """The error that an asker gets."""
    refusal: Any = ReplyError if frame.error == "ReplyError" else registry.error_class(frame.error)
    error: CuelightError
    if refusal is not None:
        # Its own constructor may ask for more than the text, which is all that has come.
        error = BaseException.__new__(refusal, frame.text)
    else:
        error = OUTCOMES.get(frame.error, Unknown)(frame.text)
    if frame.cause is not None:
        error.__cause__ = RemoteError(*frame.cause)
    return error


_EXITS: Final[dict[str, Callable[[str], Exit]]] = {
    "Killed": Killed,
    "ShutDown": lambda _: ShutDown(),
    "Stopped": lambda _: Stopped(),
}


def ended_frame(serial: int, exit_: Exit) -> Ended:
    """What those are sent who watch an actor."""
    if isinstance(exit_, Crashed):
        return Ended(serial, "Crashed", "", _words(exit_.error))
    return Ended(serial, type(exit_).__name__, getattr(exit_, "why", ""))


def exit_of(frame: Ended) -> Exit:
    """The exit that watchers get. The message that an actor crashed on stays where it was."""
    if frame.error is not None:
        return Crashed(RemoteError(*frame.error))
    make = _EXITS.get(frame.exit)
    return Killed(f"{frame.exit} {frame.why}".rstrip()) if make is None else make(frame.why)


def unsendable(answer: Any, error: MessageRefused) -> Interrupted:
    """The handler ran, but what it returned cannot travel: the asker must know that it ran."""
    failure = Interrupted(f"the handler ran, and its answer was lost: {error}")
    failure.__cause__ = error
    log.error("an answer of %s cannot travel to another node: %s", type(answer).__name__, error)
    return failure
