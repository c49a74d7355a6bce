"""Coordination: locks, read-write locks, semaphores and limiters, for threads and event loops at once."""

__all__: list[str] = []
