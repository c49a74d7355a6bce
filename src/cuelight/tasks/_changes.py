"""The version of a store, which every change increments, and the callers in any thread that wait for a change.

A change wakes every wait that began before it: the version is compared and the waiter is added under one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio

from cuelight.mailbox._backend import Backend, Waiter, current_backend, yield_now


class Changes:
    """The version of a store and its waiters.

    Attributes:
        version: incremented by `notify`.
        waiting: the number of current waiters.
    """

    def __init__(self, on_wait: Callable[[], None] | None = None) -> None:
        """Start at version 1. `on_wait` is called in the waiting thread whenever a wait begins."""
        self.version = 1
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._waiters: dict[Waiter, tuple[Backend, int]] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def notify(self) -> None:
        """Increment the version and wake all waiters. May be called from any thread."""
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
        """Wait until the version differs from `since`, for at most `timeout` seconds. A checkpoint."""
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
        pass  # the waiter ended with its loop
