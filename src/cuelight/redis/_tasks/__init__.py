"""Tasks on a Redis or Valkey server."""

from cuelight.redis._tasks._store import RedisStore

__all__ = ["RedisStore"]
