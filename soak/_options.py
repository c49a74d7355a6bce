"""What a run is to be like."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How long, and on what.

    Attributes:
        seconds: how long the run lasts; the first quarter is not judged.
        rounds: how often each load is run instead, for a run that is the same on each machine; 0 for `seconds`.
        backend: the event loop.
        seed: of what is drawn.
        redis: whether to run what needs a server, too; one is started.
        every: seconds from one line of figures to the next.
    """

    seconds: float = 300.0
    rounds: int = 0
    backend: str = "asyncio"
    seed: int = 0
    redis: bool = True
    every: float = 15.0
