"""Locks, read-write locks and semaphores shared by processes. All of them use one lease script."""

from cuelight.redis._locks._calls import LockMember, LockState
from cuelight.redis._locks._fences import fence_key, fenced_set, fenced_set_blocking
from cuelight.redis._locks._lease import Lease
from cuelight.redis._locks._locks import DistributedLock, RedisLock, redis_locks
from cuelight.redis._locks._read_write import RedisReadWriteLock
from cuelight.redis._locks._semaphores import RedisSemaphore

__all__ = [
    "DistributedLock",
    "Lease",
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
