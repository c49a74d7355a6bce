"""Where messages go that nobody handled: each with its reason, and for all to see."""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from cuelight._log import get_log
from cuelight.mailbox import Channel, drop_oldest

if TYPE_CHECKING:
    from collections.abc import Iterator
__all__ = ["DeadLetter", "DeadLetters", "Reason"]

Reason = Literal[
    "stopped",
    "unhandled",
    "crashed",
    "interrupted",
    "refused",
    "quarantined",
    "drop_oldest",
    "drop_newest",
    "coalesce_by_key",
    "mailbox_full",
    "policy_failed",
    "node_lost",
    "undecodable",
    "unsendable",
]
"""Why a message was not handled (or not to its end). Overflow policies of one's own add their names.

`stopped`: its actor had ended, or ended before it came to the message. `unhandled`: no handler takes it. `crashed`:
its handler raised. `interrupted`: its handler was cancelled. `refused`: its handler raised `ReplyError` and nobody had
asked. `quarantined`: it crashed as many incarnations as it may. `mailbox_full`: there was no room, and whoever sent it
(a timer, another thread, a group) could not wait. `policy_failed`: the overflow policy of its actor raised, and the
sender could not be told. Between nodes: `node_lost`: the node of its actor was lost before it
said that it has the message. `undecodable`: what came is no message that this node knows. `unsendable`: the message
cannot travel, and whoever sent it (a timer, another thread, a group) could not be told.
"""

log = get_log("cuelight.dead_letters")


class Addressee(Protocol):
    """Whom a message was meant for."""

    @property
    def path(self) -> str:
        """Where it is."""
        ...


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was told and not handled, or not to its end.

    Attributes:
        message: the message.
        actor: the path of the actor that it was meant for.
        reason: why it was not handled, one of `Reason`.
        error: what its handler raised, if it did.
        history: what it raised each time, for a quarantined message.
        time: the loop's time in seconds.
    """

    message: Any
    actor: str
    reason: str
    error: BaseException | None = None
    history: tuple[BaseException, ...] = ()
    time: float = 0.0


class DeadLetters:
    """The dead letters of a system: the latest, a count for each reason, and a subscription.

    Attributes:
        counts: how many there were, by reason, since the system began.
    """

    def __init__(self, keep: int, clock: Any) -> None:
        self._latest: deque[DeadLetter] = deque(maxlen=keep)
        self._clock = clock
        self._subscribers: list[Channel[DeadLetter]] = []
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[DeadLetter]:
        """The latest ones, oldest first."""
        return iter(tuple(self._latest))

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def total(self) -> int:
        """How many there were since the system began."""
        return self.counts.total()

    def subscribe(self, capacity: float = 1000) -> Channel[DeadLetter]:
        """A channel that gets every dead letter from now on. Close it to end the subscription.

        Args:
            capacity: how many may wait in it (`math.inf`: all); then the oldest give way.
        """
        channel: Channel[DeadLetter] = Channel(capacity, overflow=drop_oldest)
        self._subscribers.append(channel)
        return channel

    def add(
        self,
        message: Any,
        addressee: Addressee,
        reason: str,
        error: BaseException | None = None,
        history: tuple[BaseException, ...] = (),
    ) -> None:
        """Record a message that its addressee did not handle."""
        letter = DeadLetter(message, addressee.path, reason, error, history, self._clock())
        self._latest.append(letter)
        self.counts[reason] += 1
        if log.is_enabled_for(logging.DEBUG):
            log.debug("dead letter (%s) for %s: %r", reason, letter.actor, message)
        if self._subscribers:
            self._subscribers = [channel for channel in self._subscribers if not channel.closed]
            for channel in self._subscribers:
                try:
                    channel.send_nowait(letter)
                except Exception:  # as when somebody receives from it in the loop of another thread
                    log.exception("a subscriber of dead letters was not told of one", kind="subscriber")

    def close(self) -> None:
        """End all subscriptions; what is in their channels stays."""
        subscribers, self._subscribers = self._subscribers, []
        for channel in subscribers:
            try:
                channel.close()
            except Exception:
                log.exception("a subscriber of dead letters was not told that the system has ended", kind="subscriber")
