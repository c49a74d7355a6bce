"""Every error that Cuelight raises, under one root.

The classes say what happened to the work, because that decides what the caller may do next:

* `NotStarted`: the message was never handled; sending it again is safe.
* `Interrupted`: the handler ran in part; whether to repeat it is for the caller to decide.
* `Unknown`: contact was lost, so nobody can say.
* `ReplyError`: the handler ran and refused; the actor is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

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
    "LeaseLost",
    "LockHeld",
    "LockNotHeld",
    "LockTimeout",
    "MailboxFull",
    "MaxChildren",
    "MessageRefused",
    "NameTaken",
    "NotStarted",
    "NotStartedTimeout",
    "PoolClosed",
    "PoolFull",
    "QueueFull",
    "RateLimited",
    "Rejected",
    "ReplyError",
    "RestartLimitExceeded",
    "ShutdownTimeout",
    "StartError",
    "StashFull",
    "StoreRefused",
    "StoreUnavailable",
    "SystemClosed",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskNotFound",
    "TaskQuarantined",
    "TaskTimedOut",
    "UnexpectedCancellation",
    "Unknown",
    "UnknownTimeout",
    "WorkerDied",
    "consists_of",
    "control_error",
    "ends_the_program",
]

E = TypeVar("E", bound=BaseException)

_EXCEPTIONS: Any = BaseExceptionGroup.exceptions.__get__  # not what a subclass of a group made of its members


class CuelightError(Exception):
    """The root of all errors of this library."""


class ChannelClosed(CuelightError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
    """The channel is closed: nothing more can be sent, or nothing is left to receive.

    It is also each of the three errors that anyio raises for this, so code written for anyio's streams
    catches it. You do not get it for items that were still buffered when the channel closed.
    """


class MailboxFull(CuelightError, anyio.WouldBlock):
    """The mailbox or channel has no room, and its overflow policy (or a `_nowait` call) does not wait."""


class MessageRefused(CuelightError, ValueError):
    """The message cannot travel to another node: of no registered type, too large, or not to be encoded.

    Nothing was sent.
    """


class ActorNotFound(CuelightError, LookupError):
    """No live actor has this name."""


class NameTaken(CuelightError, ValueError):
    """A live actor has this name already."""


class SystemClosed(CuelightError, RuntimeError):
    """The actor system is not running: it has not been entered, is shutting down or has ended."""


class ShutdownTimeout(CuelightError, TimeoutError):
    """Actors went on although they were cancelled, so the block of their system was left without them.

    The message says which they are. Their handlers swallow cancellations, or shield themselves from them for longer
    than the system waits.
    """


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


class UnknownTimeout(Unknown, TimeoutError):
    """The deadline passed, and the node of the actor did not say in time how far it was."""


class ReplyError(CuelightError):
    """Raise this, or a subclass, in a handler to refuse a request: the asker gets it, the actor lives on."""


class DeadlockError(CuelightError):
    """This ask or lock would wait for the one who wants it; the message shows the circle of those who wait."""


class LockHeld(CuelightError, anyio.WouldBlock):
    """Others hold the lock or semaphore, and a `_nowait` call does not wait."""


class LockNotHeld(CuelightError, RuntimeError):
    """Only who holds a lock or a semaphore can release it: this one never did, or has lost it."""


class LockTimeout(CuelightError, TimeoutError):
    """The lock or semaphore was not to be had in time; the message says who holds it. Nothing was taken."""


class PoolClosed(CuelightError, RuntimeError):
    """The pool or queue was shut down, or is not running: it takes no work."""


class PoolFull(CuelightError, anyio.WouldBlock):
    """As much work waits as the pool may hold: wait for room, or give it a larger `max_pending`."""


class QueueFull(CuelightError, anyio.WouldBlock):
    """As many tasks wait as the queue may hold, and its overflow policy does not wait."""


class TaskNotFound(CuelightError, LookupError):
    """No task, dead letter or schedule has this identifier: it never had, or its time to live is over."""


class TaskFailed(CuelightError):
    """A task was given up after its last attempt; the message says why, and how its last attempt ended."""


class TaskExpired(TaskFailed):
    """The deadline of a task passed before it was started: it was not run."""


class TaskCancelled(TaskFailed):
    """The task was cancelled before it completed."""


class TaskTimedOut(TaskFailed, TimeoutError):
    """The task ran longer than its time-out: it was stopped, or, in a thread, abandoned."""


class TaskQuarantined(TaskFailed):
    """The task was under way each time a worker died, as often as it may be: it is not tried again."""


class WorkerDied(CuelightError):
    """The process of a worker died under a task: killed, out of memory, or `os._exit`.

    It also leaves the block of a `TaskWorker` whose actor was killed or given up by its supervisor.
    """


class LeaseLost(CuelightError):
    """The lease ran out and somebody else may hold it now: what this holder does counts no more."""


class StoreUnavailable(CuelightError):
    """The store could not be reached, or did not answer: the operation may or may not have taken effect."""


class StoreRefused(CuelightError):
    """The server, or the file, will go on to refuse until somebody changes something; nothing was done.

    Credentials or rights, a replica that must not be written, memory that is full, a key of another type, data or a
    server of a version that does not fit: the message says which.
    """


class UnexpectedCancellation(CuelightError):
    """What the code awaited was cancelled by somebody else, although nobody cancelled the code itself.

    On asyncio this comes out of `await` as a `CancelledError`; it is the cause of this error. A handler or a task that
    it leaves has failed, as with any other exception.
    """


class Rejected(CuelightError):
    """Raise this in a task to give it up at once: no retry, a dead letter with your reason."""


class RateLimited(CuelightError):
    """Raise this in a task when a service says "later" (HTTP 429): not an attempt, run again after `retry_after`.

    Attributes:
        retry_after: seconds.
        key: the limit that is paused for all workers; None pauses nobody else.
    """

    def __init__(self, retry_after: float, key: str | None = None) -> None:
        """Say when to come back.

        Args:
            retry_after: seconds.
            key: a limit of the task that every worker should pause for as long.

        Raises:
            ValueError: the time is negative or not a number.
        """
        if not retry_after >= 0:
            raise ValueError(f"retry_after={retry_after!r}: give seconds, 0 or more")
        super().__init__(f"limited by {key or 'a service'}: again in {retry_after:g} s")
        self.retry_after, self.key = retry_after, key

    def __reduce__(self) -> tuple[type[RateLimited], tuple[float, str | None]]:
        return type(self), (self.retry_after, self.key)


def control_error(error: BaseException, *kinds: type[E]) -> E | None:
    """The exception of one of `kinds` that `error` is, or that it consists of if it is an exception group.

    A task group wraps what a task in it raises. A group, nested or not, that holds only exceptions of one of the
    kinds counts as the first of them; a group that holds anything else is an ordinary failure.
    """
    found: list[BaseException] = []
    for leaf in _leaves(error):
        kind = next((kind for kind in kinds if issubclass(type(leaf), kind)), None)
        if kind is None or (found and not issubclass(type(found[0]), kind)):
            return None
        found.append(leaf)
    first: E | None = found[0] if found else None  # type: ignore[assignment] # it is of one of the kinds
    return first


def consists_of(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether `error` is an exception of one of `kinds`, or a group, nested or not, that holds only such."""
    return all(issubclass(type(leaf), kinds) for leaf in _leaves(error))


def ends_the_program(error: BaseException) -> bool:
    """Whether `error` is `KeyboardInterrupt` or `SystemExit`, or a group that holds one of them."""
    return any(issubclass(type(leaf), (KeyboardInterrupt, SystemExit)) for leaf in _leaves(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, in order, however deep it is nested; an exception that is no group itself.

    Its type alone is looked at, here and above: `isinstance` asks an object for its `__class__`, which may raise.
    """
    pending = [error]
    while pending:
        one = pending.pop()
        group: Any = one
        if issubclass(type(one), BaseExceptionGroup):
            pending += reversed(_EXCEPTIONS(group))
        else:
            yield one
