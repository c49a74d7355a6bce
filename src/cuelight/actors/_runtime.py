"""What the actors of one system share: the dispatcher, time, names, groups and dead letters.

The dispatcher is one task. It runs what supervisors have to decide first, then gives each plain actor that has mail
a turn. Supervision therefore never waits for a handler, and never runs inside one.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from cuelight.actors._actor import Actor, FunctionActor
from cuelight.actors._bonds import Bonds
from cuelight.actors._cell import DEAD, DRAINING, STARTING, Cell
from cuelight.actors._dead_letters import DeadLetters
from cuelight.actors._exits import Crashed
from cuelight.actors._groups import Group
from cuelight.actors._inbox import Inbox
from cuelight.actors._plain_cell import PlainCell
from cuelight.actors._ref import Ref
from cuelight.actors._reply import Asked
from cuelight.actors._spec import ChildSpec
from cuelight.actors._task_cell import TaskCell
from cuelight.actors._timers import Alarms, Later
from cuelight.errors import ActorNotFound, NameTaken, StartError, SystemClosed
from cuelight.mailbox import Waiter, current_backend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.actors._family import Family
    from cuelight.actors._handlers import HandlerTable
    from cuelight.mailbox import Backend

__all__ = ["Runtime"]

M = TypeVar("M")
P = ParamSpec("P")

log = logging.getLogger("cuelight")

TURNS_PER_PASS = 64
INLINE_ASKS_PER_PASS = 256
LINGER = 5.0
"""Seconds that an idle task is kept, at least; at most twice that."""

GRAIN = 64
"""Deadlines are rounded up to a 64th of the time-out, so that many share one timer."""


class Runtime:
    """One system's dispatcher and directories. `ActorSystem` adds the tree."""

    root: Cell

    def __init__(self, *, ask_timeout: float, keep_dead_letters: int) -> None:
        self.ask_timeout = ask_timeout
        self.late_replies = 0
        self.inline = 0
        self.told = 0
        self.awake = 0
        self.alive = 0
        self.restarting = 0
        self.turning: Cell | None = None
        self.next_serial: Callable[[], int] = count(1).__next__
        self._keep_dead_letters = keep_dead_letters
        self._ready: deque[PlainCell] = deque()
        self._events: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._parked: Waiter | None = None
        self._open = False
        self._ended: Waiter | None = None
        self._dispatching = False
        self._idle_waiters: list[Waiter] = []
        self._names: dict[str, Cell] = {}
        self._groups: dict[str, Group[Any]] = {}
        self.tasks: dict[TaskCell, None] = {}
        self._warm: dict[TaskCell, None] = {}
        self._cooling: dict[TaskCell, None] = {}
        self._sweeping = False

    # The dispatcher.

    def open_runtime(self) -> None:
        """Bind to the running loop and start the dispatcher."""
        self.backend: Backend = current_backend()
        self.alarms = Alarms(self.backend)
        self.dead_letters = DeadLetters(self._keep_dead_letters, self.backend.time)
        self._open = self._dispatching = True
        self.backend.spawn(self._dispatch, context=copy_context(), name="cuelight dispatcher")

    async def close_runtime(self) -> None:
        """End the dispatcher and all time; every actor has ended."""
        self._open = False
        self.alarms.close()
        self.dead_letters.close()
        self._wake()
        while self._dispatching:
            self._ended = self.backend.waiter()
            await self._ended

    def schedule(self, cell: PlainCell) -> None:
        """Give a plain cell a turn soon."""
        self.awake += 1
        self._ready.append(cell)
        if self._parked is not None:
            self._wake()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have a decision of supervision taken soon, outside of all handlers."""
        self._events.append((function, args))
        if self._parked is not None:
            self._wake()

    def _wake(self) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            parked.wake()

    async def _dispatch(self) -> None:
        try:
            while self._open or self._ready or self._events:
                try:
                    self._pass()
                except Exception:
                    log.exception("an internal error of Cuelight; please report it")
                except BaseException as error:
                    self.abort(error)
                if self._ready or self._events:
                    await self.backend.checkpoint()
                elif self._open:
                    if self._idle_waiters and self.is_idle:
                        self._tell_idle()
                    self._parked = waiter = self.backend.waiter()
                    await waiter
        except self.backend.cancelled as error:
            self.abort(error)
        finally:
            self._parked = None
            self._dispatching = False
            if self._ended is not None:
                self._ended.wake()

    def _pass(self) -> None:
        events, ready = self._events, self._ready
        self.inline = 0
        while events:
            function, args = events.popleft()
            function(*args)
        for _ in range(min(TURNS_PER_PASS, len(ready))):
            cell = ready.popleft()
            self.turning = cell
            if cell.context.run(cell.turn):
                ready.append(cell)
            if events:
                break
        self.turning = None
        self.inline = INLINE_ASKS_PER_PASS

    def is_inline(self, cell: Cell) -> bool:
        """Whether the handler of this plain cell runs inside an ask."""
        return type(cell) is PlainCell and self.turning is not cell

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon, from any thread; nothing happens once the system has ended.

        Raises:
            RuntimeError: the loop has ended.
        """
        if self._open:
            self.backend.call_threadsafe(function, *args)

    def busy_cells(self) -> list[Cell]:
        """The cells whose handlers run now; callable from any thread."""
        busy: list[Cell] = [cell for cell in self.tasks.copy() if cell.running is not None]
        turning = self.turning
        return busy if turning is None else [*busy, turning]

    # Idleness.

    @property
    def is_idle(self) -> bool:
        """Whether no actor handles, has or awaits a message, a restart or a background task."""
        return not (self.awake or self._ready or self._events or self.restarting)

    def dozed(self) -> None:
        """An actor or a background task has nothing to do any more."""
        self.awake -= 1
        if self._idle_waiters and self.is_idle:
            self._wake()

    async def wait_until_idle(self) -> None:
        """Wait until no actor handles or has a message and no restart or background task is under way.

        Timers that have not rung yet do not count. A checkpoint.
        """
        await self.backend.checkpoint()
        while not self.is_idle:
            waiter = self.backend.waiter()
            self._idle_waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._idle_waiters:
                    self._idle_waiters.remove(waiter)

    def _tell_idle(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            waiter.wake()

    def keep_warm(self, cell: TaskCell) -> None:
        """Keep the idle task of a cell for a while."""
        self._warm[cell] = None
        if not self._sweeping:
            self._sweeping = True
            self.later(LINGER, self._sweep)

    def _sweep(self) -> None:
        cooled, self._cooling, self._warm = self._cooling, self._warm, {}
        for cell in cooled:
            if cell.asleep and cell not in self._cooling:
                cell.retire()
        self._sweeping = bool(self._cooling)
        if self._sweeping:
            self.later(LINGER, self._sweep)

    # Time.

    def later(self, delay: float, function: Callable[..., object], *args: Any) -> Later:
        """Call a function after some seconds."""
        return Later(self.alarms, self.backend.time() + delay, function, *args)

    def due_in(self, timeout: float) -> float:
        """The deadline of an ask that may take `timeout` seconds, rounded up so that many share it."""
        if timeout == math.inf:
            return math.inf
        due = self.backend.time() + timeout
        grain = timeout / GRAIN
        return due - due % grain + grain if grain > 0 else due

    def remaining(self, cell: Cell) -> float:
        """Seconds left to the request that a cell handles."""
        running = cell.running
        if not isinstance(running, Asked) or not running.due:
            return math.inf
        return max(0.0, running.due - self.backend.time())

    # Spawning.

    def new_family(self, owner: Cell) -> Family:
        """A family for the children that an actor spawns."""
        raise NotImplementedError

    def family_made(self, cell: Cell) -> Family:
        """The family of a live cell, made at its first child.

        Raises:
            SystemClosed: the actor is ending.
        """
        if cell.state > DRAINING:
            raise SystemClosed(f"{cell.path} is ending and can have no more children")
        if cell.family is None:
            cell.family = self.new_family(cell)
        return cell.family

    def new_bonds(self, cell: Cell) -> Bonds:
        """Bonds for a cell."""
        return Bonds(cell)

    def new_cell(self, keeper: Family, spec: ChildSpec[Any]) -> Cell:
        """A cell for a spec: plain if nothing of its class can suspend.

        Raises:
            NameTaken: a live actor has the name.
            SystemClosed: the system is not running.
        """
        if not self._open:
            raise SystemClosed("the actor system is not running: spawn inside its `async with` block")
        if spec.name is not None:
            taken = self._names.get(spec.name)
            if taken is not None:
                raise NameTaken(f"{taken.path} has the name {spec.name!r} already")
        table = self._table_of(spec.factory)
        cell = (PlainCell if table.plain and isinstance(spec.factory, type) else TaskCell)(keeper, spec, table)
        if spec.name is not None:
            self._names[spec.name] = cell
        self.alive += 1
        return cell

    def _table_of(self, factory: Any) -> HandlerTable:
        if isinstance(factory, type):
            if issubclass(factory, Actor):
                return factory.__table__
            raise TypeError(f"{factory.__name__} is not an Actor: subclass Actor, or give an async function")
        if inspect.iscoroutinefunction(factory):
            return FunctionActor.__table__
        if callable(factory):
            return Actor.__table__
        raise TypeError(f"cannot spawn {factory!r}: give an Actor class, a function, or child(...), not an instance")

    def adapt(self, cell: Cell, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Actor[Any]:
        """An actor made by a function, or of a function."""
        if inspect.iscoroutinefunction(factory):
            return FunctionActor(factory, args, kwargs)
        actor = factory(*args, **kwargs)
        if not isinstance(actor, Actor):
            raise TypeError(f"{factory!r} returned {actor!r}, not an Actor")
        cell.table = type(actor).__table__
        return actor

    @overload
    async def spawn(self, factory: ChildSpec[M], /) -> Ref[M]: ...
    @overload
    async def spawn(self, factory: Callable[P, Actor[M]], /, *args: P.args, **kwargs: P.kwargs) -> Ref[M]: ...
    @overload
    async def spawn(
        self, factory: Callable[Concatenate[Inbox[M], P], Awaitable[None]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Ref[M]: ...
    async def spawn(self, factory: Any, /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start an actor at the top of the tree and wait until it has started. A checkpoint only if that takes time.

        Args:
            factory: an actor class or async function, followed by its arguments; or a spec made by `child`.
            *args: arguments for each incarnation.
            **kwargs: keyword arguments for each incarnation.

        Raises:
            StartError: its constructor or `started` hook raised.
            NameTaken: the spec has a name that a live actor has.
            SystemClosed: the system is not running, or is shutting down.
        """
        return await self.spawn_under(self.root, factory, args, kwargs)

    async def spawn_under(self, parent: Cell, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref[Any]:
        """Start a child and wait until it has started.

        Raises:
            StartError: its constructor or `started` hook raised.
        """
        spec = factory if isinstance(factory, ChildSpec) else ChildSpec(factory, args, kwargs or None)
        if spec is factory and (args or kwargs):
            raise TypeError("a spec has its arguments already: spawn(child(Counter, start=10))")
        cell = self.family_made(parent).adopt(spec, sponsored=True)
        if cell.state == STARTING:
            await self._until_started(cell)
        if cell.state == DEAD and isinstance(cell.exit, Crashed):
            error = cell.exit.error
            raise StartError(f"{cell.path} did not start: {type(error).__name__}: {error}") from error
        return Ref(cell)

    async def _until_started(self, cell: Cell) -> None:
        waiter = self.backend.waiter()
        cell.bonds_made().starting.append(waiter.wake)
        try:
            await waiter
        except BaseException:
            cell.kill("whoever spawned it was cancelled while it started")
            raise

    def inbox_of(self, cell: Cell) -> Inbox[Any]:
        """The inbox of an actor with a `run` of its own."""
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} has handlers: only an actor that overrides run() receives by hand")
        if cell.inbox is None:
            cell.inbox = Inbox(cell)
        return cell.inbox

    async def handle(self, cell: Cell, message: Any) -> None:
        """Give a message that `run` received to its handler."""
        if not isinstance(cell, TaskCell) or not cell.table.own_run:
            raise RuntimeError(f"{cell.path} does not override run(): its messages go to its handlers by themselves")
        await cell.handle(message)

    # Names and groups.

    def find(self, name: str) -> Ref[Any]:
        """The live actor that was given this name. Its ref outlives restarts.

        Raises:
            ActorNotFound: there is none.
        """
        cell = self._names.get(name)
        if cell is None:
            known = ", ".join(sorted(self._names)) or "none"
            raise ActorNotFound(f"no actor is named {name!r}; names in use: {known}")
        return Ref(cell)

    def forget_name(self, cell: Cell) -> None:
        """A named actor has ended."""
        if cell.label is not None and self._names.get(cell.label) is cell:
            del self._names[cell.label]

    def group(self, name: str) -> Group[Any]:
        """The process group of this name; made when it is first asked for."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(self, name)
        return group

    # Trouble.

    def hook_failed(self, cell: Cell, hook: str, error: BaseException) -> None:
        """A `stopped` or `restarting` hook raised: nobody else can be told."""
        log.error("the %s hook of %s failed and was ignored: %r", hook, cell.path, error, exc_info=error)

    def abort(self, error: BaseException) -> None:
        """Something that is no `Exception` came out of a handler: the whole system ends with it."""
        raise NotImplementedError
