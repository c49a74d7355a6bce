"""What stores and their users share: the count of users, the notification of changes, and the clock.

Invariants:

1. Between `acquire_store` and `release_store` of one user, no `release_store` of another user closes the store. Users
   may be in different event loops and threads. Users in other processes are not counted; a forked process starts with
   none.
2. A change wakes every wait that began before it: the version is compared and the waiter is added under one lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import ends_the_program
from cuelight.mailbox._backend import Backend, Waiter, current_backend, yield_now
from cuelight.tasks._stores._checks import FAR

if TYPE_CHECKING:
    from cuelight.tasks._stores._protocol import Store


class _Use(msgspec.Struct):
    store: Store
    users: int = 0
    closing: bool = False
    waiting: list[Callable[[], object]] = msgspec.field(default_factory=list[Callable[[], object]])


_uses: dict[int, _Use] = {}
_lock = threading.Lock()


def _forget_other_process() -> None:
    """Reset the state in a forked process: it has no users, and a thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _uses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_process)


async def acquire_store(store: Store) -> None:
    """Open a store, and keep it open until `release_store` was called as often. A checkpoint.

    Raises:
        StoreUnavailable: the store is unavailable.
        Exception: any other reason why the store cannot be opened. In both cases, it is not in use.
    """
    while True:
        backend = current_backend()
        with _lock:
            use = _uses.setdefault(id(store), _Use(store))
            if not use.closing:
                use.users += 1
                break
            waiter = backend.waiter()
            use.waiting.append(partial(backend.call_threadsafe, waiter.wake))
        await waiter
    try:
        await store.open()
    except BaseException:
        await release_store(store)
        raise


async def release_store(store: Store) -> None:
    """Release a store that `acquire_store` opened; the last user closes it. A checkpoint; closing is not cancelled."""
    with _lock:
        use = _uses[id(store)]
        use.users -= 1
        use.closing = use.users == 0
    if not use.closing:
        return
    try:
        with anyio.CancelScope(shield=True):
            await store.close()
    finally:
        with _lock:
            del _uses[id(store)]
        for wake in use.waiting:
            with suppress(RuntimeError):  # the loop of the waiter has ended
                wake()


class VersionNotifier:
    """The version of a store, which every change increments, and the callers in any thread that wait for a change.

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


log = get_log("cuelight.tasks")

# seconds; a larger step means that the clock was wrong, and it would take too long to wait for
_WAITED_OUT: Final = 60.0


class MonotonicWallClock:
    """Returns seconds since the epoch, without small steps back.

    After a step back of less than a minute, the time stands still until the clock has caught up. A larger step back is
    followed. Its only effect is that current leases and delays last longer than they should.

    While the underlying clock raises an exception or returns an invalid time, the time advances by the monotonic clock,
    because a store must know the time to end leases.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Use `clock`, which returns seconds since the epoch and may be called from any thread.

        Raises:
            ValueError: the clock returns an invalid time.
            Exception: any exception that the clock raises.
        """
        self._clock = clock
        self._last = now = float(clock())
        self._failed_at: float | None = None
        if not -FAR < now < FAR:
            raise ValueError(f"clock={safe_repr(clock)}: it returned {now!r}; give seconds since the epoch")

    def __call__(self) -> float:
        try:
            now = float(self._clock())
        except BaseException as error:  # the clock is user code
            if ends_the_program(error):
                raise
            return self._without(error)
        if not -FAR < now < FAR:
            return self._without(ValueError(f"it returned {now!r}"))
        if self._failed_at is not None:
            self._failed_at = None
        last = self._last
        if last - _WAITED_OUT < now < last:
            return last
        self._last = now
        return now

    def _without(self, error: BaseException) -> float:
        """The time without the clock: the last value that it returned, plus the time since its first failure."""
        log.error("the clock %s of a store cannot be read", safe_repr(self._clock, 200), error=error, kind="clock")
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        return self._last + time.monotonic() - self._failed_at
