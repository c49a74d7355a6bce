"""Across processes and machines, over Redis or Valkey: a client, the task store, locks, limiters, remote actors.

`import cuelight` does not load this package: it takes `redis` and `hiredis` with it.
"""

from cuelight.redis._actors import (
    NodeLost,
    NodeStatistics,
    PeerStatistics,
    RedisNode,
    RemoteError,
    TcpTransport,
    Undecoded,
)
from cuelight.redis._client import (
    Argument,
    Dedicated,
    Pipeline,
    RedisClient,
    Script,
    Server,
    Subscription,
)
from cuelight.redis._limits import (
    RedisAdmission,
    RedisLeakyBucket,
    RedisRateLimiter,
    RedisSlidingWindow,
    RedisTokenBucket,
)
from cuelight.redis._locks import (
    DistributedLock,
    LockLease,
    LockMember,
    LockState,
    RedisLock,
    RedisReadWriteLock,
    RedisSemaphore,
    fence_key,
    fenced_set,
    fenced_set_blocking,
    redis_locks,
)
from cuelight.redis._tasks import RedisStore

__all__ = [
    "Argument",
    "Dedicated",
    "DistributedLock",
    "LockLease",
    "LockMember",
    "LockState",
    "NodeLost",
    "NodeStatistics",
    "PeerStatistics",
    "Pipeline",
    "RedisAdmission",
    "RedisClient",
    "RedisLeakyBucket",
    "RedisLock",
    "RedisNode",
    "RedisRateLimiter",
    "RedisReadWriteLock",
    "RedisSemaphore",
    "RedisSlidingWindow",
    "RedisStore",
    "RedisTokenBucket",
    "RemoteError",
    "Script",
    "Server",
    "Subscription",
    "TcpTransport",
    "Undecoded",
    "fence_key",
    "fenced_set",
    "fenced_set_blocking",
    "redis_locks",
]
