"""Actors for blocking code: the same system and refs, with methods that block the calling thread."""

from __future__ import annotations

import atexit
import concurrent.futures
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload

import anyio
from anyio.from_thread import BlockingPortal

from cuelight._fork import forks
from cuelight._log import get_log
from cuelight.actors import Actor, ActorRuntime, Answerable, ChildSpec, Exit, Inbox, Ref, Streams
from cuelight.errors import ShutdownTimeout, SystemClosed, UnexpectedCancellation
from cuelight.mailbox import current_backend

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.mailbox import Backend

log = get_log("cuelight")

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")
S = TypeVar("S", bound=ActorRuntime)
P = ParamSpec("P")

MakeSystem: TypeAlias = Callable[[], AbstractAsyncContextManager[S]]

UNRESPONSIVE_SECONDS: Final = 5.0
"""Seconds without a response after which a loop that shuts down counts as blocked."""

ExitInfo = tuple[type[BaseException] | None, BaseException | None, "TracebackType | None"]


class _LoopCall:
    """A call whose thread waits for the result. Only the loop's thread uses it."""

    __slots__ = ("scope", "withdrawn")

    def __init__(self) -> None:
        self.scope: anyio.CancelScope | None = None
        self.withdrawn = False

    def withdraw(self) -> None:
        """Cancel the call, or prevent it from starting."""
        self.withdrawn = True
        if self.scope is not None:
            self.scope.cancel()


class _SystemThread(Generic[S]):
    """A thread that runs an event loop with an actor system in it.

    Other threads call the methods. An interrupt (Ctrl-C) may arrive at any point in a method, so no step depends on a
    later step being reached: the thread ends when it is told to, whatever stage its start has reached. It is a daemon
    thread, so a blocked loop cannot prevent the program from ending. Systems whose blocks were not left are ended when
    the program ends.
    """

    running: Final[set[_SystemThread[Any]]] = set()

    def __init__(self, make: MakeSystem[S], backend: str, options: dict[str, Any] | None) -> None:
        self._make, self._backend_name, self._options = make, backend, options
        self._generation = forks.generation
        self._lock = threading.Lock()  # protects the next two
        self._exit_info: ExitInfo | None = None  # set when the thread is told to end
        self._backend: Backend | None = None  # the loop's, once it runs
        self._leave: anyio.Event | None = None
        self._starting: anyio.CancelScope | None = None
        self._system: S | None = None
        self.portal: BlockingPortal | None = None
        self.ready: concurrent.futures.Future[S] = concurrent.futures.Future()
        self.outcome: concurrent.futures.Future[bool | None] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._run, name="cuelight actor system", daemon=True)

    @property
    def forked(self) -> bool:
        """Whether the thread belongs to the parent process and does not exist in this fork."""
        return forks.is_old(self._generation)

    def start(self) -> S:
        self.running.add(self)
        self.thread.start()
        return self.ready.result()

    def end(self, exit_info: ExitInfo = (None, None, None)) -> bool | None:
        """Leave the system's block and wait for the thread.

        Raises:
            ShutdownTimeout: the loop is blocked. The thread was left behind.
            BaseException: the exception raised on leaving the block.
        """
        self._request_end(exit_info)
        try:
            self._join(self._system.shutdown_timeout if self._system is not None else 0.0)
        except ShutdownTimeout as blocked:
            if exit_info[1] is None:
                raise
            log.error("%s", blocked)  # noqa: TRY400 - the exception of the block goes on
            return None
        except BaseException:  # interrupted: kill the actors that were shutting down in order
            self._post(self._kill)
            self._wait_or_log()
            raise
        finally:
            self.running.discard(self)
        return self.outcome.result()

    def abort(self) -> None:
        """End the thread after its start failed or was interrupted."""
        try:
            self._request_end((SystemExit, SystemExit(), None))
            self._wait_or_log()
        finally:
            self.running.discard(self)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a function in the loop and wait for its result. See `BlockingSystem.call`."""
        if self.forked:
            raise SystemClosed(
                "this process is a fork of the one that runs the actor system, and has no event loop for it: make a "
                "system in this process"
            )
        if threading.current_thread() is self.thread:
            raise RuntimeError("this is the thread of the event loop, which a blocking call would block: use `await`")
        call = _LoopCall()
        try:
            future = self._future(call, function, args)
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                if not future.cancelled():  # raised by the function
                    raise
                raise SystemClosed("the actor system has ended while this call waited") from None
        except KeyboardInterrupt:
            self._post(call.withdraw)
            raise

    def _future(
        self, call: _LoopCall, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> concurrent.futures.Future[Any]:
        assert self.portal is not None  # noqa: S101 - the system is ready
        try:
            return self.portal.start_task_soon(self._run_call, call, function, args)
        except RuntimeError as error:
            raise SystemClosed("the actor system has ended") from error

    async def _run_call(self, call: _LoopCall, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        assert self._backend is not None  # noqa: S101 - set before
        if call.withdrawn:
            return None
        with anyio.CancelScope() as call.scope:
            try:
                result: Any = function(*args)
                return await result if isinstance(result, Awaitable) else result  # pyright: ignore[reportUnknownVariableType]
            except self._backend.cancelled as error:
                if self._backend.cancellation_pending():
                    raise
                raise UnexpectedCancellation("the call awaited an object that other code cancelled") from error

    def _request_end(self, exit_info: ExitInfo) -> None:
        with self._lock:
            if self._exit_info is None:
                self._exit_info = exit_info
        self._post(self._leave_block)

    def _leave_block(self) -> None:
        """In the loop's thread: leave the block."""
        if self._leave is not None:
            self._leave.set()
        if self._starting is not None:
            self._starting.cancel()

    def _kill(self) -> None:
        if self._system is not None:
            self._system.root.kill("the block of the system was left by an interrupt")

    def _post(self, function: Callable[[], object]) -> bool:
        """Schedule a function in the loop without waiting for it. Returns False if no loop is running."""
        with self._lock:
            backend = self._backend
        if backend is None:
            return False
        try:
            backend.call_threadsafe(function)
        except RuntimeError:  # the loop has ended
            return False
        return True

    def _join(self, seconds: float) -> None:
        """Wait for the thread as long as its loop responds.

        Raises:
            ShutdownTimeout: the loop does not respond.
        """
        alive = self._is_alive(seconds)
        while alive:
            answered = threading.Event()
            if self._post(answered.set):
                answered.wait(UNRESPONSIVE_SECONDS)
            alive = self._is_alive(UNRESPONSIVE_SECONDS)
            if alive and not answered.is_set():
                frame = sys._current_frames()[self.thread.ident or 0]
                where = "".join(traceback.format_stack(frame)[-3:])
                raise ShutdownTimeout(
                    f"the event loop of the actor system has not responded for {UNRESPONSIVE_SECONDS:g} s, so the "
                    f"block was left without it: something blocks its thread, at\n{where}"
                )

    def _wait_or_log(self) -> None:
        """Wait for the thread while an exception propagates. A blocked loop is only logged."""
        try:
            self._join(0.0)
        except ShutdownTimeout as blocked:
            log.error("%s", blocked)  # noqa: TRY400

    def _is_alive(self, seconds: float) -> bool:
        """Whether the thread still runs after `seconds` seconds. If its start was interrupted, it ends by itself."""
        if self.thread.ident is None:
            return False
        self.thread.join(min(seconds, threading.TIMEOUT_MAX))
        return self.thread.is_alive()

    def _run(self) -> None:
        try:
            anyio.run(self._live, backend=self._backend_name, backend_options=self._options)
        except BaseException as error:
            if not self.outcome.done():
                self.outcome.set_exception(error)
        finally:
            if not self.outcome.done():
                self.outcome.set_result(None)
            if not self.ready.done():
                self.ready.set_exception(self.outcome.exception() or SystemClosed("the start was interrupted"))

    async def _live(self) -> None:
        self._leave = anyio.Event()
        async with BlockingPortal() as portal:
            self.portal = portal
            with self._lock:
                self._backend = current_backend()
                told = self._exit_info is not None
            if not told:
                await self._run_system()
            await portal.stop(cancel_remaining=True)  # no thread waits for calls made at the last moment

    async def _run_system(self) -> None:
        """Enter the system's block, and leave it when the thread is told to end or the system fails. Sets `outcome`."""
        assert self._backend is not None  # noqa: S101 - set before
        assert self._leave is not None  # noqa: S101 - made before
        try:
            manager = self._make()
            with anyio.CancelScope() as starting:
                self._starting = starting
                self._system = await manager.__aenter__()
                self._starting = None
                self.ready.set_result(self._system)
                try:
                    await self._leave.wait()
                except BaseException as error:
                    if not await manager.__aexit__(type(error), error, error.__traceback__):
                        raise
                else:
                    assert self._exit_info is not None  # noqa: S101 - set before the event
                    self.outcome.set_result(await manager.__aexit__(*self._exit_info))
        except BaseException as error:
            if isinstance(error, self._backend.cancelled):
                raise
            self.outcome.set_exception(error)


def _end_all() -> None:
    """At program exit, end the systems whose blocks were not left, so that their hooks run."""
    for thread in list(_SystemThread.running):
        if not thread.forked:
            try:
                thread.end((SystemExit, SystemExit(), None))
            except Exception:
                log.exception("an actor system failed when the program ended")


atexit.register(_end_all)


class ThreadedSystem(Generic[S]):
    """An actor system with an event loop in its own thread.

    Any thread may call its methods. Leaving the `with` block ends all actors, as the async block does, and cancels
    calls of other threads that still wait. A first interrupt (Ctrl-C) ends the block at any moment, also while it is
    entered or left. In a process that was forked inside the block, each call raises `SystemClosed`.
    """

    def __init__(self, make: MakeSystem[S], backend: str, backend_options: dict[str, Any] | None) -> None:
        self._make, self._backend, self._options = make, backend, backend_options
        self._thread: _SystemThread[S] | None = None
        self._system: S | None = None

    def __enter__(self) -> Self:
        if self._thread is not None and not self._thread.forked:
            raise RuntimeError("this actor system is in use by another `with` block: make one for each")
        thread = _SystemThread(self._make, self._backend, self._options)
        try:
            self._thread = thread
            self._system = thread.start()
        except BaseException:
            self._thread = None
            thread.abort()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        thread, self._thread = self._thread, None
        if thread is None or thread.forked:
            return None
        return thread.end((kind, error, trace))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function or an async function in the loop and wait for its result.

        A call that is interrupted (`KeyboardInterrupt`) is cancelled.

        Raises:
            SystemClosed: the block has not been entered, or was left, also while the call waited; or this process is
                a fork of the one that runs the system.
            RuntimeError: the caller is the loop's own thread.
        """
        thread = self._thread
        if thread is None:
            raise SystemClosed("the actor system is not running: use it inside its `with` block")
        return thread.call(function, args)

    @property
    def system(self) -> S:
        """The system itself, for code that runs in its loop.

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
        """Like `ActorSystem.spawn`; blocks until the actor has started."""

        async def spawn() -> Ref[Any]:
            ref: Ref[Any] = await self.system.spawn(factory, *args, **kwargs)
            return ref

        return BlockingRef(self, self.call(spawn))

    def find(self, name: str) -> BlockingRef[Any]:
        """Like `ActorSystem.find`."""
        return BlockingRef(self, self.call(self.system.find, name))

    def expose(self, ref: BlockingRef[Any], name: str) -> None:
        """Like `ActorSystem.expose`."""
        self.call(self.system.expose, ref.ref, name)

    def resolve(self, name: str, timeout: float = 0.0) -> BlockingRef[Any]:
        """Like `ActorSystem.resolve`; blocks until an actor has this name or `timeout` seconds have passed."""
        return BlockingRef(self, self.call(self.system.resolve, name, timeout))


class BlockingRef(Generic[M_contra]):
    """A ref for blocking code, usable from any thread.

    Attributes:
        ref: the plain ref, to put into messages.
    """

    __slots__ = ("_system", "ref")

    def __init__(self, system: ThreadedSystem[Any], ref: Ref[M_contra]) -> None:
        self._system = system
        self.ref = ref

    def tell(self, message: M_contra) -> None:
        """Like `Ref.tell`; blocks while the mailbox is full."""
        self._system.call(self.ref.tell, message)

    def ask(self, message: Answerable[M_contra, R], timeout: float | None = None) -> R:
        """Like `await Ref.ask(...)`; blocks until the answer arrives."""

        async def ask() -> R:
            return await self.ref.ask(message, timeout)

        answer: R = self._system.call(ask)
        return answer

    def stream(self, message: Streams[M_contra, R], timeout: float | None = None) -> Iterator[R]:
        """Like `Ref.stream`: a generator. Closing it cancels the handler."""
        open_stream: Any = self._system.call(self.ref.stream, message, timeout)

        async def next_chunk() -> list[R]:
            return [chunk async for chunk in _first_chunk(open_stream)]

        try:
            while chunks := self._system.call(next_chunk):
                yield from chunks
        finally:
            self._system.call(open_stream.aclose)

    def stop(self, timeout: float | None = None) -> None:
        """Like `Ref.stop`; blocks until the actor has ended."""
        self._system.call(self.ref.stop, timeout)

    def kill(self, why: str = "killed") -> None:
        """Like `Ref.kill`; blocks until the actor has ended."""
        self._system.call(self.ref.kill, why)

    def ended(self) -> Exit:
        """Like `Ref.ended`; blocks until the actor has ended."""
        exit_: Exit = self._system.call(self.ref.ended)
        return exit_


async def _first_chunk(stream: Any) -> AsyncIterator[Any]:
    async for chunk in stream:
        yield chunk
        return
