"""The semaphore that processes share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from cuelight._text import safe_repr
from cuelight.coordination import BaseSemaphore, LockStatistics
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_waiting import release
from cuelight.coordination._owner import current_owner
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._lease import LeaseOptions, OnLoss
from cuelight.redis._locks._lock import RedisWeightedLock, not_held_error
from cuelight.redis._locks._script import LockState, lock_names
from cuelight.redis._locks._shared_state import shared_state

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.redis._client import Server
    from cuelight.redis._locks._lease import LockLease


class RedisSemaphore(BaseSemaphore):
    """A semaphore shared by all processes that use one Redis or Valkey server, for threads and event loops at once.

        semaphore = RedisSemaphore("gpus", 4)
        async with semaphore: ...
        async with semaphore.hold(2) as held:
            print(held.lease.fence)

    Permits are held under leases: the permits of a process that dies are free after its lease. See `RedisLock` for the
    details of leases and arguments. Small requests do not starve a large one.

    Args:
        name: the name of the semaphore; all its users pass the same name.
        max_concurrent: the number of permits, the same everywhere. It can change once nobody uses the semaphore.
        redis_url: the address of the server.
        server: a `RedisClient`, or another `Server`, instead of `redis_url`.
        lease: seconds without a renewal after which a holder has lost its permits.
        on_loss: "cancel", "flag" or a function of the lease.
        lock_delay: seconds after the expiry of a lease during which nobody gets a permit.
        wait_replicas: the number of replicas that must have a grant before it counts.
        prefix: the prefix of all keys.
        debug: as for `LocalSemaphore`.

    Raises:
        ValueError: an argument is invalid.
    """

    __slots__ = ("__weakref__", "_name", "_one", "_options", "_state")

    def __init__(
        self,
        name: str,
        max_concurrent: int = 1,
        redis_url: str = DEFAULT_URL,
        *,
        server: Server | None = None,
        lease: float = 10.0,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        wait_replicas: int = 0,
        prefix: str = "cuelight",
        debug: bool | None = None,
    ) -> None:
        if max_concurrent < 1 or max_concurrent != int(max_concurrent):
            raise ValueError(
                f"max_concurrent={safe_repr(max_concurrent)}: a semaphore has 1 place or more, as a whole number"
            )
        self._name = name
        self._options = LeaseOptions(lease, on_loss, lock_delay, wait_replicas)
        self._state = shared_state(
            f"semaphore {name!r}",
            lock_names(prefix, "semaphore", name),
            server_for(redis_url, server),
            int(max_concurrent),
            multiple_holds=True,
            debug=debug_by_default() if debug is None else debug,
        )
        self._one = RedisWeightedLock(self._state, 1, name, self._options)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity(self) -> int:
        return self._state.capacity

    @property
    def available(self) -> int:
        """The number of permits that no holder in this process has. `state` covers all processes."""
        return self._state.capacity - self._state.used

    @property
    def lease(self) -> LockLease:
        """The lease of the single permit that the caller acquired last.

        Raises:
            LockNotHeld: the caller holds no single permit. For several permits, use the lease of the result of `hold`.
        """
        return self._one.lease

    async def acquire(self, weight: int = 1, timeout: float | None = None) -> None:
        await self._weighted_lock(weight).acquire(timeout)

    def acquire_blocking(self, weight: int = 1, timeout: float | None = None) -> None:
        self._weighted_lock(weight).acquire_blocking(timeout)

    def acquire_nowait(self, weight: int = 1) -> None:
        self._weighted_lock(weight).acquire_nowait()

    def release(self, weight: int = 1) -> None:
        lock, state, caller = self._weighted_lock(weight), self._state, current_owner()
        if state.newest_lease(caller, weight) is not None:
            lock.release()
            return
        leases = state.leases.get(caller, [])
        if sum(lease.weight for lease in leases) < weight:
            raise not_held_error(state, caller)
        # The permits were acquired in other amounts: release whole leases as long as they fit, and then part of the
        # next.
        for lease in leases[::-1]:
            part = min(weight, lease.weight)
            if part == lease.weight:
                self._weighted_lock(part).release()
            elif part:
                lock.release_part(lease, lease.weight - part, partial(release, state, part))
            weight -= part

    def hold(self, weight: int) -> RedisWeightedLock:
        return self._weighted_lock(weight)

    def statistics(self) -> LockStatistics:
        """Return the holders and waiters in this process and their waiting times. `state` covers all processes."""
        return self._one.statistics()

    async def state(self) -> LockState:
        """Return the server's state of the semaphore, over all processes. A checkpoint.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        return await self._one.state()

    def state_blocking(self) -> LockState:
        """Like `state`, but blocks the thread."""
        return self._one.state_blocking()

    async def __aenter__(self) -> Self:
        await self._one._enter(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._one.__aexit__(kind, error, trace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._one.__exit__(kind, error, trace)

    def _weighted_lock(self, weight: int) -> RedisWeightedLock:
        if weight == 1:
            return self._one
        if not (0 < weight <= self._state.capacity and weight == int(weight)):
            raise ValueError(
                f"weight={safe_repr(weight)}: semaphore {self._name!r} has {self._state.capacity} places; take 1 to "
                f"{self._state.capacity}, or give it more"
            )
        return RedisWeightedLock(self._state, weight, self._name, self._options)

    def __repr__(self) -> str:
        return f"<RedisSemaphore {self._name!r} {self.available} of {self.capacity} not held here>"
