"""The threads or processes of one worker, which are started on demand up to a maximum."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.coordination._owner import this_thread
from cuelight.mailbox import TaskGroup, run_interruptible
from cuelight.pools import ProcessExecutor, ThreadExecutor
from cuelight.pools._functions import name_of
from cuelight.tasks._context import TaskContext
from cuelight.tasks._worker._handlers import Handler, call_in_process

if TYPE_CHECKING:
    from cuelight.pools import Executor
    from cuelight.pools._functions import Kind


class _InThread:
    """A function that records its thread in the context. It has the name of the original function, for people."""

    def __init__(self, context: TaskContext, function: Callable[..., Any]) -> None:
        self._context, self._function = context, function
        self.__qualname__ = name_of(function)
        self.__module__ = getattr(function, "__module__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._context.node = this_thread.owner
        return self._function(*args, **kwargs)


class Executors:
    """Runs plain functions. Cancelling a call kills its process, or abandons its thread."""

    def __init__(self, kind: Kind, most: int, name: str) -> None:
        """Set up the executors without starting any.

        Args:
            kind: "thread" or "process".
            most: the maximum number of concurrent calls.
            name: the name of the worker.
        """
        self.kind, self._name = kind, name
        self._permits = anyio.Semaphore(most)
        self._excess = 0  # added permits that were removed while none was free
        self._free: list[Executor] = []
        self._all: list[Executor] = []

    @property
    def abandoned(self) -> int:
        """The number of abandoned threads that still run."""
        return sum(executor.abandoned for executor in self._all)

    @property
    def replaced(self) -> int:
        """The number of threads and processes that were replaced."""
        return sum(executor.replaced for executor in self._all)

    async def call(
        self,
        handler: Handler,
        context: TaskContext,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        scope: anyio.CancelScope,
        timeout: float | None,
    ) -> Any:
        """Call a plain function once a thread or process is free. A checkpoint.

        Args:
            handler: the handler with the function.
            context: the context of the task.
            args: the positional arguments.
            kwargs: the keyword arguments.
            scope: the scope whose deadline is set. The time-out starts with the call, not with the wait for a thread or
                process.
            timeout: the maximum duration of the call in seconds.

        Raises:
            WorkerDied: its process died.
            Exception: any exception that the function raised.
        """
        await self._permits.acquire()
        try:
            executor = self._free.pop() if self._free else self._new()
            if timeout is not None:
                scope.deadline = anyio.current_time() + timeout
            try:
                if self.kind == "process":
                    return await executor.run(call_in_process, (context, handler.function, args, kwargs), {})
                value = await executor.run(_InThread(context, handler.function), args, kwargs)
            finally:
                self._free.append(executor)
        finally:
            self._release_permit()
        # A plain function may return a coroutine: `lambda task: handle(task)`.
        return await run_interruptible(value) if inspect.isawaitable(value) else value

    def add_permit(self) -> None:
        """Allow one more call, because a running call waits for another task."""
        self._permits.release()

    def remove_permit(self) -> None:
        """Undo `add_permit`, because the call continues or has ended."""
        try:
            self._permits.acquire_nowait()
        except anyio.WouldBlock:
            self._excess += 1  # settled when the next call ends

    def _release_permit(self) -> None:
        if self._excess:
            self._excess -= 1
        else:
            self._permits.release()

    def _new(self) -> Executor:
        make = ProcessExecutor if self.kind == "process" else ThreadExecutor
        executor = make(f"{self._name} {self.kind} {len(self._all) + 1}")
        self._all.append(executor)
        return executor

    async def aclose(self) -> None:
        """End idle threads and processes, and kill the others. A checkpoint."""
        async with TaskGroup() as group:
            for executor in self._all:
                group.start_soon(executor.aclose)
