"""The threads or processes of one worker: made as they are needed, at most so many at a time."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.coordination._parties import here
from cuelight.mailbox import TaskGroup, run_interruptible
from cuelight.pools import ProcessExecutor, ThreadExecutor
from cuelight.pools._attempts import name_of
from cuelight.tasks._handling import Handler, call_in_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.pools import Executor
    from cuelight.pools._attempts import Kind
    from cuelight.tasks._context import TaskContext

__all__ = ["Executors"]


class _InThread:
    """A function that says in which thread it runs. It has the name of the function, for people."""

    def __init__(self, context: TaskContext, function: Callable[..., Any]) -> None:
        self._context, self._function = context, function
        self.__qualname__ = name_of(function)
        self.__module__ = getattr(function, "__module__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._context.node = here.me
        return self._function(*args, **kwargs)


class Executors:
    """Runs plain functions. Cancelling a call kills its process, or leaves its thread behind."""

    def __init__(self, kind: Kind, most: int, name: str) -> None:
        """Set it up; nothing is started.

        Args:
            kind: what runs the functions.
            most: how many at a time.
            name: of the worker.
        """
        self.kind, self._name = kind, name
        self._permits = anyio.Semaphore(most)
        self._owed = 0  # places that were lent and are taken back before somebody gives one back
        self._free: list[Executor] = []
        self._all: list[Executor] = []

    @property
    def abandoned(self) -> int:
        """Threads that were left behind and still run."""
        return sum(executor.abandoned for executor in self._all)

    @property
    def replaced(self) -> int:
        """Threads and processes that were replaced."""
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
        """Call a plain function as soon as there is a thread or process for it. A checkpoint.

        Args:
            handler: whose function.
            context: of the task.
            args: its arguments.
            kwargs: its keyword arguments.
            scope: what to cancel when the time is over. The clock starts with the call, not while it waits.
            timeout: seconds that the call may take.

        Raises:
            WorkerDied: its process died.
            Exception: what the function raised.
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
            self._give_back()
        # A plain function may make a coroutine: `lambda task: handle(task)`.
        return await run_interruptible(value) if inspect.isawaitable(value) else value

    def lend(self) -> None:
        """A call waits for another task: one more may begin in its place."""
        self._permits.release()

    def take_back(self) -> None:
        """It goes on, or has ended."""
        try:
            self._permits.acquire_nowait()
        except anyio.WouldBlock:
            self._owed += 1  # the next call that ends pays

    def _give_back(self) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._permits.release()

    def _new(self) -> Executor:
        make = ProcessExecutor if self.kind == "process" else ThreadExecutor
        executor = make(f"{self._name} {self.kind} {len(self._all) + 1}")
        self._all.append(executor)
        return executor

    async def aclose(self) -> None:
        """End threads and processes that are idle, kill the others. A checkpoint."""
        async with TaskGroup() as group:
            for executor in self._all:
                group.start_soon(executor.aclose)
