"""Semaphores: several permits, of which an owner may hold more than one."""

from __future__ import annotations

from abc import abstractmethod
from asyncio import events as _events
from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

from cuelight._text import safe_repr
from cuelight.actors import current_cell
from cuelight.coordination._fast_path import enqueue_task, transfer_permit
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_state import WAITING, CapacityState, FastSemaphoreState
from cuelight.coordination._lock_waiting import (
    acquire,
    acquire_blocking,
    acquire_nowait,
    cancel_wait,
    grant_waiters,
    release,
    release_as,
    try_acquire_now,
)
from cuelight.coordination._locks import (
    BaseLock,
    ContextManagerMixin,
    LockStatistics,
    WeightedLock,
    next_name,
    statistics_of,
)
from cuelight.mailbox import asyncio_task, running_task

if TYPE_CHECKING:
    from types import TracebackType

_handling: Final = current_cell.get
_running_asyncio: Final = _events._get_running_loop

A_FEW: Final = 1024
"""The greatest number of permits that are kept as single items; a semaphore with more keeps a number."""


class BaseSemaphore(ContextManagerMixin):
    """The interface of all semaphores: `with` in any thread, `async with` in any event loop.

    A permit belongs to the owner that acquired it: the actor, if its handler runs the code; otherwise the task, or the
    thread outside of tasks. Waiting owners are served in the order of arrival, so small requests do not starve a large
    one.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the semaphore."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The number of permits."""

    @property
    @abstractmethod
    def available(self) -> int:
        """The number of free permits."""

    @property
    def locked(self) -> bool:
        """Whether no permit is free."""
        return self.available <= 0

    @abstractmethod
    async def acquire(self, weight: int = 1, timeout: float | None = None) -> None:
        """Acquire permits; this task sleeps until they are granted. A checkpoint only if it has to wait.

        If the wait is cancelled, nothing was acquired.

        Args:
            weight: the number of permits.
            timeout: seconds to wait; None waits without limit.

        Raises:
            LockTimeout: the permits were not granted in time.
            DeadlockError: the wait would never end, because an owner that holds too many permits waits, directly or
                through others, for the caller.
            ValueError: the semaphore has fewer permits, or the timeout is negative or not a number.
        """

    @abstractmethod
    def acquire_blocking(self, weight: int = 1, timeout: float | None = None) -> None:
        """Acquire permits as `acquire` does, but block the thread: for threads without an event loop."""

    @abstractmethod
    def acquire_nowait(self, weight: int = 1) -> None:
        """Acquire permits at once or raise. Not a checkpoint.

        Args:
            weight: the number of permits.

        Raises:
            LockHeld: fewer permits are free, or other owners wait.
            ValueError: the semaphore has fewer permits.
        """

    @abstractmethod
    def release(self, weight: int = 1) -> None:
        """Release permits and grant waiting owners. Not a checkpoint.

        Args:
            weight: the number of permits.

        Raises:
            LockNotHeld: the caller holds fewer permits.
            ValueError: the semaphore has fewer permits.
        """

    @abstractmethod
    def hold(self, weight: int) -> BaseLock:
        """Return a lock over some of the permits: `async with semaphore.hold(3): ...`.

        Args:
            weight: the number of permits.

        Raises:
            ValueError: the semaphore has fewer permits.
        """

    @abstractmethod
    def statistics(self) -> LockStatistics:
        """Return the holders, the number of waiting owners, and the times waited and held so far."""


class LocalSemaphore(BaseSemaphore):
    """A semaphore of this process, for threads and event loops at once.

    Args:
        max_concurrent: the number of permits.
        name: shown in errors; None numbers the semaphore.
        debug: record where permits are acquired, measure every hold, and warn when locks are acquired in two orders.
            None reads the environment variable `CUELIGHT_DEBUG_LOCKS`.

    Raises:
        ValueError: `max_concurrent` is not a whole number of 1 or more.
    """

    __slots__ = ("__weakref__", "_name", "_state")

    def __init__(self, max_concurrent: int = 1, *, name: str | None = None, debug: bool | None = None) -> None:
        if max_concurrent < 1 or max_concurrent != int(max_concurrent):
            raise ValueError(
                f"max_concurrent={safe_repr(max_concurrent)}: a semaphore has 1 place or more, as a whole number"
            )
        self._name = name if name is not None else f"semaphore-{next_name()}"
        label, places = f"semaphore {self._name!r}", int(max_concurrent)
        if debug is None:
            debug = debug_by_default()
        self._state: CapacityState = (
            CapacityState(label, places, multiple_holds=True, debug=debug)
            if debug or places > A_FEW
            else FastSemaphoreState(label, places)
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity(self) -> int:
        return self._state.capacity

    @property
    def available(self) -> int:
        return self._state.capacity - self._state.used

    async def acquire(self, weight: int = 1, timeout: float | None = None) -> None:
        await acquire(self._state, self._places(weight), timeout)

    def acquire_blocking(self, weight: int = 1, timeout: float | None = None) -> None:
        acquire_blocking(self._state, self._places(weight), timeout)

    def acquire_nowait(self, weight: int = 1) -> None:
        acquire_nowait(self._state, self._places(weight))

    def release(self, weight: int = 1) -> None:
        release(self._state, self._places(weight))

    def hold(self, weight: int) -> BaseLock:
        return WeightedLock(self._state, self._places(weight), self._name)

    def statistics(self) -> LockStatistics:
        return statistics_of(self._state)

    def __enter__(self) -> Self:
        if not try_acquire_now(self._state, 1):
            acquire_blocking(self._state, 1, None)
        return self

    # The fast path, without the monitor; see `FastSemaphoreState`.

    async def __aenter__(self) -> Self:
        state = self._state
        if _handling() is None and type(state) is FastSemaphoreState:
            loop = _running_asyncio()
            caller: Any = running_task() if loop is None else asyncio_task(loop)
            if caller is not None:
                if not state.queue:
                    try:
                        del state.free_permits[-1]
                    except IndexError:
                        pass
                    else:
                        holders = state.holders
                        holders[caller] = holders[caller] + 1 if caller in holders else 1
                        state.acquired += 1
                        return self
                if loop is not None:
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
        if type(state) is FastSemaphoreState:
            loop = _running_asyncio()
            caller: Any = running_task() if loop is None else asyncio_task(loop)
            holders = state.holders
            if caller is not None and caller in holders:
                if state.details is None:
                    held = holders[caller]
                    if held == 1:
                        del holders[caller]
                    else:
                        holders[caller] = held - 1
                    state.free_permits.append(None)
                    if state.queue:
                        grant_waiters(state)
                elif loop is None or not transfer_permit(state, caller, loop):
                    release_as(state, 1, caller)
                return
        release(state, 1)

    def _places(self, weight: int) -> int:
        if weight != 1 and not (0 < weight <= self._state.capacity and weight == int(weight)):
            raise ValueError(
                f"weight={safe_repr(weight)}: semaphore {self._name!r} has {self._state.capacity} places; take 1 to "
                f"{self._state.capacity}, or give it more"
            )
        return weight

    def __repr__(self) -> str:
        return f"<LocalSemaphore {self._name!r} {self.available} of {self.capacity} free>"


Semaphore = LocalSemaphore
