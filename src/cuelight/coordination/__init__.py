"""Coordination: locks, read-write locks, semaphores and limiters, for threads and event loops at once."""

from cuelight.coordination._gcra import gcra
from cuelight.coordination._keyed import KeyedLimiter, KeyedStatistics
from cuelight.coordination._limit_meter import Decision, LimiterStatistics, RateLimitConfig
from cuelight.coordination._limit_request import Admission, RateLimiter
from cuelight.coordination._limiters import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket
from cuelight.coordination._locks import BaseLock, LocalLock
from cuelight.coordination._manager import Acquisition, LockFactory, LockManager
from cuelight.coordination._read_write import ReadWriteLock
from cuelight.coordination._semaphores import BaseSemaphore, LocalSemaphore, Semaphore
from cuelight.coordination._statistics import Holder, LockStatistics

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
