"""Coordination: locks, read-write locks, semaphores and limiters, for threads and event loops at once."""

from cuelight.coordination._keyed_limiter import KeyedLimiter, KeyedStatistics
from cuelight.coordination._limiters import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket
from cuelight.coordination._lock_manager import Acquisition, LockFactory, LockManager
from cuelight.coordination._locks import BaseLock, Holder, LocalLock, LockStatistics
from cuelight.coordination._meters import Decision, LimiterStatistics, RateLimitConfig, gcra
from cuelight.coordination._rate_limiter import Admission, RateLimiter
from cuelight.coordination._rwlock import ReadWriteLock
from cuelight.coordination._semaphores import BaseSemaphore, LocalSemaphore, Semaphore

__all__ = [
    "Acquisition",
    "Admission",
    "AsyncLeakyBucket",
    "AsyncSlidingWindow",
    "AsyncTokenBucket",
    "BaseLock",
    "BaseSemaphore",
    "Decision",
    "Holder",
    "KeyedLimiter",
    "KeyedStatistics",
    "LimiterStatistics",
    "LocalLock",
    "LocalSemaphore",
    "LockFactory",
    "LockManager",
    "LockStatistics",
    "RateLimitConfig",
    "RateLimiter",
    "ReadWriteLock",
    "Semaphore",
    "gcra",
]
