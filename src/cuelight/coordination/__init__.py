"""Coordination: locks, read-write locks, semaphores and limiters, for threads and event loops at once."""

from cuelight.coordination._gcra import gcra
from cuelight.coordination._keyed import KeyedLimiter, KeyedStatistics
from cuelight.coordination._limit_meter import Decision, LimiterStatistics, RateLimitConfig
from cuelight.coordination._limit_request import Admission, RateLimiter
from cuelight.coordination._limiters import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket

__all__ = [
    "Admission",
    "AsyncLeakyBucket",
    "AsyncSlidingWindow",
    "AsyncTokenBucket",
    "Decision",
    "KeyedLimiter",
    "KeyedStatistics",
    "LimiterStatistics",
    "RateLimitConfig",
    "RateLimiter",
    "gcra",
]
