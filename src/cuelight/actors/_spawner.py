"""The parts that all actors of a system share besides the dispatcher: spawning, names and groups."""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import inspect
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr, type_name
from cuelight.actors._actor import Actor, FunctionActor
from cuelight.actors._cell import DEAD, Cell
from cuelight.actors._cell_extras import Bonds
from cuelight.actors._dispatcher import Dispatcher
from cuelight.actors._eager_cell import EagerCell
from cuelight.actors._messages import Crashed
from cuelight.actors._plain_cell import PlainCell
from cuelight.actors._ref import Group, Ref
from cuelight.actors._spec import ChildSpec, check_function
from cuelight.actors._task_cell import Inbox, TaskCell
from cuelight.errors import ActorNotFound, NameTaken, StartError, SystemClosed, ends_the_program

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.actors._cell import Family
    from cuelight.actors._handlers import HandlerTable
    from cuelight.actors._message_disposal import Fates


M = TypeVar("M")
P = ParamSpec("P")

log = get_log("cuelight")

WARNINGS_PER_KIND = 5
"""The number of warnings about messages without a handler, for each pair of actor class and message class."""

KINDS_OF_WARNINGS = 1000


class Runtime(Dispatcher):
    """The runtime of one system. `ActorSystem` adds the tree."""

    root: Cell

    def __init__(self, *, ask_timeout: float, keep_dead_letters: int, node: Node | None = None) -> None:
        super().__init__(ask_timeout=ask_timeout, keep_dead_letters=keep_dead_letters)
        self._node = node
        self.alive = 0
        self.next_serial: Callable[[], int] = count(1).__next__
        self._unhandled: dict[tuple[str, str], int] = {}
        self._names: dict[str, Cell] = {}
        self._groups: dict[str, Group[Any]] = {}

    # Spawning.

    def new_family(self, owner: Cell) -> Family:
        """Return a family for the children that an actor spawns."""
        raise NotImplementedError

    def family_made(self, cell: Cell) -> Family:
        """Return the family of a live cell, made at its first child.

        Raises:
            SystemClosed: the actor is ending.
        """
        cell.must_live("children")
        if cell.family is None:
            cell.family = self.new_family(cell)
        return cell.family

    def new_bonds(self, cell: Cell) -> Bonds:
        return Bonds(cell)

    def new_cell(self, keeper: Family, spec: ChildSpec[Any]) -> Cell:
        """Return a cell for a spec: plain if no method of the class can suspend, eager if only handlers can.

        Raises:
            NameTaken: a live actor has the name.
            SystemClosed: the system is not running.
        """
        if not self._open:
            raise SystemClosed("the actor system is not running: spawn inside its `async with` block")
        if get_ident() != self.thread:
            raise self.wrong_thread("the actor system")
        if spec.name is not None:
            taken = self._names.get(spec.name)
            if taken is not None:
                raise NameTaken(f"{taken.path} has the name {spec.name!r} already")
        table = self._table_of(spec)
        kind: type[Cell] = TaskCell
        if isinstance(spec.factory, type):
            if table.plain:
                kind = PlainCell
            elif self.backend.steps_by_hand and not (table.own_run or table.hooks or table.streaming):
                kind = EagerCell
        cell = kind(keeper, spec, table)
        if spec.name is not None:
            self._names[spec.name] = cell
        self.alive += 1
        return cell

    def _table_of(self, spec: ChildSpec[Any]) -> HandlerTable:
        factory = spec.factory
        if isinstance(factory, type):
            if issubclass(factory, Actor):
                return factory.__table__
            raise TypeError(f"{factory.__name__} is not an Actor: subclass Actor, or give an async function")
        if inspect.iscoroutinefunction(factory):
            check_function(factory, spec.args, spec.kwargs or {})
            return FunctionActor.__table__
        if callable(factory):
            return Actor.__table__
        raise TypeError(
            f"cannot spawn {safe_repr(factory)}: give an Actor class, a function, or child(...), not an instance"
        )

    def adapt(self, cell: Cell, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Actor[Any]:
        """Return an actor that a function returns, or one made from an async function."""
        if inspect.iscoroutinefunction(factory):
            return FunctionActor(factory, args, kwargs)
        actor = factory(*args, **kwargs)
        if not isinstance(actor, Actor):
            raise TypeError(f"{safe_repr(factory)} returned {safe_repr(actor)}, not an Actor")
        cell.table = type(actor).__table__
        return actor

    @overload
    async def spawn(self, factory: ChildSpec[M], /) -> Ref[M]: ...
    @overload
    async def spawn(self, factory: Callable[P, Actor[M]], /, *args: P.args, **kwargs: P.kwargs) -> Ref[M]: ...
    @overload
    async def spawn(
        self,
        factory: Callable[Concatenate[Inbox[M], P], Awaitable[None]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Ref[M]: ...
    async def spawn(self, factory: Any, /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start an actor at the top of the tree and wait until it has started. A checkpoint only if that takes time.

        Args:
            factory: an actor class or an async function, followed by its arguments; or a spec made by `child`.
            *args: arguments for each incarnation.
            **kwargs: keyword arguments for each incarnation.

        Raises:
            StartError: the constructor or the `started` hook of the actor raised.
            NameTaken: a live actor already has the name in the spec.
            SystemClosed: the system is not running, or is shutting down.
        """
        return await self.spawn_under(self.root, factory, args, kwargs)

    async def spawn_under(self, parent: Cell, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref[Any]:
        """Start a child and wait until it has started.

        Raises:
            StartError: its constructor or `started` hook raised, or it was killed while it started.
        """
        spec = factory if isinstance(factory, ChildSpec) else ChildSpec(factory, args, kwargs or None)
        if spec is factory and (args or kwargs):
            raise TypeError("a spec has its arguments already: spawn(child(Counter, start=10))")
        cell = self.family_made(parent).adopt(spec, sponsored=True)
        if not cell.incarnation and cell.state != DEAD:
            await self._until_started(cell)
        if not cell.incarnation and cell.exit is not None:
            error = cell.exit.error if isinstance(cell.exit, Crashed) else None
            why = cell.exit.describe() if error is None else describe_error(error)
            raise StartError(f"{cell.path} did not start: {why}") from error
        return Ref(cell)

    async def _until_started(self, cell: Cell) -> None:
        waiter = self.backend.waiter()
        wake = waiter.wake
        bonds = cell.bonds_made()
        bonds.call_when_started(wake)
        try:
            await waiter
        except BaseException:
            bonds.when_started.pop(wake, None)
            cell.kill("the code that spawned it was cancelled while it started")
            raise

    def inbox_of(self, cell: Cell) -> Inbox[Any]:
        """Return the inbox of an actor with an overridden `run`."""
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} has handlers: only an actor that overrides run() receives by hand")
        if cell.inbox is None:
            cell.inbox = Inbox(cell)
        return cell.inbox

    async def handle(self, cell: Cell, message: Any) -> None:
        """Pass a message that `run` received to its handler."""
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} does not override run(): its messages go to its handlers by themselves")
        await cell.handle(message)

    # Names and groups.

    def find(self, name: str) -> Ref[Any]:
        """Return the live actor that was given this name. Its ref outlives restarts.

        Raises:
            ActorNotFound: there is none.
        """
        cell = self._names.get(name)
        if cell is None:
            known = ", ".join(sorted(self._names)) or "none"
            raise ActorNotFound(f"no actor is named {name!r}; names in use: {known}")
        return Ref(cell)

    def forget_name(self, cell: Cell) -> None:
        """Remove the name of an actor that has ended."""
        if cell.label is not None and self._names.get(cell.label) is cell:
            del self._names[cell.label]

    async def expose(self, ref: Ref[Any], name: str) -> None:
        """Register an actor of this system under a name for the other systems of its cluster. A checkpoint.

        The name becomes free when the actor has ended permanently, or when its node has left the cluster or was lost.

        Args:
            ref: an actor of this system.
            name: unique in the cluster.

        Raises:
            NameTaken: another live actor has the name.
            ActorNotFound: the actor has ended.
            ValueError: the actor does not belong to this system, or the name is not valid.
            StoreUnavailable: the cluster cannot be reached.
        """
        await self._node_or_raise("expose").expose(ref, name)

    async def unexpose(self, name: str) -> None:
        """Remove a name that was registered with `expose`. Refs stay valid. A checkpoint.

        Raises:
            ActorNotFound: this system has not registered the name.
            StoreUnavailable: the cluster cannot be reached.
        """
        await self._node_or_raise("unexpose").unexpose(name)

    async def resolve(self, name: str, timeout: float = 0.0) -> Ref[Any]:
        """Return the actor that was exposed under this name, wherever in the cluster it lives. A checkpoint.

        Args:
            name: the name given to `expose`.
            timeout: seconds to wait until the name is registered; 0 checks once.

        Raises:
            ActorNotFound: no actor has the name. The message lists similar names.
            StoreUnavailable: the cluster cannot be reached.
        """
        return await self._node_or_raise("resolve").resolve(name, timeout)

    def _node_or_raise(self, verb: str) -> Node:
        if self._node is None:
            raise RuntimeError(
                f"cannot {verb}: this system belongs to no cluster. Give it a node: "
                f"ActorSystem(..., node=RedisNode(url, messages=[...]))"
            )
        if not self._open:
            raise SystemClosed(f"the actor system is not running: {verb} inside its `async with` block")
        return self._node

    def group(self, name: str) -> Group[Any]:
        """Return the process group with this name. It is made at the first call."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(self, name)
        return group

    # Problems.

    def hook_failed(self, cell: Cell, hook: str, error: BaseException) -> None:
        """Log a failure of a `stopped` or `restarting` hook. No caller could receive the error."""
        log.error(
            "the %s hook of %s failed and was ignored: %s",
            hook,
            cell.path,
            describe_error(error),
            error=error,
            kind=("hook", hook, cell.table.name),
        )

    def stream_failed(self, cell: Cell, message: Any, error: BaseException) -> None:
        """Log that the generator of a stream handler raised while it was closed."""
        log.error(
            "the stream handler of %s for %s failed in its cleanup, after its stream had ended: %s",
            cell.path,
            safe_repr(message),
            describe_error(error),
            error=error,
            kind=("stream", cell.table.name, type_name(message)),
        )

    def policy_failed(self, cell: Fates, error: BaseException) -> None:
        """Log that an overflow policy raised for a message whose sender, a timer or a thread, does not wait."""
        log.error(
            "the overflow policy of %s raised, so the message is a dead letter: %s",
            cell.path,
            describe_error(error),
            error=error,
            kind=("policy", cell.options.overflow),
        )
        if ends_the_program(error):
            self.abort(error)

    def report_unhandled(self, path: str, actor: str, message: Any, advice: str) -> None:
        """Warn about a message without a handler, for the first few of each pair of actor class and message class."""
        kind = (actor, type_name(message))
        seen = self._unhandled.get(kind, 0)
        if seen < WARNINGS_PER_KIND and (seen or len(self._unhandled) < KINDS_OF_WARNINGS):
            self._unhandled[kind] = seen + 1
            log.warning("%s has no handler for %s, which is a dead letter: %s", path, safe_repr(message), advice)


# The interface between a system and its cluster. The redis package implements it.


class Node(Protocol):
    """The membership of a system in a cluster: it registers names of actors and resolves names to refs."""

    async def join(self, runtime: Runtime) -> None:
        """Enter the cluster. Called once, when the system's block is entered."""
        ...

    async def expose(self, ref: Ref[Any], name: str) -> None:
        """Register an actor of this system under a name."""
        ...

    async def unexpose(self, name: str) -> None:
        """Remove a name."""
        ...

    async def resolve(self, name: str, timeout: float) -> Ref[Any]:
        """Return the actor with this name, wherever it is in the cluster."""
        ...

    def withdraw(self, runtime: Runtime) -> None:
        """Begin to remove all names, because the system is about to end. Do nothing if another system has joined."""
        ...

    async def leave(self, runtime: Runtime) -> None:
        """Leave the cluster, as far as it was entered, and wait for that. Every actor has ended.

        Do nothing if another system has joined. This must neither raise nor take long. If it is cancelled, it is called
        again to continue the wait.
        """
        ...
