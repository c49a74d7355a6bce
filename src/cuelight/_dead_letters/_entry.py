"""A dead letter of any source, and the conditions that select dead letters."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias, TypedDict, cast

import msgspec

from cuelight._dead_letters._attempt import Attempt, Counts, attempt_of
from cuelight._text import safe_repr
from cuelight.actors import Ref
from cuelight.errors import ActorNotFound, MailboxFull, TaskNotFound


class DeadLetterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Work that was given up: a task, a message to an actor, or an item that was passed to `add`.

    Attributes:
        id: the identifier of the letter; for a task, its `task_id`.
        sequence: the position in the order of `list`, and the cursor for the next page.
        source: the place of the failure: the last worker of a task, the path of an actor, or the `source` passed to
            `add`.
        task_type: the type of the task, or the name of the message's class.
        payload: the payload of the task, or the message.
        reason: why it was given up. For tasks: "errors", "timeouts", "expired", "quarantined", "rejected", "shed" or
            "undecodable". For messages: one of `Reason`. Otherwise: the `reason` passed to `add`.
        error: the type and the message of the last exception; "" if there was none.
        traceback: the traceback of the last exception.
        history: the attempts, oldest first.
        dead_at: when it was given up, in seconds since the epoch.
        counts: the number of attempts, by how they ended.
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
        """A copy with another identifier."""
        return msgspec.structs.replace(self, id=letter_id)


class ReplayReport(msgspec.Struct):
    """The result of `replay_all`.

    Attributes:
        replayed: the number of letters that were replayed.
        would_replay: the number of letters that a dry run found.
        failed: the number of letters whose replay failed; they remain dead letters.
        errors: the reasons of the first 1,000 failures, by the identifier of the letter.
    """

    replayed: int = 0
    would_replay: int = 0
    failed: int = 0
    errors: dict[str, str] = msgspec.field(default_factory=dict[str, str])

    def add_failure(self, letter_id: str, why: str) -> None:
        self.failed += 1
        if len(self.errors) < 1000:
            self.errors[letter_id] = why


class LetterFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions on dead letters, all of which must be true.

    Attributes:
        reason: the exact reason.
        task_type: the exact type.
        error: a part of `error`.
        since: the earliest `dead_at`, in seconds since the epoch.
        before: an upper bound of `dead_at`, which is excluded.
    """

    reason: str | None = None
    task_type: str | None = None
    error: str | None = None
    since: float | None = None
    before: float | None = None

    @classmethod
    def of(cls, conditions: LetterFilterArgs) -> Self:
        """The conditions that were passed to a method.

        Raises:
            TypeError: a condition is unknown, or a value has the wrong type.
            ValueError: a time is NaN.
        """
        for name in ("since", "before"):
            if conditions.get(name) != conditions.get(name):
                raise ValueError(f"{name}=nan: give seconds since the epoch")
        try:
            return msgspec.convert(conditions, cls)
        except msgspec.ValidationError as error:
            names = ", ".join(cls.__struct_fields__)
            raise TypeError(
                f"{safe_repr(conditions)} are not valid conditions on dead letters ({error}): "
                f"the conditions are {names}"
            ) from None

    def matches(self, letter: DeadLetterEntry) -> bool:
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.task_type is None or letter.task_type == self.task_type)
            and (self.error is None or self.error in letter.error)
            and (self.since is None or letter.dead_at >= self.since)
            and (self.before is None or letter.dead_at < self.before)
        )

    @property
    def everything(self) -> bool:
        """Whether there are no conditions."""
        return self == _EVERYTHING


class LetterFilterArgs(TypedDict, total=False):
    """Conditions on dead letters; see `LetterFilter`."""

    reason: str | None
    task_type: str | None
    error: str | None
    since: float | None
    before: float | None


_EVERYTHING = LetterFilter()


Target: TypeAlias = Ref[Any] | Callable[[DeadLetterEntry], Any]
"""A destination for a letter: an actor, which is told the payload, or a function, async or not, which gets the entry.
"""


def failure_of(
    payload: Any,
    error: BaseException | str | None,
    history: Sequence[Attempt],
    *,
    source: str,
    task_type: str,
    reason: str,
) -> DeadLetterEntry:
    """The letter for a failure that happened now, without an identifier and a sequence."""
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


def no_destination() -> str:
    """The error message for a replay of letters without a source to go back to."""
    return (
        "these dead letters have no source to go back to: name a destination in replay(..., to=...) or "
        "DeadLetterQueue(to=...): a function, which gets the letter, or a ref, which is told its payload"
    )


def unknown_letter(letter_id: str) -> TaskNotFound:
    """The error for an identifier that no dead letter has."""
    return TaskNotFound(
        f"there is no dead letter {safe_repr(letter_id)}: it was replayed, purged, dropped because of `keep`, or never "
        "existed"
    )


async def deliver(letter: DeadLetterEntry, target: Target) -> None:
    """Send a letter to a destination other than its source.

    Raises:
        ActorNotFound: the actor has ended.
        Exception: any exception that the function raised.
    """
    if not isinstance(target, Ref):
        outcome = target(letter)
        if inspect.isawaitable(outcome):
            await outcome
        return
    ref = cast(Any, target)
    if not ref.alive:
        raise ActorNotFound(f"{safe_repr(ref)} has ended: give the ref of a live actor")
    await tell_once(ref, letter.payload)


async def tell_once(ref: Ref[Any], message: Any) -> None:
    """Tell an actor a message. If this call is cancelled, the message was not sent; `tell` may yield after sending.

    Raises:
        MailboxFull: the mailbox is full, and its overflow policy is to fail.
    """
    try:
        ref.tell_nowait(message)
    except MailboxFull:
        await ref.tell(message)
