"""The faces of a channel: what it looks like to one that only sends, only receives, or holds a permit."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from cuelight.errors import ChannelClosed
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, NotNow

if TYPE_CHECKING:
    from cuelight.mailbox._channel import Channel

__all__ = ["Permit", "Receiver", "SendCase", "Sender"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Permit(Generic[T_contra]):
    """A place in a channel for one item, from `Channel.reserve`.

    Use it as a context manager, or call `release` when there is nothing to send: a permit that is only
    forgotten keeps its place.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel[T_contra]) -> None:
        self._channel: Channel[T_contra] | None = channel

    def send(self, item: T_contra) -> None:
        """Send `item` to the place. It never waits and is no cancellation point.

        Raises:
            ChannelClosed: the channel was closed; the item was not sent.
            RuntimeError: the permit was used or released before.
        """
        channel = self._channel
        if channel is None:
            message = "this permit was used or released: reserve() another one for each item"
            raise RuntimeError(message)
        channel._send_to_place(item)
        self._channel = None

    def release(self) -> None:
        """Give the place back. Does nothing when the permit was used or released before."""
        if self._channel is not None:
            self._channel._leave_place()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class SendCase(Generic[T_contra]):
    """A case of `select` that sends an item; made by `Channel.sending`. Its item in the result is None."""

    __slots__ = ("_channel", "_item")

    def __init__(self, channel: Channel[T_contra], item: T_contra) -> None:
        self._channel = channel
        self._item = item

    def case_poll(self) -> NotNow | None:
        """Send, if that needs no waiting; part of `Case`."""
        return None if self._channel._try_send(self._item) else NOT_READY

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Queue a sender; part of `Case`."""
        self._channel._adopt_loop()
        self._channel._senders[waiter] = self._item

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Take a sender out of the queue; part of `Case`."""
        self._channel._senders.pop(waiter, None)

    def case_put_back(self, item: object, /) -> bool:
        """Say that what was sent stays sent; part of `Case`."""
        return False


class Sender(Generic[T_contra]):
    """The sending end of a channel. When the last open one closes, the channel closes.

    An operation that already waits when its end closes is not disturbed by that, unless the channel closes.
    """

    __slots__ = ("_channel", "_open")

    def __init__(self, channel: Channel[T_contra]) -> None:
        self._channel = channel
        self._open = True
        channel._open_senders += 1

    def send(self, item: T_contra) -> Coroutine[Any, Any, None]:
        """See `Channel.send`. Raises ChannelClosed also when this end is closed."""
        return self._checked().send(item)

    def send_nowait(self, item: T_contra) -> None:
        """See `Channel.send_nowait`. Raises ChannelClosed also when this end is closed."""
        self._checked().send_nowait(item)

    def reserve(self) -> Coroutine[Any, Any, Permit[T_contra]]:
        """See `Channel.reserve`. Raises ChannelClosed also when this end is closed."""
        return self._checked().reserve()

    def sending(self, item: T_contra) -> SendCase[T_contra]:
        """See `Channel.sending`. Raises ChannelClosed also when this end is closed."""
        return self._checked().sending(item)

    def clone(self) -> Sender[T_contra]:
        """Another end of the same channel, closed on its own. Raises ChannelClosed when this end is
        closed.
        """
        return Sender(self._checked())

    def close(self) -> None:
        """Close this end. The second time does nothing."""
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
    """The receiving end of a channel: also an asynchronous iterator and a case of `select`, as the channel
    is.

    When the last open one closes, the channel closes too: senders get `ChannelClosed`, and what was buffered
    is dropped. An operation that already waits when its end closes is not disturbed by that, unless the
    channel closes.
    """

    __slots__ = ("_channel", "_open")

    def __init__(self, channel: Channel[T_co]) -> None:
        self._channel = channel
        self._open = True
        channel._open_receivers += 1

    def receive(self) -> Coroutine[Any, Any, T_co]:
        """See `Channel.receive`. Raises ChannelClosed also when this end is closed."""
        return self._checked().receive()

    def receive_nowait(self) -> T_co:
        """See `Channel.receive_nowait`. Raises ChannelClosed also when this end is closed."""
        return self._checked().receive_nowait()

    def clone(self) -> Receiver[T_co]:
        """Another end of the same channel, closed on its own. Raises ChannelClosed when this end is
        closed.
        """
        return Receiver(self._checked())

    def close(self) -> None:
        """Close this end. The second time does nothing."""
        if self._open:
            self._open = False
            self._channel._open_receivers -= 1
            if not self._channel._open_receivers:
                self._channel._desert()

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
