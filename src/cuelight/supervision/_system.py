"""The actor system: the root of the tree, and the block that ends only when every actor has."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from cuelight._text import describe_error
from cuelight.actors import Actor, Cell, ChildSpec, Crashed, Exit, Runtime, Spawned
from cuelight.errors import SystemClosed
from cuelight.supervision._backoff import Backoff
from cuelight.supervision._blocking import BlockingSystem
from cuelight.supervision._children import Children, Plan
from cuelight.supervision._limit import RestartLimit
from cuelight.supervision._strategies import Strategy, one_for_one
from cuelight.supervision._supervisor import Supervisor
from cuelight.supervision._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors import Family, Node
    from cuelight.mailbox import Waiter

__all__ = ["ActorSystem"]


class _Root(Actor[Any]):
    """The top of the tree. It has no handlers; its family is all it is for."""


class _Keeper:
    """Above the root: a root that ends ends the system."""

    def __init__(self, runtime: ActorSystem) -> None:
        self.runtime = runtime
        self.owner: Cell | None = None

    def has_started(self, cell: Cell) -> None:
        """The root is up."""

    def ended(self, cell: Cell, exit_: Exit) -> None:
        """The root's incarnation, and with it every actor, has ended."""
        cell.bury(exit_)

    def buried(self, cell: Cell) -> None:
        """All is over."""
        self.runtime.root_ended(cell.exit)

    def give_up(self, cell: Cell, exit_: Exit) -> None:
        """The root is never restarted."""


class ActorSystem(Runtime):
    """Where actors live: `async with ActorSystem("demo") as system:`.

    Leaving the block ends all actors, by phases under one deadline: nothing new may be spawned at the top; the actors
    finish what is queued; they stop in the reverse of their start order; what is left at the deadline is cancelled.
    If the block was left by an exception or a cancellation, actors are killed at once (their `stopped` hooks still
    run). If a crash goes beyond the restart limit of the top, the block is cancelled and the crash leaves it inside
    an exception group.
    """

    def __init__(
        self,
        name: str = "system",
        *,
        ask_timeout: float = 30.0,
        shutdown_timeout: float = 10.0,
        strategy: Strategy = one_for_one,
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: Backoff | None = None,
        slow_after: float | None = 1.0,
        keep_dead_letters: int = 1000,
        node: Node | None = None,
    ) -> None:
        """Set up a system; it starts when its block is entered.

        Args:
            name: the first part of all paths.
            ask_timeout: seconds that an ask waits unless it says otherwise.
            shutdown_timeout: seconds that leaving the block may take before what is left is cancelled.
            strategy: who is restarted when an actor at the top crashes.
            max_restarts: restarts of actors at the top allowed `within` so many seconds.
            within: the window, in seconds.
            backoff: the delays before restarts; `Backoff()` by default.
            slow_after: seconds after which a running handler is reported, with where it stands; None never.
            keep_dead_letters: how many dead letters are kept to look at.
            node: its place in a cluster of systems, such as a `cuelight.redis.RedisNode`; None for a system alone.

        Raises:
            ValueError: a value makes no sense; the message says which.
        """
        for what, seconds in {"ask_timeout": ask_timeout, "shutdown_timeout": shutdown_timeout}.items():
            if not seconds > 0:
                raise ValueError(f"{what}={seconds!r}: give more than 0 seconds")
        super().__init__(ask_timeout=ask_timeout, keep_dead_letters=keep_dead_letters, node=node)
        self.name = name
        self._shutdown_timeout = shutdown_timeout
        self._plan = Plan(strategy=strategy, limit=RestartLimit(max_restarts, within), backoff=backoff or Backoff())
        self._default = Plan()
        self._scope: anyio.CancelScope | None = None
        self._root_done: Waiter | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._watchdog = None if slow_after is None else Watchdog(self, slow_after)

    # The tree.

    def new_family(self, owner: Cell) -> Family:
        """A family with the plan of its owner: a supervisor's own, the system's at the top, else the defaults."""
        actor = owner.actor
        if isinstance(actor, Supervisor):
            return Children(self, owner, actor.plan())
        return Children(self, owner, self._plan if owner is self.root else self._default)

    def root_ended(self, exit_: Exit | None) -> None:
        """The last actor has ended."""
        if isinstance(exit_, Crashed) and self._failure is None:
            self._failure = exit_.error
        if not self._closing and self._scope is not None:
            self._scope.cancel()
        if self._root_done is not None:
            self._root_done.wake()

    def abort(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.root.kill(f"the system was aborted by {describe_error(error)}")
        if self._scope is not None:
            self._scope.cancel()

    async def wait(self) -> None:
        """Wait until every actor at the top has ended. A checkpoint."""
        await self.backend.checkpoint()
        while self.root.family is not None and not self.root.family.empty:
            waiter = self.backend.waiter()
            last = next(reversed(tuple(self.root.family.children())))
            last.bonds_made().when_ended.append(waiter)
            try:
                await waiter
            finally:
                if last.bonds is not None and waiter in last.bonds.when_ended:
                    last.bonds.when_ended.remove(waiter)

    # The block.

    async def __aenter__(self) -> Self:
        if self._scope is not None or self._closing:
            raise SystemClosed(f"the system {self.name!r} was entered before: make a new one")
        self.open_runtime()
        keeper: Any = _Keeper(self)
        self.root = self.new_cell(keeper, ChildSpec(_Root, name=None))
        self.root.label = self.name
        self.root.begin(Spawned())
        if self._watchdog is not None:
            self._watchdog.start()
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        if self._node is not None:
            try:
                await self._node.join(self)
            except BaseException:
                await self.__aexit__(*sys.exc_info())
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        scope = self._scope
        assert scope is not None  # noqa: S101 - it was entered
        self._closing = True
        lost: BaseException | None = None
        try:
            with anyio.CancelScope(shield=True):
                if self._node is not None:
                    self._node.withdraw(self)
                lost = await self._shut_down(gently=error is None)
                lost = await self._leave_cluster() or lost
                if self._watchdog is not None:
                    self._watchdog.stop()
                await self.close_runtime()
        finally:
            swallowed = scope.__exit__(kind, error, trace)
        if lost is not None and error is None:
            raise lost
        if self._failure is not None:
            self._raise_failure(None if swallowed else error)
        return bool(swallowed)

    def _raise_failure(self, error: BaseException | None) -> None:
        failure = self._failure
        assert failure is not None  # noqa: S101 - the caller looked
        if not isinstance(failure, Exception):
            raise failure
        both = [failure] if error is None or not isinstance(error, Exception) else [error, failure]
        raise ExceptionGroup(f"the actor system {self.name!r} failed", both) from None

    async def _shut_down(self, *, gently: bool) -> BaseException | None:
        """End every actor. Returns a native cancellation that came meanwhile."""
        deadline = self.later(self._shutdown_timeout, self.root.kill, "the system's shutdown_timeout is over")
        if self._failure is None and not gently:
            self.root.kill("the block of the system was left by an exception")
        lost: BaseException | None = None
        draining = gently and self._failure is None
        while not self.root.dead:
            try:
                if draining:
                    with anyio.move_on_after(self._shutdown_timeout / 2):
                        await self.wait_until_idle()
                    draining = False
                self.root.shut_down()
                if not self.root.dead:
                    self._root_done = self.backend.waiter()
                    await self._root_done
            except self.backend.cancelled as error:
                # Only a native cancellation comes through the shield; no actor may be left behind by it.
                lost = error
                draining = False
                self.root.kill("the task of the system was cancelled")
        deadline.cancel()
        return lost

    async def _leave_cluster(self) -> BaseException | None:
        """Every actor has ended, so nobody needs the node. Returns a native cancellation that came meanwhile."""
        lost: BaseException | None = None
        left = self._node is None
        while self._node is not None and not left:
            try:
                await self._node.leave(self)
                left = True
            except self.backend.cancelled as error:  # it goes on leaving, and nothing of it may be left behind
                lost = error
        return lost

    # From blocking code.

    @classmethod
    def blocking(
        cls,
        name: str = "system",
        *,
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> BlockingSystem:
        """A system for blocking code: `with ActorSystem.blocking() as system:`. It has an event loop in a thread.

        Args:
            name: the first part of all paths.
            backend: "asyncio" or "trio".
            backend_options: passed to anyio.
            **options: as for `ActorSystem`.
        """
        make: Callable[[], ActorSystem] = lambda: cls(name, **options)  # noqa: E731
        return BlockingSystem(make, backend, backend_options)
