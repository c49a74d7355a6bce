"""The class that users subclass, and the runtime that starts its instances: spawning, names and groups."""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from cuelight._checks import check_finite, check_seconds
from cuelight._text import describe_error, safe_repr
from cuelight.actors._background import ActorTimer, Background
from cuelight.actors._cell import DEAD, Cell, LinkedExit
from cuelight.actors._dispatcher import Dispatcher
from cuelight.actors._eager_cell import EagerCell
from cuelight.actors._handlers import HandlerTable, check_handlers
from cuelight.actors._messages import ControlMessage, Crashed, Exit, Start
from cuelight.actors._plain_cell import PlainCell
from cuelight.actors._ref import Group, Ref, Terminated
from cuelight.actors._reply import QUEUED, RUNNING, SET_ASIDE, PendingAsk, Reply, ReplyPort, StreamSlot
from cuelight.actors._spec import ChildSpec, check_function
from cuelight.actors._task_cell import Inbox, TaskCell
from cuelight.errors import ActorNotFound, NameTaken, StartError, StashFull, SystemClosed

if TYPE_CHECKING:
    from cuelight.actors._cell import ChildSupervisor

M = TypeVar("M")
C = TypeVar("C")
T = TypeVar("T")
P = ParamSpec("P")


class Actor(Generic[M]):
    """The base class of actors: state, and handlers for messages of type `M`, which run one at a time.

    Set the state in `__init__`: a restart calls it again, with the same arguments. The actor already has its address
    inside `__init__`, but spawn children and start timers in `started`.
    """

    __slots__ = ("_cell",)
    __table__: HandlerTable
    _cell: Cell

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """Build the table of handlers and compare it with the messages in `Actor[...]`.

        Args:
            abstract: the class is a base for other classes, which add the missing handlers.
            **kwargs: for other base classes.

        Raises:
            TypeError: a message has no handler, or a handler is for a message that the class does not take.
        """
        super().__init_subclass__(**kwargs)
        cls.__table__ = HandlerTable(cls, Actor)
        if not abstract:
            check_handlers(cls, Actor, cls.__table__)

    def __takes__(self, message: M) -> None:
        """Declare the messages that the actor takes, for type checkers."""

    # Hooks.

    def started(self, why: Start) -> Awaitable[None] | None:
        """Called before the first message of each incarnation; may be `async def`. Raising fails the start.

        Args:
            why: `Spawned`, or `WasRestarted` with the exit of the previous incarnation.
        """

    def restarting(self, why: Exit) -> Awaitable[None] | None:
        """Called on the old incarnation just before its successor is made; may be `async def`.

        Args:
            why: the exit of the old incarnation.
        """

    def stopped(self, why: Exit) -> Awaitable[None] | None:
        """Called once, when the actor and its children have ended permanently; may be `async def`.

        Args:
            why: the exit of the actor.
        """

    async def run(self) -> None:
        """Receive and handle messages. The actor stops when this returns.

        Override it to receive messages yourself, or to use `select`.
        """
        inbox = self.inbox
        async for message in inbox:
            await self.handle(message)

    # Identity.

    @property
    def ref(self) -> Ref[M]:
        """The address of the actor."""
        return Ref(self._cell)

    @property
    def name(self) -> str:
        """The name of the actor."""
        return self._cell.name

    @property
    def path(self) -> str:
        """The path of the actor in the tree of actors."""
        return self._cell.path

    @property
    def system(self) -> ActorRuntime:
        """The system that the actor lives in."""
        runtime = self._cell.runtime
        assert isinstance(runtime, ActorRuntime)  # noqa: S101 - there is no other kind
        return runtime

    @property
    def inbox(self) -> Inbox[M]:
        """The mailbox of the actor, for an overridden `run`.

        Raises:
            RuntimeError: the class does not override `run`.
        """
        cell = self._cell
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} has handlers: only an actor that overrides run() receives by hand")
        if cell.inbox is None:
            cell.inbox = Inbox(cell)
        return cell.inbox

    @property
    def remaining(self) -> float:
        """The seconds left for the request being handled, or `math.inf` if no caller waits."""
        cell = self._cell
        running = cell.running
        if not isinstance(running, PendingAsk):
            return math.inf
        return max(0.0, (running.due or cell.runtime.due_in(running.timeout)) - cell.runtime.backend.time())

    # Children.

    @overload
    async def spawn(self, factory: ChildSpec[C], /) -> Ref[C]: ...
    @overload
    async def spawn(self, factory: Callable[P, Actor[C]], /, *args: P.args, **kwargs: P.kwargs) -> Ref[C]: ...
    @overload
    async def spawn(
        self,
        factory: Callable[Concatenate[Inbox[C], P], Awaitable[None]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Ref[C]: ...
    async def spawn(self, factory: Any, /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start a child and wait until it has started. The child ends when this incarnation ends.

        Args:
            factory: an actor class or an async function, followed by its arguments; or a spec made by `child`.
            *args: arguments for each incarnation.
            **kwargs: keyword arguments for each incarnation.

        Raises:
            StartError: the constructor or the `started` hook of the child raised.
            NameTaken: a live actor already has the name in the spec.
        """
        return await _spawn_under(self._cell, factory, args, kwargs)

    def spawn_nowait(self, spec: ChildSpec[C], /) -> Ref[C]:
        """Start a child without waiting. Its supervisor handles a failed start. Not a checkpoint.

        Raises:
            TypeError: `spec` is not a spec.
            NameTaken: a live actor already has the name in the spec.
        """
        given: Any = spec
        if not isinstance(given, ChildSpec):
            raise TypeError(f"spawn_nowait({safe_repr(given)}): give child(...), a spec that says how to start it")
        return Ref(self._cell.ensure_children().start_child(spec))

    @property
    def children(self) -> tuple[Ref[Any], ...]:
        """The live children, in the order in which they were started."""
        children = self._cell.children
        return () if children is None else tuple(Ref(cell) for cell in children.cells())

    # Other actors.

    def watch(self, ref: Ref[Any]) -> None:
        """Watch an actor: receive `Terminated(ref, exit)` once it has ended permanently, or now if it already has.

        The message is sent once.

        Raises:
            TypeError: this actor has no `@on(Terminated)` handler (and no overridden `run`) to receive it.
        """
        mine, theirs = self._cell, ref._cell
        table = mine.table
        if not table.own_run and Terminated not in table.calls:
            raise TypeError(f"{table.name} watches {ref.path} but has no @on(Terminated) handler: add one")
        if theirs.exit is not None and not ref.alive:
            mine.put_control(Terminated(ref, theirs.exit))
        else:
            mine.ensure_extras().watched[theirs] = None
            theirs.ensure_extras().watchers[mine] = lambda exit_: mine.put_control(Terminated(ref, exit_))

    def unwatch(self, ref: Ref[Any]) -> None:
        """Undo `watch`. This also removes a `Terminated` that is not handled yet."""
        mine, theirs = self._cell, ref._cell
        if mine.extras is not None:
            mine.extras.watched.pop(theirs, None)
        if theirs.extras is not None:
            theirs.extras.watchers.pop(mine, None)

        def is_of_ref(message: ControlMessage) -> bool:
            return isinstance(message, Terminated) and message.ref == ref

        mine.drop_control(is_of_ref)

    def link(self, ref: Ref[Any]) -> None:
        """Link two actors: when one ends abnormally, the other's incarnation crashes with `LinkedExit`."""
        mine, theirs = self._cell, ref._cell
        if not ref.alive:
            if theirs.exit is not None and theirs.exit.abnormal:
                mine.fail_with(LinkedExit.of(theirs, theirs.exit))
            return
        mine.ensure_extras().links[theirs] = None
        theirs.ensure_extras().links[mine] = None
        theirs.linked_by(mine)

    def unlink(self, ref: Ref[Any]) -> None:
        """Undo `link`."""
        for one, other in ((self._cell, ref._cell), (ref._cell, self._cell)):
            if one.extras is not None:
                one.extras.links.pop(other, None)
        ref._cell.unlinked_by(self._cell)

    def join(self, group: Group[Any] | str) -> None:
        """Join a process group, given as the group or as its name."""
        joined = self.system.group(group) if isinstance(group, str) else group
        joined.join(self.ref)

    # Time.

    def after(self, delay: float, message: M, *, key: object = None) -> ActorTimer:
        """Send this actor a message after `delay` seconds, if the incarnation still lives.

        Args:
            delay: seconds; `math.inf` never sends it.
            message: the message to send.
            key: replaces a running timer with the same key.

        Raises:
            TypeError, ValueError: the delay is not a valid number of seconds.
        """
        check_seconds("after(delay)", delay)
        return ActorTimer(self._cell, key, message, delay, None)

    def every(self, period: float, message: M, *, key: object = None) -> ActorTimer:
        """Send this actor a message every `period` seconds while the incarnation lives. Missed periods are skipped.

        Args:
            period: seconds, more than 0.
            message: the message to send.
            key: replaces a running timer with the same key.

        Raises:
            TypeError, ValueError: the period is not a finite number of seconds above 0.
        """
        if not check_seconds("every(period)", period, finite=True) > 0:
            raise ValueError(f"every({period!r}): a period is more than 0 seconds")
        return ActorTimer(self._cell, key, message, period, period)

    # The current message.

    async def handle(self, message: M) -> None:
        """Pass a message that `run` received to its `@on` handler, and send the reply if it was a request."""
        cell = self._cell
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} does not override run(): its messages go to its handlers by themselves")
        await cell.handle(message)

    def defer_reply(self) -> ReplyPort:
        """Take over the reply to the request being handled. The handler's return value is then ignored.

        Raises:
            RuntimeError: no request is being handled: the message was told, or its reply was already taken over.
        """
        return _defer(self._cell)

    def stash(self) -> None:
        """Set the message being handled aside, to be handled after `unstash`.

        The stash holds as many messages as the mailbox.

        Raises:
            StashFull: the stash is full.
            RuntimeError: no message is being handled.
        """
        _stash(self._cell)

    def unstash(self) -> None:
        """Put all stashed messages back at the front of the mailbox, in the order in which they arrived."""
        self._cell.unstash()

    def pipe_to_self(
        self,
        work: Awaitable[T],
        to_message: Callable[[T], M],
        on_error: Callable[[Exception], M] | None = None,
    ) -> Background:
        """Run long work in the background and send its result to this actor. The work ends with the incarnation.

        If the handler has already deferred its reply, the work serves that request: it is cancelled when the asker
        stops waiting.

        Args:
            work: a coroutine, or another awaitable, such as the `Reply` of an ask.
            to_message: makes a message from the result.
            on_error: makes a message from an exception. Without it, an exception crashes the incarnation.

        Returns:
            A handle with `cancel()`. Cancelled work sends nothing.
        """
        cell = self._cell

        def done(result: Any, error: BaseException | None) -> None:
            try:
                if error is None:
                    cell.put_or_drop(to_message(result))
                elif on_error is not None and isinstance(error, Exception):
                    cell.put_or_drop(on_error(error))
                else:
                    cell.fail_with(error)
            except BaseException as raised:
                cell.fail_with(cell.as_failure(raised))

        if isinstance(work, Reply):
            _ = work.detach()  # the request now ends with the work, not with this handler
        background = Background(cell, work, done)
        extras, running = cell.extras, cell.running
        asked = None if extras is None else extras.deferred_now
        if extras is not None and asked in extras.deferred and (running is SET_ASIDE or running is asked):
            extras.deferred[asked].append(background)
        return background

    # Ending.

    def stop(self) -> None:
        """Request a stop: the actor finishes its queue and ends. Not a checkpoint."""
        self._cell.stop()

    @property
    def spent(self) -> dict[str, float]:
        """The amounts charged so far to the budgets of the supervisors above, by unit.

        For each unit this is the amount of the nearest supervisor that has a budget for it.
        """
        spent: dict[str, float] = {}
        cell: Cell | None = self._cell
        while cell is not None:
            spent = cell.supervisor.spent() | spent
            cell = cell.parent
        return spent

    def spend(self, **amounts: float) -> None:
        """Charge the budgets of the supervisors above, as in `self.spend(tokens=1200, usd=0.02)`.

        Args:
            **amounts: the amounts to charge, by unit. A negative amount is a refund.

        Raises:
            TypeError, ValueError: an amount is not a finite number.
        """
        for unit, amount in amounts.items():
            check_finite(f"spend({unit})", amount)
        self._cell.supervisor.spend(amounts)


def _refused(name: str) -> Callable[[Any, Any], None]:
    def refuse(self: Any, _: Any) -> None:
        raise AttributeError(
            f"{type(self).__name__}.{name} is what every actor has and cannot be set: give your attribute another name"
        )

    return refuse


# At run time only: type checkers still see properties without setters.
for _name, _value in list(vars(Actor).items()):
    if isinstance(_value, property):
        setattr(Actor, _name, _value.setter(_refused(_name)))

Actor.__table__ = HandlerTable(Actor, Actor)


class FunctionActor(Actor[Any]):
    """An actor made from an async function, which becomes its `run`."""

    def __init__(self, function: Callable[..., Awaitable[None]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs

    async def run(self) -> None:
        await self._function(self.inbox, *self._args, **self._kwargs)


@overload
def child(factory: Callable[P, Actor[M]], /, *args: P.args, **kwargs: P.kwargs) -> ChildSpec[M]: ...
@overload
def child(
    factory: Callable[Concatenate[Inbox[M], P], Awaitable[None]], /, *args: P.args, **kwargs: P.kwargs
) -> ChildSpec[M]: ...
def child(factory: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ChildSpec[Any]:
    """Describe an actor for `spawn` or a supervisor: its class (or function) and the arguments of its constructor.

    Args:
        factory: an `Actor` class, a function that returns an actor, or an async function whose first parameter is its
            `Inbox`.
        *args: arguments for each incarnation.
        **kwargs: keyword arguments for each incarnation.

    Raises:
        TypeError: `factory` cannot be called.
    """
    if not callable(factory):
        raise TypeError(f"child({safe_repr(factory)}): give an Actor class, or a function, not an instance")
    if inspect.iscoroutinefunction(factory):
        check_function(factory, args, kwargs)
    return ChildSpec(factory, args, kwargs or None)


async def _spawn_under(parent: Cell, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref[Any]:
    """Start a child and wait until it has started.

    Raises:
        StartError: its constructor or `started` hook raised, or it was killed while it started.
    """
    spec = factory if isinstance(factory, ChildSpec) else ChildSpec(factory, args, kwargs or None)
    if spec is factory and (args or kwargs):
        raise TypeError("a spec has its arguments already: spawn(child(Counter, start=10))")
    cell = parent.ensure_children().start_child(spec, awaited_start=True)
    if not cell.incarnation and cell.state != DEAD:
        await _until_started(cell)
    if not cell.incarnation and cell.exit is not None:
        error = cell.exit.error if isinstance(cell.exit, Crashed) else None
        why = cell.exit.describe() if error is None else describe_error(error)
        raise StartError(f"{cell.path} did not start: {why}") from error
    return Ref(cell)


async def _until_started(cell: Cell) -> None:
    waiter = cell.runtime.backend.waiter()
    wake = waiter.wake
    extras = cell.ensure_extras()
    extras.call_when_started(wake)
    try:
        await waiter
    except BaseException:
        extras.when_started.pop(wake, None)
        cell.kill("the code that spawned it was cancelled while it started")
        raise


# Setting aside the message being handled, to answer it later or to handle it again later.


def _set_aside_running(cell: Cell, verb: str) -> Any:
    """Return the item being handled and set it aside. An inline request gets its slot now."""
    item = cell.running
    inline = cell.inside_ask
    if item is None or item is SET_ASIDE or (inline and isinstance(item, PendingAsk)):
        raise RuntimeError(f"{cell.path} cannot {verb}: no message is being handled, or it was set aside already")
    if inline:
        asked: PendingAsk = PendingAsk(item, cell, cell.runtime.inline_ask_timeout())
        asked.state = RUNNING
        cell.running = asked
        return asked
    cell.running = SET_ASIDE
    return item


def _defer(cell: Cell) -> ReplyPort:
    if isinstance(cell.running, StreamSlot):
        raise RuntimeError(f"{cell.path} cannot defer a reply: a stream handler yields its answers")  # noqa: TRY004
    item = _set_aside_running(cell, "defer a reply")
    if isinstance(item, PendingAsk):
        extras = cell.ensure_extras()
        extras.deferred[item] = []
        extras.deferred_now = item
        return ReplyPort(item)
    cell.running = item
    raise RuntimeError(f"{cell.path} cannot defer a reply: {safe_repr(item)} was told, not asked")


def _stash(cell: Cell) -> None:
    extras = cell.ensure_extras()
    waiting = extras.stash
    if len(waiting) >= cell.options.capacity:
        raise StashFull(f"the stash of {cell.path} holds {len(waiting)} messages: unstash(), or give it more capacity")
    item = _set_aside_running(cell, "stash")
    extras.deferred_now = None
    if isinstance(item, PendingAsk):
        item.state = QUEUED
    waiting.append(item)


class ActorRuntime(Dispatcher):
    """The runtime of one system. `ActorSystem` adds the tree."""

    root: Cell
    shutdown_timeout: float

    def __init__(self, *, ask_timeout: float, keep_dead_letters: int, node: ClusterNode | None = None) -> None:
        super().__init__(ask_timeout=ask_timeout, keep_dead_letters=keep_dead_letters)
        self._node = node
        self._names: dict[str, Cell] = {}
        self._groups: dict[str, Group[Any]] = {}

    # Spawning.

    @abstractmethod
    def new_children(self, owner: Cell) -> ChildSupervisor:
        """Return a supervisor for the children that an actor spawns."""

    def new_cell(self, supervisor: ChildSupervisor, spec: ChildSpec[Any]) -> Cell:
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
        kind: Callable[[ChildSupervisor, ChildSpec[Any], HandlerTable], Cell] = TaskCell
        if isinstance(spec.factory, type):
            if table.plain:
                kind = PlainCell
            elif self.backend.steps_by_hand and not (table.own_run or table.hooks or table.streaming):
                kind = EagerCell
        cell = kind(supervisor, spec, table)
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
        return await _spawn_under(self.root, factory, args, kwargs)

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

    def _node_or_raise(self, verb: str) -> ClusterNode:
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


# The interface between a system and its cluster. The redis package implements it.


class ClusterNode(Protocol):
    """The membership of a system in a cluster: it registers names of actors and resolves names to refs."""

    async def join(self, runtime: ActorRuntime) -> None:
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

    def withdraw(self, runtime: ActorRuntime) -> None:
        """Begin to remove all names, because the system is about to end. Do nothing if another system has joined."""
        ...

    async def leave(self, runtime: ActorRuntime) -> None:
        """Leave the cluster, as far as it was entered, and wait for that. Every actor has ended.

        Do nothing if another system has joined. This must neither raise nor take long. If it is cancelled, it is called
        again to continue the wait.
        """
        ...
