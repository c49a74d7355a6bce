"""Every error that Cuelight raises, under one root.

The classes say what happened to the work, because that decides what the caller may do next:

* `NotStarted`: the message was never handled; sending it again is safe.
* `Interrupted`: the handler ran in part; whether to repeat it is for the caller to decide.
* `Unknown`: contact was lost, so nobody can say.
* `ReplyError`: the handler ran and refused; the actor is well.
"""

from __future__ import annotations

import anyio

__all__ = [
    "ActorCrashed",
    "ActorNotFound",
    "AskError",
    "BudgetExceeded",
    "ChannelClosed",
    "CuelightError",
    "DeadlockError",
    "Interrupted",
    "InterruptedTimeout",
    "MailboxFull",
    "MaxChildren",
    "NameTaken",
    "NotStarted",
    "NotStartedTimeout",
    "ReplyError",
    "RestartLimitExceeded",
    "StartError",
    "StashFull",
    "SystemClosed",
    "Unknown",
]


class CuelightError(Exception):
    """The root of all errors of this library."""


class ChannelClosed(CuelightError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
    """The channel is closed: nothing more can be sent, or nothing is left to receive.

    It is also each of the three errors that anyio raises for this, so code written for anyio's streams
    catches it. You do not get it for items that were still buffered when the channel closed.
    """


class MailboxFull(CuelightError, anyio.WouldBlock):
    """The mailbox or channel has no room, and its overflow policy (or a `_nowait` call) does not wait."""


class ActorNotFound(CuelightError, LookupError):
    """No live actor has this name."""


class NameTaken(CuelightError, ValueError):
    """A live actor has this name already."""


class SystemClosed(CuelightError, RuntimeError):
    """The actor system is not running: it has not been entered, is shutting down or has ended."""


class StashFull(CuelightError):
    """The stash of an actor holds as many messages as it may."""


class MaxChildren(CuelightError):
    """A dynamic supervisor has as many children as it may."""


class StartError(CuelightError):
    """An actor's constructor or `started` hook failed, so it never ran; the cause is in `__cause__`."""


class RestartLimitExceeded(CuelightError):
    """A supervisor's children crashed more often than its restart limit allows; the last crash is the cause."""


class BudgetExceeded(CuelightError):
    """A subtree has spent more (tokens, money, wall time, memory) than its budget allows."""


class AskError(CuelightError):
    """An ask got no answer. Subclasses say whether the work was done in part."""


class NotStarted(AskError):
    """The request was never handled (the actor is dead, stopped or full): safe to send again."""


class NotStartedTimeout(NotStarted, TimeoutError):
    """The deadline passed while the request was still queued: safe to send again."""


class Interrupted(AskError):
    """The handler was cut off while it ran: part of the work may have been done."""


class InterruptedTimeout(Interrupted, TimeoutError):
    """The deadline passed while the handler ran; it was cancelled, part of the work may have been done."""


class ActorCrashed(Interrupted):
    """The handler raised an exception, which ended its actor's incarnation; it is in `__cause__`."""


class Unknown(AskError):
    """Contact with the actor was lost: the request may have been handled, in part, wholly or not at all."""


class ReplyError(CuelightError):
    """Raise this, or a subclass, in a handler to refuse a request: the asker gets it, the actor lives on."""


class DeadlockError(CuelightError):
    """This ask would wait for its own asker; the message shows the circle of actors."""
