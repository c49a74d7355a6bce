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

from collections.abc import Callable, Coroutine
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import anyio

from cuelight.errors import ChannelClosed, MailboxFull
from cuelight.mailbox._backend import Slot, postpone_cancellation, yield_now
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, NotNow
from cuelight.mailbox._channel_core import RESERVE, ChannelCore
from cuelight.mailbox._overflow import Overflow, wait
from cuelight.mailbox._thread_channel import ThreadEnd

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Permit(Generic[T_contra]):
    """A reserved place in a channel for one item, returned by `Channel.reserve`.

    Use it as a context manager, or call `release` if there is nothing to send. A permit that is neither used nor
    released keeps its place.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel[T_contra]) -> None:
        self._channel: Channel[T_contra] | None = channel

    def send(self, item: T_contra) -> None:
        """Send `item` to the reserved place. This never waits and is not a cancellation point.

        Raises:
            ChannelClosed: the channel was closed. The item was not sent.
            RuntimeError: the permit was already used or released.
        """
        channel = self._channel
        if channel is None:
            message = "this permit was used or released: reserve() another one for each item"
            raise RuntimeError(message)
        channel._send_to_place(item)
        self._channel = None

    def release(self) -> None:
        """Free the place. Do nothing if the permit was already used or released."""
        if self._channel is not None:
            self._channel._free_place()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class SendCase(Generic[T_contra]):
    """A case of `select` that sends an item, made by `Channel.sending`. Its item in the select's result is None."""

    __slots__ = ("_channel", "_item")

    def __init__(self, channel: Channel[T_contra], item: T_contra) -> None:
        self._channel = channel
        self._item = item

    def case_poll(self) -> NotNow | None:
        """Send the item if that is possible without waiting (part of `Case`)."""
        return None if self._channel._try_send(self._item) else NOT_READY

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Queue a sender (part of `Case`)."""
        self._channel._adopt_loop()
        self._channel._senders[waiter] = self._item

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Take a sender out of the queue (part of `Case`)."""
        self._channel._senders.pop(waiter, None)

    def case_put_back(self, item: object, /) -> bool:
        """Return False, because a send cannot be undone (part of `Case`)."""
        return False


class Sender(Generic[T_contra]):
    """The sending end of a channel. When the last open one closes, the channel closes.

    Closing this end does not affect an operation that already waits, unless the channel closes.
    """

    __slots__ = ("_channel", "_open")

    def __init__(self, channel: Channel[T_contra]) -> None:
        self._channel = channel
        self._open = True
        channel._open_senders += 1

    def send(self, item: T_contra) -> Coroutine[Any, Any, None]:
        """See `Channel.send`. Raises ChannelClosed also if this end is closed."""
        return self._checked().send(item)

    def send_nowait(self, item: T_contra) -> None:
        """See `Channel.send_nowait`. Raises ChannelClosed also if this end is closed."""
        self._checked().send_nowait(item)

    def reserve(self) -> Coroutine[Any, Any, Permit[T_contra]]:
        """See `Channel.reserve`. Raises ChannelClosed also if this end is closed."""
        return self._checked().reserve()

    def sending(self, item: T_contra) -> SendCase[T_contra]:
        """See `Channel.sending`. Raises ChannelClosed also if this end is closed."""
        return self._checked().sending(item)

    def clone(self) -> Sender[T_contra]:
        """Return another sending end of the same channel, which is closed separately.

        Raises:
            ChannelClosed: this end is closed.
        """
        return Sender(self._checked())

    def close(self) -> None:
        """Close this end. Closing it again does nothing."""
        if self._open:
            self._open = False
            self._channel._open_senders -= 1
            if not self._channel._open_senders:
                self._channel.close()

    def _checked(self) -> Channel[T_contra]:
        if not self._open:
            message = f"this sending end of {self._channel!r} is closed"
            raise ChannelClosed(message)
        return self._channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Receiver(Generic[T_co]):
    """The receiving end of a channel. Like the channel, it is an asynchronous iterator and a case of `select`.

    When the last open one closes, the channel closes too: senders get `ChannelClosed`, and buffered items are dropped.
    Closing this end does not affect an operation that already waits, unless the channel closes.
    """

    __slots__ = ("_channel", "_open")

    def __init__(self, channel: Channel[T_co]) -> None:
        self._channel = channel
        self._open = True
        channel._open_receivers += 1

    def receive(self) -> Coroutine[Any, Any, T_co]:
        """See `Channel.receive`. Raises ChannelClosed also if this end is closed."""
        return self._checked().receive()

    def receive_nowait(self) -> T_co:
        """See `Channel.receive_nowait`. Raises ChannelClosed also if this end is closed."""
        return self._checked().receive_nowait()

    def clone(self) -> Receiver[T_co]:
        """Return another receiving end of the same channel, which is closed separately.

        Raises:
            ChannelClosed: this end is closed.
        """
        return Receiver(self._checked())

    def close(self) -> None:
        """Close this end. Closing it again does nothing."""
        if self._open:
            self._open = False
            self._channel._open_receivers -= 1
            if not self._channel._open_receivers:
                self._channel._close_without_receivers()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        return await self._checked().__anext__()

    def case_poll(self) -> T_co | NotNow:
        """See `Case`."""
        return self._channel.case_poll() if self._open else CLOSED

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """See `Case`."""
        self._channel.case_enroll(waiter)

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """See `Case`."""
        self._channel.case_withdraw(waiter)

    def case_put_back(self, item: Any, /) -> bool:
        """See `Case`."""
        return self._channel.case_put_back(item)

    def _checked(self) -> Channel[T_co]:
        if not self._open:
            message = f"this receiving end of {self._channel!r} is closed"
            raise ChannelClosed(message)
        return self._channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


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
        if not self._reserve_place():
            slot = self.make_slot()
            self._senders[slot] = RESERVE
            try:
                outcome = await slot
            except BaseException:
                self._senders.pop(slot, None)
                if _committed(slot):
                    self._free_place()
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
