"""The lock that processes share, and what makes them for a manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight.coordination._order import debug_by_default
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._claim import Hold, RedisClaim
from cuelight.redis._locks._names import names_of
from cuelight.redis._locks._shared import shared_core
from cuelight.redis._locks._terms import OnLoss, Terms

if TYPE_CHECKING:
    from cuelight.coordination import LockFactory
    from cuelight.redis._client import Server

__all__ = ["DistributedLock", "RedisLock", "redis_locks"]


class RedisLock(RedisClaim):
    """A lock that all processes share that reach one Redis or Valkey server; for threads and event loops at once.

        lock = RedisLock("accounts")
        with lock: ...                           # in a thread
        async with lock: ...                     # in a task, on asyncio or trio
        async with lock.hold() as lease:
            await store.save(document, fence=lease.fence)

    It is held under a lease, which is renewed for as long as the holder lives: a process that dies or freezes loses
    it. **A holder that has lost it is told**: what runs in the block of `async with` is cancelled, and the block
    raises `LeaseLost`; a thread gets that from `lease.check()` and when it leaves its block. Because a holder may not
    know yet, nothing but the fencing token makes it safe: give `lease.fence` to what is protected, see `fenced_set`.

    Locks of one name in one process are one lock. Who waits in a process is served in the order of arrival, and
    processes take turns in the order in which the first of theirs came. It is not re-entrant.

    Args:
        name: of the lock: the same for all who mean the same.
        redis_url: where the server is. Locks with one address share one client.
        server: a client of your own instead.
        lease: seconds after which a holder that renews no more has lost it.
        on_loss: "cancel" cancels the block; "flag" leaves it alone; a function gets the lease, in the loop of the
            holder or in the thread that renews for threads, and must not block. The block raises `LeaseLost` anyway.
        lock_delay: seconds for which nobody gets it after a lease has run out, for what cannot check a fence.
        wait_replicas: how many replicas must have a grant before it counts. That makes it less likely, not
            impossible, that a promoted replica does not know of it.
        prefix: of all keys.
        debug: as for `LocalLock`.

    Raises:
        ValueError: an argument makes no sense.
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
        """The lock for a block that needs the lease: `async with lock.hold() as lease: ...`, or `with` in a thread.

        Args:
            timeout: seconds to wait; None waits as long as it takes.
        """
        return Hold(self, timeout)


DistributedLock = RedisLock
"""A lock of several processes is one over Redis."""


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
    """What makes the locks of a manager over Redis: `LockManager(redis_locks("redis://localhost:6379"))`.

    Args:
        redis_url: as all others, of `RedisLock`.
        server: the same.
        lease: the same.
        on_loss: the same.
        lock_delay: the same.
        wait_replicas: the same.
        prefix: the same.

    Raises:
        ValueError: an argument makes no sense.
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
