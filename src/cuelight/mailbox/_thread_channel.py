"""The blocking end of a channel, for threads outside of the event loop.

Every step runs in the loop's thread, so the channel needs no lock. The calling thread sleeps until its step is done. A
timeout is such a step too: it either withdraws the operation or finds that the operation has already taken effect.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from cuelight._checks import check_seconds
from cuelight.errors import ChannelClosed
from cuelight.mailbox._backend import current_backend
from cuelight.mailbox._case import CLOSED, NOT_READY
from cuelight.mailbox._channel_core import ChannelCore

T = TypeVar("T")

_LOOP_CHECK_SECONDS: Final = (
    0.2  # seconds between checks that the loop still lives, because it does not announce its end
)
_WITHDRAWN: Final = object()


class _ThreadOperation:
    """One operation of a thread, which is a waiter in the channel's queues. Only the loop's thread completes it."""

    __slots__ = ("_done", "completed", "error", "result")

    def __init__(self) -> None:
        self._done = threading.Event()
        self.completed = False
        self.result: Any = None
        self.error: Exception | None = None

    def done(self) -> bool:
        return self.completed

    def set_result(self, result: Any, /) -> None:
        self.completed = True
        self.result = result
        self._done.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.set_result(None)

    @property
    def failed(self) -> bool:
        return self.error is not None or self.result is CLOSED or self.result is _WITHDRAWN

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)


class ThreadEnd(Generic[T]):
    """The blocking end of a channel, made by `Channel.from_thread`. Any number of threads may use it at once.

    Iterating over it receives items until the channel is closed and drained.
    """

    def __init__(self, channel: ChannelCore[T]) -> None:
        self._channel = channel
        self._backend = current_backend()
        self._loop_thread = threading.get_ident()

    def send(self, item: T, timeout: float | None = None) -> None:
        """Send `item`, blocking while there is no room.

        Args:
            item: the item to send.
            timeout: the longest wait for room in seconds; None sets no limit. The call can take longer while the loop
                is busy, because only the loop knows whether the item was sent.

        Raises:
            TimeoutError: there was no room in time. The item was not sent.
            ChannelClosed: the channel is closed, or its event loop has ended. The item was not sent.
            MailboxFull: there is no room and the overflow policy is `fail`.
            RuntimeError: called in the loop's own thread.
        """

        def start() -> None:
            try:
                if self._channel._try_send(item):
                    call.set_result(None)
                else:
                    self._channel._adopt_loop()
                    self._channel._senders[call] = item
            except Exception as error:  # raised in the sending thread
                call.fail(error)

        call = _ThreadOperation()
        self._perform(call, start, self._channel._senders, timeout)

    def receive(self, timeout: float | None = None) -> T:
        """Receive the oldest item, blocking while there is none.

        Args:
            timeout: the longest wait for an item in seconds; None sets no limit.

        Raises:
            TimeoutError: there was no item in time. None was taken.
            ChannelClosed: the channel is closed and drained, or its event loop has ended.
            RuntimeError: called in the loop's own thread.
        """

        def start() -> None:
            try:
                item = self._channel.case_poll()
                if item is NOT_READY:
                    self._channel.case_enroll(call)
                else:
                    call.set_result(item)
            except Exception as error:  # raised in the receiving thread
                call.fail(error)

        call = _ThreadOperation()
        item: T = self._perform(call, start, self._channel._receivers, timeout)
        return item

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self.receive()
            except ChannelClosed:
                return
            yield item

    def _perform(
        self, call: _ThreadOperation, start: Callable[[], None], queue: OrderedDict[Any, Any], timeout: float | None
    ) -> Any:
        if threading.get_ident() == self._loop_thread and _in_a_loop():
            message = "the event loop's own thread must not block: use the channel's own methods here"
            raise RuntimeError(message)
        if timeout is not None:
            check_seconds("timeout", timeout)
        try:
            self._sleep(call, start, queue, timeout)
        except BaseException:
            # For example KeyboardInterrupt: the caller will not take the result.
            self._in_loop(call, lambda: self._abandon(call, queue))
            raise
        if call.error is not None:
            raise call.error
        if call.result is _WITHDRAWN:
            message = f"no effect on {self._channel!r} within {timeout} s"
            raise TimeoutError(message)
        if call.result is CLOSED:
            raise self._channel._closed_error()
        return call.result

    def _sleep(
        self, call: _ThreadOperation, start: Callable[[], None], queue: OrderedDict[Any, Any], timeout: float | None
    ) -> None:
        self._in_loop(call, start)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not call.wait(
            _LOOP_CHECK_SECONDS if deadline is None else max(0.0, min(_LOOP_CHECK_SECONDS, deadline - time.monotonic()))
        ):
            if deadline is not None and time.monotonic() >= deadline:
                self._in_loop(call, lambda: _withdraw(call, queue))
                deadline = None  # from now on the loop decides
            else:
                self._in_loop(call, lambda: None)

    def _in_loop(self, call: _ThreadOperation, step: Callable[[], object]) -> None:
        try:
            self._backend.call_threadsafe(step)
        except RuntimeError as error:
            # The loop has ended, so no other thread uses the call any more.
            if not call.completed:
                call.fail(ChannelClosed(f"the event loop of {self._channel!r} has ended: {error}"))

    def _abandon(self, call: _ThreadOperation, queue: OrderedDict[Any, Any]) -> None:
        if not call.completed:
            _withdraw(call, queue)
        elif queue is self._channel._receivers and not call.failed:
            self._channel.case_put_back(call.result)


def _in_a_loop() -> bool:
    try:
        current_backend()
    except RuntimeError:
        return False
    return True


def _withdraw(call: _ThreadOperation, queue: OrderedDict[Any, Any]) -> None:
    if not call.completed:
        queue.pop(call, None)
        call.set_result(_WITHDRAWN)
