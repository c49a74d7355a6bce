"""The base of blocking faces: the methods of an async handle, for code that blocks, from any thread.

The invariants:

1. A call runs the async method once, in the loop of the face's own system, and returns or raises what that did.
2. A calling thread that is interrupted (`KeyboardInterrupt`) leaves nothing behind: the method is cancelled, and has
   ended, before the interrupt goes on.
3. Once the block was left no call waits: calls that were under way are cut off and raise `PoolClosed`, and so do later
   ones.
4. A thread that runs an event loop is refused, because to block it would stop everything else in that loop.
5. In a process that was forked, whose copy of the face has no loop, each call raises `PoolClosed` at once.
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

__all__ = ["BlockingFace"]

H = TypeVar("H")
R = TypeVar("R")
P = ParamSpec("P")


class BlockingFace(Generic[H]):
    """A handle with a loop in a thread of its own; a subclass gives the handle's methods again, as blocking ones.

    Each method of a subclass is one line, `return self._call(self._handle.enqueue, task)`, so that its types are
    those of the async method.
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
        """Set up a face; its thread starts when its block is entered.

        Args:
            make: makes the handle; called in the loop, with the system that the handle is to live in.
            system: a system that is running already, for handles that belong to it; None for one of its own.
            name: the name of its own system, the first part of all paths.
            backend: "asyncio" or "trio".
            backend_options: passed to anyio.
        """
        self._make, self._given, self._name = make, system, name
        self._backend, self._options = backend, backend_options
        self._stack = ExitStack()
        self._system: BlockingSystem | None = None
        self._generation = forks.generation
        self._made: list[H] = []
        self._calls: set[_Call] = set()  # those under way; only touched in the loop
        self._all_ended: anyio.Event | None = None  # in the loop too: for whoever waits for them to end

    def __enter__(self) -> Self:
        _refuse_in_a_loop(f"`with` around {type(self).__name__}")
        if self._system is not None:
            raise PoolClosed(f"{type(self).__name__} is in use by another `with` block: make one for each")
        self._generation = forks.generation
        with ExitStack() as stack:
            system = self._given or stack.enter_context(
                ActorSystem.blocking(self._name, backend=self._backend, backend_options=self._options)
            )
            self._made = [system.call(self._make, system.system)]
            system.call(self._begin)
            stack.callback(system.call, self._end)
            stack.callback(system.call, self._cut_off)
            self._system = system
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._system = None
        if forks.is_old(self._generation):  # all that is to be ended lives in another process
            return None
        return self._stack.__exit__(kind, error, trace)

    async def _begin(self) -> None:
        """Override this for what is to be done in the loop when the block is entered."""

    async def _end(self) -> None:
        """Override this for what is to be done in the loop when the block is left. No call is under way any more."""

    @property
    def _handle(self) -> H:
        """The async handle.

        Raises:
            PoolClosed: the block was not entered, or was left.
        """
        if self._system is None or forks.is_old(self._generation):
            raise self._closed()
        return self._made[0]

    def _call(self, method: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an async method of the handle in the loop; block until it has ended.

        Raises:
            PoolClosed: the block was not entered, or was left, also while the call waited. Then the method was
                cancelled, with the effect that this has on it.
            RuntimeError: this thread runs an event loop.
            Exception: what the method raised.
        """

        async def run() -> R:
            return await method(*args, **kwargs)

        return self._perform(run)

    def _do(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `_call`, for a method that is no async one but belongs into the loop."""

        async def run() -> R:
            return function(*args, **kwargs)

        return self._perform(run)

    def _iterate(
        self, method: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[R, None, None]:
        """As `_call`, for an async iterator: one call for each item. Closing the iterator closes that of the handle."""
        items = self._do(method, *args, **kwargs)

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
            while found := self._perform(advance):
                yield found[0]
        finally:
            if self._system is not None:
                self._perform(close)

    def _perform(self, run: Callable[[], Awaitable[R]]) -> R:
        _refuse_in_a_loop(f"a blocking call of {type(self).__name__}")
        system = self._system
        if system is None or forks.is_old(self._generation):
            raise self._closed()
        call = _Call()
        try:
            answer = system.call(self._run, call, run)
        except SystemClosed as error:
            raise self._closed() from error
        except RuntimeError as error:
            if self._system is None and call.scope is None:
                raise self._closed() from error  # the block was left before the call began
            raise
        except BaseException:
            if not call.ended.is_set():  # such as KeyboardInterrupt: nobody is left to take the result
                self._abandon(system, call)
            raise
        if not answer:
            raise self._closed()
        result: R = answer[0]
        return result

    async def _run(self, call: _Call, run: Callable[[], Awaitable[R]]) -> list[R]:
        """In the loop: the result in a list, or an empty list if the call was cut off."""
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

    def _abandon(self, system: BlockingSystem, call: _Call) -> None:
        try:
            started = system.call(call.withdraw)
        except SystemClosed:
            return  # the block was left meanwhile, and that has cut the call off
        if started:
            call.ended.wait()

    async def _cut_off(self) -> None:
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
                f"make another one in this process, over a store of its own"
            )
        return PoolClosed(f"{name} is closed: use it inside its `with` block, and end the threads that use it before")


class _Call:
    """One call of one thread. But for `ended`, only the loop's thread touches it."""

    __slots__ = ("ended", "scope", "withdrawn")

    def __init__(self) -> None:
        self.scope: anyio.CancelScope | None = None
        self.withdrawn = False
        self.ended = threading.Event()

    def withdraw(self) -> bool:
        """Cancel it. False if it had not begun; then it never will."""
        self.withdrawn = True
        if self.scope is None:
            return False
        self.scope.cancel()
        return True


def _refuse_in_a_loop(what: str) -> None:
    try:
        current_backend()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{what} would block the event loop that runs in this thread: use `async with` and `await` here, "
        "or do it in a thread (`await anyio.to_thread.run_sync(...)`)"
    )
