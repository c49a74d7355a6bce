"""The read-write lock that processes share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cuelight.coordination import LockStatistics
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_state import ALL, DOWNGRADED, READ
from cuelight.coordination._lock_waiting import describe_holders, downgrade
from cuelight.coordination._locks import statistics_of
from cuelight.coordination._owner import current_owner, describe
from cuelight.errors import LockNotHeld
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._lease import LeaseOptions, OnLoss
from cuelight.redis._locks._lock import RedisWeightedLock
from cuelight.redis._locks._script import LockState, lock_names
from cuelight.redis._locks._shared_state import shared_state

if TYPE_CHECKING:
    from cuelight.redis._client import Server


class _RedisSideLock(RedisWeightedLock):
    """The read or the write side, as a lock. Each side also releases the rest of a downgraded lock."""

    __slots__ = ()

    _other_weights = (DOWNGRADED,)

    @property
    def locked(self) -> bool:
        """Whether a holder in this process has this side of the lock. `state` covers all processes."""
        return any((weight == ALL) == (self._weight == ALL) for weight in self._state.held().values())

    def statistics(self) -> LockStatistics:
        return statistics_of(self._state, by_weight=False)


class RedisReadWriteLock:
    """A lock shared by processes that several holders can read or one can write, for threads and event loops at once.

        async with rwlock.read(): ...            # in a task; `with` in a thread
        async with rwlock.write() as held:
            await store.save(document, fence=held.lease.fence)
            rwlock.downgrade()                   # a reader from here on, without a gap

    The lock is held under leases. See `RedisLock` for leases, and for details of the arguments. A reader cannot become
    a writer: two readers that tried would wait for each other.

    Args:
        name: the name of the lock; all users of the lock pass the same name.
        redis_url: the address of the server.
        server: a `RedisClient`, or another `Server`, instead of `redis_url`.
        writer_preference: serve waiting writers before waiting readers. A steady stream of writers then starves
            the readers.
        lease: seconds without a renewal after which the holder has lost the lock.
        on_loss: "cancel", "flag" or a function of the lease.
        lock_delay: seconds after the expiry of a lease during which nobody gets the lock.
        wait_replicas: the number of replicas that must have a grant before it counts.
        prefix: the prefix of all keys.
        debug: as for `ReadWriteLock`.

    Raises:
        ValueError: an argument is invalid.
    """

    __slots__ = ("__weakref__", "_name", "_read", "_state", "_write")

    def __init__(
        self,
        name: str,
        redis_url: str = DEFAULT_URL,
        *,
        server: Server | None = None,
        writer_preference: bool = False,
        lease: float = 10.0,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        wait_replicas: int = 0,
        prefix: str = "cuelight",
        debug: bool | None = None,
    ) -> None:
        options = LeaseOptions(lease, on_loss, lock_delay, wait_replicas)
        self._name = name
        self._state = state = shared_state(
            f"read-write lock {name!r}",
            lock_names(prefix, "read-write", name),
            server_for(redis_url, server),
            ALL,
            writers_first=writer_preference,
            debug=debug_by_default() if debug is None else debug,
        )
        self._read = _RedisSideLock(state, READ, name, options)
        self._write = _RedisSideLock(state, ALL, name, options)

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._name

    @property
    def readers(self) -> int:
        """The number of readers in this process."""
        return 0 if self._write.locked else len(self._state.held())

    @property
    def writing(self) -> bool:
        """Whether a holder in this process writes."""
        return self._write.locked

    def read(self) -> RedisWeightedLock:
        """Return the read side, which is shared with other readers."""
        return self._read

    def write(self) -> RedisWeightedLock:
        """Return the write side, which is exclusive."""
        return self._write

    def downgrade(self) -> None:
        """Turn the caller, a writer, into a reader; no other writer gets the lock in between. Not a checkpoint.

        Leaving the block of `write()` releases the lock as before. The fence stays that of the writer.

        Raises:
            LockNotHeld: the caller does not hold the write side.
            LeaseLost: the caller has lost the lock.
        """
        state, caller = self._state, current_owner()
        lease = state.newest_lease(caller, ALL)
        if lease is None:
            raise LockNotHeld(
                f"{describe(caller)} cannot downgrade {state.label}, because it does not write: "
                f"{describe_holders(state)}"
            )
        lease.check()
        self._write.release_part(lease, DOWNGRADED, partial(downgrade, state))

    def statistics(self) -> LockStatistics:
        """Return the holders and waiters in this process and their waiting times. `state` covers all processes."""
        return statistics_of(self._state, by_weight=False)

    async def state(self) -> LockState:
        """Return the server's state of the lock, over all processes; a writer has a weight of 2**30. A checkpoint.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        return await self._write.state()

    def state_blocking(self) -> LockState:
        """Like `state`, but blocks the thread."""
        return self._write.state_blocking()

    def __repr__(self) -> str:
        state = "writing" if self.writing else f"{self.readers} reading"
        return f"<RedisReadWriteLock {self._name!r} {state} here>"
