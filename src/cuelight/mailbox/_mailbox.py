"""The mailbox of an actor: a bounded queue of messages, and a queue of control messages that overtakes it.

Invariants:
1. Messages are taken in the order in which they were accepted. Messages of one sender are taken in the order in which
   they were sent.
2. At most `capacity` messages wait, including granted places. While senders wait, no other message overtakes them.
3. A waiting sender keeps its message until it has a place. If it is cancelled before that, nothing was sent.
4. The number of control messages is bounded by the number of watched actors, not by `capacity`. All of them are taken
   before the next message.

The consumer reads `items` itself, because one call per message costs as much as the message. It must first check
`attention`. If that is set, it must take `control` and then call `admit()`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from typing import Any

from cuelight.mailbox._backend import Waiter
from cuelight.mailbox._overflow import Overflow, checked_position, policy_name

MANY_CANCELLED = 64


class WaitingSender:
    """A sender that waits for room. It first waits, then is granted a place, which it fills when it wakes.

    A cancelled sender stays in the queue for a while, because removing it at once would need a search through the
    queue.
    """

    __slots__ = ("cancelled", "granted", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.granted = self.cancelled = False


class Mailbox:
    """The messages and control messages of one consumer, on one event loop. Subclasses define how to wake it.

    Attributes:
        items: the messages, or None while there are none: an idle actor keeps no deque.
        attention: whether there is something to do before the next message is taken.
        asleep: whether the consumer must be woken for a new message (0: no).
    """

    __slots__ = (
        "asleep",
        "attention",
        "cancelled_count",
        "capacity",
        "control",
        "granted",
        "items",
        "limit",
        "overflow",
        "senders",
    )

    def __init__(self, capacity: float, overflow: Overflow[Any]) -> None:
        self.items: deque[Any] | None = None
        self.control: deque[Any] | None = None
        self.senders: deque[Any] | None = None
        self.capacity = capacity
        self.limit = capacity
        self.overflow = overflow
        self.granted = 0
        self.cancelled_count = 0
        self.asleep = 0
        self.attention = False

    def __len__(self) -> int:
        return len(self.items or ())

    # Methods that the owner of a mailbox implements.

    @abstractmethod
    def on_mail(self) -> None:
        """Called when a message arrives while `asleep`, and when `attention` is set."""

    @abstractmethod
    def discard(self, item: Any, reason: str) -> None:
        """Called with an item that the overflow policy dropped or that a closed mailbox refused."""

    @abstractmethod
    def item_cancelled(self, item: Any) -> bool:
        """Return whether a waiting item is no longer needed, so that its place is free."""

    @abstractmethod
    def content(self, item: Any) -> Any:
        """Return the message in an item, for overflow policies."""

    # Putting.

    def put(self, item: Any) -> bool:
        """Accept an item, or call the overflow policy. Return False if its sender must wait.

        Raises:
            MailboxFull: the overflow policy is `fail`.
        """
        items = self.items
        if items is None:
            items = self.items = deque()
        if len(items) >= self.limit:
            return self._put_full(item)
        items.append(item)
        if self.asleep:
            self.on_mail()
        return True

    def _put_full(self, item: Any) -> bool:
        if self.closed:
            self.discard(item, "stopped")
            return True
        items = self.items
        assert items is not None  # noqa: S101 - put made it
        if self.cancelled_count:
            self.drop_cancelled()
        if len(items) >= self.limit:
            if self.senders:
                return False
            position = self.overflow([self.content(one) for one in items], self.content(item))
            position = checked_position(position, len(items), self)
            ended: bool = self.closed  # the policy itself may have closed it
            if ended or self.items is not items:
                self.discard(item, "stopped")
                return True
            if position is None:
                return False
            reason = policy_name(self.overflow)
            if position >= len(items):
                self.discard(item, reason)
                return True
            victim = items[position]
            del items[position]
            self.discard(victim, reason)
        items.append(item)
        if self.asleep:
            self.on_mail()
        return True

    def note_cancelled(self) -> None:
        """Count a cancelled item or sender that still waits. Remove them once there are enough of them."""
        self.cancelled_count += 1
        if self.cancelled_count > MANY_CANCELLED and self.cancelled_count * 2 > len(self) + len(self.senders or ()):
            self.drop_cancelled()

    def drop_cancelled(self) -> None:
        self.cancelled_count = 0
        for lane in (self.items, self.senders):
            if lane:
                fresh = [item for item in lane if not self.is_cancelled(item)]
                if len(fresh) < len(lane):
                    lane.clear()
                    lane.extend(fresh)
        self.admit()

    def is_cancelled(self, item: Any) -> bool:
        """Return whether a waiting item or sender is no longer needed."""
        return item.cancelled if type(item) is WaitingSender else self.item_cancelled(item)

    def enqueue_sender(self, sender: Any) -> None:
        """Queue a sender that waits for room: a `WaitingSender`, or an item for which no task must be woken."""
        if self.senders is None:
            self.senders = deque()
        self.senders.append(sender)
        self.limit = 0
        self.attention = True

    def cancel_sender(self, sender: WaitingSender) -> None:
        """Give up the place of a cancelled sender, in the queue or the one that it was granted."""
        if sender.granted:
            self.granted -= 1
        else:
            sender.cancelled = True
            self.note_cancelled()
            while self.senders and self.is_cancelled(self.senders[-1]):
                self.senders.pop()
                self.cancelled_count = max(0, self.cancelled_count - 1)
        self.admit()

    def fill_place(self, sender: WaitingSender, item: Any) -> None:
        """Put an item into the place that was granted to its sender."""
        if sender.granted:
            self.granted -= 1
        if self.closed:
            self.discard(item, "stopped")
            return
        if self.items is None:
            self.items = deque()
        self.items.append(item)
        self._set_limit()
        if self.asleep:
            self.on_mail()

    def admit(self) -> None:
        """Give free places to waiting senders, in the order of their arrival."""
        if self.closed:
            return
        senders = self.senders
        if senders:
            if self.items is None:
                self.items = deque()
            items = self.items
            while senders and len(items) + self.granted < self.capacity:
                sender = senders.popleft()
                if self.is_cancelled(sender):
                    self.cancelled_count = max(0, self.cancelled_count - 1)
                elif type(sender) is WaitingSender:
                    sender.granted = True
                    self.granted += 1
                    sender.waiter.wake()
                else:
                    items.append(sender)
                    if self.asleep:
                        self.on_mail()
        self._set_limit()

    def _set_limit(self) -> None:
        if self.senders:
            self.limit = 0
        else:
            self.senders = None
            self.limit = self.capacity - self.granted

    # Closing.

    @property
    def closed(self) -> bool:
        """Whether no more messages are accepted."""
        return self.capacity < 0

    def close(self) -> None:
        """Accept no more messages and refuse waiting senders. Messages in the mailbox stay."""
        if self.closed:
            return
        self.capacity = self.limit = -math.inf
        senders, self.senders = self.senders, None
        for sender in senders or ():
            if type(sender) is WaitingSender:
                sender.waiter.wake()
            else:
                self.discard(sender, "stopped")

    def reopen(self, capacity: float) -> None:
        """Accept messages again after `close`."""
        self.capacity = capacity
        self._set_limit()
