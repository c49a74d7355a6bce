"""The options of a storm."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The options of a storm.

    Attributes:
        what: "tasks" for a durable queue, "locks" for a lock over Redis.
        tasks: the number of tasks.
        workers: the number of processes that run tasks or want the lock.
        concurrency: the number of concurrent tasks, or of concurrent lock users, in each process.
        lease: seconds.
        work: the least and the most seconds that a task takes.
        faults: the number of faults, drawn from `seed`.
        every: the approximate seconds between two faults.
        timeout: seconds after which the run is over in any case.
        backend: the event loop of the processes.
        store: "sqlite" or "redis".
        fsync: "always" or "everysec", for the server.
        outage: the longest trouble of a server, in seconds.
        replicas: the number of replicas of the server; with one, it is promoted now and then.
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
