"""The base class of `TaskQueue`: its options, and its three ways to start and end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import msgspec

from cuelight._checks import check_seconds
from cuelight._text import safe_repr
from cuelight.actors import Ref, child
from cuelight.errors import PoolClosed, SystemClosed
from cuelight.supervision import ActorSystem, BlockingSystem
from cuelight.tasks._arguments import (
    check_callback,
    check_store,
    string_given,
)
from cuelight.tasks._queue._session import QueueActor, QueueSession, ResultWaiters
from cuelight.tasks._stores._memory import MemoryStore
from cuelight.tasks._stores._protocol import Bound, Store
from cuelight.tasks._task import Task
from cuelight.tasks._worker._lease_keeper import Heartbeat

if TYPE_CHECKING:
    from types import TracebackType


WhenFull = Literal["wait", "reject", "shed_lowest"]
"""The reaction of `enqueue` to a full queue: wait for room, raise `QueueFull`, or give up the least urgent task."""


_IN_OTHER_THREADS = (
    "make another TaskQueue over the same store for this thread, with `async with` if it runs a loop, else with `with`"
)


class _QueueOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The checked arguments of a handle."""

    max_length: int | None
    overflow: WhenFull
    lease: float
    retry_timeout: float
    on_lost: Callable[[Task], object] | None
    on_cancel: Callable[[Task], object] | None
    heartbeat: Heartbeat

    def __post_init__(self) -> None:
        most: Any = self.max_length
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ValueError(f"max_length={safe_repr(most)}: give a whole number, 1 or more, or None for any number")
        if self.overflow not in ("wait", "reject", "shed_lowest"):
            raise ValueError(f"overflow={safe_repr(self.overflow)}: give 'wait', 'reject' or 'shed_lowest'")
        if not 0 < check_seconds("lease", self.lease) < inf:
            raise ValueError(f"lease={self.lease!r}: give more than 0 seconds")
        if self.heartbeat not in ("thread", "loop"):
            raise ValueError(f"heartbeat={safe_repr(self.heartbeat)}: give 'thread' or 'loop'")
        if not check_seconds("TaskQueue(retry_timeout)", self.retry_timeout) >= 0:
            raise ValueError(f"retry_timeout={self.retry_timeout!r}: give seconds, 0 or more")
        check_callback("TaskQueue(on_lost)", self.on_lost)
        check_callback("TaskQueue(on_cancel)", self.on_cancel)


class QueueBase:
    """The part of `TaskQueue` that opens and closes it."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        name: str = "default",
        system: ActorSystem | None = None,
        max_length: int | None = 100_000,
        overflow: WhenFull = "wait",
        lease: float = 15.0,
        retry_timeout: float = 30.0,
        on_lost: Callable[[Task], object] | None = None,
        on_cancel: Callable[[Task], object] | None = None,
        heartbeat: Heartbeat = "thread",
    ) -> None:
        """Set up a queue. With `system`, it can be used at once.

        Args:
            store: the store of the tasks; a new `MemoryStore` by default. It is opened for this handle, and closed with
                the last handle that uses it.
            name: a name for log and error messages.
            system: a running actor system to use.
            max_length: how many tasks may wait; None for no limit. Tasks in flight do not count.
            overflow: the reaction of `enqueue` to a full queue: "wait" for room, "reject" with `QueueFull`, or
                "shed_lowest", which makes the least urgent task a dead letter.
            lease: seconds after which another consumer gets the tasks that this handle has dequeued if its process
                dies.
            retry_timeout: seconds for which a call retries while the store is unavailable, before it raises
                `StoreUnavailable`.
            on_lost: called in the event loop with a task that this handle has dequeued, when its lease is lost.
            on_cancel: called in the event loop with a task that this handle has dequeued, when it is cancelled.
            heartbeat: where leases are renewed: in a "thread", or in the "loop", for tests with a virtual clock.

        Raises:
            ValueError: a value is invalid; the message names it.
            TypeError: a value has the wrong type.
            SystemClosed: the system is not running.
            RuntimeError: the system belongs to the event loop of another thread.
        """
        self._options = _QueueOptions(
            max_length=max_length,
            overflow=overflow,
            lease=lease,
            retry_timeout=retry_timeout,
            on_lost=on_lost,
            on_cancel=on_cancel,
            heartbeat=heartbeat,
        )
        self.name = string_given("TaskQueue(name)", name)
        if store is not None:
            check_store("TaskQueue(store)", store)
        self.store: Store = MemoryStore() if store is None else store
        self._bound = None if max_length is None else Bound(max_length, shed=overflow == "shed_lowest")
        self._state: tuple[ActorSystem, Ref[Any], QueueSession, ResultWaiters] | None = None
        self._entered = False
        self._block, self._blocking = AsyncExitStack(), ExitStack()
        if system is not None:
            self._begin(system)

    def _begin(self, system: ActorSystem) -> Ref[Any]:
        given: Any = system
        if isinstance(given, BlockingSystem):
            raise TypeError(f"TaskQueue(system={given!r}): in blocking code use `with TaskQueue(store) as queue:`")
        if not isinstance(given, ActorSystem):
            raise TypeError(f"TaskQueue(system={safe_repr(given)}): give a running ActorSystem, or leave it out")
        if not system._open:
            raise SystemClosed(
                f"the system {system.name!r} is not running: make the queue inside its `async with` block"
            )
        if get_ident() != system.thread:
            raise RuntimeError(
                f"the system {system.name!r} lives in the event loop of another thread, so the task queue "
                f"{self.name!r} cannot be made here: {_IN_OTHER_THREADS}"
            )
        options = self._options
        session = QueueSession(
            self.store,
            self.name,
            lease=options.lease,
            retry_timeout=options.retry_timeout,
            on_lost=options.on_lost,
            on_cancel=options.on_cancel,
            heartbeat=options.heartbeat,
        )
        ref: Ref[Any] = Ref(system.root.ensure_children().start_child(child(QueueActor, session)))
        # Needed if the `stopped` hook is not called, for example because the actor never started.
        ref._cell.ensure_extras().call_when_ended(lambda _: session.end())
        session.ref = ref
        self._state = system, ref, session, ResultWaiters(session)
        return ref

    def _opened(self) -> tuple[ActorSystem, Ref[Any], QueueSession, ResultWaiters]:
        if self._state is None:
            raise PoolClosed(
                f"the task queue {self.name!r} is not open: use it in `async with TaskQueue() as queue:`, in blocking "
                "code in `with TaskQueue() as queue:`, or give it a running system: `TaskQueue(system=system)`"
            )
        return self._state

    def _here(self) -> tuple[ActorSystem, Ref[Any], QueueSession, ResultWaiters]:
        """Like `_opened`. Raises `RuntimeError` outside the thread of the queue's event loop."""
        state = self._opened()
        if get_ident() != state[2].thread:
            raise RuntimeError(
                f"the task queue {self.name!r} lives in the event loop of another thread: {_IN_OTHER_THREADS}"
            )
        return state

    @property
    def system(self) -> ActorSystem:
        """The actor system of the queue.

        Raises:
            PoolClosed: the queue is not open.
        """
        return self._opened()[0]

    @property
    def session(self) -> QueueSession:
        """The open state of the queue. For internal use.

        Raises:
            PoolClosed: the queue is not open.
            RuntimeError: this is not the thread of the queue's event loop.
        """
        return self._here()[2]

    @property
    def result_waiters(self) -> ResultWaiters:
        """The callers that wait for tasks of this queue. For internal use.

        Raises:
            PoolClosed: the queue is not open.
            RuntimeError: this is not the thread of the queue's event loop.
        """
        return self._here()[3]

    async def ready(self) -> None:
        """Wait until the store is open. A checkpoint only until then. All methods wait by themselves.

        Raises:
            PoolClosed: the handle is not open.
            StoreUnavailable: the store is unavailable.
        """
        await self.session.ready()

    async def _ready(self) -> QueueSession:
        session = self.session
        await session.ready()
        return session

    # The block.

    async def __aenter__(self) -> Self:
        self._refuse_second_block()
        async with AsyncExitStack() as stack:
            if self._state is None:
                self._begin(await stack.enter_async_context(ActorSystem(self.name)))
            stack.push_async_exit(self._end)
            await self.ready()
            self._block = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ref = self._opened()[1]
        with anyio.CancelScope(shield=True):
            await (ref.stop() if error is None else ref.kill("the block of the queue was left by an exception"))

    def _refuse_second_block(self) -> None:
        if self._entered:
            raise PoolClosed(
                f"the task queue {self.name!r} was entered before: make another TaskQueue over the same store"
            )
        self._entered = True
