"""Where any number of tasks wait for the next time that something happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuelight.mailbox import Backend, Waiter

__all__ = ["Bell"]


class Bell:
    """Wakes all who wait, once. Who waits for a condition looks again: `while not done: await bell.wait()`."""

    __slots__ = ("_backend", "_waiters")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiters: dict[Waiter, None] = {}

    async def wait(self) -> None:
        """Sleep until the next ring."""
        waiter = self._backend.waiter()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def ring(self) -> None:
        """Wake those who wait now."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.wake()
