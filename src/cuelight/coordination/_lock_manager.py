"""Named locks: one lock for each name in use, and several locks at once without a deadlock."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, Self
from weakref import ref

from cuelight._text import safe_repr
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_waiting import now
from cuelight.coordination._locks import BaseLock, LocalLock
from cuelight.coordination._owner import plain_task
from cuelight.errors import LeaseLost
from cuelight.mailbox import loop_time, running_task

if TYPE_CHECKING:
    from types import TracebackType

SWEEP: Final = 64


class LockFactory(Protocol):
    """Makes the locks of a manager. Pass one to use locks that are shared beyond this process."""

    def __call__(self, name: str, /, *, debug: bool | None = None) -> BaseLock:
        """Return a lock of this name."""
        ...


NO_TIMEOUT: Final = "timeout={}: give seconds, 0 or more, or None to wait as long as it takes"


class Acquisition:
    """Some locks, acquired together by `with` or `async with`; for one use at a time.

    The locks are acquired in the order of their names, each once, whatever the order of the request. So two callers
    that want the same locks never hold some of them each. Either all locks are acquired or none. They are released in
    reverse order.
    """

    __slots__ = ("_held", "_locks", "_timeout")

    def __init__(self, locks: list[BaseLock], timeout: float | None) -> None:
        self._locks = locks
        self._timeout = timeout
        self._held: list[BaseLock] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which the locks are acquired."""
        return tuple(lock.name for lock in self._locks)

    def _left(self, clock: Callable[[], float], deadline: float) -> float | None:
        return None if self._timeout is None else min(self._timeout, max(0.0, deadline - clock()))

    def __enter__(self) -> Self:
        self._check_unused()
        deadline = math.inf if self._timeout is None else now() + self._timeout
        try:
            for lock in self._locks:
                lock._enter_blocking(self._left(now, deadline))
                self._held.append(lock)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors: list[BaseException] = []
        while self._held:
            try:
                self._held.pop().__exit__(kind, error, trace)
            except BaseException as failed:  # the other locks are released all the same
                errors.append(failed)
        _raise(errors)

    async def __aenter__(self) -> Self:
        held = self._held
        if held:
            self._check_unused()
        try:
            if self._timeout is None:
                task = plain_task()
                for lock in self._locks:
                    if task is None or type(lock) is not LocalLock or not lock._acquire_if_free(task):
                        await lock.__aenter__()
                    held.append(lock)
                return self
            deadline = loop_time() + self._timeout
            for lock in self._locks:
                await lock._enter(self._left(loop_time, deadline))
                held.append(lock)
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = self._held
        errors: list[BaseException] = []
        task = running_task()
        while held:
            try:
                lock = held.pop()
                if task is None or type(lock) is not LocalLock or not lock._release_alone(task):
                    await lock.__aexit__(kind, error, trace)
            except BaseException as failed:  # the other locks are released all the same
                errors.append(failed)
        if errors:
            _raise(errors)

    def _check_unused(self) -> None:
        if self._held:
            raise RuntimeError(f"these locks are held through this object already: {self.names}; ask for another one")


def _raise(errors: list[BaseException]) -> None:
    failures = [error for error in errors if isinstance(error, Exception)]
    for error in errors:
        if not isinstance(error, Exception):  # a cancellation, or an error that ends the program
            raise error
    lost = [error for error in failures if isinstance(error, LeaseLost)]
    if len(failures) == 1 or (lost and len(lost) == len(failures)):  # one outage ends all leases: report it once
        raise failures[0]
    if failures:
        raise ExceptionGroup("several locks could not be released", failures)


def _forget(known: dict[str, ref[BaseLock]], name: str, reference: ref[BaseLock]) -> None:
    """Remove a lock without references. Runs in any thread, so there is no call between the check and the deletion."""
    if name in known and known[name] is reference:
        del known[name]


class LockManager:
    """Named locks. A name has one lock as long as a caller holds it, waits for it or refers to it.

        manager = LockManager()
        async with manager.acquire("file_edit:main.py"): ...
        with manager.acquire_all(["accounts:1", "accounts:2"], timeout=5): ...

    Usable from any thread and any event loop at once. Names that are no longer used are forgotten.

    Args:
        factory: makes the lock of a name.
        debug: passed to the locks; see `LocalLock`. The environment variable is read when the manager is created.
    """

    def __init__(self, factory: LockFactory = LocalLock, *, debug: bool | None = None) -> None:
        self._factory = factory
        self._debug = debug_by_default() if debug is None and factory is LocalLock else debug
        self._locks: dict[str, ref[BaseLock]] = {}
        self._kept: set[LocalLock] = set()
        self._sweep_at = SWEEP
        self._lock = threading.RLock()

    def get_lock(self, name: str) -> BaseLock:
        """Return the lock of a name: the same lock for the same name.

        Args:
            name: any text.

        Raises:
            TypeError: the name is not a `str`.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the name of a lock is a str, not {safe_repr(name)}")
        known = self._locks
        reference = known.get(name)
        lock = None if reference is None else reference()
        if lock is not None:
            return lock
        with self._lock:
            reference = known.get(name)
            lock = None if reference is None else reference()
            if lock is None:
                lock = self._factory(name, debug=self._debug)
                known[name] = ref(lock, partial(_forget, known, name))
                if isinstance(lock, LocalLock):
                    lock._kept = kept = self._kept
                    if len(kept) >= self._sweep_at:
                        self._sweep()
            return lock

    def _sweep(self) -> None:
        """Forget locks that were acquired without a block by an owner that has ended."""
        if len(self._kept) >= self._sweep_at:
            for lock in list(self._kept):
                if not lock.locked:
                    self._kept.discard(lock)
            self._sweep_at = max(SWEEP, 2 * len(self._kept))

    def acquire(self, name: str, timeout: float | None = None) -> Acquisition:
        """Return the lock of a name for a block: `async with manager.acquire("name"): ...`, or `with` in a thread.

        Args:
            name: the name of the lock.
            timeout: seconds to wait, counted from the start of the block; None waits without limit.

        Returns:
            A context manager for one block at a time. Entering it raises the errors of `BaseLock.acquire`.

        Raises:
            TypeError: the name is not a `str`.
            ValueError: the timeout is negative or not a number.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(NO_TIMEOUT.format(safe_repr(timeout)))
        return Acquisition([self.get_lock(name)], timeout)

    def acquire_all(self, names: Iterable[str], timeout: float | None = None) -> Acquisition:
        """Return several locks for a block: all or none, without a deadlock between callers that want the same locks.

        Args:
            names: the names, in any order; a name given twice is acquired once.
            timeout: seconds to wait for all of them together, counted from the start of the block; None waits without
                limit.

        Returns:
            A context manager for one block at a time. Entering it raises the errors of `BaseLock.acquire`, and then
            none of the locks is held.

        Raises:
            TypeError: a single `str` was given, which would be read as a list of its letters.
            ValueError: the timeout is negative or not a number.
        """
        if isinstance(names, str):
            raise TypeError(f"acquire_all({safe_repr(names)}) wants several names, as a list; for one there is acquire")
        if timeout is not None and not timeout >= 0:
            raise ValueError(NO_TIMEOUT.format(safe_repr(timeout)))
        return Acquisition([self.get_lock(name) for name in sorted(set(names))], timeout)

    @property
    def stats(self) -> Mapping[str, float]:
        """Statistics over the locks that are known now.

        The keys are `active` (held now), `waiting` (owners that wait for a lock), `total` (known locks),
        `acquisitions`, `waits`, `wait_seconds`, `longest_wait`, `hold_seconds` and `longest_hold`, as in
        `LockStatistics`.
        """
        with self._lock:
            locks = [lock for reference in self._locks.copy().values() if (lock := reference()) is not None]
        seen = [lock.statistics() for lock in locks]
        return {
            "active": sum(1 for one in seen if one.held),
            "waiting": sum(one.waiting for one in seen),
            "total": len(seen),
            "acquisitions": sum(one.acquisitions for one in seen),
            "waits": sum(one.waits for one in seen),
            "wait_seconds": sum(one.wait_seconds for one in seen),
            "longest_wait": max((one.longest_wait for one in seen), default=0.0),
            "hold_seconds": sum(one.hold_seconds for one in seen),
            "longest_hold": max((one.longest_hold for one in seen), default=0.0),
        }

    def __len__(self) -> int:
        return len(self._locks)

    def __repr__(self) -> str:
        return f"<LockManager of {len(self)} locks>"
