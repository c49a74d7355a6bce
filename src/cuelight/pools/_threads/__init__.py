"""Threads that run calls: one for each worker of an async pool, and those of a blocking pool."""
