"""Locks, read-write locks and semaphores shared by processes. All of them use one lease script."""

from cuelight.redis._locks._fencing import fence_key, fenced_set, fenced_set_blocking
from cuelight.redis._locks._lease import LockLease
from cuelight.redis._locks._lock import DistributedLock, RedisLock, redis_locks
from cuelight.redis._locks._rwlock import RedisReadWriteLock
from cuelight.redis._locks._script import LockMember, LockState
from cuelight.redis._locks._semaphore import RedisSemaphore

__all__ = [
    "DistributedLock",
    "LockLease",
    "LockMember",
    "LockState",
    "RedisLock",
    "RedisReadWriteLock",
    "RedisSemaphore",
    "fence_key",
    "fenced_set",
    "fenced_set_blocking",
    "redis_locks",
]
