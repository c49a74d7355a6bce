"""Across processes and machines, over Redis or Valkey: the client, and what runs on it."""

from cuelight.redis._actors import NodeLost, NodeStatistics, RedisNode, RemoteError, Undecoded
from cuelight.redis._client import Argument, RedisClient, Script, Server, Subscription
from cuelight.redis._locks import (
    DistributedLock,
    Lease,
    LockState,
    Place,
    RedisLock,
    RedisReadWriteLock,
    RedisSemaphore,
    fence_key,
    fenced_set,
    fenced_set_blocking,
    redis_locks,
)

__all__ = [
    "Argument",
    "DistributedLock",
    "Lease",
    "LockState",
    "NodeLost",
    "NodeStatistics",
    "Place",
    "RedisClient",
    "RedisLock",
    "RedisNode",
    "RedisReadWriteLock",
    "RedisSemaphore",
    "RemoteError",
    "Script",
    "Server",
    "Subscription",
    "Undecoded",
    "fence_key",
    "fenced_set",
    "fenced_set_blocking",
    "redis_locks",
]
