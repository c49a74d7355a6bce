"""Receives the server's notifications of granted locks in one loop, and wakes the waiting task or thread.

A notification is only a hint: a waiter also asks again by itself after a while, and always after a gap.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import anyio

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import await_until, interruptible, loop_time, new_slot

if TYPE_CHECKING:
    from cuelight.mailbox import Slot
    from cuelight.redis._client import Server, Subscription


class Hint(Protocol):
    """A waiter for a notification."""

    def ring(self) -> None:
        """Wake the waiter."""
        ...


class Ear:
    """The subscription of this process to one lock's channel, in one loop. It does not refer to the lock."""

    def __init__(self, server: Server, channel: str) -> None:
        self._server, self._channel = server, channel
        self._lock = anyio.Lock()
        self._subscription: Subscription | None = None
        self.hints: dict[bytes, Hint] = {}

    @property
    def open(self) -> bool:
        """Whether the subscription is active."""
        return self._subscription is not None

    async def listen(self, timeout: float | None = None) -> None:
        """Subscribe. A checkpoint.

        Raises:
            StoreUnavailable: the server did not confirm the subscription within `timeout` seconds.
        """
        with anyio.move_on_after(timeout):
            async with self._lock:
                if self._subscription is None:
                    self._subscription = await self._server.subscribe(self._channel, self._on_message, self._on_gap)
            return
        raise StoreUnavailable(f"{self._server.name} did not begin to tell of changes within {timeout:.3g} s")

    def close(self) -> None:
        """Unsubscribe. Any thread may call it."""
        if self._subscription is not None:
            self._subscription.close()

    def _on_message(self, member: bytes) -> None:
        hint = self.hints.get(member)
        if hint is not None:
            hint.ring()

    def _on_gap(self) -> None:
        for hint in list(self.hints.values()):
            hint.ring()


class TaskHint:
    """A task that waits for a notification, in the loop that receives it."""

    __slots__ = ("_rung", "_slot")

    def __init__(self) -> None:
        self._rung = False
        self._slot: Slot | None = None

    def ring(self) -> None:
        self._rung = True
        slot = self._slot
        if slot is not None and not slot.done():
            slot.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Sleep until a notification has arrived since the last call, or for `seconds`."""
        if not self._rung:
            self._slot = slot = new_slot()
            try:
                await await_until(slot, loop_time() + seconds)
            finally:
                self._slot = None
        self._rung = False


class ThreadHint:
    """A thread that waits for a notification."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    @interruptible
    def wait(self, seconds: float) -> None:
        """Sleep until a notification has arrived since the last call, or for `seconds`."""
        self._event.wait(seconds)
        self._event.clear()
