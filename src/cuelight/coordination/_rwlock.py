"""Read-write locks: any number of readers, or one writer."""

from __future__ import annotations

from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_state import ALL, DOWNGRADED, READ, CapacityState
from cuelight.coordination._lock_waiting import downgrade, release
from cuelight.coordination._locks import BaseLock, LockStatistics, WeightedLock, next_name, statistics_of


class _SideLock(WeightedLock):
    """The lock for reading or for writing. Either can release the hold that is left after a downgrade."""

    __slots__ = ()

    @property
    def locked(self) -> bool:
        return any((weight == ALL) == (self._weight == ALL) for weight in self._state.held().values())

    def release(self) -> None:
        release(self._state, self._weight, DOWNGRADED)

    def statistics(self) -> LockStatistics:
        return statistics_of(self._state, by_weight=False)


class ReadWriteLock:
    """A lock of this process that several readers may hold at once, or one writer; for threads and event loops at once.

        async with rwlock.read(): ...     # in a task; `with` in a thread
        async with rwlock.write():
            ...
            rwlock.downgrade()            # a reader from here on, without a gap

    Owners are served in the order of arrival, so neither writers nor readers starve. The lock is not re-entrant, and a
    reader cannot become a writer: two readers that tried would wait for each other.

    Args:
        name: shown in errors; None numbers the lock.
        writer_preference: serve waiting writers before waiting readers. A steady stream of writers then starves the
            readers.
        debug: record where the lock is acquired, measure every hold, and warn when locks are acquired in two orders.
            None reads the environment variable `CUELIGHT_DEBUG_LOCKS`.
    """

    __slots__ = ("__weakref__", "_name", "_read", "_state", "_write")

    def __init__(self, name: str | None = None, *, writer_preference: bool = False, debug: bool | None = None) -> None:
        self._name = name if name is not None else f"read-write-lock-{next_name()}"
        self._state = state = CapacityState(
            f"read-write lock {self._name!r}",
            ALL,
            writers_first=writer_preference,
            debug=debug_by_default() if debug is None else debug,
        )
        self._read = _SideLock(state, READ, self._name)
        self._write = _SideLock(state, ALL, self._name)

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._name

    @property
    def readers(self) -> int:
        """The number of readers that hold the lock."""
        return 0 if self._write.locked else len(self._state.held())

    @property
    def writing(self) -> bool:
        """Whether a writer holds the lock."""
        return self._write.locked

    def read(self) -> BaseLock:
        """Return the lock for reading, which is shared with other readers."""
        return self._read

    def write(self) -> BaseLock:
        """Return the lock for writing, which is exclusive."""
        return self._write

    def downgrade(self) -> None:
        """Turn the caller from the writer into a reader; no other writer comes in between. Not a checkpoint.

        Leaving the block of `write()` releases the lock as usual.

        Raises:
            LockNotHeld: the caller does not hold the lock for writing.
        """
        downgrade(self._state)

    def statistics(self) -> LockStatistics:
        """Return the holders, the number of waiting owners, and the times waited and held so far."""
        return statistics_of(self._state, by_weight=False)

    def __repr__(self) -> str:
        state = "writing" if self.writing else f"{self.readers} reading"
        return f"<ReadWriteLock {self._name!r} {state}>"
