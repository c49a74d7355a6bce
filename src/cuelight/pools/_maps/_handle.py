"""The handle of a map: await it for all results, or iterate over it for one result after another."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import anyio

from cuelight.errors import PoolClosed
from cuelight.pools._extra_workers import worker_released
from cuelight.pools._functions import name_of
from cuelight.pools._maps._request import MapRequest
from cuelight.pools._maps._run import MapRun
from cuelight.pools._maps._sinks import ListSink, StreamSink
from cuelight.pools._results import TaskResult

if TYPE_CHECKING:
    from cuelight.pools._worker_group import WorkerGroup

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Results(list[TaskResult[R]]):
    """The results of a map, in the order of its items (with `ordered=False` in the order of completion)."""

    @property
    def values(self) -> list[R]:
        """The returned values of the items that succeeded."""
        return [result.unwrap() for result in self if result.error is None]

    @property
    def errors(self) -> list[Exception]:
        """The errors of the items that failed."""
        return [result.error for result in self if result.error is not None]


class GroupProvider(Protocol):
    """The interface of the pool for a map."""

    name: str

    @property
    def group(self) -> WorkerGroup | None:
        """The group of the pool's block, or of its given system; None if there is neither."""
        ...

    def opened(self) -> AbstractAsyncContextManager[WorkerGroup]:
        """The group of the pool, or a group for this call only."""
        ...


class Map(Generic[R]):
    """The handle that `AsyncWorkerPool.map` returns. Use it once: `await` it, or `async for result in` it.

    The map reads and runs nothing before that.
    """

    __slots__ = ("__weakref__", "_pool", "_request", "_used")

    def __init__(self, pool: GroupProvider, request: MapRequest) -> None:
        self._pool, self._request = pool, request
        self._used = False

    def _use(self) -> None:
        if self._used:
            raise RuntimeError(f"this map of {name_of(self._request.function)} was used before: call map() again")
        self._used = True

    def __await__(self) -> Generator[Any, Any, Results[R]]:
        """Wait for all results.

        If the caller is cancelled, running items are cancelled. The call returns once they have stopped and the source
        is closed.

        Raises:
            Exception: the exception that the source of the items, or the progress callback, raised.
            TaskCancelled: the pool cancelled all its work.
            PoolClosed: the pool was shut down.
        """
        self._use()
        return self._gather().__await__()

    async def _gather(self) -> Results[R]:
        results: Results[R] = Results()
        async with self._pool.opened() as group:
            run = MapRun(group, self._request, ListSink(results, ordered=self._request.ordered))
            try:
                await run.wait()
            except BaseException:
                run.cancel()
                with anyio.CancelScope(shield=True):
                    await run.until_over()
                raise
            if run.failure is not None:
                raise run.failure
        return results

    def __aiter__(self) -> MapStream[R]:
        """Read the results one by one, while the map runs a little ahead.

        Raises:
            PoolClosed: the pool is not in its block. Without a block, the workers would not end when the loop is left
                early.
        """
        self._use()
        group = self._pool.group
        if group is None:
            raise PoolClosed(
                f"the pool {self._pool.name!r} is not running: loop over a map inside `async with` of the pool, "
                f"or await the map"
            )
        sink = StreamSink(ordered=self._request.ordered)
        return MapStream(MapRun(group, self._request, sink), sink)

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            warnings.warn(
                f"a map of {name_of(self._request.function)} was neither awaited nor looped over: nothing was run",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )


class MapStream(AsyncIterator[TaskResult[R]]):
    """The results of a map as they arrive. Dropping the stream (`break`), or `aclose()`, cancels running items."""

    __slots__ = ("__weakref__", "_run", "_sink")

    def __init__(self, run: MapRun, sink: StreamSink) -> None:
        self._run, self._sink = run, sink

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskResult[R]:
        """Return the next result. A checkpoint only if the result is not there yet.

        If the caller is cancelled, so is the map.

        Raises:
            Exception: the exception that the source of the items, or the progress callback, raised.
            TaskCancelled: the pool cancelled all its work, or has ended.
            anyio.BusyResourceError: another task waits for the next result.
        """
        run, sink = self._run, self._sink
        while (result := sink.pop()) is None:
            if run.over:
                if run.failure is not None:
                    raise run.failure
                raise StopAsyncIteration
            if sink.waiter is not None:
                raise anyio.BusyResourceError("reading from")
            sink.waiter = run.waiter()
            try:
                with worker_released(run):
                    await sink.waiter
            except BaseException:
                await self._leave()
                raise
            finally:
                sink.waiter = None
        return result

    async def aclose(self) -> None:
        """Cancel running items, wait until they have stopped, and close the source. Harmless when the map is over.

        Raises:
            Exception: the exception that the source raised when it was closed.
        """
        before = self._run.failure
        self._run.abandon()
        self._sink.clear()
        with anyio.CancelScope(shield=True):
            await self._run.until_over()
        if self._run.failure is not None and self._run.failure is not before:
            raise self._run.failure

    async def _leave(self) -> None:
        self._run.is_unobserved = True
        self._run.abandon()
        with anyio.CancelScope(shield=True):
            await self._run.until_over()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None:
            run.is_unobserved = True
            run.abandon()
