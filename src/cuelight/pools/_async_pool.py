"""The pool for async code: `submit`, `map`, and the start and end of its groups."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec

from cuelight._fork import forks
from cuelight.errors import PoolClosed
from cuelight.pools._contexts import submission_context
from cuelight.pools._dead_letters import DeadLetterBox, FailedCall
from cuelight.pools._functions import Kind, check_kind, name_of
from cuelight.pools._maps._handle import Map
from cuelight.pools._maps._request import MapRequest
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
from cuelight.pools._pool_block import PoolBlock
from cuelight.pools._results import PoolMetrics
from cuelight.pools._submission import DeferredSubmission, Submission, Submitted
from cuelight.pools._worker_group import WorkerGroup
from cuelight.supervision import ActorSystem

if TYPE_CHECKING:
    from os import PathLike

    from cuelight._dead_letters._queue import DeadLetterQueue
    from cuelight.pools._results import PoolStats, Progress, TaskMetrics
    from cuelight.pools._threads._executor import Executor

T = TypeVar("T")
R = TypeVar("R")


class AsyncWorkerPool(PoolBlock):
    """A pool of workers for async and plain functions.

    Example: `async with AsyncWorkerPool(8) as pool: results = await pool.map(fetch, urls)`.

    The workers are actors under a supervisor. They start when there is work for them, and pull it. If a worker dies,
    only its current attempt is lost. Leaving the block waits until all work is done; leaving it by an exception
    cancels all work.

    `await pool.map(...)` and `await pool.submit(...)` also work without a block: each call then has its own workers
    for as long as it is awaited.

    Call the methods only in the event loop in which the pool was entered. Each task, and each item of a map, runs in a
    copy of the context (`contextvars`) in which `submit` or `map` was called. Worker processes get no context.
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
            max_workers: maximum number of tasks that run at a time.
            name: name of the pool in paths, task identifiers and logs.
            system: the actor system in which the workers run; None creates one for the pool. In a given system the
                pool also works without a block. It ends with the system, its block or `shutdown`, whichever comes
                first.
            kind: None runs async functions in the event loop, and plain functions in the threads of the workers;
                "thread" and "process" take plain functions only. Functions for processes must be importable by name,
                and the time-out also covers the time in which a new process imports them.
            timeout: seconds that one attempt may take; None for no limit.
            max_pending: maximum number of submitted tasks that wait for a worker.
            retries: number of further attempts when a task raises or takes too long. They begin at once. `Rejected`
                is not tried again.
            max_crashes: number of attempts that end with the death of their worker, after which the task is
                quarantined.
            max_restarts: number of crashes of the workers themselves that are allowed within 5 seconds.
            keep_metrics: number of tasks that `metrics` remembers.
            executor: factory of the executors that run plain functions, called with the name of a worker; for
                executors of your own.
            executable: path of the Python interpreter of worker processes; by default the one that runs this program.
            dead_letters: queue for tasks that have failed for good; by default the pool has its own queue, which keeps
                the last 1,000.

        Raises:
            ValueError: a value is invalid; the message says which.
            TypeError: the name is not a string, or the queue cannot store dead letters of a pool.
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
        self._metrics = PoolMetrics(keep_metrics)
        self._letters = DeadLetterBox(self, dead_letters)
        self._generation = forks.generation
        self._group: WorkerGroup | None = None
        self._groups: dict[WorkerGroup, None] = {}
        self._closed = False
        self._next_id = count(1).__next__

    # Start and end.

    async def __aenter__(self) -> Self:
        if self._stack is not None or self._closed:
            raise PoolClosed(f"the pool {self.name!r} was entered or shut down before: make a new one")
        stack = self._stack = AsyncExitStack()
        system = self._system
        if system is None:
            system = await stack.enter_async_context(ActorSystem(self.name, slow_after=None))
        if self._group is None:
            self._group = self._new_group(system)
        stack.push_async_exit(self._leave)
        return self

    def _new_group(self, system: ActorSystem) -> WorkerGroup:
        group = WorkerGroup(self.name, self._options, self._metrics, self._letters, system)
        self._groups[group] = None
        group.cell.ensure_extras().call_when_ended(lambda _exit: self._groups.pop(group, None))
        return group

    @property
    def group(self) -> WorkerGroup | None:
        """The group that outlives a call: inside the block, or in a given system; otherwise None."""
        if self._group is None and self._system is not None and not self._closed:
            self._group = self._new_group(self._system)
        return self._group

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[WorkerGroup]:
        """The group of the pool, or a group for this call only.

        Raises:
            PoolClosed: the pool was shut down.
        """
        group = self.group
        if group is not None:
            yield group
            return
        self._check_open()
        async with ActorSystem(self.name, slow_after=None) as system:
            group = self._new_group(system)
            yield group
            group.close()
            await group.ended()

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} was shut down and takes no more work: make a new one")
        self._check_process()

    def _check_process(self) -> None:
        if self._generation != forks.generation:
            if self._groups or self._stack is not None:
                raise PoolClosed(
                    f"the workers of the pool {self.name!r} are in the process that has forked this one: make a new "
                    f"pool here"
                )
            self._generation = forks.generation

    async def _end(self, *, now: bool) -> None:
        await self.shutdown(cancel=now)

    async def shutdown(self, wait: bool = True, cancel: bool = False) -> None:
        """Take no more work, and end the workers once all work is done. A checkpoint if it waits.

        When only streams are left whose readers do not read, they are cancelled.

        Args:
            wait: return only when the last worker has ended. If the caller is cancelled meanwhile, the shutdown
                continues.
            cancel: cancel all work, including running tasks, instead of finishing it.
        """
        self._check_process()
        self._closed = True
        groups = list(self._groups)
        if cancel:
            self.cancel_all()
        for group in groups:
            group.close()
        if wait:
            for group in groups:
                group.check_not_own_work("the end of the pool")
                await group.ended()

    async def drain(self) -> None:
        """Wait until all work that the pool was given is done. A checkpoint."""
        self._check_process()
        for group in list(self._groups):
            group.check_not_own_work("all its tasks")
            await group.drained()

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
        """Submit a task. Not a checkpoint.

        In a pool without a block, the task runs only while the returned `Submission` is awaited.

        Args:
            fn: the function, async or plain.
            *args: arguments of the function.
            task_id: the identifier of the task; None makes one from the name of the pool and a number.
            priority: tasks with a smaller number go first; tasks with the same number in the order of submission.
            timeout: seconds that one attempt may take, instead of the time-out of the pool; None for no limit.
            **kwargs: keyword arguments of the function. If the function itself takes a `task_id`, `priority` or
                `timeout`, use `functools.partial`.

        Returns:
            A handle that is awaited for the `TaskResult`.

        Raises:
            PoolClosed: the pool was shut down.
            PoolFull: `max_pending` tasks wait already; see `wait_for_room`.
            TypeError: `fn` cannot be called, or is async in a pool for plain functions.
            ValueError: the time-out is invalid.
        """
        self._check_open()
        in_loop = check_kind(fn, self._options.kind)
        limit = self._options.timeout if type(timeout) is Default else check_timeout(timeout)
        named = f"{self.name}-{self._next_id()}" if task_id is None else check_text("task_id", task_id)
        if type(priority) is not int:
            priority = check_priority(priority)
        context = submission_context()

        def make(group: WorkerGroup) -> Submitted:
            group.check_room()
            task = Submitted(group, named, fn, args, kwargs, context, in_loop=in_loop, priority=priority, timeout=limit)
            group.add(task)
            self._metrics.totals.submitted += 1
            group.pending += 1
            group.wake_worker()
            return task

        group = self.group
        if group is None:
            return DeferredSubmission(named, name_of(fn), self.opened, make)
        return make(group)

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
        """Call a function with each item. Not a checkpoint.

        If the function raises for an item, the result of this item has the error, and the other items go on. An error
        of the source itself ends the map.

        Args:
            fn: the function, async or plain; called with one item.
            items: an iterable or async iterable. With `async for` it may be infinite. It is read in the event loop, as
                the workers need items, so a plain iterable should not block.
            ordered: True for results in the order of the items, False for the order of completion.
            chunk_size: number of items that a thread or process gets at once; None adapts it. With a time-out it is 1.
            buffer: number of items that may be running or done before the `async for` loop reads their results; None
                takes twice the number that the workers hold.
            timeout: seconds that one attempt at an item may take, instead of the time-out of the pool; None for no
                limit.
            priority: maps and submitted tasks with a smaller number go first.
            progress: called with (done, total) after each item; `total` is None if the items cannot be counted. True
                shows a bar (extra `progress`). If the callback raises, so does the map.

        Returns:
            A handle that is awaited for all results, or iterated over with `async for`.

        Raises:
            PoolClosed: the pool was shut down.
            TypeError: `fn` cannot be called, or is async in a pool for plain functions.
            ValueError: a value is invalid; the message says which.
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
        if self.group is not None:
            await self.group.wait_for_room()

    def abort_pending(self) -> int:
        """Cancel the submitted tasks that wait for a worker. Running tasks and maps go on.

        Returns:
            The number of cancelled tasks.
        """
        return sum(group.abort_pending() for group in list(self._groups))

    def cancel_all(self) -> int:
        """Cancel all work: drop waiting tasks, stop running ones, and end maps.

        Returns:
            The number of cancelled tasks and maps.
        """
        return sum(group.cancel_all() for group in list(self._groups))

    def resize(self, max_workers: int) -> None:
        """Change the number of workers while the pool runs. Surplus workers finish their tasks. Not a checkpoint.

        Args:
            max_workers: maximum number of tasks that run at a time from now on.

        Raises:
            ValueError: `max_workers` is less than 1.
        """
        check_whole("max_workers", max_workers, 1)
        self._options = msgspec.structs.replace(self._options, max_workers=max_workers)
        for group in list(self._groups):
            group.resize(max_workers)

    # Dead letters.

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The tasks that have failed for good, with their errors, to inspect, edit, replay and purge.

        `replay` submits a task again. Call it in the event loop of the pool.
        """
        return self._letters.queue

    def submit_again(self, call: FailedCall, task_id: str) -> Submission[Any] | None:
        """Submit the task of a dead letter again, as `DeadLetterQueue.replay` does.

        Args:
            call: the payload of the dead letter.
            task_id: the identifier of the task.

        Returns:
            A submission that runs only while it is awaited; None if the task runs anyway.

        Raises:
            RuntimeError: this is not the event loop of the pool.
        """
        group = self.group
        if group is not None and group.thread != get_ident():
            raise group.wrong_thread()
        function = partial(call.function, *call.args, **call.kwargs) if call.kwargs else call.function
        args = () if call.kwargs else call.args
        task = self.submit(function, *args, task_id=task_id, priority=call.priority, timeout=call.timeout)
        return task if group is None else None

    # Inspection.

    def stats(self) -> PoolStats:
        """Totals since the pool was made, and its current state; a copy."""
        groups = list(self._groups)
        return replace(
            self._metrics.stats(),
            workers=sum(len(group.workers) for group in groups),
            busy=sum(group.busy for group in groups),
            pending=sum(group.pending for group in groups),
        )

    def metrics(self) -> dict[str, TaskMetrics]:
        """Metrics of the last `keep_metrics` tasks, by identifier, the latest last."""
        return self._metrics.metrics()
