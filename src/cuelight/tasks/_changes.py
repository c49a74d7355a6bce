"""The number that changes when a store does, and those who wait for that, in any loop of any thread.

A wait that begins before a change is woken by it: `since` is compared and the waiter enrolled under one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio

from cuelight.mailbox._backend import Backend, Waiter, current_backend, yield_now

__all__ = ["Changes"]


class Changes:
    """The version of a store.

    Attributes:
        version: raised by `notify`.
        waiting: how many wait now.
    """

    def __init__(self, on_wait: Callable[[], None] | None = None) -> None:
        """Begin at 1.

        Args:
            on_wait: called when somebody begins to wait, in that thread.
        """
        self.version = 1
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._waiters: dict[Waiter, tuple[Backend, int]] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def notify(self) -> None:
        """Raise the version and wake all who wait. From any thread."""
        with self._lock:
            self.version += 1
            if not self._waiters:
                return
            woken, self._waiters = self._waiters, {}
        here = threading.get_ident()
        for waiter, (backend, thread) in woken.items():
            if thread == here:
                waiter.wake()
            else:
                _wake_from_afar(backend, waiter)

    async def wait(self, since: int, timeout: float) -> None:
        """Wait until the version is another one than `since`, at most `timeout` seconds. A checkpoint."""
        waiter: Waiter | None = None
        with self._lock:
            if self.version == since and timeout > 0:
                backend = current_backend()
                waiter = backend.waiter()
                self._waiters[waiter] = (backend, threading.get_ident())
        if waiter is None:
            await yield_now()
            return
        try:
            if self._on_wait is not None:
                self._on_wait()
            with anyio.move_on_after(timeout):
                await waiter
        finally:
            with self._lock:
                self._waiters.pop(waiter, None)


def _wake_from_afar(backend: Backend, waiter: Waiter) -> None:
    try:
        backend.call_threadsafe(waiter.wake)
    except RuntimeError:
        pass  # its loop has ended, and the waiter with it
