"""A condition without a lock: tasks wait for the next notification."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuelight.mailbox import Backend, Waiter


class Bell:
    """Wakes all waiting tasks at once. Wait for a condition in a loop: `while not done: await bell.wait()`."""

    __slots__ = ("_backend", "_waiters")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiters: dict[Waiter, None] = {}

    async def wait(self) -> None:
        waiter = self._backend.waiter()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def ring(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.wake()
