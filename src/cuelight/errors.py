"""Every error that Cuelight raises, under one root.

The class tells the caller whether the work was done, and so whether it may be repeated:

* `NotStarted`: the message was never handled; sending it again is safe.
* `Interrupted`: part of the handler ran; the caller decides whether to repeat the request.
* `Unknown`: contact was lost, so the outcome is not known.
* `ReplyError`: the handler ran and refused the request; the actor is healthy.
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

_EXCEPTIONS: Any = BaseExceptionGroup.exceptions.__get__  # not the members that a subclass of a group may report


class CuelightError(Exception):
    """The root of all errors of this library."""


class ChannelClosed(CuelightError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
    """The channel is closed: nothing more can be sent, or nothing is left to receive.

    It is also each of the three errors that anyio raises in these cases, so code written for anyio's streams catches
    it. Items that were still buffered when the channel closed can be received before this error is raised.
    """


class MailboxFull(CuelightError, anyio.WouldBlock):
    """The mailbox or channel is full, and its overflow policy (or a `_nowait` call) does not wait."""


class MessageRefused(CuelightError, ValueError):
    """The message cannot be sent to another node: its type is not registered, or it is too large or cannot be encoded.

    Nothing was sent.
    """


class ActorNotFound(CuelightError, LookupError):
    """No live actor has this name."""


class NameTaken(CuelightError, ValueError):
    """A live actor already has this name."""


class SystemClosed(CuelightError, RuntimeError):
    """The actor system is not running: it has not been entered, is shutting down or has ended."""


class ShutdownTimeout(CuelightError, TimeoutError):
    """Actors continued to run after being cancelled, so the block of their system was left without them.

    The message names them. Their handlers swallow cancellations, or shield themselves from cancellation for longer than
    the system waits.
    """


class StashFull(CuelightError):
    """The stash of an actor is full."""


class MaxChildren(CuelightError):
    """A dynamic supervisor has `max_children` children."""


class StartError(CuelightError):
    """An actor's constructor or `started` hook failed, so the actor never ran; the cause is in `__cause__`."""


class RestartLimitExceeded(CuelightError):
    """A supervisor's children crashed more often than its restart limit allows; the last crash is the cause."""


class BudgetExceeded(CuelightError):
    """A subtree has used more (tokens, money, wall time, memory) than its budget allows."""


class AskError(CuelightError):
    """An ask got no answer. The subclass tells whether part of the work was done."""


class NotStarted(AskError):
    """The request was never handled (the actor is dead, stopped or full). Sending it again is safe."""


class NotStartedTimeout(NotStarted, TimeoutError):
    """The deadline passed while the request was still queued. Sending it again is safe."""


class Interrupted(AskError):
    """The handler was ended while it ran. Part of the work may have been done."""


class InterruptedTimeout(Interrupted, TimeoutError):
    """The deadline passed while the handler ran, so the handler was cancelled. Part of the work may have been done."""


class ActorCrashed(Interrupted):
    """The handler raised an exception, which ended its actor's incarnation. The exception is in `__cause__`."""


class Unknown(AskError):
    """Contact with the actor was lost. The request may have been handled completely, in part or not at all."""


class UnknownTimeout(Unknown, TimeoutError):
    """The deadline passed, and the actor's node did not report in time whether the request was handled."""


class ReplyError(CuelightError):
    """Raise this, or a subclass, in a handler to refuse a request. The asker gets the error, and the actor lives on."""


class DeadlockError(CuelightError):
    """This ask or lock would wait for its own caller. The message shows the cycle of waits."""


class LockHeld(CuelightError, anyio.WouldBlock):
    """The lock or semaphore is held by others, and a `_nowait` call does not wait."""


class LockNotHeld(CuelightError, RuntimeError):
    """The caller does not hold the lock or semaphore that it releases: it never acquired it, or has lost it."""


class LockTimeout(CuelightError, TimeoutError):
    """The lock or semaphore could not be acquired within the timeout, and nothing was acquired.

    The message names the holder.
    """


class PoolClosed(CuelightError, RuntimeError):
    """The pool or queue was shut down or is not running. It accepts no work."""


class PoolFull(CuelightError, anyio.WouldBlock):
    """The pool's queue of work is full: wait until there is room, or set a larger `max_pending`."""


class QueueFull(CuelightError, anyio.WouldBlock):
    """The queue is full, and its overflow policy does not wait."""


class TaskNotFound(CuelightError, LookupError):
    """No task, dead letter or schedule has this identifier: it never existed, or its time to live has expired."""


class TaskFailed(CuelightError):
    """A task was given up after its last attempt. The message gives the reason and the outcome of that attempt."""


class TaskExpired(TaskFailed):
    """The deadline of a task passed before it started. The task was not run."""


class TaskCancelled(TaskFailed):
    """The task was cancelled before it completed."""


class TaskTimedOut(TaskFailed, TimeoutError):
    """The task ran longer than its timeout. It was stopped or, in a thread, abandoned."""


class TaskQuarantined(TaskFailed):
    """The task was running when `max_crashes` workers died. It is not tried again."""


class WorkerDied(CuelightError):
    """The process of a worker died while it ran a task: killed, out of memory, or `os._exit`.

    A `TaskWorker` block also raises it if the worker's actor was killed or given up by its supervisor.
    """


class LeaseLost(CuelightError):
    """The lease expired, and another owner may hold it now: actions of this holder no longer count."""


class StoreUnavailable(CuelightError):
    """The store could not be reached or did not answer. The operation may or may not have taken effect."""


class StoreRefused(CuelightError):
    """The server or the file rejected the operation, and will reject it again until someone changes the cause.

    Nothing was done. The message names the cause: credentials or rights, a read-only replica, full memory, a key of
    another type, or data or a server of an incompatible version.
    """


class UnexpectedCancellation(CuelightError):
    """The awaited object was cancelled, although nobody cancelled the code that awaits it.

    On asyncio, `await` raises a `CancelledError` in this case; it is the cause of this error. A handler or a task that
    raises this error has failed, as with any other exception.
    """


class Rejected(CuelightError):
    """Raise this in a task to give it up at once: there is no retry, and the dead letter has your reason."""


class RateLimited(CuelightError):
    """Raise this in a task when a service asks it to wait (HTTP 429). The task runs again after `retry_after` seconds.

    This does not count as an attempt.

    Attributes:
        retry_after: the delay in seconds.
        key: the limit that is paused for all workers; with None, only this task waits.
    """

    def __init__(self, retry_after: float, key: str | None = None) -> None:
        """Set the delay.

        Args:
            retry_after: the delay in seconds.
            key: a limit of the task that every worker pauses for the same time.

        Raises:
            ValueError: the delay is negative or not a number.
        """
        if not retry_after >= 0:
            raise ValueError(f"retry_after={retry_after!r}: give seconds, 0 or more")
        super().__init__(f"limited by {key or 'a service'}: again in {retry_after:g} s")
        self.retry_after, self.key = retry_after, key

    def __reduce__(self) -> tuple[type[RateLimited], tuple[float, str | None]]:
        return type(self), (self.retry_after, self.key)


def control_error(error: BaseException, *kinds: type[E]) -> E | None:
    """Return `error` if it is an exception of one of `kinds`; for a group of exceptions of one kind, return the first.

    A task group wraps the exceptions of its tasks. A group, nested or not, that holds only exceptions of one of the
    kinds counts as the first of them. For a group that holds anything else, which is an ordinary failure, return None.
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
    """Whether `error` is an exception of one of `kinds`, or a group, nested or not, that holds only such exceptions."""
    return all(issubclass(type(leaf), kinds) for leaf in _leaves(error))


def ends_the_program(error: BaseException) -> bool:
    """Whether `error` is `KeyboardInterrupt` or `SystemExit`, or a group that holds one of them."""
    return any(issubclass(type(leaf), (KeyboardInterrupt, SystemExit)) for leaf in _leaves(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, at any depth and in order, or the exception itself if it is not a group.

    Here and above, only the type is checked: `isinstance` reads the object's `__class__`, which may raise.
    """
    pending = [error]
    while pending:
        one = pending.pop()
        group: Any = one
        if issubclass(type(one), BaseExceptionGroup):
            pending += reversed(_EXCEPTIONS(group))
        else:
            yield one
