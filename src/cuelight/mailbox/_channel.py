"""Channels: a FIFO of items between tasks, with back-pressure.

The invariants. They hold whenever no task is inside a method, and "waits" is said of live waiters only: one
whose task was cancelled is dead from that moment, though it leaves its queue a little later.

1. While an item is buffered, no receiver waits.
2. While there is room, no sender waits.
3. No sender with an item waits while a receiver waits, except one select that waits on both sides of the
   channel, and beside receivers of a rendezvous that are kept for permits.
4. Buffered items and kept places are no more than the capacity, except for items that came back from natively
   cancelled receivers, and items sent by a permit of a rendezvous whose receiver had gone.
5. What was sent was received, was dropped or is buffered.
6. At a closed channel nobody waits.
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

__all__ = ["BUDGET", "Channel"]

T = TypeVar("T")

BUDGET: Final = 64
"""A channel lets other tasks run once in this many items sent, and received, without waiting."""

_SPENT: Final = BUDGET - 1


class Channel(ChannelCore[T]):
    """A FIFO between any number of sending and receiving tasks of one event loop.

    An operation completes or raises, never both: one that raises has had no effect. That holds for
    cancellation too, by scope and by `Task.cancel()`. The one gap is a `send` that is cancelled natively on
    Python before 3.13: see `reserve`.

    An operation that waits is a cancellation point. One that need not wait does not yield each time: every
    64th item sent, and every 64th received, lets other tasks run first. So in a cancelled scope an operation
    that need not wait may complete; one that waits raises.

    A channel is an asynchronous iterator over its items that ends when it is closed and drained, an
    asynchronous context manager that closes it, and a case of `select` that is ready when `receive` would not
    wait.
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
            capacity: how many items it buffers. 0 makes a rendezvous, where each `send` waits for a
                `receive`; with `math.inf` no sender ever waits.
            overflow: what becomes of an item that finds no room: `wait`, `drop_oldest`, `drop_newest`,
                `fail`, `coalesce(key)` or a function of your own.
            on_dropped: called with each item that will never be received, just before it goes, and with why:
                the name of the overflow policy, or "no receivers". If it raises, so does the operation, and
                the item stays. It must not use this channel.
            name: shown in errors.

        Raises:
            TypeError: the capacity is no number, or the overflow policy no function.
            ValueError: the capacity is negative or a fraction.
        """
        super().__init__(capacity, overflow, on_dropped, name)
        self._open_senders = self._open_receivers = 0

    async def send(self, item: T) -> None:
        """Send `item`, waiting for room, or at a rendezvous for a receiver. A cancellation point when it
        waits.

        Raises:
            ChannelClosed: it is closed, or was while this waited; the item was not sent.
            MailboxFull: there is no room and the overflow policy is `fail`; the item was not sent.
        """
        if self._sent % BUDGET == _SPENT:
            await yield_now()
        if (self._capacity or self._closed or self._receivers or self._overflow is not wait) and self._try_send(
            item
        ):  # else it would come to nothing but False
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
        """Send `item` if that needs no waiting.

        Raises:
            ChannelClosed: it is closed.
            MailboxFull: there is no room, or at a rendezvous no receiver that waits. It is an
                `anyio.WouldBlock`.
        """
        if not self._try_send(item):
            message = f"{self!r} has no room" if self._capacity else f"no receiver waits at {self!r}"
            raise MailboxFull(message)

    async def receive(self) -> T:
        """Receive the oldest item, waiting for one. A cancellation point when it waits.

        Raises:
            ChannelClosed: it is closed and drained, or was closed while this waited.
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
            anyio.WouldBlock: there is none yet.
            ChannelClosed: it is closed and drained.
        """
        item = self.case_poll()
        if item is NOT_READY:
            raise anyio.WouldBlock
        if item is CLOSED:
            raise self._closed_error()
        return item

    async def reserve(self) -> Permit[T]:
        """Wait for room and keep it: the permit's `send` is immediate and certain. Always a cancellation
        point.

        Between the wait and the send there is nothing that a cancellation could hit, so this is how to send
        exactly once under native cancellation on every Python. Overflow policies are not asked.

        At a rendezvous it waits until a receiver has to wait, and keeps one from other senders. If the
        receivers go away meanwhile, the item that the permit sends is buffered for the next one.

        Raises:
            ChannelClosed: it is closed, or was while this waited.
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
        """A case of `select` that sends `item`. It may be used again and sends it each time it is chosen."""
        return SendCase(self, item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close it: nothing more can be sent; what is buffered can still be received. The second time does
        nothing.

        Senders that wait get `ChannelClosed` and their items are not sent; receivers that wait get it too.
        """
        if not self._closed:
            self._close()

    @property
    def closed(self) -> bool:
        """Whether it is closed; there may still be buffered items."""
        return self._closed

    @property
    def capacity(self) -> float:
        """How many items it buffers."""
        return self._capacity

    def __len__(self) -> int:
        return len(self._buffer)

    def __bool__(self) -> bool:
        return True  # an empty channel is a channel: `channel or default` must not replace it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def sender(self) -> Sender[T]:
        """A new end that can only send. When the last open one closes, the channel closes."""
        return Sender(self)

    def receiver(self) -> Receiver[T]:
        """A new end that can only receive. When the last open one closes, the channel closes and drops its
        items.
        """
        return Receiver(self)

    def from_thread(self) -> ThreadEnd[T]:
        """A blocking end for any number of threads. Call this in the event loop, use the end outside of it.

        Raises:
            RuntimeError: no event loop runs in this thread.
        """
        return ThreadEnd(self)


def _committed(slot: Slot) -> bool:
    """Whether the operation took effect, although its task was cancelled before it could see that."""
    return slot.done() and not slot.cancelled() and slot.result() is not CLOSED
