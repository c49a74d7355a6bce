"""The lock that processes share, and the lock factory for a manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight.coordination._lock_order import debug_by_default
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._claim import Hold, RedisClaim
from cuelight.redis._locks._names import names_of
from cuelight.redis._locks._shared import shared_core
from cuelight.redis._locks._terms import OnLoss, Terms

if TYPE_CHECKING:
    from cuelight.coordination import LockFactory
    from cuelight.redis._client import Server


class RedisLock(RedisClaim):
    """A lock shared by all processes that use one Redis or Valkey server, for threads and event loops at once.

        lock = RedisLock("accounts")
        with lock: ...                           # in a thread
        async with lock: ...                     # in a task, on asyncio or trio
        async with lock.hold() as lease:
            await store.save(document, fence=lease.fence)

    The lock is held under a lease, which is renewed as long as the holder lives. A process that dies or freezes loses
    the lock. **A holder is notified of the loss**: the body of an `async with` block is cancelled, and the block raises
    `LeaseLost`; a thread gets that error from `lease.check()` and when it leaves its block. A holder may learn of the
    loss late, so only the fencing token makes the lock safe: pass `lease.fence` to the protected resource, see
    `fenced_set`.

    Locks with one name in one process are one lock. The waiters in a process are served in the order of arrival, and
    processes take turns in the order in which their first waiters arrived. The lock is not re-entrant.

    Args:
        name: the name of the lock; all users of the lock pass the same name.
        redis_url: the address of the server. Locks with one address share one client.
        server: your own client, instead of `redis_url`.
        lease: seconds without a renewal after which the holder has lost the lock.
        on_loss: "cancel" cancels the block; "flag" does not; a function gets the lease, in the loop of the holder or
            in the thread that renews for threads, and must not block. The block raises `LeaseLost` in any case.
        lock_delay: seconds after the expiry of a lease during which nobody gets the lock, for resources that cannot
            check a fence.
        wait_replicas: the number of replicas that must have a grant before it counts. That makes it less likely, but
            not impossible, that a promoted replica does not know the grant.
        prefix: the prefix of all keys.
        debug: as for `LocalLock`.

    Raises:
        ValueError: an argument is invalid.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
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
        terms = Terms(lease, on_loss, lock_delay, wait_replicas)
        core = shared_core(
            f"lock {name!r}",
            names_of(prefix, "lock", name),
            server_for(redis_url, server),
            1,
            debug=debug_by_default() if debug is None else debug,
        )
        super().__init__(core, 1, name, terms)

    def hold(self, timeout: float | None = None) -> Hold:
        """Return a block that provides the lease: `async with lock.hold() as lease: ...`, or `with` in a thread.

        Args:
            timeout: seconds to wait; None waits without a limit.
        """
        return Hold(self, timeout)


DistributedLock = RedisLock
"""The name for a lock of several processes; the implementation uses Redis."""


def redis_locks(
    redis_url: str = DEFAULT_URL,
    *,
    server: Server | None = None,
    lease: float = 10.0,
    on_loss: OnLoss = "cancel",
    lock_delay: float = 0.0,
    wait_replicas: int = 0,
    prefix: str = "cuelight",
) -> LockFactory:
    """Return a factory for the locks of a manager over Redis: `LockManager(redis_locks("redis://localhost:6379"))`.

    Args:
        redis_url: as for `RedisLock`, like all other arguments.
        server: as for `RedisLock`.
        lease: as for `RedisLock`.
        on_loss: as for `RedisLock`.
        lock_delay: as for `RedisLock`.
        wait_replicas: as for `RedisLock`.
        prefix: as for `RedisLock`.

    Raises:
        ValueError: an argument is invalid.
    """
    Terms(lease, on_loss, lock_delay, wait_replicas)
    server = server_for(redis_url, server)

    def make(name: str, /, *, debug: bool | None = None) -> RedisLock:
        return RedisLock(
            name,
            server=server,
            lease=lease,
            on_loss=on_loss,
            lock_delay=lock_delay,
            wait_replicas=wait_replicas,
            prefix=prefix,
            debug=debug,
        )

    return make
