"""The read-write lock that processes share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cuelight.coordination import LockStatistics
from cuelight.coordination._core import ALL, DOWNGRADED, READ
from cuelight.coordination._operations import downgrade
from cuelight.coordination._order import debug_by_default
from cuelight.coordination._parties import describe, whoever
from cuelight.coordination._statistics import statistics_of
from cuelight.coordination._words import holders_of
from cuelight.errors import LockNotHeld
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._calls import LockState
from cuelight.redis._locks._claim import RedisClaim
from cuelight.redis._locks._names import names_of
from cuelight.redis._locks._shared import shared_core
from cuelight.redis._locks._terms import OnLoss, Terms

if TYPE_CHECKING:
    from cuelight.redis._client import Server

__all__ = ["RedisReadWriteLock"]


class _Side(RedisClaim):
    """Reading or writing, as a lock. Either gives back what a downgrade has left."""

    __slots__ = ()

    _several_weights = (DOWNGRADED,)

    @property
    def locked(self) -> bool:
        """Whether somebody in this process holds it so. Of all processes, `state` knows."""
        return any((weight == ALL) == (self._weight == ALL) for weight in self._core.held().values())

    def statistics(self) -> LockStatistics:
        return statistics_of(self._core, by_weight=False)


class RedisReadWriteLock:
    """A lock that processes share, and that several may hold to read, or one to write; for threads and loops at once.

        async with rwlock.read(): ...            # in a task; `with` in a thread
        async with rwlock.write() as held:
            await store.save(document, fence=held.lease.fence)
            rwlock.downgrade()                   # a reader from here on, without a gap

    It is held under leases; for those, and for what is not said here of the arguments, see `RedisLock`. A reader
    cannot become a writer: two that tried would wait for each other.

    Args:
        name: of the lock: the same for all who mean the same.
        redis_url: where the server is.
        server: a client of your own instead.
        writer_preference: serve writers that wait before readers that wait. A steady stream of writers then starves
            the readers.
        lease: seconds after which a holder that renews no more has lost it.
        on_loss: "cancel", "flag" or a function of the lease.
        lock_delay: seconds for which nobody gets it after a lease has run out.
        wait_replicas: how many replicas must have a grant before it counts.
        prefix: of all keys.
        debug: as for `ReadWriteLock`.

    Raises:
        ValueError: an argument makes no sense.
    """

    __slots__ = ("__weakref__", "_core", "_name", "_read", "_write")

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
        terms = Terms(lease, on_loss, lock_delay, wait_replicas)
        self._name = name
        self._core = core = shared_core(
            f"read-write lock {name!r}",
            names_of(prefix, "read-write", name),
            server_for(redis_url, server),
            ALL,
            writers_first=writer_preference,
            debug=debug_by_default() if debug is None else debug,
        )
        self._read = _Side(core, READ, name, terms)
        self._write = _Side(core, ALL, name, terms)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def readers(self) -> int:
        """How many in this process read now."""
        return 0 if self._write.locked else len(self._core.held())

    @property
    def writing(self) -> bool:
        """Whether somebody in this process writes now."""
        return self._write.locked

    def read(self) -> RedisClaim:
        """The lock to read under: shared with other readers."""
        return self._read

    def write(self) -> RedisClaim:
        """The lock to write under: shared with nobody."""
        return self._write

    def downgrade(self) -> None:
        """As the writer, become a reader; no other writer comes in between. Not a checkpoint.

        Leaving the block of `write()` gives it back as before. The fence stays that of the writer.

        Raises:
            LockNotHeld: this one does not hold it to write.
            LeaseLost: it has lost it.
        """
        core, me = self._core, whoever()
        lease = core.newest(me, ALL)
        if lease is None:
            raise LockNotHeld(
                f"{describe(me)} cannot downgrade {core.thing}, because it does not write: {holders_of(core)}"
            )
        lease.check()
        self._write.lower(lease, DOWNGRADED, partial(downgrade, core))

    def statistics(self) -> LockStatistics:
        """Who in this process holds it, how many wait here, and how long that took so far. `state` knows of others."""
        return statistics_of(self._core, by_weight=False)

    async def state(self) -> LockState:
        """What the server knows, of all processes; a writer has a weight of 2**30. A checkpoint.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        return await self._write.state()

    def state_blocking(self) -> LockState:
        """As `state`, but blocks the thread."""
        return self._write.state_blocking()

    def __repr__(self) -> str:
        state = "writing" if self.writing else f"{self.readers} reading"
        return f"<RedisReadWriteLock {self._name!r} {state} here>"
