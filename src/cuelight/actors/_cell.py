"""The running part of an actor: its mailbox, its life cycle and its place in the tree. It outlives incarnations.

Invariants:
1. At most one message of an actor is handled at any time.
2. An incarnation ends once. Its supervisor is notified only after its timers, background tasks and children have ended,
   and after the running handler was cancelled or has returned.
3. Messages and refs outlive incarnations. When the actor ends permanently, every remaining message becomes a dead
   letter and every remaining request fails as `NotStarted`.
4. Signals overtake messages. The order is: kill, stop, interrupt, supervision, messages.
"""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, Self

from cuelight.actors._cell_extras import CellExtras
from cuelight.actors._cell_mailbox import CellMailbox
from cuelight.actors._messages import ControlMessage, Crashed, Exit, Killed, ShutDown, Start, Stopped
from cuelight.actors._reply import PendingAsk, Reply, StreamSlot
from cuelight.actors._wait_graph import held_by, release_all
from cuelight.errors import (
    CuelightError,
    ReplyError,
    SystemClosed,
    UnexpectedCancellation,
    consists_of,
    control_error,
    ends_the_program,
)
from cuelight.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Context

    from cuelight.actors._dispatcher import Dispatcher
    from cuelight.actors._handlers import HandlerTable
    from cuelight.actors._spec import ChildSpec, Options


STARTING, LIVE, DRAINING, ENDING, INCARNATION_ENDED, STOPPING_HOOK, DEAD = range(7)
"""The states of a cell. `INCARNATION_ENDED`: its supervisor decides. A restart leads to `STARTING`."""

KILL, STOP, FAIL, END_FOR_RESTART, BY_SUPERVISOR = 1, 2, 4, 8, 16


class Cell(CellMailbox):
    """An actor as seen by its system. Subclasses differ in how they run handlers."""

    __slots__ = (
        "__weakref__",
        "actor",
        "args",
        "asks",
        "awaited_start",
        "children",
        "context",
        "factory",
        "handled",
        "incarnation",
        "kwargs",
        "label",
        "parent",
        "restarts",
        "running",
        "sent",
        "serial",
        "signals",
        "state",
        "supervisor",
        "table",
    )

    def __init__(self, supervisor: ChildSupervisor, spec: ChildSpec[Any], table: HandlerTable) -> None:
        runtime, parent = supervisor.runtime, supervisor.owner
        options: Options = spec.options
        Mailbox.__init__(self, options.capacity, options.overflow)
        self.runtime = runtime
        self.parent = parent
        self.supervisor = supervisor
        self.table = table
        self.factory, self.args, self.kwargs, self.options = spec.factory, spec.args, spec.kwargs, options
        self.label = spec.name
        self.serial = runtime.next_serial()
        self.context: Context = runtime.context.copy()
        self.actor: Any = None
        self.state = STARTING
        self.signals = 0
        self.restarts = 0
        self.incarnation = 0
        self.awaited_start = False
        self.handled = 0
        self.running: Any = None
        self.exit: Exit | None = None
        self.asks: dict[PendingAsk, None] | None = None
        self.sent: dict[PendingAsk, None] | None = None
        self.children: ChildSupervisor | None = None
        self.extras: CellExtras[Cell] | None = None

    # Names.

    @property
    def name(self) -> str:
        """The given name, or one made from the class and a number."""
        return self.label or f"{self.table.name}-{self.serial}"

    @property
    def path(self) -> str:
        """The names of its ancestors and its own name, such as `/demo/session-1/agent`."""
        names: list[str] = []
        cell: Cell | None = self
        while cell is not None:
            names.append(cell.name)
            cell = cell.parent
        return "/" + "/".join(reversed(names))

    @property
    def class_name(self) -> str:
        return self.table.name

    @property
    def incarnation_ended(self) -> bool:
        """Whether its incarnation has ended and its supervisor has to decide on a restart."""
        return self.state == INCARNATION_ENDED

    @property
    def dead(self) -> bool:
        """Whether it has ended permanently."""
        return self.state == DEAD

    @property
    def waits_for_children(self) -> bool:
        """Whether its incarnation is ending and waits only for its children."""
        return self.state == ENDING and self.children is not None and not self.children.empty

    def __repr__(self) -> str:
        return f"<cell {self.path}>"

    @property
    def inside_ask(self) -> bool:
        """Whether a handler that runs now runs inside the ask, without a slot for the reply."""
        return False

    @abstractmethod
    def ask_now(self, message: Any, call: Callable[..., Any]) -> Reply[Any] | None:
        """Run a handler inside the ask, up to its first wait if it is `async def`; only while `asleep` is `INLINE`.

        Return None if that is not possible now, so that the request has to queue.
        """

    def deadline(self) -> float:
        """Return the deadline of the handled request, for requests that its handler sends, or 0 if there is none."""
        running = self.running
        return running.due if isinstance(running, PendingAsk) else 0.0

    # Starting. Subclasses implement `begin`.

    @abstractmethod
    def begin(self, why: Start) -> None:
        """Make an incarnation, run its `started` hook and report the outcome to the supervisor."""

    def construct(self) -> Any:
        """Return a new actor for this cell. Exceptions of its constructor propagate."""
        factory = self.factory
        if isinstance(factory, type):
            actor: Any = object.__new__(factory)
            actor._cell = self
            self.actor = actor
            if self.kwargs is None:
                actor.__init__(*self.args)
            else:
                actor.__init__(*self.args, **self.kwargs)
            return actor
        actor = self.runtime.adapt(self, factory, self.args, self.kwargs or {})
        actor._cell = self
        self.actor = actor
        return actor

    def has_started(self) -> None:
        """Accept the incarnation as started: it may take messages."""
        self.incarnation += 1
        if self.state == STARTING:
            self.state = LIVE
        if self.extras is not None and self.extras.when_started:
            self.notify_started()
        self.supervisor.child_started(self)

    def start_failed(self, error: BaseException) -> None:
        """End the incarnation after its constructor or `started` hook raised. No other hook can be called."""
        self.actor = None
        self.end_incarnation(Crashed(self.as_failure(error)))

    def restart(self, why: Start) -> None:
        """Begin the next incarnation. Called by the supervisor once the previous one has ended."""
        if held_by:
            release_all(self)
        if self.closed:
            self._reopen_mailbox()
        self.state, self.exit, self.signals = STARTING, None, 0
        self.begin(why)

    def _reopen_mailbox(self) -> None:
        """Accept messages again after a permanent actor was stopped or killed. Drop the old queue."""
        items, self.items = self.items, None
        self.reopen(self.options.capacity)
        for item in items or ():
            self.discard(item, "stopped")

    # Signals.

    def signal(self, bit: int) -> None:
        """Set a signal that is processed before the next message, and wake the cell."""
        self.signals |= bit
        self.attention = True
        if self.asleep:
            self.on_mail()

    def stop(self) -> None:
        """Finish the queue, then end. No more messages are accepted from now on."""
        if self.state <= LIVE:
            self.close()
            if self.state == LIVE:
                self.state = DRAINING
            if self.idle and self.children is None:
                self.asleep = 0
                self.end_incarnation(self._stopped())
            else:
                self.signal(STOP)
        elif self.state == ENDING:
            self.close()  # no restart will follow
        elif self.state == INCARNATION_ENDED:
            self.supervisor.abandon_restart(self, self._stopped())

    def shut_down(self) -> None:
        """Stop on behalf of the supervisor."""
        self.signals |= BY_SUPERVISOR
        self.stop()

    def kill(self, why: str) -> None:
        """End now: cancel the running handler, drop the queue and kill the children."""
        if self.state == STOPPING_HOOK:
            self.cancel_ending()
        if self.state >= INCARNATION_ENDED:
            if self.state == INCARNATION_ENDED:
                self.supervisor.abandon_restart(self, Killed(why))
            return
        self.close()
        if self.state == ENDING:
            if self.children is not None:
                self.children.kill(why)
            return
        if self.ensure_extras().exit_forced is None:
            self.ensure_extras().exit_forced = Killed(why)
        self.signal(KILL)
        self.cancel_turn()

    def fail_with(self, error: BaseException) -> None:
        """End this incarnation as if the running handler had raised `error` (a link, or children that keep failing)."""
        if self.state in (STARTING, LIVE, DRAINING):
            extras = self.ensure_extras()
            if extras.exit_forced is None:
                extras.exit_forced = Crashed(error)
            self.signal(FAIL)
            self.cancel_turn()

    def end_for_restart(self) -> None:
        """End this incarnation after the running handler and keep the queue, because a sibling has crashed."""
        if self.state in (STARTING, LIVE):
            self.signal(END_FOR_RESTART)

    @abstractmethod
    def interrupt(self, why: str) -> bool:
        """Cancel the running handler, not the actor. Return False if no cancellable handler runs."""

    def linked_by(self, other: Cell) -> None:
        """Note that an actor was linked to this one. A cell that represents a remote actor forwards this."""

    def unlinked_by(self, other: Cell) -> None:
        """Note that the link of another actor to this one was removed."""

    @abstractmethod
    def cancel_turn(self) -> None:
        """Cancel the running handler, because the incarnation ends."""

    @abstractmethod
    def cancel_ending(self) -> None:
        """Handle a kill that arrives while the actor runs its `stopped` hook."""

    def waits_in_asks(self) -> bool:
        """Return whether code of this cell that awaits an ask blocks the cell's mailbox."""
        return True

    @abstractmethod
    def runs(self, task: Any) -> bool:
        """Return whether `task` runs this actor's own code now, rather than code of a task that the actor started."""

    def process_signals(self) -> Exit | None:
        """Process signals, control messages and waiting senders. Return an exit if the incarnation must end."""
        if self.sent and not self.table.own_run:
            self.withdraw_asks()  # those of the turn that has just ended
        signals = self.signals
        if signals & (KILL | FAIL):
            self.signals = signals & (STOP | BY_SUPERVISOR)
            extras = self.ensure_extras()
            forced, extras.exit_forced = extras.exit_forced, None
            return forced or Killed()
        if signals & END_FOR_RESTART:
            self.signals = signals & (STOP | BY_SUPERVISOR)
            return ShutDown()
        if self.control:
            if self.items is None:
                self.items = deque()
            self.items.appendleft(self.control.popleft())  # one at a time: these must not be dropped
        if self.senders:
            self.admit()
        self.attention = bool(self.control or self.senders or (signals & STOP and self.items))
        if signals & STOP and not self.items:
            return self._stopped()
        return None

    # Requests that this actor has sent.

    def has_sent(self, asked: PendingAsk) -> None:
        """Remember a request, to withdraw it if it is still open when the turn that sent it ends."""
        if self.runs(self.runtime.backend.current_task()):
            sent = self.sent
            if sent is None:
                sent = self.sent = {}
            sent[asked] = None
            asked.sender = self
            self.attention = True  # it is checked next at the end of this turn

    def withdraw_asks(self, *, interrupted: bool = False) -> None:
        """Withdraw the open requests of a turn that has ended.

        Args:
            interrupted: the turn was ended from outside, so do not report replies that it did not await.
        """
        sent, self.sent = self.sent, None
        withdraw(sent, self.runtime, interrupted=interrupted)

    def _why_unhandled(self, item: Any) -> str:
        table, kind = self.table, type(self.content(item))
        call = table.calls.get(kind) or table.find(kind)
        if call is not None and kind in table.streaming:
            return "it is answered with a stream: use stream() instead"
        if call is not None and isinstance(item, StreamSlot):
            return "it has one answer, not a stream: use ask() instead"
        for other in table.calls:
            if other.__qualname__ == kind.__qualname__:
                return (
                    f"it handles another class of that name, of the module {other.__module__}: was its module loaded "
                    f"twice, or reloaded?"
                )
        return "add one with @on(...)"

    def _stopped(self) -> Exit:
        return ShutDown() if self.signals & BY_SUPERVISOR else Stopped()

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is scheduled, so that the cell can be ended at once."""
        return bool(self.asleep and not self.items and not self.attention)

    def put_control(self, message: Any) -> None:
        """Deliver a control message. It overtakes all messages."""
        if self.state >= ENDING:
            return
        if self.control is None:
            self.control = deque()
        self.control.append(message)
        self.attention = True
        if self.asleep:
            self.on_mail()

    # Ending.

    def end_incarnation(self, exit_: Exit) -> None:
        """End everything that belongs to the incarnation, which takes no more messages, then report the end."""
        self.exit = exit_
        self.state = ENDING
        self.asleep = 0
        self.control = None  # it no longer watches any actor
        if self.sent:
            self.withdraw_asks(interrupted=True)
        if held_by and exit_.abnormal:
            release_all(self)
        if self.extras is not None:
            self._end_extras(self.extras)
        if self.children is not None:
            if isinstance(exit_, Killed):
                self.children.kill(exit_.why)
            else:
                self.children.close(exit_)
        if not self.outstanding():
            self.report_end()

    def outstanding(self) -> bool:
        """Return whether children or background tasks of the incarnation still live."""
        if self.children is not None:
            if not self.children.empty:
                return True
            self.children = None
        return self.extras is not None and bool(self.extras.background)

    def part_ended(self) -> None:
        """Report the end if the child or background task that has ended was the last one."""
        if self.state == ENDING and not self.outstanding():
            self.report_end()

    def report_end(self) -> None:
        """Report that the whole incarnation has ended. The supervisor decides on a restart."""
        self.state = INCARNATION_ENDED
        exit_ = self.exit
        assert exit_ is not None  # noqa: S101 - ENDING has one
        self.supervisor.child_ended(self, exit_)

    @abstractmethod
    def finalize(self, exit_: Exit) -> None:
        """End permanently: run the `stopped` hook, then call `mark_dead`. Called by the supervisor."""

    def mark_dead(self, exit_: Exit) -> None:
        """Mark the cell dead, refuse its queue, notify its watchers and release its name."""
        self.state = DEAD
        self.exit = exit_
        self.close()
        items, self.items, self.control = self.items, None, None
        self.actor = None
        if self.sent:
            self.withdraw_asks(interrupted=True)  # those of its `stopped` hook
        if held_by:
            release_all(self)  # locks, for example, that the hook has not released
        for item in items or ():
            if not self.item_cancelled(item) and not isinstance(item, ControlMessage):
                self.discard(item, "stopped")
        if self.extras is not None:
            self.notify_ended(exit_)
            self.extras = None
        if self.label is not None:
            self.runtime.forget_name(self)
        self.runtime.alive -= 1
        self.supervisor.child_finalized(self)

    def abort_if_fatal(self, error: BaseException) -> None:
        """End the whole system if the error is to end the program: `KeyboardInterrupt` or `SystemExit`."""
        if ends_the_program(error):
            self.runtime.abort(error)

    def as_failure(self, error: BaseException) -> BaseException:
        """Return the failure of this actor for an exception of user code. A cancellation from elsewhere is wrapped.

        This ends the whole system if the error is to end the program.
        """
        if consists_of(error, self.runtime.backend.cancelled):
            failure = UnexpectedCancellation(f"{self.path} awaited something that somebody else had cancelled")
            failure.__cause__ = error
            return failure
        self.abort_if_fatal(error)
        return error

    def failed(self, error: BaseException, item: Any) -> Exit | None:
        """Handle an exception of a handler. Return the incarnation's exit, or None if only the request is refused."""
        refusal = control_error(error, ReplyError)
        if refusal is None:
            return self.handle_crash(self.as_failure(error), item)
        if self.sent:
            self.withdraw_asks(interrupted=True)
        self.reject(refusal, item)
        return None

    def check_not_ending(self, what: str) -> None:
        """Check that this incarnation is not ending, so that a resource can still be bound to it.

        Raises:
            SystemClosed: it is ending.
        """
        if self.state > DRAINING:
            raise SystemClosed(f"{self.path} is ending and can have no more {what}")

    # The state that only few actors need.

    def ensure_extras(self) -> CellExtras[Cell]:
        """Return the rarely used state, made at first use."""
        if self.extras is None:
            self.extras = CellExtras()
        return self.extras

    def ensure_children(self) -> ChildSupervisor:
        """Return the supervisor of the children of a live cell, made at its first child.

        Raises:
            SystemClosed: the actor is ending.
        """
        self.check_not_ending("children")
        if self.children is None:
            self.children = self.supervisor.new_children(self)
        return self.children

    def notify_started(self) -> None:
        """Call the `call_when_started` callbacks: the incarnation has started or can no longer start."""
        extras = self.ensure_extras()
        when_started, extras.when_started = extras.when_started, {}
        for callback in when_started:
            try:
                callback()
            except BaseException as error:
                self.runtime.internal_error(error)

    def notify_ended(self, exit_: Exit) -> None:
        """Notify all waiters, watchers and linked actors that the cell has ended permanently."""
        extras = self.ensure_extras()
        self.notify_started()
        for group in list(extras.groups):
            group.discard(self)
        for watcher, notify in extras.watchers.items():
            if watcher.extras is not None:
                watcher.extras.watched.pop(self, None)
            notify(exit_)
        for other in extras.links:
            if other.extras is not None:
                other.extras.links.pop(self, None)
            if exit_.abnormal:
                other.fail_with(LinkedExit.of(self, exit_))
        when_ended, extras.when_ended = extras.when_ended, {}
        for waiting in when_ended:
            try:
                if callable(waiting):
                    waiting(exit_)
                else:
                    waiting.wake()
            except BaseException as error:
                self.runtime.internal_error(error)

    def unstash(self) -> None:
        """Put the stashed messages back at the front of the mailbox, oldest first."""
        extras = self.extras
        if extras is not None and extras.stash:
            if self.items is None:
                self.items = deque()
            self.items.extendleft(reversed(extras.stash))
            extras.stash.clear()
            if self.asleep:
                self.on_mail()

    def _end_extras(self, extras: CellExtras[Cell]) -> None:
        """End the state bound to the incarnation. Background tasks are cancelled here and end a little later."""
        for timer in list(extras.timers):
            timer.cancel()
        for task in list(extras.background):
            task.cancel()
        deferred, extras.deferred, extras.deferred_now = extras.deferred, {}, None
        for asked in deferred:
            self.fail_deferred(asked)
        for other in extras.watched:
            if other.extras is not None:
                other.extras.watchers.pop(self, None)
        extras.watched.clear()
        self.unstash()


class LinkedExit(CuelightError):
    """A linked actor has ended abnormally."""

    @classmethod
    def of(cls, cell: Cell, exit_: Exit) -> Self:
        """Make the error for the actors that were linked to `cell`."""
        error = cls(f"{cell.path}, to which it is linked, {exit_.describe()}")
        error.__cause__ = exit_.error if isinstance(exit_, Crashed) else None
        return error


def withdraw(sent: dict[PendingAsk, None] | None, runtime: Dispatcher, *, interrupted: bool) -> None:
    """Withdraw the open requests that a turn or background work has sent."""
    for asked in sent or ():
        asked.sender = None
        if interrupted:
            asked.mark_awaited()
        try:
            asked.withdraw()
        except BaseException as error:
            runtime.internal_error(error)


# The interface between a cell and its supervisor. The supervision package implements it.


class ChildSupervisor(Protocol):
    """The children of one cell and their supervision."""

    @property
    def runtime(self) -> Dispatcher:
        """The runtime of the system."""
        ...

    @property
    def owner(self) -> Cell | None:
        """The actor whose children these are, or None for the root."""
        ...

    @property
    def empty(self) -> bool:
        """Whether no child is left."""
        ...

    def cells(self) -> Iterable[Cell]:
        """The children, in the order in which they were started."""
        ...

    def start_child(self, spec: ChildSpec[Any], *, awaited_start: bool = False) -> Cell:
        """Make a cell and begin its first incarnation. Its `state` says whether it is up, failed or still starting.

        Args:
            spec: the spec of the child.
            awaited_start: a caller waits for the start and gets its failure. Otherwise a failed start is a crash.
        """
        ...

    def new_children(self, owner: Cell) -> ChildSupervisor:
        """Return a supervisor for the children of a child."""
        ...

    def child_started(self, cell: Cell) -> None:
        """Note that a child's incarnation has started."""
        ...

    def child_ended(self, cell: Cell, exit_: Exit) -> None:
        """Restart or finalize a child whose incarnation has ended."""
        ...

    def child_finalized(self, cell: Cell) -> None:
        """Note that a child has ended permanently."""
        ...

    def abandon_restart(self, cell: Cell, exit_: Exit) -> None:
        """Finalize a child that was stopped or killed while it waited for its restart."""
        ...

    def close(self, exit_: Exit) -> None:
        """Stop all children in the reverse of their start order. Notify the owner when none is left."""
        ...

    def kill(self, why: str) -> None:
        """Kill all children. Notify the owner when none is left."""
        ...

    def spent(self) -> dict[str, float]:
        """Return the amounts charged to the budget of this supervisor, by unit; empty if it has none."""
        ...

    def spend(self, amounts: dict[str, float]) -> None:
        """Charge the budgets of this supervisor and of the supervisors above it."""
        ...
