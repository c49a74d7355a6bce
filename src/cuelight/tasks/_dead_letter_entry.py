"""A dead letter, whoever gave it up, and the pure rules about which ones are meant."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias, TypedDict, cast

import msgspec

from cuelight._text import safe_repr
from cuelight.actors import Ref
from cuelight.errors import ActorNotFound, MailboxFull, TaskNotFound
from cuelight.tasks._outcome import said, trace_of
from cuelight.tasks._task import Attempt, Counts

__all__ = [
    "Choice",
    "DeadLetterEntry",
    "ReplayReport",
    "Target",
    "Which",
    "attempt_of",
    "deliver",
    "failure_of",
    "last_failure",
    "nowhere",
    "tell_once",
    "unknown",
]


class DeadLetterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Work that was given up: a task, a message of an actor, or what `add` was told.

    Attributes:
        id: its identity; of a task its `task_id`.
        sequence: its place in the order of `list`, and the cursor.
        source: where it failed: the last worker of a task, the path of an actor, or what `add` was told.
        task_type: the type of the task, or the class of the message.
        payload: the payload of the task, or the message.
        reason: why it was given up. Of tasks "errors", "timeouts", "expired", "quarantined", "rejected", "shed" or
            "undecodable", of messages one of `Reason`, else what `add` was told.
        error: type and message of the last exception; "" if there was none.
        traceback: where it was raised.
        history: the attempts, oldest first.
        dead_at: when it was given up, in seconds since the epoch.
        counts: attempts by how they ended.
    """

    id: str
    sequence: int = 0
    source: str = ""
    task_type: str = ""
    payload: Any = None
    reason: str = ""
    error: str = ""
    traceback: str = ""
    history: tuple[Attempt, ...] = ()
    dead_at: float = 0.0
    counts: Counts = msgspec.field(default_factory=Counts)

    def with_id(self, letter_id: str) -> Self:
        """The same letter under another identity."""
        return msgspec.structs.replace(self, id=letter_id)


class ReplayReport(msgspec.Struct):
    """What `replay_all` did.

    Attributes:
        replayed: letters that were given back.
        would_replay: letters that would have been, in a dry run.
        failed: letters that could not be; they stay dead letters.
        errors: why, by the identity of the letter; the first 1,000.
    """

    replayed: int = 0
    would_replay: int = 0
    failed: int = 0
    errors: dict[str, str] = msgspec.field(default_factory=dict[str, str])

    def add_failure(self, letter_id: str, why: str) -> None:
        """Count a letter that could not be replayed."""
        self.failed += 1
        if len(self.errors) < 1000:
            self.errors[letter_id] = why


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters; all conditions must hold.

    Attributes:
        reason: exactly this reason.
        task_type: exactly this type.
        error: this text is in `error`.
        since: given up at this time or later, in seconds since the epoch.
        before: given up earlier than this.
    """

    reason: str | None = None
    task_type: str | None = None
    error: str | None = None
    since: float | None = None
    before: float | None = None

    @classmethod
    def of(cls, which: Which) -> Self:
        """The conditions that were given to a method.

        Raises:
            TypeError: there is no such condition, or a value has the wrong type.
            ValueError: a time is not a number.
        """
        for name in ("since", "before"):
            if which.get(name) != which.get(name):
                raise ValueError(f"{name}=nan: give seconds since the epoch")
        try:
            return msgspec.convert(which, cls)
        except msgspec.ValidationError as error:
            names = ", ".join(cls.__struct_fields__)
            raise TypeError(
                f"{safe_repr(which)} are no conditions on dead letters ({error}): there are {names}"
            ) from None

    def takes(self, letter: DeadLetterEntry) -> bool:
        """Whether a letter is meant."""
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.task_type is None or letter.task_type == self.task_type)
            and (self.error is None or self.error in letter.error)
            and (self.since is None or letter.dead_at >= self.since)
            and (self.before is None or letter.dead_at < self.before)
        )

    @property
    def everything(self) -> bool:
        """Whether there is no condition."""
        return self == _EVERYTHING


class Which(TypedDict, total=False):
    """Conditions on dead letters, see `Choice`."""

    reason: str | None
    task_type: str | None
    error: str | None
    since: float | None
    before: float | None


_EVERYTHING = Choice()


Target: TypeAlias = Ref[Any] | Callable[[DeadLetterEntry], Any]
"""Where a letter may go: an actor, which is told the payload, or a function, async or not, which gets the entry."""


def attempt_of(error: BaseException | str, *, worker: str = "", at: float = 0.0) -> Attempt:
    """An exception, or its text, as an attempt that failed."""
    given: Any = error
    if issubclass(type(error), str):  # `isinstance` asks an exception for its `__class__`, which may raise
        return Attempt(kind="error", worker=worker, at=at, error=given)
    return Attempt(kind="error", worker=worker, at=at, error=said(given), traceback=trace_of(given))


def failure_of(
    payload: Any,
    error: BaseException | str | None,
    history: Sequence[Attempt],
    *,
    source: str,
    task_type: str,
    reason: str,
) -> DeadLetterEntry:
    """The letter about work that has just failed, without identity and place."""
    now = time.time()
    last = Attempt(kind="error") if error is None else attempt_of(error, worker=source, at=now)
    past = tuple(history) or (() if error is None else (last,))
    return DeadLetterEntry(
        id="",
        source=source,
        task_type=task_type,
        payload=payload,
        reason=reason,
        error=last.error,
        traceback=last.traceback,
        history=past,
        dead_at=now,
        counts=Counts(errors=len(past)),
    )


def last_failure(history: Sequence[Attempt]) -> tuple[str, str]:
    """Error and traceback of the last attempt that has one."""
    return next(((attempt.error, attempt.traceback) for attempt in reversed(history) if attempt.error), ("", ""))


def nowhere() -> str:
    """What is wrong with a replay of letters that came from nowhere in particular."""
    return (
        "where are these dead letters to go? Say so in replay(..., to=...) or DeadLetterQueue(to=...): "
        "a function, which gets the letter, or a ref, which is told its payload"
    )


def unknown(letter_id: str) -> TaskNotFound:
    """The error about an identity that no dead letter has."""
    return TaskNotFound(
        f"there is no dead letter {safe_repr(letter_id)}: it was replayed, purged or crowded out, or never there"
    )


async def deliver(letter: DeadLetterEntry, target: Target) -> None:
    """Bring a letter to a place that is not its own.

    Raises:
        ActorNotFound: the actor has ended.
        Exception: what the function raised.
    """
    if not isinstance(target, Ref):
        outcome = target(letter)
        if inspect.isawaitable(outcome):
            await outcome
        return
    ref = cast(Any, target)
    if not ref.alive:
        raise ActorNotFound(f"{safe_repr(ref)} has ended: give the ref of an actor that lives")
    await tell_once(ref, letter.payload)


async def tell_once(ref: Ref[Any], message: Any) -> None:
    """Tell an actor: when this is cancelled, the message was not sent. `tell` may yield after it has sent one.

    Raises:
        MailboxFull: there is no room, and the overflow policy is to fail.
    """
    try:
        ref.tell_nowait(message)
    except MailboxFull:
        await ref.tell(message)
