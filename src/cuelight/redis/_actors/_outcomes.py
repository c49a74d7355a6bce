"""Converts failures of requests and exits of actors to frames and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuelight._log import get_log
from cuelight._text import safe_str, shortened, type_name
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
from cuelight.redis._actors._errors import cause_of, raised_of, restored
from cuelight.redis._actors._frames import LONGEST, EndedFrame, FailFrame
from cuelight.redis._actors._registry import Registry

log = get_log("cuelight.redis")

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


class NodeLost(Exit, frozen=True):
    """The node of the actor has left the cluster or was lost: killed, cut off, or silent for longer than its lease.

    Attributes:
        node: the identity of the node.
        why: the known reason, in words.
    """

    node: str
    why: str = ""

    @property
    def abnormal(self) -> bool:
        """True: actors that are linked to this one crash."""
        return True

    def describe(self) -> str:
        """Return the reason in words."""
        return f"lost with its node {self.node}" + (f" ({self.why})" if self.why else "")


class EndedActor:
    """An actor of this node that has ended."""

    def __init__(self, path: str, exit_: Exit) -> None:
        self.path, self.exit = path, exit_


def fail_frame(number: int, error: BaseException, registry: Registry) -> FailFrame:
    """Return the frame for the asker of a request that has failed."""
    types = registry.errors
    reason = cause_of(error)
    cause = None if reason is None else raised_of(reason, types)
    kind = next((one.__name__ for one in type(error).__mro__ if OUTCOMES.get(one.__name__) is one), None)
    text = safe_str(error)[:LONGEST]
    if kind is None and isinstance(error, ReplyError):
        return FailFrame(number, "ReplyError", text, None, raised_of(error, types))
    if kind is None:
        kind, cause = "Interrupted", raised_of(error, types)
    return FailFrame(number, kind, text, cause)


def error_of(frame: FailFrame, registry: Registry) -> CuelightError:
    """Return the error for the asker."""
    if frame.refusal is not None:
        return _refusal(restored(frame.refusal, registry.errors))
    make = ReplyError if frame.error == "ReplyError" else OUTCOMES.get(frame.error, Unknown)
    error: CuelightError = make(frame.text)
    if frame.cause is not None:
        error.__cause__ = restored(frame.cause, registry.errors)
    return error


def _refusal(error: Exception) -> ReplyError:
    """Return a refusal as itself; if it could not be restored, a plain `ReplyError` that names its class."""
    if isinstance(error, ReplyError):
        return error
    refusal = ReplyError(safe_str(error, 2 * LONGEST))
    for note in getattr(error, "__notes__", ()):
        refusal.add_note(note)
    refusal.__cause__ = error.__cause__
    return refusal


_EXITS: Final[dict[str, Callable[[str], Exit]]] = {
    "Killed": Killed,
    "ShutDown": lambda _: ShutDown(),
    "Stopped": lambda _: Stopped(),
}


def ended_frame(serial: int, exit_: Exit, registry: Registry) -> EndedFrame:
    """Return the frame for nodes that watch an actor which has ended."""
    if isinstance(exit_, Crashed):
        return EndedFrame(serial, "Crashed", "", raised_of(exit_.error, registry.errors))
    return EndedFrame(serial, type(exit_).__name__, shortened(getattr(exit_, "why", ""), LONGEST))


def exit_of(frame: EndedFrame, registry: Registry) -> Exit:
    """Return the exit for watchers. The message on which an actor crashed is not part of it."""
    if frame.error is not None:
        return Crashed(restored(frame.error, registry.errors))
    make = _EXITS.get(frame.exit)
    return Killed(f"{frame.exit} {frame.why}".rstrip()) if make is None else make(frame.why)


def unsendable(answer: Any, error: MessageRefused) -> Interrupted:
    """Return the error for an answer that cannot be encoded. It tells the asker that the handler ran."""
    failure = Interrupted(f"the handler ran, and its answer was lost: {safe_str(error)}")
    failure.__cause__ = error
    log.error("an answer of %s cannot travel to another node: %s", type_name(answer), error)
    return failure
