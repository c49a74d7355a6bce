"""An executor that runs calls in one daemon thread, which it starts on first use and feeds without polling.

The invariants:

1. The thread runs at most one call at a time, and a call runs in one thread.
2. A call that is cancelled before the thread has begun it never runs.
3. A call that is cancelled while it runs goes on in an abandoned thread. `abandoned` counts this thread until the call
   ends, and no later call waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from cuelight._fork import forks
from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.coordination._owner import this_thread
from cuelight.errors import PoolClosed, ends_the_program
from cuelight.mailbox import current_backend
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._functions import name_of, unwrapped

if TYPE_CHECKING:
    from cuelight.mailbox import Backend, Waiter


log = get_log("cuelight.pools")


def full_name(function: Callable[..., Any]) -> str:
    """The readable name of a function with its module. Never raises."""
    name = name_of(function)
    try:
        module: object = getattr(unwrapped(function), "__module__", None)
        named = type(module) is str
    except Exception:
        named, module = False, None
    return f"{module}.{name}" if named else name


def as_task_error(error: BaseException, function: Callable[..., Any]) -> BaseException:
    """The error to raise in the event loop for an exception that a function raised in a thread or process.

    A foreign cancellation or `GeneratorExit` would end a task that was not cancelled, so it is replaced. An exception
    that ends the program stays unchanged.
    """
    if is_a(error, StopIteration):
        stand_in = RuntimeError(f"{full_name(function)} raised {describe_error(error)}")
        stand_in.__cause__ = error
        return stand_in
    if is_a(error, Exception) or ends_the_program(error):
        return error
    return as_failure(full_name(function), error)


class ThreadExecutor:
    """Runs plain functions in its own thread; see `Executor`.

    The thread is a daemon, so a program can end while an abandoned call still runs. Each call gets a copy of the
    context variables.
    """

    def __init__(self, name: str) -> None:
        """Set up an executor. Its thread starts with the first call.

        Args:
            name: name of the executor and of its thread.
        """
        self.name = name
        self.abandoned = 0
        self.replaced = 0
        self._lock = threading.Lock()
        self._thread: _ExecutorThread | None = None
        self._current: _ThreadCall | None = None
        self._closed = False
        self._generation = forks.generation

    @property
    def lock_owner(self) -> Any:
        """The identity of its thread for locks and in the graph of waits while it runs a call; None otherwise."""
        thread = self._thread
        return None if thread is None or self._current is None else thread.lock_owner

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function in the thread and return its result. A checkpoint.

        If the caller is cancelled after the thread has begun the call, the thread is abandoned.

        Raises:
            Exception: the exception that the function raised.
            PoolClosed: the executor was closed.
            RuntimeError: another call is in progress, or the function raised `StopIteration`.
        """
        call = _SingleCall(self, function, args, kwargs)
        [(succeeded, value)] = await self._perform(call)
        if succeeded:
            return value
        try:
            raise as_task_error(value, function)
        finally:
            del value, call  # break the cycle with the traceback

    async def run_chunk(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
        """Call the function with each item, in order, in one round trip. A checkpoint.

        If the caller is cancelled, the thread is abandoned with the item that it has begun. Later items do not run.

        Raises:
            PoolClosed: the executor was closed.
            RuntimeError: another call is in progress.
        """
        return await self._perform(_ChunkCall(self, function, items))

    async def aclose(self) -> None:
        """End the thread, and wait for its end unless it still runs a call. A checkpoint."""
        self._closed = True
        backend = current_backend()
        await backend.checkpoint()
        thread, self._thread = self._thread, None
        if thread is None or self._generation != forks.generation:
            return
        ended = backend.waiter()
        thread.close(None if self._current is not None else (backend, ended))
        if self._current is None:
            await ended
            thread.join()

    async def _perform(self, call: _ThreadCall) -> list[Outcome]:
        if self._closed:
            raise PoolClosed(f"the executor {self.name!r} was closed: make a new one")
        if self._generation != forks.generation:  # its thread and the current call are in the parent process
            self._generation, self._thread, self._current, self.abandoned = forks.generation, None, None, 0
            self._lock = threading.Lock()
        if self._current is not None:
            raise RuntimeError(f"the executor {self.name!r} runs one call at a time: await the first, or make another")
        call.backend = backend = current_backend()
        call.waiter = backend.waiter()
        if self._thread is None:
            self._thread = _ExecutorThread(self.name)
        self._current = call
        try:
            self._thread.calls.put(call)
            await call.waiter
        except BaseException:
            self._give_up(call)
            raise
        finally:
            self._current = None
        return call.outcomes

    def _give_up(self, call: _ThreadCall) -> None:
        """Mark a call as unwanted. If the thread has begun the call, abandon the thread."""
        with self._lock:
            call.unwanted = True
            if not call.begun or call.ended:
                return
            self.abandoned += 1
            self.replaced += 1
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close(None)
        log.warning(
            "%s: %s was cancelled, but a thread cannot be stopped: it is left behind, and %d such still run",
            self.name,
            full_name(call.function),
            self.abandoned,
        )

    def begin(self, call: _ThreadCall) -> bool:
        """Mark the call as begun if it is still wanted. Returns whether it is. Called in the thread."""
        with self._lock:
            call.begun = not call.unwanted
            return call.begun

    def end(self, call: _ThreadCall) -> None:
        """Mark the call as ended, and wake the caller. Called in the thread."""
        with self._lock:
            call.ended = True
            if call.unwanted:
                self.abandoned -= 1
                return
        try:
            call.backend.call_threadsafe(call.waiter.wake)
        except RuntimeError:
            log.debug("%s: the event loop ended before %s did", self.name, full_name(call.function))


class _ThreadCall:
    """A call for the thread. `begun`, `ended` and `unwanted` change under the lock of the executor."""

    backend: Backend
    waiter: Waiter

    def __init__(self, executor: ThreadExecutor, function: Callable[..., Any]) -> None:
        self.executor, self.function = executor, function
        self.context = copy_context()
        self.begun = self.ended = self.unwanted = False
        self.outcomes: list[Outcome] = []

    def __call__(self) -> None:
        if self.executor.begin(self):
            try:
                self.run()
            finally:
                self.executor.end(self)

    def run(self) -> None:
        raise NotImplementedError

    def attempt(self, context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.outcomes.append((True, context.run(self.function, *args, **kwargs)))
        except BaseException as error:
            self.outcomes.append((False, error))


class _SingleCall(_ThreadCall):
    def __init__(
        self,
        executor: ThreadExecutor,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(executor, function)
        self.args, self.kwargs = args, kwargs

    def run(self) -> None:
        self.attempt(self.context, self.args, self.kwargs)


class _ChunkCall(_ThreadCall):
    def __init__(self, executor: ThreadExecutor, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        super().__init__(executor, function)
        self.items = items

    def run(self) -> None:
        function, copy, enter = self.function, self.context.copy, self.outcomes.append
        for item in self.items:
            if self.unwanted:
                return
            try:
                # A copy for each item, so that variables set by one item do not reach the next.
                enter((True, copy().run(function, item)))
            except BaseException as error:
                enter((False, error))


class _ExecutorThread(threading.Thread):
    """The thread. It holds no reference to its executor, so that a dropped executor can be freed."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.calls: SimpleQueue[_ThreadCall | None] = SimpleQueue()
        self._when_closed: tuple[Backend, Waiter] | None = None
        self.lock_owner: Any = None
        self.start()

    def run(self) -> None:
        self.lock_owner = this_thread.owner
        while (call := self.calls.get()) is not None:
            call()
            del call  # the call holds arguments and results
        if self._when_closed is not None:
            backend, waiter = self._when_closed
            try:
                backend.call_threadsafe(waiter.wake)
            except RuntimeError:
                log.debug("%s: the event loop ended first", self.name)

    def close(self, tell: tuple[Backend, Waiter] | None) -> None:
        self._when_closed = tell
        self.calls.put(None)


# The interface between a worker and the thread, process or other means that runs its work.


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
