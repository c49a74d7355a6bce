"""What users subclass: handlers, hooks, and what an actor can do for itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from cuelight._checks import check_finite, check_seconds
from cuelight._text import safe_repr
from cuelight.actors._background import Background
from cuelight.actors._bonds import LinkedExit
from cuelight.actors._exits import Exit, Start, Terminated
from cuelight.actors._handlers import HandlerTable, check_handlers
from cuelight.actors._port import ReplyPort, defer, stash
from cuelight.actors._ref import Ref
from cuelight.actors._reply import Reply
from cuelight.actors._spec import ChildSpec
from cuelight.actors._timers import ActorTimer

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell
    from cuelight.actors._groups import Group
    from cuelight.actors._inbox import Inbox
    from cuelight.actors._runtime import Runtime

__all__ = ["Actor", "FunctionActor"]

M = TypeVar("M")
C = TypeVar("C")
T = TypeVar("T")
P = ParamSpec("P")


class Actor(Generic[M]):
    """State, and the handlers of the messages of type `M`, one message at a time.

    Set state in `__init__`: a restart calls it again, with the same arguments. Inside `__init__` the actor has its
    address already; spawn children and start timers in `started`.
    """

    __slots__ = ("_cell",)
    __table__: HandlerTable
    _cell: Cell

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """Build the table of handlers and compare it with the messages in `Actor[...]`.

        Args:
            abstract: the class is a base for others, which add the handlers that it lacks.
            **kwargs: for other base classes.

        Raises:
            TypeError: a message has no handler, or a handler is for a message that the class does not take.
        """
        super().__init_subclass__(**kwargs)
        cls.__table__ = HandlerTable(cls, Actor)
        if not abstract:
            check_handlers(cls, Actor, cls.__table__)

    def __takes__(self, message: M) -> None:
        """For type checkers: the messages that it takes."""

    # Hooks.

    def started(self, why: Start) -> Awaitable[None] | None:
        """Called before the first message of each incarnation; may be `async def`. Raising fails the start.

        Args:
            why: `Spawned`, or `WasRestarted` with how the incarnation before ended.
        """

    def restarting(self, why: Exit) -> Awaitable[None] | None:
        """Called on the old incarnation just before its successor is made; may be `async def`.

        Args:
            why: how it ended.
        """

    def stopped(self, why: Exit) -> Awaitable[None] | None:
        """Called once, when the actor has ended for good and its children with it; may be `async def`.

        Args:
            why: how it ended.
        """

    async def run(self) -> None:
        """The loop of the actor. Override it to receive by hand, or to `select`; when it returns, the actor stops."""
        inbox = self.inbox
        async for message in inbox:
            await self.handle(message)

    # Who it is.

    @property
    def ref(self) -> Ref[M]:
        """Its address."""
        return Ref(self._cell)

    @property
    def name(self) -> str:
        """Its name."""
        return self._cell.name

    @property
    def path(self) -> str:
        """Its place in the tree."""
        return self._cell.path

    @property
    def system(self) -> Runtime:
        """The system that it lives in."""
        return self._cell.runtime

    @property
    def inbox(self) -> Inbox[M]:
        """Its mailbox, for a `run` of its own.

        Raises:
            RuntimeError: the class does not override `run`.
        """
        return self._cell.runtime.inbox_of(self._cell)

    @property
    def remaining(self) -> float:
        """Seconds that are left to the request being handled; `math.inf` if nobody waits."""
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
        """Start a child and wait until it has started. It ends when this incarnation ends.

        Args:
            factory: an actor class or async function, followed by its arguments; or a spec made by `child`.
            *args: arguments for each incarnation.
            **kwargs: keyword arguments for each incarnation.

        Raises:
            StartError: its constructor or `started` hook raised.
            NameTaken: the spec has a name that a live actor has.
        """
        return await self._cell.runtime.spawn_under(self._cell, factory, args, kwargs)

    def spawn_nowait(self, spec: ChildSpec[C], /) -> Ref[C]:
        """Start a child and do not wait; a failed start is handled by its supervisor. Not a checkpoint.

        Raises:
            TypeError: this is no spec.
            NameTaken: the spec has a name that a live actor has.
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

    # Others.

    def watch(self, ref: Ref[Any]) -> None:
        """Be told `Terminated(ref, exit)` once when that actor has ended for good; also if it has already.

        Raises:
            TypeError: there is no `@on(Terminated)` handler (and no `run`) that could take it.
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
        """Undo `watch`, also for a `Terminated` that is under way."""
        mine, theirs = self._cell, ref._cell
        if mine.bonds is not None:
            mine.bonds.watched.pop(theirs, None)
        if theirs.bonds is not None:
            theirs.bonds.watchers.pop(mine, None)
        mine.drop_terminated(ref)

    def link(self, ref: Ref[Any]) -> None:
        """Tie two lives: when one ends abnormally, the other's incarnation crashes with `LinkedExit`."""
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
        """Become a member of a process group, given itself or by its name."""
        joined = self._cell.runtime.group(group) if isinstance(group, str) else group
        joined.join(self.ref)

    # Time.

    def after(self, delay: float, message: M, *, key: object = None) -> ActorTimer:
        """Tell itself a message after `delay` seconds, if the incarnation still lives.

        Args:
            delay: seconds; `math.inf` never sends it.
            message: what to tell.
            key: a timer with the same key that is still running is replaced.

        Raises:
            TypeError, ValueError: the delay is no number of seconds.
        """
        check_seconds("after(delay)", delay)
        return ActorTimer(self._cell, key, message, delay, None)

    def every(self, period: float, message: M, *, key: object = None) -> ActorTimer:
        """Tell itself a message every `period` seconds while the incarnation lives; missed periods are skipped.

        Args:
            period: seconds, more than 0.
            message: what to tell.
            key: a timer with the same key that is still running is replaced.

        Raises:
            TypeError, ValueError: the period is no number of seconds above 0.
        """
        if not check_seconds("every(period)", period, finite=True) > 0:
            raise ValueError(f"every({period!r}): a period is more than 0 seconds")
        return ActorTimer(self._cell, key, message, period, period)

    # The message at hand.

    async def handle(self, message: M) -> None:
        """Give a message that `run` received to its `@on` handler, and answer if it was asked."""
        await self._cell.runtime.handle(self._cell, message)

    def defer_reply(self) -> ReplyPort:
        """Take over the reply of the request being handled: what the handler returns is ignored from now on.

        Raises:
            RuntimeError: no request is being handled (it was told, or its reply was taken already).
        """
        return defer(self._cell)

    def stash(self) -> None:
        """Put the message being handled aside, to be handled after `unstash`. At most as many as the mailbox holds.

        Raises:
            StashFull: there are as many already.
            RuntimeError: no message is being handled.
        """
        stash(self._cell)

    def unstash(self) -> None:
        """Put all stashed messages back in front of the mailbox, in the order in which they came."""
        if self._cell.bonds is not None:
            self._cell.bonds.unstash()

    def pipe_to_self(
        self,
        work: Awaitable[T],
        to_message: Callable[[T], M],
        on_error: Callable[[Exception], M] | None = None,
    ) -> Background:
        """Do long work beside the messages; its result comes back as a message. It ends with the incarnation.

        If the handler has deferred its reply before, the work serves that request: it is cancelled when the asker
        stops waiting.

        Args:
            work: a coroutine, or another awaitable, such as the `Reply` of an ask.
            to_message: makes a message of the result.
            on_error: makes a message of an exception; without it an exception crashes the incarnation.

        Returns:
            A handle with `cancel()`: cancelled work sends nothing.
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
            _ = work.detach()  # it ends with the work now, not with this handler
        background = Background(cell, work, done)
        serving = None if cell.bonds is None else cell.bonds.served_now()
        if serving is not None:
            serving.append(background)
        return background

    # Ending.

    def stop(self) -> None:
        """Have itself finish its queue and end. Not a checkpoint."""
        self._cell.stop()

    @property
    def spent(self) -> dict[str, float]:
        """What was charged so far to the budgets of the supervisors above, by unit; of each unit to the nearest one."""
        spent: dict[str, float] = {}
        cell: Cell | None = self._cell
        while cell is not None:
            spent = cell.keeper.spent() | spent
            cell = cell.parent
        return spent

    def spend(self, **amounts: float) -> None:
        """Charge the budgets of the supervisors above, as in `self.spend(tokens=1200, usd=0.02)`.

        Args:
            **amounts: what was spent, by unit; less than 0 gives back.

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


# At run time only: for type checkers the properties stay without setters.
for _name, _value in list(vars(Actor).items()):
    if isinstance(_value, property):
        setattr(Actor, _name, _value.setter(_refused(_name)))

Actor.__table__ = HandlerTable(Actor, Actor)


class FunctionActor(Actor[Any]):
    """An actor made of an async function, which is its `run`."""

    def __init__(self, function: Callable[..., Awaitable[None]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs

    async def run(self) -> None:
        await self._function(self.inbox, *self._args, **self._kwargs)
