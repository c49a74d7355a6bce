"""Locks: the interface of all locks, and the lock of this process."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from asyncio import events as _events
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from cuelight.actors import current_cell
from cuelight.coordination._fast_path import enqueue_task, transfer_permit
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_state import WAITING, CapacityState, FastLockState
from cuelight.coordination._lock_waiting import (
    acquire,
    acquire_blocking,
    acquire_nowait,
    cancel_wait,
    grant_waiters,
    monitor,
    now,
    reentry_error,
    release,
    release_as,
    try_acquire_now,
)
from cuelight.coordination._owner import describe, format_location, owner_location, this_thread
from cuelight.mailbox import asyncio_task, in_trio_task, running_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class ContextManagerMixin(ABC):
    """Acquires on entering a block and releases on leaving it: `with` in any thread, `async with` in any event loop."""

    __slots__ = ()

    @abstractmethod
    async def acquire(self) -> None:
        """Acquire it from an event loop."""

    @abstractmethod
    def acquire_blocking(self) -> None:
        """Acquire it from a thread."""

    @abstractmethod
    def release(self) -> None: ...

    def __enter__(self) -> Self:
        self.acquire_blocking()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Holder(msgspec.Struct, frozen=True):
    """An owner that holds a lock.

    Attributes:
        who: the actor, task or thread, in words.
        weight: the weight it holds; 1 unless it holds permits of a semaphore or writes.
        seconds: the age of the hold in seconds, if it is known. Counted from the grant if the owner had to wait or in
            debug mode, otherwise from when others began to wait. None if nobody waits.
        taken_at: where it acquired the lock, as `file:line`, if it had to wait or in debug mode; otherwise None.
        now_at: where it is now, as `file:line`; None for an actor.
    """

    who: str
    weight: int
    seconds: float | None
    taken_at: str | None
    now_at: str | None


class LockStatistics(msgspec.Struct, frozen=True):
    """The statistics of a lock or a semaphore, at one moment.

    Attributes:
        held: the weight that is held; for a read-write lock the number of holders.
        waiting: the number of owners that wait.
        acquisitions: the number of acquisitions.
        waits: the number of acquisitions that had to wait.
        wait_seconds: the total time waited, in seconds.
        longest_wait: the longest wait, in seconds.
        hold_seconds: the total time, in seconds, that it was held while others waited or after a wait; in debug mode
            the total time of all holds.
        longest_hold: the longest of these holds, in seconds.
        holders: the current holders.
    """

    held: int
    waiting: int
    acquisitions: int
    waits: int
    wait_seconds: float
    longest_wait: float
    hold_seconds: float
    longest_hold: float
    holders: tuple[Holder, ...]


def statistics_of(state: CapacityState, *, by_weight: bool = True) -> LockStatistics:
    """Return the statistics of a lock."""
    with monitor:
        at, details, held = now(), state.details or {}, state.held()
        holders: list[Holder] = []
        for owner, weight in held.items():
            hold = details.get(owner)
            seconds = None if hold is None else at - hold.since
            location = None if hold is None else format_location(hold.location)
            holders.append(Holder(describe(owner), weight, seconds, location, owner_location(owner)))
        return LockStatistics(
            held=sum(held.values()) if by_weight else len(held),
            waiting=len(state.queue or ()),
            acquisitions=state.acquired,
            waits=state.waited,
            wait_seconds=state.wait_seconds,
            longest_wait=state.longest_wait,
            hold_seconds=state.hold_seconds,
            longest_hold=state.longest_hold,
            holders=tuple(holders),
        )


_modules: Final = sys.modules
_running_asyncio: Final = _events._get_running_loop  # fast when no loop is running
_handling: Final = current_cell.get

next_name: Final[Callable[[], int]] = count(1).__next__
"""Numbers for locks and semaphores without a name."""


class BaseLock(ContextManagerMixin):
    """The interface of all locks: `with` in any thread, `async with` in any event loop.

    A lock belongs to the owner that acquired it: the actor, if its handler runs the code; otherwise the task, or the
    thread outside of tasks. It is not re-entrant. Waiting owners are served in the order of arrival.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the lock."""

    @property
    @abstractmethod
    def locked(self) -> bool:
        """Whether the lock is held."""

    @abstractmethod
    async def acquire(self, timeout: float | None = None) -> None:
        """Acquire the lock; this task sleeps until it is granted. A checkpoint only if it has to wait.

        If the wait is cancelled, nothing was acquired.

        Args:
            timeout: seconds to wait; None waits without limit.

        Raises:
            LockTimeout: the lock was not granted in time.
            DeadlockError: the wait would never end, because the holder waits, directly or through others, for the
                caller.
            ValueError: the timeout is negative or not a number.
        """

    @abstractmethod
    def acquire_blocking(self, timeout: float | None = None) -> None:
        """Acquire the lock as `acquire` does, but block the thread: for threads without an event loop."""

    @abstractmethod
    def acquire_nowait(self) -> None:
        """Acquire the lock at once or raise. Not a checkpoint.

        Raises:
            LockHeld: other owners hold the lock or wait for it.
            DeadlockError: the caller holds the lock already.
        """

    @abstractmethod
    def release(self) -> None:
        """Release the lock and grant it to the next waiting owner. Not a checkpoint.

        Raises:
            LockNotHeld: the caller does not hold the lock.
        """

    @abstractmethod
    def statistics(self) -> LockStatistics:
        """Return the holder, the number of waiting owners, and the times waited and held so far."""

    # Entering the block with a timeout; `Acquisition` uses these methods, and then leaves the block as usual.

    async def _enter(self, timeout: float | None) -> None:
        await self.acquire(timeout)

    def _enter_blocking(self, timeout: float | None) -> None:
        self.acquire_blocking(timeout)


class WeightedLock(BaseLock):
    """A lock over part of a state's capacity: a whole lock, some permits of a semaphore, or one side of a read-write
    lock.

    It has no state of its own, so any number of users may share one.
    """

    __slots__ = ("_name", "_state", "_weight")

    def __init__(self, state: CapacityState, weight: int, name: str) -> None:
        self._state = state
        self._weight = weight
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def locked(self) -> bool:
        return bool(self._state.held())

    async def acquire(self, timeout: float | None = None) -> None:
        await acquire(self._state, self._weight, timeout)

    def acquire_blocking(self, timeout: float | None = None) -> None:
        acquire_blocking(self._state, self._weight, timeout)

    def acquire_nowait(self) -> None:
        acquire_nowait(self._state, self._weight)

    def release(self) -> None:
        release(self._state, self._weight)

    def statistics(self) -> LockStatistics:
        return statistics_of(self._state)

    def __enter__(self) -> Self:
        if not try_acquire_now(self._state, self._weight):
            acquire_blocking(self._state, self._weight, None)
        return self

    async def __aenter__(self) -> Self:
        if not try_acquire_now(self._state, self._weight):
            await acquire(self._state, self._weight, None)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {'held' if self.locked else 'free'}>"


class LocalLock(WeightedLock):
    """A lock of this process, for threads and event loops at once.

        lock = LocalLock("accounts")
        with lock: ...                    # in a thread
        async with lock: ...              # in a task, on asyncio or trio

    Args:
        name: shown in errors; None numbers the lock.
        debug: record where the lock is acquired, measure every hold, and warn when locks are acquired in two orders.
            None reads the environment variable `CUELIGHT_DEBUG_LOCKS`.
    """

    __slots__ = ("__weakref__", "_kept")

    _state: CapacityState

    def __init__(self, name: str | None = None, *, debug: bool | None = None) -> None:
        if name is None:
            name = f"lock-{next_name()}"
        label = f"lock {name!r}"
        if debug is None:
            debug = debug_by_default()
        self._state = CapacityState(label, 1, debug=True) if debug else FastLockState(label)
        self._weight = 1
        self._name = name
        self._kept: set[LocalLock] | None = None

    # The fast path, without the monitor; see `FastLockState`.

    def __enter__(self) -> Self:
        state = self._state
        if not state.queue and _running_asyncio() is None and ("trio" not in _modules or not in_trio_task()):
            caller = this_thread.owner
            try:
                del state.free_permits[0]
            except IndexError:
                pass
            else:
                state.owner = caller
                state.acquired += 1
                return self
        acquire_blocking(state, 1, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        if state.owner is this_thread.owner and state.details is None:
            state.owner = None
            state.free_permits.append(None)
            if state.queue:
                grant_waiters(state)
        else:
            release(state, 1)

    async def __aenter__(self) -> Self:
        state = self._state
        if _handling() is None:
            loop = _running_asyncio()
            caller: Any = running_task() if loop is None else asyncio_task(loop)
            if caller is not None:
                if not state.queue:
                    try:
                        del state.free_permits[0]
                    except IndexError:
                        pass
                    else:
                        state.owner = caller
                        state.acquired += 1
                        return self
                if loop is not None and type(state) is FastLockState:
                    if state.owner is caller:
                        raise reentry_error(state, caller, 1)
                    waiter = enqueue_task(state, caller, loop)
                    if waiter.state == WAITING:
                        try:
                            if waiter.slot is not None:
                                await waiter.slot
                            if waiter.state == WAITING:
                                await waiter.sleep(inf)
                        except BaseException:
                            cancel_wait(state, waiter)
                            raise
                    return self
        await acquire(state, 1, None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        loop = _running_asyncio()
        caller = running_task() if loop is None else asyncio_task(loop)
        if caller is not None and state.owner is caller:
            if state.details is None:
                state.owner = None
                state.free_permits.append(None)
                if state.queue:
                    grant_waiters(state)
            elif loop is None or type(state) is not FastLockState or not transfer_permit(state, caller, loop):
                release_as(state, 1, caller)
        else:
            release(state, 1)

    def _acquire_if_free(self, task: Any) -> bool:
        """Acquire the lock for the running task if it is free; used by `Acquisition`."""
        state = self._state
        if state.queue:
            return False
        try:
            del state.free_permits[0]
        except IndexError:
            return False
        state.owner = task
        state.acquired += 1
        return True

    def _release_alone(self, task: Any) -> bool:
        """Release the lock of the running task, if a release needs nothing else."""
        state = self._state
        if state.owner is not task or state.details is not None:
            return False
        state.owner = None
        state.free_permits.append(None)
        if state.queue:
            grant_waiters(state)
        return True

    async def _enter(self, timeout: float | None) -> None:
        await acquire(self._state, 1, timeout)

    def _enter_blocking(self, timeout: float | None) -> None:
        acquire_blocking(self._state, 1, timeout)

    # A lock acquired without a block may have no reference from the caller, so its manager must keep it.

    async def acquire(self, timeout: float | None = None) -> None:
        await acquire(self._state, 1, timeout)
        if self._kept is not None:
            self._kept.add(self)

    def acquire_blocking(self, timeout: float | None = None) -> None:
        acquire_blocking(self._state, 1, timeout)
        if self._kept is not None:
            self._kept.add(self)

    def acquire_nowait(self) -> None:
        acquire_nowait(self._state, 1)
        if self._kept is not None:
            self._kept.add(self)

    def release(self) -> None:
        release(self._state, 1)
        if self._kept is not None:
            self._kept.discard(self)
