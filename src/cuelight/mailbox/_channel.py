"""Channels: a FIFO of items between tasks, with back-pressure.

The invariants hold whenever no task is inside a method. "Waits" is said of live waiters only. The waiter of a cancelled
task is dead from the cancellation on, although it leaves its queue a little later.

1. While an item is buffered, no receiver waits.
2. While there is room, no sender waits.
3. No sender with an item waits while a receiver waits. There are two exceptions: a select that waits on both sides of
   the channel, and receivers of a rendezvous that are reserved for permits.
4. Buffered items plus reserved places are at most the capacity. There are two exceptions: items returned by natively
   cancelled receivers, and items sent with a permit of a rendezvous whose receiver has gone.
5. Every item that was sent was received, was dropped or is buffered.
6. No task waits at a closed channel.
7. Items are received in the order in which they were sent.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio

from cuelight.errors import ChannelClosed, MailboxFull
from cuelight.mailbox._backend import Slot, postpone_cancellation, yield_now
from cuelight.mailbox._case import CLOSED, NOT_READY
from cuelight.mailbox._core import RESERVE, ChannelCore
from cuelight.mailbox._ends import Permit, Receiver, SendCase, Sender
from cuelight.mailbox._overflow import Overflow, wait
from cuelight.mailbox._threads import ThreadEnd

T = TypeVar("T")

BUDGET: Final = 64
"""Other tasks may run once per this number of items sent (and likewise received) without waiting."""

_SPENT: Final = BUDGET - 1


class Channel(ChannelCore[T]):
    """A FIFO between any number of sending and receiving tasks of one event loop.

    An operation either completes or raises: an operation that raises has had no effect. That also holds for
    cancellation, by a scope or by `Task.cancel()`. The only gap is a `send` that is cancelled natively on Python before
    3.13: see `reserve`.

    An operation that waits is a cancellation point. An operation that does not wait lets other tasks run only at every
    64th item sent and every 64th item received. So in a cancelled scope an operation that need not wait may complete,
    and one that waits raises.

    A channel is also:

    * an asynchronous iterator over its items, which ends when the channel is closed and drained;
    * an asynchronous context manager, which closes the channel;
    * a case of `select`, which is ready when `receive` would not wait.
    """

    __slots__ = ("_open_receivers", "_open_senders")

    def __init__(
        self,
        capacity: float = 0,
        *,
        overflow: Overflow[T] = wait,
        on_dropped: Callable[[T, str], object] | None = None,
        name: str | None = None,
    ) -> None:
        """Make an open, empty channel.

        Args:
            capacity: the number of items that it buffers. 0 makes a rendezvous, where each `send` waits for a
                `receive`. With `math.inf` no sender ever waits.
            overflow: the policy for an item that finds no room: `wait`, `drop_oldest`, `drop_newest`, `fail`,
                `coalesce(key)` or a function of your own.
            on_dropped: called as `on_dropped(item, reason)` just before an item is dropped that was never received. The
                reason is the name of the overflow policy, or "no receivers". If the call raises, the operation raises
                the same exception and the item stays. The function must not use this channel.
            name: shown in errors.

        Raises:
            TypeError: the capacity is not a number, or the overflow policy is not a function.
            ValueError: the capacity is negative or a fraction.
        """
        super().__init__(capacity, overflow, on_dropped, name)
        self._open_senders = self._open_receivers = 0

    async def send(self, item: T) -> None:
        """Send `item`, waiting for room, or at a rendezvous for a receiver.

        This is a cancellation point when it waits.

        Raises:
            ChannelClosed: the channel is closed, or was closed during the wait. The item was not sent.
            MailboxFull: there is no room and the overflow policy is `fail`. The item was not sent.
        """
        if self._sent % BUDGET == _SPENT:
            await yield_now()
        if (self._capacity or self._closed or self._receivers or self._overflow is not wait) and self._try_send(
            item
        ):  # otherwise _try_send could only return False
            return
        if get_ident() != self._thread or self._loop_closed():
            self._adopt_loop()
        slot = self._new_slot()
        self._senders[slot] = item
        try:
            outcome = await slot
        except BaseException as error:
            self._senders.pop(slot, None)
            if not _committed(slot) or not postpone_cancellation(error):
                raise
            return
        if outcome is CLOSED:
            raise self._closed_error()

    def send_nowait(self, item: T) -> None:
        """Send `item` if that is possible without waiting.

        Raises:
            ChannelClosed: the channel is closed.
            MailboxFull: there is no room, or at a rendezvous no waiting receiver. It is an `anyio.WouldBlock`.
        """
        if not self._try_send(item):
            message = f"{self!r} has no room" if self._capacity else f"no receiver waits at {self!r}"
            raise MailboxFull(message)

    async def receive(self) -> T:
        """Receive the oldest item, waiting for one if there is none. This is a cancellation point when it waits.

        Raises:
            ChannelClosed: the channel is closed and drained, or was closed during the wait.
        """
        if self._received % BUDGET == _SPENT:
            await yield_now()
        item: Any = self.case_poll()
        if item is NOT_READY:
            slot = self.make_slot()
            self.case_enroll(slot)
            try:
                item = await slot
            except BaseException:
                self._receivers.pop(slot, None)
                if _committed(slot):
                    self.case_put_back(slot.result())
                raise
        if item is CLOSED:
            raise self._closed_error()
        received: T = item
        return received

    def receive_nowait(self) -> T:
        """Receive the oldest item if there is one.

        Raises:
            anyio.WouldBlock: there is no item yet.
            ChannelClosed: the channel is closed and drained.
        """
        item = self.case_poll()
        if item is NOT_READY:
            raise anyio.WouldBlock
        if item is CLOSED:
            raise self._closed_error()
        return item

    async def reserve(self) -> Permit[T]:
        """Wait for room and reserve it. The permit's `send` then takes effect at once and cannot fail for lack of room.

        This is always a cancellation point. There is no await between the wait and the send that a cancellation could
        hit. So use `reserve` to send exactly once under native cancellation on every Python version. Overflow policies
        are not called.

        At a rendezvous `reserve` waits until a receiver waits, and reserves that receiver. If the receivers go away
        before the permit is used, the item that the permit sends is buffered for the next receiver.

        Raises:
            ChannelClosed: the channel is closed, or was closed during the wait.
        """
        await yield_now()
        if not self._keep_place():
            slot = self.make_slot()
            self._senders[slot] = RESERVE
            try:
                outcome = await slot
            except BaseException:
                self._senders.pop(slot, None)
                if _committed(slot):
                    self._leave_place()
                raise
            if outcome is CLOSED:
                raise self._closed_error()
        return Permit(self)

    def sending(self, item: T) -> SendCase[T]:
        """Return a case of `select` that sends `item`, each time that it is chosen. The case is reusable."""
        return SendCase(self, item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close the channel: nothing more can be sent, but buffered items can still be received.

        Waiting senders get `ChannelClosed` and their items are not sent. Waiting receivers get `ChannelClosed` too.
        Closing a closed channel does nothing.
        """
        if not self._closed:
            self._close()

    @property
    def closed(self) -> bool:
        """Whether the channel is closed. It may still hold buffered items."""
        return self._closed

    @property
    def capacity(self) -> float:
        """The number of items that the channel can buffer."""
        return self._capacity

    def __len__(self) -> int:
        return len(self._buffer)

    def __bool__(self) -> bool:
        return True  # `channel or default` must not replace an empty channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def sender(self) -> Sender[T]:
        """Return a new end that can only send. When the last open one closes, the channel closes."""
        return Sender(self)

    def receiver(self) -> Receiver[T]:
        """Return a new end that can only receive.

        When the last open one closes, the channel closes and drops its items.
        """
        return Receiver(self)

    def from_thread(self) -> ThreadEnd[T]:
        """Return a blocking end for any number of threads. Call this in the event loop and use the end outside of it.

        Raises:
            RuntimeError: no event loop runs in this thread.
        """
        return ThreadEnd(self)


def _committed(slot: Slot) -> bool:
    """Return whether the operation took effect although its task was cancelled before it could see that."""
    return slot.done() and not slot.cancelled() and slot.result() is not CLOSED
