"""The options of a run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        seconds: the duration of the run; the first quarter is not judged.
        rounds: the number of rounds of each load, for a run that is the same on each machine; 0 to use `seconds`.
        backend: the event loop.
        seed: the seed of random choices.
        redis: whether to include the loads that need a server; one is started.
        every: seconds between two lines of figures.
    """

    seconds: float = 300.0
    rounds: int = 0
    backend: str = "asyncio"
    seed: int = 0
    redis: bool = True
    every: float = 15.0
