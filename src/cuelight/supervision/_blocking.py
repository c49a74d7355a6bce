"""Actors from blocking code: the same system and refs, with methods that wait by blocking the calling thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import anyio.from_thread

from cuelight.actors import Actor, Answerable, ChildSpec, Exit, Inbox, Ref, Streams
from cuelight.errors import SystemClosed

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.supervision._system import ActorSystem

__all__ = ["BlockingRef", "BlockingSystem"]

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")
P = ParamSpec("P")


class BlockingSystem:
    """An actor system with an event loop in a thread of its own; made by `ActorSystem.blocking()`.

    Its methods may be called from any thread. Leaving the `with` block ends all actors as the async block does.
    """

    def __init__(self, make: Callable[[], ActorSystem], backend: str, backend_options: dict[str, Any] | None) -> None:
        self._make, self._backend, self._options = make, backend, backend_options
        self._stack = ExitStack()
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._system: ActorSystem | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal(self._backend, self._options))
            self._system = stack.enter_context(portal.wrap_async_context_manager(self._make()))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._portal = None
        return self._stack.__exit__(kind, error, trace)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function, or an async function, in the loop, and wait for its result.

        Raises:
            SystemClosed: the block has not been entered, or was left.
        """
        if self._portal is None:
            raise SystemClosed("the actor system is not running: use it inside its `with` block")
        return self._portal.call(function, *args)

    @property
    def system(self) -> ActorSystem:
        """The system itself, for what runs in its loop.

        Raises:
            SystemClosed: the block has not been entered.
        """
        if self._system is None:
            raise SystemClosed("the actor system is not running: enter its `with` block first")
        return self._system

    @overload
    def spawn(self, factory: ChildSpec[M], /) -> BlockingRef[M]: ...
    @overload
    def spawn(self, factory: Callable[P, Actor[M]], /, *args: P.args, **kwargs: P.kwargs) -> BlockingRef[M]: ...
    @overload
    def spawn(
        self, factory: Callable[Concatenate[Inbox[M], P], Awaitable[None]], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingRef[M]: ...
    def spawn(self, factory: Any, /, *args: Any, **kwargs: Any) -> BlockingRef[Any]:
        """As `ActorSystem.spawn`; blocks until the actor has started."""

        async def spawn() -> Ref[Any]:
            ref: Ref[Any] = await self.system.spawn(factory, *args, **kwargs)
            return ref

        return BlockingRef(self, self.call(spawn))

    def find(self, name: str) -> BlockingRef[Any]:
        """As `ActorSystem.find`."""
        return BlockingRef(self, self.call(self.system.find, name))

    def expose(self, ref: BlockingRef[Any], name: str) -> None:
        """As `ActorSystem.expose`."""
        self.call(self.system.expose, ref.ref, name)

    def resolve(self, name: str, timeout: float = 0.0) -> BlockingRef[Any]:
        """As `ActorSystem.resolve`; blocks until somebody exposes the name, or the time is over."""
        return BlockingRef(self, self.call(self.system.resolve, name, timeout))


class BlockingRef(Generic[M_contra]):
    """A ref for blocking code, usable from any thread.

    Attributes:
        ref: the ref itself, to put into messages.
    """

    __slots__ = ("_system", "ref")

    def __init__(self, system: BlockingSystem, ref: Ref[M_contra]) -> None:
        self._system = system
        self.ref = ref

    def tell(self, message: M_contra) -> None:
        """As `Ref.tell`: blocks while the mailbox is full."""
        self._system.call(self.ref.tell, message)

    def ask(self, message: Answerable[M_contra, R], timeout: float | None = None) -> R:
        """As `Ref.ask`, awaited: blocks until the answer is there."""

        async def ask() -> R:
            return await self.ref.ask(message, timeout)

        answer: R = self._system.call(ask)
        return answer

    def stream(self, message: Streams[M_contra, R], timeout: float | None = None) -> Iterator[R]:
        """As `Ref.stream`: a generator; closing it cancels the handler."""
        open_stream: Any = self._system.call(self.ref.stream, message, timeout)

        async def next_chunk() -> list[R]:
            return [chunk async for chunk in _first(open_stream)]

        try:
            while chunks := self._system.call(next_chunk):
                yield from chunks
        finally:
            self._system.call(open_stream.aclose)

    def stop(self, timeout: float | None = None) -> None:
        """As `Ref.stop`: blocks until the actor has ended."""
        self._system.call(self.ref.stop, timeout)

    def kill(self, why: str = "killed") -> None:
        """As `Ref.kill`: blocks until the actor has ended."""
        self._system.call(self.ref.kill, why)

    def ended(self) -> Exit:
        """As `Ref.ended`: blocks until the actor has ended."""
        exit_: Exit = self._system.call(self.ref.ended)
        return exit_


async def _first(stream: Any) -> AsyncIterator[Any]:
    async for chunk in stream:
        yield chunk
        return
