"""Semaphores: several permits, of which an owner may hold more than one."""

from __future__ import annotations

from abc import abstractmethod
from asyncio import events as _events
from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

from cuelight._text import safe_repr
from cuelight.actors import current_cell
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_state import WAITING, Core, CountedCore
from cuelight.coordination._lock_waiting import (
    acquire,
    acquire_blocking,
    acquire_nowait,
    give_back,
    hand_over,
    release,
    took,
    withdraw,
)
from cuelight.coordination._locks import BaseLock, Block, Claim, LockStatistics, next_name, statistics_of
from cuelight.coordination._quick import pass_on, stand_in_line
from cuelight.mailbox import asyncio_task, running_task

if TYPE_CHECKING:
    from types import TracebackType

_handling: Final = current_cell.get
_running_asyncio: Final = _events._get_running_loop

A_FEW: Final = 1024
"""The greatest number of permits that are kept as single items; a semaphore with more keeps a number."""


class BaseSemaphore(Block):
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

    __slots__ = ("__weakref__", "_core", "_name")

    def __init__(self, max_concurrent: int = 1, *, name: str | None = None, debug: bool | None = None) -> None:
        if max_concurrent < 1 or max_concurrent != int(max_concurrent):
            raise ValueError(
                f"max_concurrent={safe_repr(max_concurrent)}: a semaphore has 1 place or more, as a whole number"
            )
        self._name = name if name is not None else f"semaphore-{next_name()}"
        thing, places = f"semaphore {self._name!r}", int(max_concurrent)
        if debug is None:
            debug = debug_by_default()
        self._core: Core = (
            Core(thing, places, several=True, debug=debug) if debug or places > A_FEW else CountedCore(thing, places)
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity(self) -> int:
        return self._core.capacity

    @property
    def available(self) -> int:
        return self._core.capacity - self._core.used

    async def acquire(self, weight: int = 1, timeout: float | None = None) -> None:
        await acquire(self._core, self._places(weight), timeout)

    def acquire_blocking(self, weight: int = 1, timeout: float | None = None) -> None:
        acquire_blocking(self._core, self._places(weight), timeout)

    def acquire_nowait(self, weight: int = 1) -> None:
        acquire_nowait(self._core, self._places(weight))

    def release(self, weight: int = 1) -> None:
        release(self._core, self._places(weight))

    def hold(self, weight: int) -> BaseLock:
        return Claim(self._core, self._places(weight), self._name)

    def statistics(self) -> LockStatistics:
        return statistics_of(self._core)

    def __enter__(self) -> Self:
        if not took(self._core, 1):
            acquire_blocking(self._core, 1, None)
        return self

    # The fast path, without the monitor; see CountedCore.

    async def __aenter__(self) -> Self:
        core = self._core
        if _handling() is None and type(core) is CountedCore:
            loop = _running_asyncio()
            me: Any = running_task() if loop is None else asyncio_task(loop)
            if me is not None:
                if not core.queue:
                    try:
                        del core.free[-1]
                    except IndexError:
                        pass
                    else:
                        holders = core.holders
                        holders[me] = holders[me] + 1 if me in holders else 1
                        core.acquired += 1
                        return self
                if loop is not None:
                    ticket = stand_in_line(core, me, loop)
                    if ticket.state == WAITING:
                        try:
                            if ticket.slot is not None:
                                await ticket.slot
                            if ticket.state == WAITING:
                                await ticket.sleep(inf)
                        except BaseException:
                            withdraw(core, ticket)
                            raise
                    return self
        await acquire(core, 1, None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        core = self._core
        if type(core) is CountedCore:
            loop = _running_asyncio()
            me: Any = running_task() if loop is None else asyncio_task(loop)
            holders = core.holders
            if me is not None and me in holders:
                if core.details is None:
                    held = holders[me]
                    if held == 1:
                        del holders[me]
                    else:
                        holders[me] = held - 1
                    core.free.append(None)
                    if core.queue:
                        hand_over(core)
                elif loop is None or not pass_on(core, me, loop):
                    give_back(core, 1, me)
                return
        release(core, 1)

    def _places(self, weight: int) -> int:
        if weight != 1 and not (0 < weight <= self._core.capacity and weight == int(weight)):
            raise ValueError(
                f"weight={safe_repr(weight)}: semaphore {self._name!r} has {self._core.capacity} places; take 1 to "
                f"{self._core.capacity}, or give it more"
            )
        return weight

    def __repr__(self) -> str:
        return f"<LocalSemaphore {self._name!r} {self.available} of {self.capacity} free>"


Semaphore = LocalSemaphore
