"""The address of an actor, through which all other code uses it. Refs stay valid over restarts.

Equal refs are refs of the same actor.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from cuelight._checks import check_seconds
from cuelight.actors._cell import DEAD, INCARNATION_ENDED, STARTING, Cell
from cuelight.actors._messages import Answerable, ControlMessage, Exit, Streams
from cuelight.actors._plain_cell import INLINE
from cuelight.actors._reply import SET_ASIDE, PendingAsk, Reply, Stream, StreamSlot, background_work, current_cell
from cuelight.errors import ActorNotFound, MailboxFull
from cuelight.mailbox import NOT_READY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cuelight.actors._dispatcher import Dispatcher
    from cuelight.mailbox import CaseWaiter, NotNow


M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")

TELLS_PER_YIELD = 256

STATES = ("starting", "running", "draining", "ending", "restarting", "ending", "ended")


class ActorStatistics(msgspec.Struct, frozen=True):
    """The activity of an actor at one moment.

    Attributes:
        state: `starting`, `running`, `draining` (finishes its queue), `ending`, `restarting` or `ended`.
        queued: messages in its mailbox.
        waiting_senders: senders that wait for room.
        handled: messages handled since it was spawned.
        restarts: restarts since it was last healthy.
        children: live children.
        running: the message being handled, or None.
        spent: for a supervisor with a budget, the amounts charged to it, by unit; otherwise empty.
    """

    state: str
    queued: int
    waiting_senders: int
    handled: int
    restarts: int
    children: int
    running: Any
    spent: dict[str, float]


class Ref(Generic[M_contra]):
    """The address of an actor that takes messages of type `M_contra`.

    A `Ref[A | B]` is also a `Ref[A]`. Call all methods in the loop that the actor lives in. From other threads, use
    `tell_threadsafe` or an `ActorSystem.blocking()`.
    """

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def tell_nowait(self, message: M_contra) -> None:
        """Send a message without waiting, not even for room. Not a checkpoint.

        If the actor has ended, the message becomes a dead letter.

        Raises:
            MailboxFull: there is no room, and the overflow policy is to wait or to fail.
            RuntimeError: the actor lives in the event loop of another thread.
        """
        cell = self._cell
        items = cell.items
        if get_ident() != cell.runtime.thread:
            raise cell.runtime.wrong_thread(cell)
        if items is not None and len(items) < cell.limit:  # `put` inlined: a call costs as much as the rest
            items.append(message)
            if cell.asleep:
                cell.on_mail()
        elif not cell.put(message):
            raise MailboxFull(
                f"the mailbox of {cell.path} is full ({len(cell)} messages): await tell() to wait for room, "
                f"give it more capacity, or an overflow policy"
            )

    async def tell(self, message: M_contra) -> None:
        """Send a message, waiting for room if the mailbox is full.

        A checkpoint if it waits, and otherwise about every 256th time. If this is cancelled while it waits, nothing was
        sent. If the actor has ended, the message becomes a dead letter.

        Raises:
            MailboxFull: there is no room, and the overflow policy is to fail.
            RuntimeError: the actor lives in the event loop of another thread.
        """
        cell = self._cell
        items = cell.items
        if get_ident() != cell.runtime.thread:
            raise cell.runtime.wrong_thread(cell)
        if items is not None:  # `put` inlined: a call costs as much as the rest
            queued = len(items)
            if queued < cell.limit:
                items.append(message)
                if cell.asleep:
                    cell.on_mail()
                if queued % TELLS_PER_YIELD == TELLS_PER_YIELD - 1:
                    await cell.runtime.backend.checkpoint()
                return
        if not cell.put(message):
            await cell.wait_for_room(message)
        else:
            runtime = cell.runtime
            runtime.tells_since_yield += 1
            if runtime.tells_since_yield >= TELLS_PER_YIELD:
                runtime.tells_since_yield = 0
                await runtime.backend.checkpoint()

    def tell_threadsafe(self, message: M_contra) -> None:
        """Send a message from any thread. Without room it becomes a dead letter.

        Raises:
            RuntimeError: the loop of the actor has ended.
        """
        self._cell.runtime.call_threadsafe(self._cell.put_or_drop, message)

    def ask(self, message: Answerable[M_contra, R], timeout: float | None = None) -> Reply[R]:
        """Send a request at once and return a `Reply`. Await the reply for the answer.

        An ask from inside a handler inherits the time left for the request being handled.

        Args:
            message: the request.
            timeout: seconds until the request fails and its handler is cancelled. None means the system's
                `ask_timeout`, and `math.inf` sets no limit. The time counts from the await, or from the start of the
                handler if that is earlier. It may be exceeded by up to 2 % and is never cut short.

        Returns:
            An awaitable `Reply`. Its `__await__` lists the errors of the request.

        Raises:
            MailboxFull: there is no room, and the overflow policy is to fail.
            TypeError, ValueError: the timeout is not a valid number of seconds.
            RuntimeError: the actor lives in the event loop of another thread.
        """
        cell = self._cell
        runtime = cell.runtime
        if get_ident() != runtime.thread:
            raise runtime.wrong_thread(cell)
        if timeout is not None:
            check_seconds("ask(timeout)", timeout)
        if cell.asleep == INLINE and (runtime.inline > 0 or (not runtime.inline and runtime.more_inline())):
            call = cell.table.calls.get(type(message))
            if call is not None:
                runtime.inline -= 1
                runtime.inline_timeout = timeout
                reply = cell.ask_now(message, call)
                if reply is not None:
                    return reply
        asked = PendingAsk(message, cell, runtime.ask_timeout if timeout is None else timeout)
        asker = current_cell.get()
        if asker is not None:
            asked.due = asker.deadline()
        if not cell.put(asked):
            cell.enqueue_sender(asked)
        asked.unawaited = True
        sender = background_work.get() if asker is None else asker
        if sender is not None:
            sender.has_sent(asked)
        return asked

    def stream(self, message: Streams[M_contra, R], timeout: float | None = None) -> Stream[R]:
        """Send a request that is answered with a stream: `async for chunk in ref.stream(Complete("..."))`.

        The handler runs at most 16 chunks ahead of the reader.

        Args:
            message: the request.
            timeout: seconds to wait for each chunk; None means the system's `ask_timeout`.

        Raises:
            MailboxFull: there is no room, and the overflow policy is to fail.
            TypeError, ValueError: the timeout is not a valid number of seconds.
            RuntimeError: the actor lives in the event loop of another thread.
        """
        cell = self._cell
        if get_ident() != cell.runtime.thread:
            raise cell.runtime.wrong_thread(cell)
        if timeout is not None:
            check_seconds("stream(timeout)", timeout)
        slot = StreamSlot(message, cell, cell.runtime.ask_timeout if timeout is None else timeout)
        if not cell.put(slot):
            cell.enqueue_sender(slot)
        asker = current_cell.get()
        sender = background_work.get() if asker is None else asker
        if sender is not None:
            sender.has_sent(slot)
        return Stream(slot)

    # Ending.

    async def stop(self, timeout: float | None = None) -> None:
        """Let the actor finish its queue and end, and wait for that. A checkpoint unless it ends at once.

        It does not wait if the actor itself calls it. The supervisor of a `permanent` actor starts it again; then this
        returns once the actor has restarted.

        Args:
            timeout: seconds after which the actor is killed; None sets no limit.

        Raises:
            TypeError, ValueError: the timeout is not a valid number of seconds.
        """
        cell = self._cell
        if timeout is not None:
            check_seconds("stop(timeout)", timeout)
        if get_ident() != cell.runtime.thread:
            raise cell.runtime.wrong_thread(cell)
        incarnation = cell.incarnation + (cell.state == STARTING)
        cell.stop()
        if cell.state != DEAD and current_cell.get() is not cell:
            later = (
                None if timeout is None else cell.runtime.call_later(timeout, cell.kill, f"no stop within {timeout} s")
            )
            try:
                await self._succeeded(incarnation)
            finally:
                if later is not None:
                    later.cancel()

    async def kill(self, why: str = "killed") -> None:
        """End the actor now and wait for that: its running handler is cancelled and its queue is dropped.

        A checkpoint unless it ends at once. It does not wait if the actor itself calls it. The supervisor of a
        `permanent` actor starts it again; then this returns once the actor has restarted.

        Args:
            why: shown in its exit.
        """
        cell = self._cell
        if get_ident() != cell.runtime.thread:
            raise cell.runtime.wrong_thread(cell)
        incarnation = cell.incarnation + (cell.state == STARTING)
        cell.kill(why)
        if cell.state != DEAD and current_cell.get() is not cell:
            await self._succeeded(incarnation)

    async def _succeeded(self, incarnation: int) -> None:
        """Wait until the actor has ended permanently, or a later incarnation than `incarnation` has started."""
        cell = self._cell
        while cell.state != DEAD and cell.incarnation <= incarnation:
            waiter = cell.runtime.backend.waiter()
            wake = waiter.wake
            extras = cell.ensure_extras()
            extras.call_when_started(wake)
            try:
                await waiter
            finally:
                extras.when_started.pop(wake, None)

    def interrupt(self, why: str = "interrupted") -> bool:
        """Cancel the running handler, not the actor. Its caller gets `Interrupted`. Not a checkpoint.

        Args:
            why: shown in the caller's error.

        Returns:
            Whether a cancellable handler was running.
        """
        self._cell.runtime.check_thread(self._cell)
        return self._cell.interrupt(why)

    async def ended(self) -> Exit:
        """Wait until the actor has ended permanently, and return its exit. A checkpoint unless it has already ended."""
        cell = self._cell
        if cell.state != DEAD:
            cell.runtime.check_thread(cell)
            waiter = cell.runtime.backend.waiter()
            extras = cell.ensure_extras()
            extras.call_when_ended(waiter)
            try:
                await waiter
            finally:
                extras.when_ended.pop(waiter, None)
        assert cell.exit is not None  # noqa: S101 - it is dead
        return cell.exit

    @property
    def exits(self) -> Exits:
        """A case for `select` that is ready, with the exit, once the actor has ended permanently."""
        return Exits(self._cell)

    # Inspection.

    @property
    def alive(self) -> bool:
        """Whether the actor has not ended. An actor that waits for its restart is alive."""
        return self._cell.state != DEAD

    @property
    def name(self) -> str:
        """The name of the actor. If the name was given, it is unique in the system."""
        return self._cell.name

    @property
    def path(self) -> str:
        """The path of the actor in the tree, such as `/demo/session-1/agent`."""
        return self._cell.path

    def statistics(self) -> ActorStatistics:
        """Return the current activity of the actor."""
        cell = self._cell
        running = cell.running
        return ActorStatistics(
            state=STATES[cell.state],
            queued=len(cell),
            waiting_senders=sum(not cell.is_cancelled(sender) for sender in cell.senders or ()),
            handled=cell.handled,
            restarts=cell.restarts,
            children=0 if cell.children is None else sum(1 for _ in cell.children.cells()),
            running=None if running is None or running is SET_ASIDE else cell.content(running),
            spent={} if cell.children is None else cell.children.spent(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other._cell is self._cell

    def __hash__(self) -> int:
        return hash(self._cell)

    def __repr__(self) -> str:
        restarting = " restarting" if self._cell.state == INCARNATION_ENDED else ""
        return f"<ref {self._cell.path}{restarting if self.alive else ' ended'}>"


class Terminated(ControlMessage, frozen=True):
    """Sent to each watcher of an actor, once, when the actor has ended permanently.

    Attributes:
        ref: the actor that ended.
        exit: the reason why it ended.
    """

    ref: Ref[Any]
    exit: Exit


class Exits:
    """The end of an actor as a case of `select`."""

    __slots__ = ("_callbacks", "_cell")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._callbacks: dict[CaseWaiter, Any] = {}

    def case_poll(self) -> Exit | NotNow:
        """Return the exit once there is one."""
        exit_ = self._cell.exit
        return NOT_READY if exit_ is None or self._cell.state != DEAD else exit_

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim the select when the actor ends."""

        def claim(exit_: Exit) -> None:
            if not waiter.done():
                waiter.set_result(exit_)

        self._callbacks[waiter] = claim
        self._cell.ensure_extras().call_when_ended(claim)

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Forget the waiter of a select that is over."""
        claim = self._callbacks.pop(waiter, None)
        if self._cell.extras is not None and claim is not None:
            self._cell.extras.when_ended.pop(claim, None)

    def case_put_back(self, item: Any, /) -> bool:
        """Undo nothing, because polling an exit has no effect."""
        return item is not None


# Process groups: one name for many actors. A member leaves automatically when it ends.


M = TypeVar("M")


class Group(Generic[M]):
    """Many actors under one name, made by `system.group(name)`."""

    def __init__(self, runtime: Dispatcher, name: str) -> None:
        self._runtime = runtime
        self.name = name
        self._members: dict[Cell, None] = {}
        self._turns: OrderedDict[Cell, None] = OrderedDict()  # in the order of the next calls of `pick`

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Ref[M]]:
        """Iterate over the members, in the order in which they joined."""
        refs: list[Ref[M]] = [Ref(cell) for cell in self._members]
        return iter(refs)

    def __contains__(self, ref: object) -> bool:
        return isinstance(ref, Ref) and ref._cell in self._members

    def join(self, ref: Ref[M]) -> None:
        """Add an actor. Adding a member again does nothing, and neither does adding an actor that has ended."""
        cell = ref._cell
        if ref.alive:
            self._members[cell] = self._turns[cell] = None
            cell.ensure_extras().groups[self] = None

    def leave(self, ref: Ref[M]) -> None:
        """Remove an actor. Do nothing if it is not a member."""
        cell = ref._cell
        self.discard(cell)
        if cell.extras is not None:
            cell.extras.groups.pop(self, None)

    def discard(self, cell: Cell) -> None:
        """Remove a member that has ended."""
        self._members.pop(cell, None)
        self._turns.pop(cell, None)

    def broadcast(self, message: M) -> int:
        """Tell all members without waiting. Return the number of members that accepted the message.

        A message that finds no room becomes a dead letter.
        """
        self._runtime.check_thread(f"the group {self.name!r}")
        return sum(cell.put_or_drop(message) for cell in list(self._members))

    def pick(self) -> Ref[M]:
        """Return one member, taking turns.

        Raises:
            ActorNotFound: the group is empty.
        """
        for cell in self._turns:
            self._turns.move_to_end(cell)
            return Ref(cell)
        raise ActorNotFound(f"the group {self.name!r} is empty: join() an actor first")
