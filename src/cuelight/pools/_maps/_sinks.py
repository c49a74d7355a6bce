"""The destinations of the results of a map: a list, or a reader."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Protocol

from cuelight.mailbox import Waiter
from cuelight.pools._results import TaskResult


class WindowedMap(Protocol):
    """What a destination uses of its map."""

    @property
    def window(self) -> int: ...

    @property
    def ready(self) -> bool: ...

    def refresh(self) -> None: ...


class ResultSink(Protocol):
    """The destination of the results of a map."""

    limit: float
    """Maximum number of items taken since the start of the map. It grows when results are read."""

    def opened(self, run: WindowedMap) -> None: ...

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Accept the result of an item."""
        ...

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        """Accept the results of consecutive items."""
        ...

    def closed(self) -> None:
        """Called when there will be no more results."""
        ...


class ListSink:
    """Collects all results in a list, in the order of the items or of completion."""

    limit = math.inf

    def __init__(self, results: list[Any], *, ordered: bool) -> None:
        self._results, self._ordered = results, ordered

    def opened(self, run: WindowedMap) -> None:
        """Nothing to do."""

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Put the result in its place. Missing results before it arrive later."""
        results = self._results
        if not self._ordered or index == len(results):
            results.append(result)
        else:
            if index > len(results):
                results.extend([None] * (index + 1 - len(results)))
            results[index] = result

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        if not self._ordered:
            self._results.extend(results)
        else:
            missing = first - len(self._results)
            if missing > 0:
                self._results.extend([None] * missing)
            self._results[first : first + len(results)] = results

    def closed(self) -> None:
        """Nothing to do."""


class StreamSink:
    """Keeps results for a reader. The map is at most one window ahead of the reader."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._out: deque[TaskResult[Any]] = deque()
        self._early: dict[int, TaskResult[Any]] = {}
        self._next = 0
        self._read = 0
        self.limit: float = 0
        self.waiter: Waiter | None = None

    def opened(self, run: WindowedMap) -> None:
        self._run = run
        self.limit = run.window

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Make the result readable; if ordered, after all results before it."""
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
        for index, result in enumerate(results, first):
            self.put(index, result)

    def closed(self) -> None:
        """Wake the reader, because there will be no more results."""
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None:
            self.waiter.wake()

    def clear(self) -> None:
        """Drop the remaining results, which nobody will read."""
        self._out.clear()
        self._early.clear()

    def pop(self) -> TaskResult[Any] | None:
        """The next result; None if it is not there yet."""
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
