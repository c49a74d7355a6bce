"""The state of a channel and its steps, none of which waits. `_channel.py` states the invariants and adds the waiting.

Each step keeps the invariants and wakes no task before the state is final.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Final, Generic, NoReturn, TypeVar

from cuelight.errors import ChannelClosed
from cuelight.mailbox._backend import Slot, slot_maker
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, ChannelWaiter, NotNow
from cuelight.mailbox._overflow import Overflow, checked_overflow, checked_position, policy_name, wait

T = TypeVar("T")

RESERVE: Final = object()
"""Stands in the queue of senders for one that has no item yet and waits for a permit."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """The items and the waiters of a channel at one moment, and the number of items that went through.

    Always `sent == received + dropped + buffered`.
    """

    buffered: int
    capacity: float
    closed: bool
    waiting_senders: int
    waiting_receivers: int
    sent: int
    received: int
    dropped: int


class ChannelCore(Generic[T]):
    __slots__ = (
        "__weakref__",
        "_buffer",
        "_capacity",
        "_closed",
        "_dropped",
        "_limit",
        "_loop_closed",
        "_name",
        "_new_slot",
        "_no_receivers",
        "_on_dropped",
        "_overflow",
        "_received",
        "_receivers",
        "_reserved_receivers",
        "_returned",
        "_returned_at",
        "_returned_run",
        "_senders",
        "_sent",
        "_thread",
    )

    def __init__(
        self,
        capacity: float,
        overflow: Overflow[T],
        on_dropped: Callable[[T, str], object] | None,
        name: str | None,
    ) -> None:
        self._capacity = _checked_capacity(capacity)
        self._overflow = checked_overflow(overflow)
        self._on_dropped = on_dropped
        self._name = name
        self._closed = False
        self._no_receivers = False  # the last receiving end was closed
        self._buffer: deque[T] = deque()
        # Ordered dictionaries, so that a waiter at any position can leave its queue in constant time.
        self._senders: OrderedDict[ChannelWaiter, Any] = OrderedDict()
        self._receivers: OrderedDict[ChannelWaiter, None] = OrderedDict()
        self._limit = self._capacity  # the capacity minus the places reserved for permits
        self._reserved_receivers = 0  # waiting receivers reserved for permits; only at a rendezvous
        self._sent = self._received = self._dropped = 0
        self._returned = self._returned_at = self._returned_run = 0
        self._thread: int | None = None  # the thread of the loop in which all waiters wait
        self._new_slot: Callable[[], Slot]
        self._loop_closed: Callable[[], bool]

    # Sending

    def _try_send(self, item: T) -> bool:
        if self._closed:
            raise self._closed_error()
        if self._receivers:
            receivers = self._receivers
            if get_ident() != self._thread:
                self._raise_wrong_thread()
            while len(receivers) > self._reserved_receivers:
                waiter, _ = receivers.popitem(last=False)
                if not waiter.done():
                    self._sent += 1
                    self._received += 1
                    waiter.set_result(item)
                    return True
        if len(self._buffer) < self._limit:
            self._sent += 1
            self._buffer.append(item)
            return True
        return self._overflow is not wait and self._make_room(item)

    def _make_room(self, item: T) -> bool:
        """Call the overflow policy. Return False if the sender has to wait."""
        buffer = self._buffer
        position = checked_position(self._overflow(buffer, item), len(buffer), self)
        if position is None:
            return False
        fresh = position == len(buffer)
        if self._on_dropped is not None:
            self._on_dropped(item if fresh else buffer[position], policy_name(self._overflow))
        self._sent += 1
        self._dropped += 1
        if not fresh:
            del buffer[position]
            buffer.append(item)
        return True

    # Receiving, as a case of select

    def case_poll(self) -> T | NotNow:
        """Receive the oldest item if there is one (part of `Case`)."""
        if self._senders:
            return self._receive_beside_senders()
        if self._buffer:
            self._received += 1
            return self._buffer.popleft()
        return CLOSED if self._closed else NOT_READY

    def _receive_beside_senders(self) -> T | NotNow:
        if get_ident() != self._thread:
            self._raise_wrong_thread()
        if self._buffer:
            self._received += 1
            item = self._buffer.popleft()
            self._admit_senders()
            return item
        senders = self._senders
        waiter, item = senders.popitem(last=False)
        if item is not RESERVE and not waiter.done():
            self._sent += 1
            self._received += 1
            waiter.set_result(None)
            return item
        senders[waiter] = item
        senders.move_to_end(waiter, last=False)
        for waiter, item in senders.items():
            if item is not RESERVE and not waiter.done():
                del senders[waiter]
                self._sent += 1
                self._received += 1
                waiter.set_result(None)
                return item
        return NOT_READY

    def case_enroll(self, waiter: ChannelWaiter, /) -> None:
        """Queue a receiver (part of `Case`)."""
        if get_ident() != self._thread:
            self._adopt_loop()
        self._receivers[waiter] = None
        if self._senders and not self._capacity:
            self._match()  # a `reserve` may be waiting for a receiver

    def case_withdraw(self, waiter: ChannelWaiter, /) -> None:
        """Take a receiver out of the queue (part of `Case`)."""
        self._receivers.pop(waiter, None)

    def case_put_back(self, item: T, /) -> bool:
        """Undo a receive (part of `Case`): the item goes to the next receiver, or else to the front of the buffer."""
        self._returned += 1
        while self._receivers:
            waiter, _ = self._receivers.popitem(last=False)
            if not waiter.done():
                self._received += 1
                waiter.set_result(item)
                return True
        # Several items may be returned one after the other, oldest first. Each one goes behind the items of the same
        # run that have not been received again in the meantime.
        run = max(0, self._returned_run - (self._received - self._returned_at))
        self._buffer.insert(run, item)
        self._returned_run = run + 1
        self._returned_at = self._received
        if self._no_receivers:
            self._drop_all()
        return True

    # Places for permits

    def _reserve_place(self) -> bool:
        if self._closed:
            raise self._closed_error()
        if self._capacity:
            if len(self._buffer) >= self._limit:
                return False
            self._limit -= 1
        else:
            if self._live_receivers() <= self._reserved_receivers:
                return False
            self._reserved_receivers += 1
        return True

    def _free_place(self) -> None:
        """Free a reserved place and give it to the next waiter."""
        if self._closed:
            return
        self._check_thread()
        if self._capacity:
            self._limit += 1
            if self._senders:
                self._admit_senders()
        else:
            self._reserved_receivers -= 1
            if self._senders:
                self._match()

    def _send_to_place(self, item: T) -> None:
        if self._closed:
            raise self._closed_error()
        self._check_thread()
        if self._capacity:
            self._limit += 1
        else:
            self._reserved_receivers -= 1
        self._sent += 1
        while self._receivers:
            waiter, _ = self._receivers.popitem(last=False)
            if not waiter.done():
                self._received += 1
                waiter.set_result(item)
                if self._senders and self._capacity:
                    self._admit_senders()  # the place itself was not needed
                return
        self._buffer.append(item)

    def _admit_senders(self) -> None:
        """Let the senders that have waited longest into the free places."""
        while self._senders and len(self._buffer) < self._limit:
            waiter, item = self._senders.popitem(last=False)
            if waiter.done():
                continue
            if item is RESERVE:
                self._limit -= 1
            else:
                self._sent += 1
                self._buffer.append(item)
            waiter.set_result(None)

    def _match(self) -> None:
        """Pair the waiting senders and receivers of a rendezvous after a receiver arrived or became free."""
        for waiter, item in [*self._senders.items()]:
            free = [receiver for receiver in self._receivers if not receiver.done()][self._reserved_receivers :]
            if not free:
                return
            if waiter.done():
                continue
            if item is RESERVE:
                self._reserved_receivers += 1
            else:
                strangers = [receiver for receiver in free if _slot_of(receiver) is not _slot_of(waiter)]
                if not strangers:  # a select on both sides must not be paired with itself
                    continue
                del self._receivers[strangers[0]]
                self._sent += 1
                self._received += 1
                strangers[0].set_result(item)
            del self._senders[waiter]
            waiter.set_result(None)

    # The end

    def _close(self) -> None:
        self._check_thread()
        waiting = [*self._receivers, *self._senders]
        self._closed = True
        self._receivers.clear()
        self._senders.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(CLOSED)

    def _close_without_receivers(self) -> None:
        """Close the channel and drop its items, because no task will receive any more."""
        self._close()
        self._no_receivers = True
        self._drop_all()

    def _drop_all(self) -> None:
        while self._buffer:
            if self._on_dropped is not None:
                self._on_dropped(self._buffer[0], "no receivers")
            self._dropped += 1
            self._buffer.popleft()

    # Looking

    def _live_receivers(self) -> int:
        return sum(not waiter.done() for waiter in self._receivers)

    def statistics(self) -> ChannelStatistics:
        """Return the items and the waiters of the channel at this moment, and its counts."""
        return ChannelStatistics(
            buffered=len(self._buffer),
            capacity=self._capacity,
            closed=self._closed,
            waiting_senders=sum(not waiter.done() for waiter in self._senders),
            waiting_receivers=self._live_receivers(),
            sent=self._sent,
            received=self._received - self._returned,
            dropped=self._dropped,
        )

    def __repr__(self) -> str:
        name = f" {self._name!r}" if self._name else ""
        state = "closed" if self._closed else "open"
        return f"<Channel{name} {state}, {len(self._buffer)} of {self._capacity} buffered>"

    def _closed_error(self) -> ChannelClosed:
        return ChannelClosed(f"{self!r} is closed")

    # Threads

    def make_slot(self) -> Slot:
        """Return a slot for the current task, which is about to wait at this channel."""
        if get_ident() != self._thread or self._loop_closed():
            self._adopt_loop()
        return self._new_slot()

    def _adopt_loop(self) -> None:
        """Remember the running loop for a task that is about to wait. All waiters must be in the same loop."""
        self._check_thread()
        self._thread = get_ident()
        self._new_slot, self._loop_closed = slot_maker()

    def _check_thread(self) -> None:
        """Check that the caller is in the waiters' thread, which alone may wake them. Hot paths inline this check."""
        if (self._receivers or self._senders) and get_ident() != self._thread:
            self._raise_wrong_thread()

    def _raise_wrong_thread(self) -> NoReturn:
        message = f"{self!r} is used in the event loop of another thread: use channel.from_thread() there"
        raise RuntimeError(message)


def _slot_of(waiter: ChannelWaiter) -> object:
    return waiter.slot if isinstance(waiter, CaseWaiter) else waiter


def _checked_capacity(capacity: object) -> float:
    if isinstance(capacity, bool) or not isinstance(capacity, int | float):
        message = f"capacity is {capacity!r}: give a whole number of items, or math.inf for no limit"
        raise TypeError(message)
    if capacity != math.inf and (isinstance(capacity, float) or capacity < 0):
        message = f"capacity is {capacity!r}: give a whole number from 0 (rendezvous) up, or math.inf for no limit"
        raise ValueError(message)
    return capacity
