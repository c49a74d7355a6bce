"""One task given to a pool, and the handle on it."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from cuelight.errors import TaskCancelled
from cuelight.pools._attempts import Tries, Unawaited, holding_coroutines, name_of
from cuelight.pools._bell import Bell
from cuelight.pools._failures import as_failure
from cuelight.pools._pool_worker import Cut
from cuelight.pools._results import TaskResult

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cuelight.pools._crew import Crew
    from cuelight.pools._pool_worker import PoolWorker

__all__ = ["Detached", "Submission", "Submitted"]

R = TypeVar("R")


class Submission(Generic[R]):
    """What `submit` returns: await it for the `TaskResult`. Awaiting never raises what the function raised.

    Cancelling a task that awaits it cancels the work, and waits until it has stopped; await `wait()` instead to leave
    the work alone.

    Attributes:
        task_id: the identifier of the task.
    """

    __slots__ = ("__weakref__", "_result", "task_id")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self._result: TaskResult[Any] | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there: then awaiting does not suspend."""
        return self._result is not None

    def cancel(self) -> bool:
        """Give the task up: waiting, it is dropped; running, it is stopped. Its result says `TaskCancelled`.

        Returns:
            Whether it was not done yet.
        """
        raise NotImplementedError

    async def wait(self) -> TaskResult[R]:
        """Wait for the result; being cancelled meanwhile does not touch the task. A checkpoint unless it is done."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, TaskResult[R]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<submission {self.task_id}{' done' if self.done else ''}>"


class Submitted(Submission[Any]):
    """A task in a crew. It is also the `Work` that waits there."""

    __slots__ = (
        "_args",
        "_began",
        "_bell",
        "_context",
        "_crew",
        "_function",
        "_in_loop",
        "_kwargs",
        "_timeout",
        "_tries",
        "_worker",
        "held",
        "listed",
        "name",
        "priority",
        "ready",
        "serial",
    )

    def __init__(  # noqa: PLR0917 - made for each task
        self,
        crew: Crew,
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
        self.listed = self.held = False
        self.ready = True
        self._crew = crew
        self._function: Callable[..., Any] = function
        self._args, self._kwargs = args, kwargs
        self._in_loop, self._timeout = in_loop, timeout
        self._context = context
        self._tries: Tries | None = None
        self._worker: PoolWorker | None = None
        self._began = 0.0
        self._bell: Bell | None = None

    # As work.

    async def serve(self, worker: PoolWorker) -> None:
        """Run it once. It is done then, or waits to be tried again."""
        crew = self._crew
        self.ready = False
        crew.one_less()
        crew.call()  # there may be more
        self._worker = worker
        self._began = perf_counter()
        context = self._context if self._tries is None else self._context.copy()
        try:
            value, error, fatal = await worker.attempt_in(self.name, context, self._call, self._timeout)
            ms = (perf_counter() - self._began) * 1000
            self._worker = None
            if error is not None and worker.may_retry(error, fatal):
                self._tries = self._tries or Tries()
                error = crew.failed(self._tries, error, ms)
                if error is None:
                    self.ready = True
                    crew.pending += 1
                    crew.line_up(self)
            if not self.ready:
                self._settle(value, error, worker.label, ms)
        except BaseException as broken:
            self._break(broken)
            raise
        if fatal is not None:
            raise fatal

    def _call(self, worker: PoolWorker) -> Awaitable[Any]:
        if self._in_loop:
            made: Awaitable[Any] = self._function(*self._args, **self._kwargs)
            return made
        return self._call_in_executor(worker)

    async def _call_in_executor(self, worker: PoolWorker) -> Any:
        function = self._function if self._crew.options.kind == "process" else holding_coroutines(self._function)
        value: Any = await worker.executor.run(function, self._args, self._kwargs)
        return await value if type(value) is Unawaited else value

    def _settle(self, value: Any, error: Exception | None, worker: str, ms: float) -> None:
        self._done(self._crew.result(self.task_id, self.name, worker, value, error, self._tries, ms))

    def _done(self, result: TaskResult[Any]) -> None:
        self._result = result
        self._function, self._args, self._kwargs = _over, (), {}  # a handle that is kept keeps no arguments
        self._context = _EMPTY
        if self._bell is not None:
            self._bell.ring()
        self._crew.finished(self)

    def _break(self, error: BaseException) -> None:
        """The pool's own code has failed, for want of memory perhaps: whoever waits is not left waiting."""
        self._worker = None
        if self._result is None:
            if self.ready:
                self.ready = False
                self._crew.one_less()
            self._done(TaskResult(self.task_id, error=as_failure(self.name, error), task_name=self.name))

    # As a handle.

    def cancel(self) -> bool:
        if self._result is not None:
            return False
        if self._worker is not None and not self._crew.over:
            self._worker.stop_task(Cut.CANCELLED)
        elif not self.drop("it was cancelled before it ran"):
            self._settle(None, TaskCancelled("its worker ended while it ran"), "", 0.0)
        return True

    def drop(self, why: str) -> bool:
        """Cancel it if it waits. Returns whether it did."""
        if not self.ready:
            return False
        self.ready = False
        self._crew.note_stale()
        self._crew.one_less()
        self._settle(None, TaskCancelled(why), "", 0.0)
        return True

    async def wait(self) -> TaskResult[Any]:
        while self._result is None:
            if self._bell is None:
                self._bell = Bell(self._crew.runtime.backend)
            await self._bell.wait()
        return self._result

    async def _wait_or_cancel(self) -> TaskResult[Any]:
        try:
            return await self.wait()
        except BaseException:
            if self.cancel():
                with anyio.CancelScope(shield=True):
                    await self.wait()
            raise

    def __await__(self) -> Generator[Any, Any, TaskResult[Any]]:
        return self._wait_or_cancel().__await__()


def _over() -> None:
    """Stands in for the function of a task that is done."""


_EMPTY = Context()


class Detached(Submission[Any]):
    """A task for a pool that has no block: it runs, in a system of its own, while it is awaited."""

    __slots__ = ("_cancelled", "_inner", "_make", "_open", "_used", "name")

    def __init__(
        self,
        task_id: str,
        name: str,
        open_crew: Callable[[], AbstractAsyncContextManager[Crew]],
        make: Callable[[Crew], Submitted],
    ) -> None:
        super().__init__(task_id)
        self.name = name
        self._open, self._make = open_crew, make
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
            async with self._open() as crew:
                self._inner = self._make(crew)
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
