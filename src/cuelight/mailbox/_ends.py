"""The ends of a channel, which can only send or only receive; its permits; and the `select` case that sends."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from cuelight.errors import ChannelClosed
from cuelight.mailbox._case import CLOSED, NOT_READY, CaseWaiter, NotNow

if TYPE_CHECKING:
    from cuelight.mailbox._channel import Channel

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
            self._channel._leave_place()
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
