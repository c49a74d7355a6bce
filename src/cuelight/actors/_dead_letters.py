"""Dead letters: the messages that no actor handled, each with its reason."""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from cuelight._log import get_log
from cuelight.mailbox import Channel, drop_oldest

if TYPE_CHECKING:
    from collections.abc import Iterator
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
"""The reason why a message was not handled, or not completely. A user's own overflow policy adds its name.

* `stopped`: the actor had ended, or ended before it took the message.
* `reject_unhandled`: no handler takes the message.
* `crashed`: its handler raised.
* `interrupted`: its handler was cancelled.
* `reject`: its handler raised `ReplyError` for a message that was not a request.
* `quarantined`: it crashed the maximum number of incarnations.
* `mailbox_full`: there was no room, and the sender (a timer, another thread, a group) could not wait.
* `policy_failed`: the actor's overflow policy raised, and the sender could not be notified.

Between nodes:

* `node_lost`: the actor's node was lost before it acknowledged the message.
* `undecodable`: the received data is not a message that this node knows.
* `unsendable`: the message cannot be sent to another node, and its sender (a timer, another thread, a group) could not
  be notified.
"""

log = get_log("cuelight.dead_letters")


class Addressee(Protocol):
    """The intended receiver of a message."""

    @property
    def path(self) -> str:
        """The path of the receiver."""
        ...


class DeadLetter(msgspec.Struct, frozen=True):
    """A told message that was not handled, or not completely.

    Attributes:
        message: the message.
        actor: the path of the intended receiver.
        reason: why it was not handled, one of `Reason`.
        error: the exception of its handler, if any.
        history: the exceptions of all attempts, for a quarantined message.
        time: the loop's time in seconds.
    """

    message: Any
    actor: str
    reason: str
    error: BaseException | None = None
    history: tuple[BaseException, ...] = ()
    time: float = 0.0


class DeadLetters:
    """The dead letters of a system: the latest ones, a count per reason, and subscriptions.

    Attributes:
        counts: the number of dead letters by reason, since the system began.
    """

    def __init__(self, keep: int, clock: Any) -> None:
        self._latest: deque[DeadLetter] = deque(maxlen=keep)
        self._clock = clock
        self._subscribers: list[Channel[DeadLetter]] = []
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over the latest dead letters, oldest first."""
        return iter(tuple(self._latest))

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def total(self) -> int:
        """The number of dead letters since the system began."""
        return self.counts.total()

    def subscribe(self, capacity: float = 1000) -> Channel[DeadLetter]:
        """Return a channel that receives every dead letter from now on. Close the channel to unsubscribe.

        Args:
            capacity: the number of letters that the channel buffers (`math.inf`: all). When it is full, the oldest one
                is dropped.
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
                except Exception:  # for example, a task in the loop of another thread receives from it
                    log.exception("a subscriber of dead letters was not told of one", kind="subscriber")

    def close(self) -> None:
        """End all subscriptions. Letters already in their channels stay."""
        subscribers, self._subscribers = self._subscribers, []
        for channel in subscribers:
            try:
                channel.close()
            except Exception:
                log.exception("a subscriber of dead letters was not told that the system has ended", kind="subscriber")
