"""The base class of the blocking interfaces: it runs the methods of an async handle for threads without an event loop.

Invariants:

1. A call runs the async method once, in the event loop of the interface's system, and returns or raises its outcome.
2. If the calling thread is interrupted (`KeyboardInterrupt`), the method is cancelled and has ended before the
   interrupt propagates.
3. When the block is left, pending calls are cancelled and raise `PoolClosed`. Later calls raise it, too.
4. A call from a thread that runs an event loop is rejected, because it would block all other tasks of that loop.
5. In a forked process, the copy of the interface has no event loop, so each call raises `PoolClosed` at once.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

import anyio

from cuelight._fork import forks
from cuelight.errors import PoolClosed, SystemClosed
from cuelight.mailbox import current_backend
from cuelight.supervision import ActorSystem, BlockingSystem

if TYPE_CHECKING:
    from types import TracebackType

H = TypeVar("H")
R = TypeVar("R")
P = ParamSpec("P")


class BlockingProxy(Generic[H]):
    """A handle with an event loop in its own thread. Subclasses define blocking versions of the handle's methods.

    Each method of a subclass is one line, `return self._call(self._handle.enqueue, task)`, so that type checkers infer
    the types of the async method.
    """

    def __init__(
        self,
        make: Callable[[ActorSystem], H],
        *,
        system: BlockingSystem | None = None,
        name: str = "blocking",
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
    ) -> None:
        """Set up the interface. Its thread starts when the block is entered.

        Args:
            make: called in the event loop with the system; returns the handle.
            system: a running system to use; None to start a separate one.
            name: the name of the separate system, which is the first part of all paths in it.
            backend: "asyncio" or "trio".
            backend_options: passed to anyio.
        """
        self._make, self._given_system, self._name = make, system, name
        self._backend, self._options = backend, backend_options
        self._stack = ExitStack()
        self._system: BlockingSystem | None = None
        self._generation = forks.generation
        self._handles: list[H] = []
        self._calls: set[_BlockingCall] = set()  # in progress; only accessed in the loop
        self._all_ended: anyio.Event | None = None  # only accessed in the loop; set when the last call ends

    def __enter__(self) -> Self:
        _reject_in_loop(f"`with` around {type(self).__name__}")
        if self._system is not None:
            raise PoolClosed(f"{type(self).__name__} is in use by another `with` block: make one for each")
        self._generation = forks.generation
        with ExitStack() as stack:
            system = self._given_system or stack.enter_context(
                ActorSystem.blocking(self._name, backend=self._backend, backend_options=self._options)
            )
            self._handles = [system.call(self._make, system.system)]
            system.call(self._begin)
            stack.callback(system.call, self._end)
            stack.callback(system.call, self._cancel_calls)
            self._system = system
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._system = None
        if forks.is_old(self._generation):  # the loop and the handle belong to the parent process
            return None
        return self._stack.__exit__(kind, error, trace)

    async def _begin(self) -> None:
        """Hook that runs in the loop when the block is entered."""

    async def _end(self) -> None:
        """Hook that runs in the loop when the block is left, after all calls have ended."""

    @property
    def _handle(self) -> H:
        """The async handle. Raises `PoolClosed` outside the block."""
        if self._system is None or forks.is_old(self._generation):
            raise self._closed()
        return self._handles[0]

    def _call(self, method: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an async method of the handle in the loop and block until it ends.

        Raises:
            PoolClosed: the block was not entered, or was left before or during the call. In the second case, the method
                was cancelled; the effect depends on the method.
            RuntimeError: this thread runs an event loop.
            Exception: any exception that the method raised.
        """

        async def run() -> R:
            return await method(*args, **kwargs)

        return self._run_blocking(run)

    def _call_sync(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Like `_call`, for a synchronous method that must run in the loop."""

        async def run() -> R:
            return function(*args, **kwargs)

        return self._run_blocking(run)

    def _iterate(
        self, method: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[R, None, None]:
        """Like `_call`, for an async iterator: one call per item. Closing the generator closes the async iterator."""
        items = self._call_sync(method, *args, **kwargs)

        async def advance() -> list[R]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        async def close() -> None:
            ending: Any = getattr(items, "aclose", None)
            if ending is not None:
                await ending()

        try:
            while found := self._run_blocking(advance):
                yield found[0]
        finally:
            if self._system is not None:
                self._run_blocking(close)

    def _run_blocking(self, run: Callable[[], Awaitable[R]]) -> R:
        _reject_in_loop(f"a blocking call of {type(self).__name__}")
        system = self._system
        if system is None or forks.is_old(self._generation):
            raise self._closed()
        call = _BlockingCall()
        try:
            answer = system.call(self._run, call, run)
        except SystemClosed as error:
            raise self._closed() from error
        except RuntimeError as error:
            if self._system is None and call.scope is None:
                raise self._closed() from error  # the block was left before the call began
            raise
        except BaseException:
            if not call.ended.is_set():  # such as KeyboardInterrupt: no thread waits for the result any more
                self._abandon(system, call)
            raise
        if not answer:
            raise self._closed()
        result: R = answer[0]
        return result

    async def _run(self, call: _BlockingCall, run: Callable[[], Awaitable[R]]) -> list[R]:
        """In the loop: return the result in a list, or an empty list if the end of the block cancelled the call."""
        try:
            if call.withdrawn or self._system is None:
                return []
            self._calls.add(call)
            answer: list[R] = []
            with anyio.CancelScope() as call.scope:
                answer.append(await run())
            return answer
        finally:
            self._calls.discard(call)
            call.ended.set()
            if self._all_ended is not None and not self._calls:
                self._all_ended.set()

    def _abandon(self, system: BlockingSystem, call: _BlockingCall) -> None:
        try:
            started = system.call(call.withdraw)
        except SystemClosed:
            return  # the block was left in the meantime, which cancelled the call
        if started:
            call.ended.wait()

    async def _cancel_calls(self) -> None:
        self._all_ended = anyio.Event()
        for call in self._calls:
            call.withdraw()
        if self._calls:
            await self._all_ended.wait()

    def _closed(self) -> PoolClosed:
        name = type(self).__name__
        if forks.is_old(self._generation):
            return PoolClosed(
                f"this process is a fork of the one that entered the block of {name}, and has no event loop for it: "
                f"make another one in this process, with a new store"
            )
        return PoolClosed(
            f"{name} is closed: use it inside its `with` block, and end all threads that use it before the block ends"
        )


class _BlockingCall:
    """One call from one thread. All attributes except `ended` are only accessed in the loop's thread."""

    __slots__ = ("ended", "scope", "withdrawn")

    def __init__(self) -> None:
        self.scope: anyio.CancelScope | None = None
        self.withdrawn = False
        self.ended = threading.Event()

    def withdraw(self) -> bool:
        """Cancel the call. Return False if it had not started; then it never starts."""
        self.withdrawn = True
        if self.scope is None:
            return False
        self.scope.cancel()
        return True


def _reject_in_loop(what: str) -> None:
    try:
        current_backend()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{what} would block the event loop that runs in this thread: use `async with` and `await` here, "
        "or do it in a thread (`await anyio.to_thread.run_sync(...)`)"
    )
