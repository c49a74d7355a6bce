"""The class that users subclass: handlers, hooks, and the operations of an actor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from cuelight._checks import check_finite, check_seconds
from cuelight._text import safe_repr
from cuelight.actors._cell_extras import Background, LinkedExit
from cuelight.actors._handlers import HandlerTable, check_handlers
from cuelight.actors._messages import Exit, Start, Terminated
from cuelight.actors._ref import Ref
from cuelight.actors._reply import Reply, ReplyPort, defer, stash
from cuelight.actors._spec import ChildSpec
from cuelight.actors._timers import ActorTimer

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell
    from cuelight.actors._ref import Group
    from cuelight.actors._spawner import Runtime
    from cuelight.actors._task_cell import Inbox

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
    def system(self) -> Runtime:
        """The system that the actor lives in."""
        return self._cell.runtime

    @property
    def inbox(self) -> Inbox[M]:
        """The mailbox of the actor, for an overridden `run`.

        Raises:
            RuntimeError: the class does not override `run`.
        """
        return self._cell.runtime.inbox_of(self._cell)

    @property
    def remaining(self) -> float:
        """The seconds left for the request being handled, or `math.inf` if no caller waits."""
        return self._cell.runtime.remaining(self._cell)

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
        return await self._cell.runtime.spawn_under(self._cell, factory, args, kwargs)

    def spawn_nowait(self, spec: ChildSpec[C], /) -> Ref[C]:
        """Start a child without waiting. Its supervisor handles a failed start. Not a checkpoint.

        Raises:
            TypeError: `spec` is not a spec.
            NameTaken: a live actor already has the name in the spec.
        """
        given: Any = spec
        if not isinstance(given, ChildSpec):
            raise TypeError(f"spawn_nowait({safe_repr(given)}): give child(...), a spec that says how to start it")
        return Ref(self._cell.runtime.family_made(self._cell).adopt(spec))

    @property
    def children(self) -> tuple[Ref[Any], ...]:
        """The live children, in the order in which they were started."""
        family = self._cell.family
        return () if family is None else tuple(Ref(cell) for cell in family.children())

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
            mine.bonds_made().watched[theirs] = None
            theirs.bonds_made().watchers[mine] = None

    def unwatch(self, ref: Ref[Any]) -> None:
        """Undo `watch`. This also removes a `Terminated` that is not handled yet."""
        mine, theirs = self._cell, ref._cell
        if mine.bonds is not None:
            mine.bonds.watched.pop(theirs, None)
        if theirs.bonds is not None:
            theirs.bonds.watchers.pop(mine, None)
        mine.drop_terminated(ref)

    def link(self, ref: Ref[Any]) -> None:
        """Link two actors: when one ends abnormally, the other's incarnation crashes with `LinkedExit`."""
        mine, theirs = self._cell, ref._cell
        if not ref.alive:
            if theirs.exit is not None and theirs.exit.abnormal:
                mine.fail_with(LinkedExit.of(theirs, theirs.exit))
            return
        mine.bonds_made().links[theirs] = None
        theirs.bonds_made().links[mine] = None
        theirs.linked_by(mine)

    def unlink(self, ref: Ref[Any]) -> None:
        """Undo `link`."""
        for one, other in ((self._cell, ref._cell), (ref._cell, self._cell)):
            if one.bonds is not None:
                one.bonds.links.pop(other, None)
        ref._cell.unlinked_by(self._cell)

    def join(self, group: Group[Any] | str) -> None:
        """Join a process group, given as the group or as its name."""
        joined = self._cell.runtime.group(group) if isinstance(group, str) else group
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
        await self._cell.runtime.handle(self._cell, message)

    def defer_reply(self) -> ReplyPort:
        """Take over the reply to the request being handled. The handler's return value is then ignored.

        Raises:
            RuntimeError: no request is being handled: the message was told, or its reply was already taken over.
        """
        return defer(self._cell)

    def stash(self) -> None:
        """Set the message being handled aside, to be handled after `unstash`.

        The stash holds as many messages as the mailbox.

        Raises:
            StashFull: the stash is full.
            RuntimeError: no message is being handled.
        """
        stash(self._cell)

    def unstash(self) -> None:
        """Put all stashed messages back at the front of the mailbox, in the order in which they arrived."""
        if self._cell.bonds is not None:
            self._cell.bonds.unstash()

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
        serving = None if cell.bonds is None else cell.bonds.served_now()
        if serving is not None:
            serving.append(background)
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
            spent = cell.keeper.spent() | spent
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
        self._cell.keeper.spend(amounts)


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
