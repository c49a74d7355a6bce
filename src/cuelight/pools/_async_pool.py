"""The pool for async code: `submit`, `map`, and the life of its crew."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec

from cuelight._fork import forks
from cuelight.errors import PoolClosed
from cuelight.pools._attempts import Kind, check_kind, name_of
from cuelight.pools._block import PoolBlock
from cuelight.pools._contexts import submission_context
from cuelight.pools._crew import Crew
from cuelight.pools._dead_letters import DeadLetterBox
from cuelight.pools._ledger import Ledger
from cuelight.pools._map import Map
from cuelight.pools._map_request import MapRequest
from cuelight.pools._options import (
    DEFAULT,
    Default,
    PoolOptions,
    check_priority,
    check_text,
    check_timeout,
    check_whole,
    make_executor,
)
from cuelight.pools._pool_letters import PoolLetters
from cuelight.pools._submission import Detached, Submission, Submitted
from cuelight.supervision import ActorSystem

if TYPE_CHECKING:
    from os import PathLike

    from cuelight.pools._dead_letters import DeadLetterQueue
    from cuelight.pools._executor import Executor
    from cuelight.pools._progress import Progress
    from cuelight.pools._results import PoolStats, TaskMetrics

__all__ = ["AsyncWorkerPool"]

T = TypeVar("T")
R = TypeVar("R")


class AsyncWorkerPool(PoolLetters, PoolBlock):
    """Workers that pull: `async with AsyncWorkerPool(8) as pool: results = await pool.map(fetch, urls)`.

    The workers are actors under a supervisor. They are hired when there is work for them, and one that dies costs
    only its attempt. Leaving the block waits until everything is done; leaving it by an exception cancels everything.

    Without a block, `await pool.map(...)` and `await pool.submit(...)` work too: each has workers of its own, for as
    long as it is awaited.

    All methods belong to the loop that the pool was entered in. Each task, and each item of a map, runs in a copy of
    the context (`contextvars`) in which `submit` or `map` was called. Worker processes see no context.
    """

    def __init__(
        self,
        max_workers: int = 4,
        *,
        name: str = "pool",
        system: ActorSystem | None = None,
        kind: Kind | None = None,
        timeout: float | None = None,
        max_pending: int = 10_000,
        retries: int = 0,
        max_crashes: int = 3,
        max_restarts: int = 10,
        keep_metrics: int = 1000,
        executor: Callable[[str], Executor] | None = None,
        executable: str | PathLike[str] | None = None,
        dead_letters: DeadLetterQueue | None = None,
    ) -> None:
        """Set up a pool.

        Args:
            max_workers: how many tasks run at a time, at most.
            name: shown in paths, task identifiers and logs.
            system: where the workers live; None gives the pool a system of its own. In a given system the pool works
                without a block too, and ends with the system, its block or `shutdown`, whichever comes first.
            kind: None runs async functions in the loop and plain functions each in the thread of a worker; "thread"
                and "process" take plain functions only. Functions for processes must be importable by name, and a
                time-out counts from before a new process has imported them.
            timeout: seconds that one attempt may take; None for no limit.
            max_pending: how many submitted tasks may wait for a worker.
            retries: attempts after the first when a task raises or takes too long, at once. `Rejected` is not tried
                again.
            max_crashes: attempts that may end with the death of their worker, before the task is quarantined.
            max_restarts: crashes of workers themselves that are allowed within 5 seconds.
            keep_metrics: how many tasks `metrics` remembers.
            executor: makes what runs plain functions, given the name of a worker; for executors of your own.
            executable: the Python interpreter of worker processes; by default the one that runs this program.
            dead_letters: where tasks go that have failed for good; by default a queue of its own, which keeps the
                last 1,000.

        Raises:
            ValueError: a value makes no sense; the message says which.
            TypeError: the name is no string, or the queue keeps no letters of others.
        """
        self.name = check_text("name", name)
        self._options = PoolOptions(
            max_workers=max_workers,
            kind=kind,
            timeout=timeout,
            max_pending=max_pending,
            retries=retries,
            max_crashes=max_crashes,
            max_restarts=max_restarts,
            keep_metrics=keep_metrics,
            make_executor=executor or make_executor(kind, executable),
        )
        self._system = system
        self._ledger = Ledger(keep_metrics)
        self._letters = DeadLetterBox(self, dead_letters)
        self._generation = forks.generation
        self._crew: Crew | None = None
        self._crews: dict[Crew, None] = {}
        self._closed = False
        self._next_id = count(1).__next__

    # Its life.

    async def __aenter__(self) -> Self:
        if self._stack is not None or self._closed:
            raise PoolClosed(f"the pool {self.name!r} was entered or shut down before: make a new one")
        stack = self._stack = AsyncExitStack()
        system = self._system
        if system is None:
            system = await stack.enter_async_context(ActorSystem(self.name, slow_after=None))
        if self._crew is None:
            self._crew = self._new_crew(system)
        stack.push_async_exit(self._leave)
        return self

    def _new_crew(self, system: ActorSystem) -> Crew:
        crew = Crew(self.name, self._options, self._ledger, self._letters, system)
        self._crews[crew] = None
        crew.cell.bonds_made().call_when_ended(lambda _exit: self._crews.pop(crew, None))
        return crew

    @property
    def crew(self) -> Crew | None:
        """Its workers, where they outlive a call: in its block, or in the system that it was given."""
        if self._crew is None and self._system is not None and not self._closed:
            self._crew = self._new_crew(self._system)
        return self._crew

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Crew]:
        """Its crew, or one for this call only.

        Raises:
            PoolClosed: the pool was shut down.
        """
        crew = self.crew
        if crew is not None:
            yield crew
            return
        self._check_open()
        async with ActorSystem(self.name, slow_after=None) as system:
            crew = self._new_crew(system)
            yield crew
            crew.close()
            await crew.ended()

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} was shut down and takes no more work: make a new one")
        self._check_process()

    def _check_process(self) -> None:
        if self._generation != forks.generation:
            if self._crews or self._stack is not None:
                raise PoolClosed(
                    f"the workers of the pool {self.name!r} are in the process that has forked this one: make a new "
                    f"pool here"
                )
            self._generation = forks.generation

    async def _end(self, *, now: bool) -> None:
        await self.shutdown(cancel=now)

    async def shutdown(self, wait: bool = True, cancel: bool = False) -> None:
        """Take no more work, and let the workers go once everything is done. A checkpoint if it waits.

        Streams whose reader does not read are cancelled when nothing else is left.

        Args:
            wait: return only when the last worker has ended. Cancelled meanwhile, the shutdown goes on.
            cancel: cancel everything, also what runs, instead of finishing it.
        """
        self._check_process()
        self._closed = True
        crews = list(self._crews)
        if cancel:
            self.cancel_all()
        for crew in crews:
            crew.close()
        if wait:
            for crew in crews:
                crew.check_from_outside("the end of the pool")
                await crew.ended()

    async def drain(self) -> None:
        """Wait until everything that was given to the pool is done. A checkpoint."""
        self._check_process()
        for crew in list(self._crews):
            crew.check_from_outside("all its tasks")
            await crew.drained()

    # Work.

    @overload
    def submit(
        self,
        fn: Callable[..., Awaitable[R]],
        /,
        *args: Any,
        task_id: str | None = None,
        priority: int = 2,
        timeout: float | Default | None = DEFAULT,
        **kwargs: Any,
    ) -> Submission[R]: ...
    @overload
    def submit(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        task_id: str | None = None,
        priority: int = 2,
        timeout: float | Default | None = DEFAULT,
        **kwargs: Any,
    ) -> Submission[R]: ...
    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        task_id: str | None = None,
        priority: int = 2,
        timeout: float | Default | None = DEFAULT,
        **kwargs: Any,
    ) -> Submission[Any]:
        """Give the pool a task. Await what this returns for its `TaskResult`. Not a checkpoint.

        In a pool without a block the task runs when that is awaited, and only then.

        Args:
            fn: the function, async or plain.
            *args: its arguments.
            task_id: the identifier of the task; None makes one of the pool's name and a number.
            priority: smaller first; within a priority, in the order of submission.
            timeout: seconds that one attempt may take, instead of what the pool says; None for no limit.
            **kwargs: its keyword arguments. To give it a `task_id`, `priority` or `timeout`, use `functools.partial`.

        Raises:
            PoolClosed: the pool was shut down.
            PoolFull: as many tasks wait as may; see `wait_for_room`.
            TypeError: `fn` cannot be called, or is async in a pool for plain functions.
            ValueError: the time-out makes no sense.
        """
        self._check_open()
        in_loop = check_kind(fn, self._options.kind)
        limit = self._options.timeout if type(timeout) is Default else check_timeout(timeout)
        named = f"{self.name}-{self._next_id()}" if task_id is None else check_text("task_id", task_id)
        if type(priority) is not int:
            priority = check_priority(priority)
        context = submission_context()

        def make(crew: Crew) -> Submitted:
            crew.check_room()
            task = Submitted(crew, named, fn, args, kwargs, context, in_loop=in_loop, priority=priority, timeout=limit)
            crew.enter(task)
            self._ledger.totals.submitted += 1
            crew.pending += 1
            crew.call()
            return task

        crew = self.crew
        if crew is None:
            return Detached(named, name_of(fn), self.opened, make)
        return make(crew)

    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        ordered: bool = True,
        chunk_size: int | None = None,
        buffer: int | None = None,
        timeout: float | Default | None = DEFAULT,
        priority: int = 2,
        progress: Progress | bool | None = None,
    ) -> Map[R]: ...
    @overload
    def map(
        self,
        fn: Callable[[T], R],
        items: Iterable[T] | AsyncIterable[T],
        *,
        ordered: bool = True,
        chunk_size: int | None = None,
        buffer: int | None = None,
        timeout: float | Default | None = DEFAULT,
        priority: int = 2,
        progress: Progress | bool | None = None,
    ) -> Map[R]: ...
    def map(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = True,
        chunk_size: int | None = None,
        buffer: int | None = None,
        timeout: float | Default | None = DEFAULT,
        priority: int = 2,
        progress: Progress | bool | None = None,
    ) -> Map[Any]:
        """Call a function with each item. Await what this returns for all results, or loop over it. Not a checkpoint.

        An item whose function raises has a result with that error: the others go on. An error of the source itself
        ends the map.

        Args:
            fn: the function, async or plain; called with one item.
            items: an iterable or async iterable; it may be endless if you loop. Read in the loop, as workers want it:
                a plain iterable should not block.
            ordered: results in the order of the items; False as they are completed.
            chunk_size: items that a thread or process gets at once; None finds out. With a time-out it is 1.
            buffer: how many items may be running or done before the loop reads their results; None takes twice what
                the workers hold.
            timeout: seconds that one attempt at an item may take, instead of what the pool says; None for no limit.
            priority: smaller first, among maps and submitted tasks.
            progress: called with (done, total) after each item, total being None if the items cannot be counted; or
                True for a bar (extra `progress`). If it raises, so does the map.

        Raises:
            PoolClosed: the pool was shut down.
            TypeError: `fn` cannot be called, or is async in a pool for plain functions.
            ValueError: a value makes no sense; the message says which.
        """
        self._check_open()
        for what, number in (("chunk_size", chunk_size), ("buffer", buffer)):
            if number is not None:
                check_whole(what, number, 1)
        request = MapRequest(
            function=fn,
            items=items,
            task_id=f"{self.name}-{self._next_id()}",
            in_loop=check_kind(fn, self._options.kind),
            ordered=ordered,
            chunk_size=chunk_size,
            buffer=buffer,
            timeout=self._options.timeout if type(timeout) is Default else check_timeout(timeout),
            priority=priority if type(priority) is int else check_priority(priority),
            progress=progress,
            context=submission_context(),
        )
        return Map(self, request)

    async def wait_for_room(self) -> None:
        """Wait until one more task may be submitted. A checkpoint."""
        self._check_process()
        if self.crew is not None:
            await self.crew.room()

    def abort_pending(self) -> int:
        """Cancel the submitted tasks that wait for a worker. What runs goes on, maps too.

        Returns:
            How many tasks that were.
        """
        return sum(crew.abort_pending() for crew in list(self._crews))

    def cancel_all(self) -> int:
        """Cancel everything: waiting tasks are dropped, running ones stopped, maps ended.

        Returns:
            How many tasks and maps that were.
        """
        return sum(crew.cancel_all() for crew in list(self._crews))

    def resize(self, max_workers: int) -> None:
        """Have more or fewer workers, while the pool runs. Surplus workers finish what they do. Not a checkpoint.

        Args:
            max_workers: how many tasks run at a time from now on, at most.

        Raises:
            ValueError: that is less than 1.
        """
        check_whole("max_workers", max_workers, 1)
        self._options = msgspec.structs.replace(self._options, max_workers=max_workers)
        for crew in list(self._crews):
            crew.resize(max_workers)

    # Looking.

    def stats(self) -> PoolStats:
        """Totals since the pool was made, and what it does now; a copy."""
        crews = list(self._crews)
        return replace(
            self._ledger.stats(),
            workers=sum(len(crew.workers) for crew in crews),
            busy=sum(crew.busy for crew in crews),
            pending=sum(crew.pending for crew in crews),
        )

    def metrics(self) -> dict[str, TaskMetrics]:
        """How the last tasks ran, by identifier, the latest last; of so many as `keep_metrics` says."""
        return self._ledger.metrics()
