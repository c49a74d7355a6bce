"""The interface between a worker and the thread, process or other means that runs its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Outcome = tuple[bool, Any]
"""(True, the returned value) or (False, the raised exception)."""


class Successes(list[Any]):
    """The values that the items of a chunk returned, if every item has succeeded."""


class Executor(Protocol):
    """Interface of an object that runs the work of one worker: one call, or one chunk of a map, at a time.

    Cancelling a call stops the work where this is possible: an async function is cancelled, a process is killed. A
    thread cannot be stopped. It is abandoned, and `abandoned` is the number of such threads that still run. After
    that, and after the death of a process, the next call gets a new thread or process.

    An executor may also have a method `run_many`. It works as `run_chunk`, but if all items have succeeded, it may
    return the bare values as `Successes`, because a tuple for each item takes time. Maps prefer this method.
    """

    abandoned: int
    """Number of threads of this executor that were abandoned and still run."""
    replaced: int
    """Number of threads and processes that were replaced."""

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function and return its result. A checkpoint.

        Raises:
            WorkerDied: the process died during the call (killed, out of memory, `os._exit`).
            Exception: the exception that the function raised.
        """
        ...

    async def run_chunk(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
        """Call the function with each item, in order, in one round trip. A checkpoint.

        Returns:
            One outcome for each item. If the process died at item k, outcome k is `(False, WorkerDied)`, and a new
            process has run the items after k.
        """
        ...

    async def aclose(self) -> None:
        """Stop the thread or process once it is idle, and kill a process that is busy. A checkpoint."""
        ...
