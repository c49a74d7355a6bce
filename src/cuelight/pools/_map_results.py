"""Where the results of a map go: into a list, or to a reader."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cuelight.mailbox import Waiter
    from cuelight.pools._map_run import MapRun
    from cuelight.pools._results import TaskResult

__all__ = ["Gathered", "Store", "Streamed"]


class Store(Protocol):
    """Where the results of a map go."""

    limit: float
    """So many items may be taken in all, until results are read."""

    def opened(self, run: MapRun) -> None:
        """The map begins."""
        ...

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """The result of an item."""
        ...

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        """The results of consecutive items."""
        ...

    def closed(self) -> None:
        """There will be no more results."""
        ...


class Gathered:
    """All results in a list: in the order of the items, or as they are completed."""

    limit = math.inf

    def __init__(self, results: list[Any], *, ordered: bool) -> None:
        self._results, self._ordered = results, ordered

    def opened(self, run: MapRun) -> None:
        """Nothing to do."""

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Put it in its place; those before it that are missing still come."""
        results = self._results
        if not self._ordered or index == len(results):
            results.append(result)
        else:
            if index > len(results):
                results.extend([None] * (index + 1 - len(results)))
            results[index] = result

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        """Put them in their places."""
        if not self._ordered:
            self._results.extend(results)
        else:
            missing = first - len(self._results)
            if missing > 0:
                self._results.extend([None] * missing)
            self._results[first : first + len(results)] = results

    def closed(self) -> None:
        """Nothing to do."""


class Streamed:
    """Results for a reader, a window ahead of it at most."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._out: deque[TaskResult[Any]] = deque()
        self._early: dict[int, TaskResult[Any]] = {}
        self._next = 0
        self._read = 0
        self.limit: float = 0
        self.waiter: Waiter | None = None

    def opened(self, run: MapRun) -> None:
        """The map begins."""
        self._run = run
        self.limit = run.window

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Hand it out, once those before it were, if order matters."""
        if not self._ordered:
            self._out.append(result)
        elif index == self._next:
            self._out.append(result)
            self._next = index + 1
            early = self._early
            while early and self._next in early:
                self._out.append(early.pop(self._next))
                self._next += 1
        else:
            self._early[index] = result
        if self.waiter is not None:
            self.waiter.wake()

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        """Hand them out."""
        for index, result in enumerate(results, first):
            self.put(index, result)

    def closed(self) -> None:
        """Wake the reader: there will be no more."""
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None:
            self.waiter.wake()

    def clear(self) -> None:
        """Nobody will read what is left."""
        self._out.clear()
        self._early.clear()

    def pop(self) -> TaskResult[Any] | None:
        """The next result, if it is there."""
        if not self._out:
            return None
        result = self._out.popleft()
        self._read += 1
        run = self._run
        limit = self._read + run.window
        if limit > self.limit:
            self.limit = limit
            if not run.ready:
                run.refresh()
        return result
