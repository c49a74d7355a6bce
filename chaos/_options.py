"""What a storm is to be like."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What to do.

    Attributes:
        what: "tasks" for a durable queue, "locks" for a lock over Redis.
        tasks: how many.
        workers: processes that run them, or that want the lock.
        concurrency: tasks at once in each, or of those who want the lock.
        lease: seconds.
        work: the least and the most seconds that a task takes.
        faults: how many, drawn from `seed`.
        every: seconds from one fault to the next, about.
        timeout: seconds after which the run is over, whatever is left.
        backend: the event loop of the processes.
        store: "sqlite" or "redis".
        fsync: of the server: "always" or "everysec".
        outage: the most seconds for which a server is in trouble.
        replicas: of the server; with one it is promoted now and then.
    """

    what: str = "tasks"
    tasks: int = 3000
    workers: int = 4
    concurrency: int = 10
    lease: float = 15.0
    work: tuple[float, float] = (0.05, 0.5)
    faults: int = 20
    every: float = 1.0
    seed: int = 0
    timeout: float = 240.0
    backend: str = "asyncio"
    store: str = "sqlite"
    fsync: str = "everysec"
    outage: float = 5.0
    replicas: int = 1
