"""Limiters that are shared by all processes, over Redis or Valkey."""

from cuelight.redis._limits._rate_limiter import RedisAdmission, RedisRateLimiter
from cuelight.redis._limits._single import RedisLeakyBucket, RedisSlidingWindow, RedisTokenBucket

__all__ = ["RedisAdmission", "RedisLeakyBucket", "RedisRateLimiter", "RedisSlidingWindow", "RedisTokenBucket"]
