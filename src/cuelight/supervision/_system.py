"""The actor system: the root of the tree, and a block that ends only after all actors."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from cuelight._log import flush_logs, get_log
from cuelight._text import describe_error
from cuelight.actors import Actor, ActorRuntime, Cell, ChildSpec, Crashed, Exit, Spawned
from cuelight.actors._timers import ScheduledCall
from cuelight.errors import ShutdownTimeout, SystemClosed, ends_the_program
from cuelight.supervision._blocking_system import ThreadedSystem
from cuelight.supervision._children import Children, SupervisionPolicy
from cuelight.supervision._policies import Backoff, RestartLimit, Strategy, one_for_one
from cuelight.supervision._supervisor import Supervisor
from cuelight.supervision._watchdog import Watchdog, awaiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors import ChildSupervisor, ClusterNode
    from cuelight.actors._dispatcher import TaskBound
    from cuelight.mailbox import Waiter

log = get_log("cuelight")

SECONDS_AFTER_CANCEL = 5.0
"""Seconds that actors have to end after `shutdown_timeout`, when everything has been cancelled."""

MAX_STUCK_SHOWN = 10


class _RootActor(Actor[Any]):
    """The top of the tree. It has no handlers, only children."""


class RootSupervisor:
    """The supervisor of the root: when the root ends, the system ends."""

    def __init__(self, runtime: ActorSystem) -> None:
        self.runtime = runtime
        self.owner: Cell | None = None

    def new_children(self, owner: Cell) -> ChildSupervisor:
        return self.runtime.new_children(owner)

    def child_started(self, cell: Cell) -> None:
        """Nothing to do."""

    def child_ended(self, cell: Cell, exit_: Exit) -> None:
        """Bury the root. Every actor has ended with it."""
        cell.finalize(exit_)

    def child_finalized(self, cell: Cell) -> None:
        """End the system."""
        self.runtime.root_ended(cell.exit)

    def abandon_restart(self, cell: Cell, exit_: Exit) -> None:
        """Never called: the root is not restarted."""

    def spent(self) -> dict[str, float]:
        """There is no budget above the root."""
        return {}


class ActorSystem(ActorRuntime):
    """The block in which actors live: `async with ActorSystem("demo") as system:`.

    Leaving the block ends all actors, in phases with one deadline. First, nothing new can be spawned at the top. Then
    the actors handle their queued messages. Then they stop in reverse start order. Actors that are left at the deadline
    are cancelled.

    If an exception or a cancellation leaves the block, the actors are killed at once (their `stopped` hooks still run).
    If actors at the top crash more often than the restart limit allows, the block is cancelled and raises an exception
    group that contains the crash.
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
        node: ClusterNode | None = None,
    ) -> None:
        """Set up a system; it starts when its block is entered.

        Args:
            name: the first part of all paths.
            ask_timeout: seconds that an ask waits, unless the call passes a timeout.
            shutdown_timeout: seconds that leaving the block may take before the remaining actors are cancelled.
            strategy: chooses the actors to restart when an actor at the top crashes.
            max_restarts: the number of restarts of actors at the top allowed in the window.
            within: the length of the sliding window, in seconds.
            backoff: the delays before restarts; `Backoff()` by default.
            slow_after: seconds after which a running handler is reported with its stack; None disables the report.
            keep_dead_letters: the number of dead letters kept for inspection.
            node: its place in a cluster of systems, such as a `cuelight.redis.RedisNode`; None for a single system.

        Raises:
            ValueError: a value is invalid; the message names it.
        """
        for what, seconds in {"ask_timeout": ask_timeout, "shutdown_timeout": shutdown_timeout}.items():
            if not seconds > 0:
                raise ValueError(f"{what}={seconds!r}: give more than 0 seconds")
        super().__init__(ask_timeout=ask_timeout, keep_dead_letters=keep_dead_letters, node=node)
        self.name = name
        self.shutdown_timeout = shutdown_timeout
        self._policy = SupervisionPolicy(
            strategy=strategy, limit=RestartLimit(max_restarts, within), backoff=backoff or Backoff()
        )
        self._default_policy = SupervisionPolicy()
        self._scope: anyio.CancelScope | None = None
        self._root_done: Waiter | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._stuck = False
        self._final_check: ScheduledCall | None = None
        self._watchdog = None if slow_after is None else Watchdog(self, slow_after)

    # The tree.

    def new_children(self, owner: Cell) -> ChildSupervisor:
        """Return a supervisor with the policy of its owner: its own, the system's at the top, or the defaults."""
        actor = owner.actor
        if isinstance(actor, Supervisor):
            return Children(self, owner, actor.supervision_policy())
        return Children(self, owner, self._policy if owner is self.root else self._default_policy)

    def root_ended(self, exit_: Exit | None) -> None:
        """Handle the end of the last actor."""
        if isinstance(exit_, Crashed) and self._failure is None:
            self._failure = exit_.error
        if not self._closing and self._scope is not None:
            self._scope.cancel()
        if self._root_done is not None:
            self._root_done.wake()
        if self._abandoned:
            self._wake()

    @property
    def all_ended(self) -> bool:
        return self.root.dead

    def abandoned(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()

    def abort(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.root.kill(f"the system was aborted by {describe_error(error)}")
        if self._scope is not None:
            self._scope.cancel()

    async def wait(self) -> None:
        """Wait until every actor at the top has ended. A checkpoint."""
        await self.backend.checkpoint()
        while self.root.children is not None and not self.root.children.empty:
            waiter = self.backend.waiter()
            last = next(reversed(tuple(self.root.children.cells())))
            last.ensure_extras().call_when_ended(waiter)
            try:
                await waiter
            finally:
                if last.extras is not None:
                    last.extras.when_ended.pop(waiter, None)

    # The block.

    async def __aenter__(self) -> Self:
        if self._scope is not None or self._closing:
            raise SystemClosed(f"the system {self.name!r} was entered before: make a new one")
        self.open_runtime()
        supervisor: Any = RootSupervisor(self)
        self.root = self.new_cell(supervisor, ChildSpec(_RootActor, name=None))
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
                flush_logs()
        finally:
            swallowed = scope.__exit__(kind, error, trace)
        if lost is not None and (error is None or ends_the_program(lost)):
            raise lost
        if self._failure is not None:
            self._raise_failure(None if swallowed else error)
        return bool(swallowed)

    def _raise_failure(self, error: BaseException | None) -> None:
        failure = self._failure
        assert failure is not None  # noqa: S101 - the caller looked
        if ends_the_program(failure) or isinstance(failure, self.backend.cancelled):
            raise failure
        both: list[BaseException] = [failure] if not isinstance(error, Exception) else [error, failure]
        raise BaseExceptionGroup(f"the actor system {self.name!r} failed", both) from None

    async def _shut_down(self, *, gently: bool) -> BaseException | None:
        """End every actor. Returns a native cancellation or an interrupt that arrived meanwhile."""
        deadline = self.call_later(self.shutdown_timeout, self._kill_all)
        if self._failure is None and not gently:
            self.root.kill("the block of the system was left by an exception")
        lost: BaseException | None = None
        draining = gently and self._failure is None
        while not (self.root.dead or self._stuck):
            try:
                if draining:
                    with anyio.move_on_after(self.shutdown_timeout / 2):
                        await self.wait_until_idle()
                    draining = False
                self.root.shut_down()
                if not (self.all_ended or self._stuck):
                    self._root_done = self.backend.waiter()
                    await self._root_done
            except (self.backend.cancelled, KeyboardInterrupt) as error:
                # Only a native cancellation passes the shield, or an interrupt, which trio raises where the main task
                # waits. Neither must leave any actor behind.
                lost = error
                draining = False
                self.root.kill("the task of the system was cancelled")
        deadline.cancel()
        if self._final_check is not None:
            self._final_check.cancel()
        return lost

    def _kill_all(self) -> None:
        """Kill the remaining actors at the deadline of the shutdown, and give them some time to end."""
        self.longest_hook = SECONDS_AFTER_CANCEL
        self.root.kill("the system's shutdown_timeout is over")
        self._final_check = self.call_later(SECONDS_AFTER_CANCEL, self._check_progress, self.alive)

    def _check_progress(self, alive: int) -> None:
        """Wait as long as actors end or `stopped` hooks have time left."""
        in_hooks = any(not cell.cancel_requested for cell in self.tasks)
        if self.alive < alive or in_hooks:
            self._final_check = self.call_later(SECONDS_AFTER_CANCEL, self._check_progress, self.alive)
        elif not self.root.dead:
            self._leave_stuck_handlers()

    def _leave_stuck_handlers(self) -> None:
        """Leave the block without the handlers that still run after being cancelled."""
        stuck: list[TaskBound] = [*self.tasks, *self.background]
        self._stuck = True
        paths = ", ".join(cell.path for cell in stuck[:MAX_STUCK_SHOWN]) or "an actor"
        more = f" and {len(stuck) - MAX_STUCK_SHOWN} more" if len(stuck) > MAX_STUCK_SHOWN else ""
        failure = ShutdownTimeout(
            f"{paths}{more} did not end within {SECONDS_AFTER_CANCEL:g} s after being cancelled, so the block of the "
            f"system was left without waiting any longer: handlers must not swallow cancellations"
        )
        if self._failure is None:
            self._failure = failure
        for cell in stuck[:MAX_STUCK_SHOWN]:
            where = "".join(awaiting(cell.coroutine))
            log.error("%s continues to run although it was cancelled. Its stack:\n%s", cell.path, where)
        for cell in stuck:
            self.backend.abandon(cell.task)
        if self._root_done is not None:
            self._root_done.wake()

    async def _leave_cluster(self) -> BaseException | None:
        """Leave the cluster, after every actor has ended. Returns an interrupt or cancellation that came meanwhile."""
        lost: BaseException | None = None
        left = self._node is None
        while self._node is not None and not left:
            try:
                await self._node.leave(self)
                left = True
            except (self.backend.cancelled, KeyboardInterrupt) as error:
                lost = error  # the node continues to leave, and nothing of it may be left behind
        return lost

    # For blocking code.

    @classmethod
    def blocking(
        cls,
        name: str = "system",
        *,
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> BlockingSystem:
        """Return a system for blocking code, whose event loop runs in its own thread.

        Use it as `with ActorSystem.blocking() as system:`.

        Args:
            name: the first part of all paths.
            backend: "asyncio" or "trio".
            backend_options: passed to anyio.
            **options: as for `ActorSystem`.
        """
        make: Callable[[], ActorSystem] = lambda: cls(name, **options)  # noqa: E731
        return BlockingSystem(make, backend, backend_options)


class BlockingSystem(ThreadedSystem[ActorSystem]):
    """An actor system with an event loop in its own thread; made by `ActorSystem.blocking()`.

    Any thread may call its methods. Leaving the `with` block ends all actors, as the async block does, and cancels
    calls of other threads that still wait. A first interrupt (Ctrl-C) ends the block at any moment, also while it is
    entered or left. In a process that was forked inside the block, each call raises `SystemClosed`.
    """
