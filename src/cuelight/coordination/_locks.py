"""Locks: what every lock can do, and the one of this process."""

from __future__ import annotations

import sys
from abc import abstractmethod
from asyncio import events as _events
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

from cuelight.actors import handling
from cuelight.coordination._block import Block
from cuelight.coordination._core import WAITING, Core, LockCore
from cuelight.coordination._operations import (
    acquire,
    acquire_blocking,
    acquire_nowait,
    give_back,
    hand_over,
    release,
    took,
)
from cuelight.coordination._order import debug_by_default
from cuelight.coordination._parties import here
from cuelight.coordination._quick import pass_on, stand_in_line
from cuelight.coordination._statistics import LockStatistics, statistics_of
from cuelight.coordination._waiting import withdraw
from cuelight.coordination._words import reentered
from cuelight.mailbox import asyncio_task, in_trio_task, running_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["BaseLock", "Claim", "LocalLock", "next_name"]

_modules: Final = sys.modules
_running_asyncio: Final = _events._get_running_loop  # quick where there is none
_handling: Final = handling.get

next_name: Final[Callable[[], int]] = count(1).__next__
"""Numbers for those that are given no name."""


class BaseLock(Block):
    """What every lock can do: from any thread with `with`, from any event loop with `async with`.

    A lock belongs to whoever took it: an actor, if its handler runs the code, else the task, else the thread. It is not
    re-entrant. Who waits is served in the order of arrival.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name."""

    @property
    @abstractmethod
    def locked(self) -> bool:
        """Whether somebody holds it."""

    @abstractmethod
    async def acquire(self, timeout: float | None = None) -> None:
        """Take it; have this task sleep until it is there. A checkpoint only if it has to wait.

        Cancelled while it waits, it has not taken anything.

        Args:
            timeout: seconds to wait; None waits as long as it takes.

        Raises:
            LockTimeout: it was not there in time.
            DeadlockError: this would last for ever: whoever holds it waits, through others, for the one who asks.
            ValueError: the time-out is negative or not a number.
        """

    @abstractmethod
    def acquire_blocking(self, timeout: float | None = None) -> None:
        """As `acquire`, but blocks the thread: for threads without an event loop."""

    @abstractmethod
    def acquire_nowait(self) -> None:
        """Take it at once or not at all. Not a checkpoint.

        Raises:
            LockHeld: others hold it, or wait for it.
            DeadlockError: this one holds it already.
        """

    @abstractmethod
    def release(self) -> None:
        """Give it back; the next in line has it then. Not a checkpoint.

        Raises:
            LockNotHeld: this one does not hold it.
        """

    @abstractmethod
    def statistics(self) -> LockStatistics:
        """Who holds it, how many wait, and how long that took so far."""

    # What entering the block does, for those who enter it with a time-out and leave it as usual.

    async def _enter(self, timeout: float | None) -> None:
        await self.acquire(timeout)

    def _enter_blocking(self, timeout: float | None) -> None:
        self.acquire_blocking(timeout)


class Claim(BaseLock):
    """So much of a core, as a lock: all of one that has room for 1, some of a semaphore, a side of a read-write lock.

    It has no state of its own: any number of users may share one.
    """

    __slots__ = ("_core", "_name", "_weight")

    def __init__(self, core: Core, weight: int, name: str) -> None:
        self._core = core
        self._weight = weight
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def locked(self) -> bool:
        return bool(self._core.held())

    async def acquire(self, timeout: float | None = None) -> None:
        await acquire(self._core, self._weight, timeout)

    def acquire_blocking(self, timeout: float | None = None) -> None:
        acquire_blocking(self._core, self._weight, timeout)

    def acquire_nowait(self) -> None:
        acquire_nowait(self._core, self._weight)

    def release(self) -> None:
        release(self._core, self._weight)

    def statistics(self) -> LockStatistics:
        return statistics_of(self._core)

    def __enter__(self) -> Self:
        if not took(self._core, self._weight):
            acquire_blocking(self._core, self._weight, None)
        return self

    async def __aenter__(self) -> Self:
        if not took(self._core, self._weight):
            await acquire(self._core, self._weight, None)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {'held' if self.locked else 'free'}>"


class LocalLock(Claim):
    """A lock of this process, for threads and event loops at once.

        lock = LocalLock("accounts")
        with lock: ...                    # in a thread
        async with lock: ...              # in a task, on asyncio or trio

    Args:
        name: shown in errors; none gives a number.
        debug: remember where it is taken, measure every hold, and warn when locks are taken in two orders. None looks
            at the environment variable `CUELIGHT_DEBUG_LOCKS`.
    """

    __slots__ = ("__weakref__", "_kept")

    _core: Core

    def __init__(self, name: str | None = None, *, debug: bool | None = None) -> None:
        if name is None:
            name = f"lock-{next_name()}"
        thing = f"lock {name!r}"
        if debug is None:
            debug = debug_by_default()
        self._core = Core(thing, 1, debug=True) if debug else LockCore(thing)
        self._weight = 1
        self._name = name
        self._kept: set[LocalLock] | None = None

    # The fast way, without the monitor; see LockCore.

    def __enter__(self) -> Self:
        core = self._core
        if not core.queue and _running_asyncio() is None and ("trio" not in _modules or not in_trio_task()):
            me = here.me
            try:
                del core.free[0]
            except IndexError:
                pass
            else:
                core.owner = me
                core.acquired += 1
                return self
        acquire_blocking(core, 1, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        core = self._core
        if core.owner is here.me and core.details is None:
            core.owner = None
            core.free.append(None)
            if core.queue:
                hand_over(core)
        else:
            release(core, 1)

    async def __aenter__(self) -> Self:
        core = self._core
        if _handling() is None:
            loop = _running_asyncio()
            me: Any = running_task() if loop is None else asyncio_task(loop)
            if me is not None:
                if not core.queue:
                    try:
                        del core.free[0]
                    except IndexError:
                        pass
                    else:
                        core.owner = me
                        core.acquired += 1
                        return self
                if loop is not None and type(core) is LockCore:
                    if core.owner is me:
                        raise reentered(core, me, 1)
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
        loop = _running_asyncio()
        me = running_task() if loop is None else asyncio_task(loop)
        if me is not None and core.owner is me:
            if core.details is None:
                core.owner = None
                core.free.append(None)
                if core.queue:
                    hand_over(core)
            elif loop is None or type(core) is not LockCore or not pass_on(core, me, loop):
                give_back(core, 1, me)
        else:
            release(core, 1)

    def _took(self, task: Any) -> bool:
        """Take it for the running task if it is free; for those who take several."""
        core = self._core
        if core.queue:
            return False
        try:
            del core.free[0]
        except IndexError:
            return False
        core.owner = task
        core.acquired += 1
        return True

    def _gave_back(self, task: Any) -> bool:
        """Give back what the running task holds, if that is all there is to do."""
        core = self._core
        if core.owner is not task or core.details is not None:
            return False
        core.owner = None
        core.free.append(None)
        if core.queue:
            hand_over(core)
        return True

    async def _enter(self, timeout: float | None) -> None:
        await acquire(self._core, 1, timeout)

    def _enter_blocking(self, timeout: float | None) -> None:
        acquire_blocking(self._core, 1, timeout)

    # Taken without a block, nothing of the caller's need refer to it: its manager must not forget it.

    async def acquire(self, timeout: float | None = None) -> None:
        await acquire(self._core, 1, timeout)
        if self._kept is not None:
            self._kept.add(self)

    def acquire_blocking(self, timeout: float | None = None) -> None:
        acquire_blocking(self._core, 1, timeout)
        if self._kept is not None:
            self._kept.add(self)

    def acquire_nowait(self) -> None:
        acquire_nowait(self._core, 1)
        if self._kept is not None:
            self._kept.add(self)

    def release(self) -> None:
        release(self._core, 1)
        if self._kept is not None:
            self._kept.discard(self)
