"""The seam between a worker and what runs its work: this task, a thread or another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Executor", "Outcome", "Successes"]

Outcome = tuple[bool, Any]
"""(True, what it returned) or (False, the exception that it raised)."""


class Successes(list[Any]):
    """What the items of a chunk returned, when every one of them has succeeded."""


class Executor(Protocol):
    """What runs the work of one worker: one call, or one chunk of a map, at a time.

    Cancelling a call really stops the work where that can be done: an async function is cancelled, a
    process is killed. A thread cannot be stopped: it is abandoned, and `abandoned` says how many of them still run.
    After that, and after a worker's process has died, the next call has a fresh thread or process.

    An executor may also have a method `run_many`: as `run_chunk`, but if all have succeeded it may return their bare
    values, as `Successes`, because a tuple for each item takes time. Maps prefer it.
    """

    abandoned: int
    """Threads of this executor that were left behind and still run."""
    replaced: int
    """Threads and processes that were replaced."""

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function and return its result. A checkpoint.

        Raises:
            WorkerDied: the process died under it (killed, out of memory, `os._exit`).
            Exception: what the function raised.
        """
        ...

    async def run_chunk(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
        """Call the function with each item, in order; one round trip for all. A checkpoint.

        Returns:
            One outcome for each item. If the process died at item k, outcome k is `(False, WorkerDied)`, and the items
            after k were run by its successor.
        """
        ...

    async def aclose(self) -> None:
        """Stop the thread or process once it is idle; kill a process that is not. A checkpoint."""
        ...
