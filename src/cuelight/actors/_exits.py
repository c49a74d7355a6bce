"""The reasons why an actor starts and ends: values that hooks, watchers and supervisors receive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._text import describe_error

if TYPE_CHECKING:
    from cuelight.actors._ref import Ref


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


class Terminated(msgspec.Struct, frozen=True):
    """Sent to each watcher of an actor, once, when the actor has ended permanently.

    Attributes:
        ref: the actor that ended.
        exit: the reason why it ended.
    """

    ref: Ref[Any]
    exit: Exit
