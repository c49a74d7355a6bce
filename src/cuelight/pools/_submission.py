"""A task submitted to a pool, and its handle."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from cuelight.actors import wait_code
from cuelight.errors import TaskCancelled
from cuelight.mailbox._backend import Notifier
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._extra_workers import current_work, waits_alone, worker_released
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._functions import Attempts, PendingCoroutine, name_of, wrap_coroutines
from cuelight.pools._pool_worker import StopReason
from cuelight.pools._results import TaskResult
from cuelight.pools._waiting import OUTSIDE, PoolWait

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cuelight.actors._timers import ScheduledCall
    from cuelight.pools._pool_worker import PoolWorker
    from cuelight.pools._worker_group import WorkerGroup

R = TypeVar("R")


class Submission(Generic[R]):
    """The handle that `AsyncWorkerPool.submit` returns: await it for the `TaskResult`.

    Awaiting it never raises the exception of the function. If the awaiting task is cancelled, the submitted task is
    cancelled as well, and the call returns once it has stopped. To leave the submitted task alone, await `wait()`
    instead.

    Attributes:
        task_id: the identifier of the task.
    """

    __slots__ = ("__weakref__", "_result", "task_id")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self._result: TaskResult[Any] | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there, so that awaiting does not suspend."""
        return self._result is not None

    def cancel(self) -> bool:
        """Cancel the task: drop it if it waits, stop it if it runs. The error of its result is `TaskCancelled`.

        Returns:
            Whether the task was not done yet.
        """
        raise NotImplementedError

    async def wait(self) -> TaskResult[R]:
        """Wait for the result. Cancelling the wait does not affect the task. A checkpoint unless the task is done."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, TaskResult[R]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<submission {self.task_id}{' done' if self.done else ''}>"


class Submitted(Submission[Any]):
    """A task of a group. It is both the handle and the `Work`."""

    __slots__ = (
        "_args",
        "_attempts",
        "_began",
        "_context",
        "_function",
        "_in_loop",
        "_kwargs",
        "_later",
        "_notifier",
        "_timeout",
        "group",
        "is_counted",
        "listed",
        "name",
        "priority",
        "ready",
        "serial",
        "worker",
    )

    def __init__(  # noqa: PLR0917 - made for each task
        self,
        group: WorkerGroup,
        task_id: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        *,
        in_loop: bool,
        priority: int,
        timeout: float | None,
    ) -> None:
        super().__init__(task_id)
        self.name = name_of(function)
        self.priority, self.serial = priority, 0
        self.listed = self.is_counted = False
        self.ready = True
        self.group = group
        self._function: Callable[..., Any] = function
        self._args, self._kwargs = args, kwargs
        self._in_loop, self._timeout = in_loop, timeout
        self._context = context
        self._attempts: Attempts | None = None
        self.worker: PoolWorker | None = None
        self._later: ScheduledCall | None = None
        self._began = 0.0
        self._notifier: Notifier | None = None

    # As work.

    async def serve(self, worker: PoolWorker) -> None:
        """Run one attempt. After it the task is done, or waits for the next attempt."""
        group = self.group
        self.ready = False
        group.left_queue()
        group.wake_worker()  # there may be more work
        self.worker = worker
        self._began = perf_counter()
        try:
            # A copy, so that the next attempt begins with the original context.
            value, error, fatal = await worker.attempt_in_context(
                self.name, self._context.copy(), self._call, self._timeout
            )
            ms = (perf_counter() - self._began) * 1000
            self.worker = None
            if error is not None and worker.may_retry(error, fatal):
                self._attempts = self._attempts or Attempts()
                error = group.failed(self._attempts, error, ms)
                if error is None:
                    self._try_again(self._attempts.delay)
                    return
            self._settle(value, error, worker.label, ms)
        except BaseException as broken:
            self._break(broken)
            raise
        if fatal is not None:
            raise fatal

    def _try_again(self, delay: float | None) -> None:
        """Make the task wait for a worker again, now or after `delay` seconds."""
        self.group.pending += 1
        if delay is not None:
            self._later = self.group.runtime.call_later(delay, self._delay_is_over)
        else:
            self.ready = True
            self.group.enqueue(self)

    def _delay_is_over(self) -> None:
        self._later = None
        self.ready = True
        self.group.enqueue(self)

    def _call(self, worker: PoolWorker) -> Awaitable[Any]:
        current_work.set(self)  # in the context of the task
        if self._in_loop:
            made: Awaitable[Any] = self._function(*self._args, **self._kwargs)
            return made
        return self._call_in_executor(worker)

    async def _call_in_executor(self, worker: PoolWorker) -> Any:
        function = self._function if self.group.options.kind == "process" else wrap_coroutines(self._function)
        value: Any = await worker.executor.run(function, self._args, self._kwargs)
        return await value if type(value) is PendingCoroutine else value

    def _settle(self, value: Any, error: Exception | None, worker: str, ms: float) -> None:
        result = self.group.result(self.task_id, self.name, worker, value, error, self._attempts, ms)
        if error is not None and not is_a(error, TaskCancelled):
            call = FailedCall(self._function, self._args, self._kwargs, self.name, self.priority, self._timeout)
            self.group.report(result, call, self._attempts)
        self._done(result)

    def _done(self, result: TaskResult[Any]) -> None:
        self._result = result
        self._function, self._args, self._kwargs = _over, (), {}  # so that a handle does not keep the arguments alive
        self._context = _EMPTY
        if self._notifier is not None:
            self._notifier.notify_all()
        self.group.finished(self)

    def _break(self, error: BaseException) -> None:
        """End the task with an error of the pool's own code, for example a `MemoryError`."""
        self.worker = None
        if self._result is None:
            if self._waits_for_worker():
                self.group.left_queue()
            self._done(TaskResult(self.task_id, error=as_failure(self.name, error), task_name=self.name))

    # As a handle.

    def cancel(self) -> bool:
        if self._result is not None:
            return False
        if self.worker is not None and not self.group.over:
            self.worker.stop_task(StopReason.CANCELLED)
        elif not self.drop("it was cancelled before it ran"):
            self._settle(None, TaskCancelled("its worker ended while it ran"), "", 0.0)
        return True

    def drop(self, why: str) -> bool:
        """Cancel the task if it waits. Returns whether it did."""
        if not self._waits_for_worker():
            return False
        self.group.note_cancelled()
        self.group.left_queue()
        self._settle(None, TaskCancelled(why), "", 0.0)
        return True

    def _waits_for_worker(self) -> bool:
        """End the wait for a worker, or for the next attempt. Returns whether the task waited."""
        waited = self.ready or self._later is not None
        self.ready = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        return waited

    async def wait(self) -> TaskResult[Any]:
        if self._result is not None:
            return self._result
        if waits_alone():
            return await self._until_done()
        with worker_released(self):
            return await self._until_done()

    async def _until_done(self) -> TaskResult[Any]:
        while self._result is None:
            if self._notifier is None:
                self._notifier = Notifier(self.group.runtime.backend)
            await self._notifier.wait()
        return self._result

    # In the graph of waits.

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        return f"task {self.name!r} ({self.task_id}) of the pool {self.group.name!r}"

    def running_nodes(self) -> list[Any] | None:
        """The nodes that run the task; None if it waits for a worker."""
        if self.worker is not None:
            return self.worker.nodes()
        return None if self.ready else []

    def busy_nodes(self) -> list[Any]:
        """The nodes that keep all places, one of which must end before the task can begin."""
        return self.group.busy_nodes()

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        return OUTSIDE

    async def _wait_or_cancel(self) -> TaskResult[Any]:
        try:
            return await self.wait()
        except BaseException:
            if self.cancel():
                with anyio.CancelScope(shield=True):
                    await self._until_done()
            raise

    def __await__(self) -> Generator[Any, Any, TaskResult[Any]]:
        return self._wait_or_cancel().__await__()


wait_code[Submitted._until_done.__code__] = lambda variables, node: PoolWait(variables["self"], [node])


def _over() -> None:
    """Replaces the function of a task that is done."""


_EMPTY = Context()


class DeferredSubmission(Submission[Any]):
    """A task for a pool without a block: it runs in its own actor system, only while it is awaited."""

    __slots__ = ("_cancelled", "_inner", "_make", "_open", "_used", "name")

    def __init__(
        self,
        task_id: str,
        name: str,
        open_group: Callable[[], AbstractAsyncContextManager[WorkerGroup]],
        make: Callable[[WorkerGroup], Submitted],
    ) -> None:
        super().__init__(task_id)
        self.name = name
        self._open, self._make = open_group, make
        self._inner: Submitted | None = None
        self._used = self._cancelled = False

    def cancel(self) -> bool:
        if self._result is not None:
            return False
        self._cancelled = self._used = True
        if self._inner is not None:
            self._inner.cancel()
        return True

    async def wait(self) -> TaskResult[Any]:
        if self._result is None:
            if self._inner is not None:
                raise RuntimeError(f"{self!r} is awaited already, and runs only for that: use the pool's `async with`")
            self._used = True
            async with self._open() as group:
                self._inner = self._make(group)
                try:
                    if self._cancelled:
                        self._inner.cancel()
                    self._result = await self._inner
                finally:
                    self._inner = None
        return self._result

    def __await__(self) -> Generator[Any, Any, TaskResult[Any]]:
        return self.wait().__await__()

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            warnings.warn(
                f"{self.name} was submitted to a pool that is not in its `async with` block, and was never awaited: "
                f"it did not run",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )
