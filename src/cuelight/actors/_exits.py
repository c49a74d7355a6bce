"""Why an actor starts and why it ends: values that hooks, watchers and supervisors receive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._text import describe_error

if TYPE_CHECKING:
    from cuelight.actors._ref import Ref

__all__ = [
    "Crashed",
    "Exit",
    "Killed",
    "ShutDown",
    "Spawned",
    "Start",
    "Stopped",
    "Terminated",
    "WasRestarted",
]


class Start(msgspec.Struct, frozen=True):
    """Why an incarnation starts; given to the `started` hook."""


class Spawned(Start, frozen=True):
    """The first incarnation."""


class WasRestarted(Start, frozen=True):
    """A successor.

    Attributes:
        after: how the incarnation before it ended.
        restarts: how often this actor was restarted since it was last healthy, this time included.
    """

    after: Exit
    restarts: int


class Exit(msgspec.Struct, frozen=True):
    """Why an incarnation ended; given to the `stopped` and `restarting` hooks, to watchers and supervisors."""

    @property
    def abnormal(self) -> bool:
        """Whether a `transient` actor is restarted after it."""
        return False

    def describe(self) -> str:
        """The reason in words."""
        return type(self).__name__.lower()


class Stopped(Exit, frozen=True):
    """It was asked to stop, or its `run` returned."""


class ShutDown(Exit, frozen=True):
    """Its supervisor or its system stopped it."""

    def describe(self) -> str:
        """The reason in words."""
        return "shut down"


class Killed(Exit, frozen=True):
    """It was killed: the running handler was cancelled and the queue given up.

    Attributes:
        why: who or what killed it, in words.
    """

    why: str = ""

    def describe(self) -> str:
        """The reason in words."""
        return f"killed ({self.why})" if self.why else "killed"


class Crashed(Exit, frozen=True):
    """It raised an exception.

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
        """The reason in words."""
        return f"crashed: {describe_error(self.error)}"


class Terminated(msgspec.Struct, frozen=True):
    """Told to those who watch an actor, once, when it has ended for good.

    Attributes:
        ref: the actor that ended.
        exit: why.
    """

    ref: Ref[Any]
    exit: Exit
