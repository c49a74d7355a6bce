"""A supervised group of actors behind one handle, with a rule that routes each message to members.

Invariants:
1. Each member has its own mailbox. A message that was routed to a member stays there when the member restarts.
2. With a rule that may wait, a member holds at most one message of the pool. The other messages wait in the pool, in
   the order of arrival. If a member ends before it has begun its message, the message goes to another member.
"""

# Messages and replies are Any in this module; the public handle is typed.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import msgspec

from cuelight._checks import check_seconds
from cuelight._fork import forks
from cuelight._text import safe_repr
from cuelight.actors import ActorStatistics, Answerable, ChildSpec, Ref, Reply, Start, child
from cuelight.actors._ref import TELLS_PER_YIELD
from cuelight.actors._reply import PendingAsk, background_work, current_cell
from cuelight.errors import ActorNotFound, MailboxFull, NotStarted, PoolClosed, ends_the_program
from cuelight.mailbox._backend import Notifier
from cuelight.pools._envelope import Envelope
from cuelight.pools._failures import as_failure
from cuelight.pools._member_slot import MemberSlot
from cuelight.pools._options import check_restarts, check_whole
from cuelight.pools._pool_block import PoolBlock
from cuelight.pools._routing import Routing, pull
from cuelight.supervision import ActorSystem, RestartLimit, Supervisor
from cuelight.supervision._children import SupervisionPolicy

if TYPE_CHECKING:
    from cuelight.actors import Cell


# The members of an actor pool, for rules and statistics, and their supervisor.


class ActorPoolStats(msgspec.Struct, frozen=True):
    """A snapshot of an actor pool.

    Attributes:
        queued: number of messages that wait in the pool for a free member.
        members: statistics of each member, by its name in the pool.
    """

    queued: int
    members: dict[str, ActorStatistics]


class MembersSupervisor(Supervisor):
    """The supervisor of the members."""

    def __init__(self, pool: ActorPool[Any], limit: RestartLimit) -> None:
        self._pool = pool
        self._limit = limit

    def supervision_policy(self) -> SupervisionPolicy:
        return SupervisionPolicy(limit=self._limit, backoff=self.backoff)

    def specs(self) -> Iterable[ChildSpec[Any]]:
        return self._pool.member_specs()

    async def started(self, why: Start) -> None:
        await super().started(why)
        self._pool.members_started()


M = TypeVar("M")
R = TypeVar("R")


class ActorPool(PoolBlock, Generic[M]):
    """A group of equal actors behind one handle.

    Example: `async with ActorPool(child(Renderer), size=4) as pool: await pool.ask(Page(1))`.

    The members are children of one supervisor. The supervisor restarts a member that crashes, and the member keeps
    its mailbox. A member that ends for good (it stopped itself, or was killed) is not replaced until the pool is
    resized.
    """

    def __init__(
        self,
        spec: ChildSpec[M],
        size: int = 4,
        *,
        routing: Routing = pull,
        system: ActorSystem | None = None,
        name: str = "actors",
        capacity: float = 1000,
        max_restarts: int = 10,
        within: float = 5.0,
    ) -> None:
        """Set up a pool. Its members start when its block is entered, or with `start`.

        Args:
            spec: the spec of the members, made by `child`. If it has a name, this is the name of the pool.
            size: number of members.
            routing: the rule that chooses the members for each message: `pull`, `round_robin`, `least_loaded`,
                `broadcast`, `by_key(...)`, or a function of your own (see `Routing`).
            system: the actor system in which the members run; None creates one for the pool.
            name: name of the pool in paths and logs, unless `spec` has a name.
            capacity: number of messages that may wait in the pool for a free member; math.inf for no limit.
            max_restarts: number of restarts of members allowed within `within` seconds. After one more, all members
                are restarted.
            within: length of this window, in seconds.

        Raises:
            ValueError: a value is invalid; the message says which.
        """
        self.name = spec.name or name
        self._spec: ChildSpec[M] = ChildSpec(spec.factory, spec.args, spec.kwargs, options=spec.options)
        self._size = check_whole("size", size, 1)
        if capacity != math.inf:
            check_whole("capacity", capacity, 1)
        self._routing, self._capacity = routing, capacity
        self._may_wait: bool = getattr(routing, "__may_wait__", False)
        self._system, self._owns_system = system, system is None
        check_restarts(max_restarts)
        self._limit = RestartLimit(max_restarts, within)
        self._supervisor: Cell | None = None
        self.slots: list[MemberSlot] = []
        self._slot_of: dict[Cell, MemberSlot] = {}
        self._queue: deque[Envelope] = deque()
        self._next_turn = count().__next__
        self._closed = self._will_dispatch = False
        self._generation = forks.generation

    # Start and end.

    async def __aenter__(self) -> Self:
        stack = AsyncExitStack()
        if self._owns_system and self._system is None:
            self._system = await stack.enter_async_context(ActorSystem(self.name))
        try:
            await self.start()
        except BaseException as error:
            if not await stack.__aexit__(type(error), error, error.__traceback__):
                raise
        stack.push_async_exit(self._leave)
        self._stack = stack
        return self

    async def start(self) -> None:
        """Start the members in the given system, and wait until they have started. The pool ends with that system.

        Raises:
            PoolClosed: the pool was started before.
            StartError: a member did not start.
            ValueError: the pool was given no system: use `async with`.
        """
        system = self._system
        if system is None:
            raise ValueError(f"the actor pool {self.name!r} has no system: give it one, or use `async with`")
        if self._supervisor is not None:
            raise PoolClosed(f"the actor pool {self.name!r} was started before: make a new one")
        supervisor = await system.spawn(
            child(MembersSupervisor, self, self._limit).with_options(name=self.name, shutdown=math.inf)
        )
        self._supervisor = supervisor._cell
        self._notifier = Notifier(system.backend)
        self._supervisor.ensure_extras().call_when_ended(lambda _exit: self._ended())
        self._adopt_members(supervisor._cell)

    def member_specs(self) -> Iterable[ChildSpec[M]]:
        """The specs that the supervisor starts."""
        return [self._spec] * self._size

    def members_started(self) -> None:
        """Take over the members that the supervisor has started or restarted."""
        if self._supervisor is not None:
            self._adopt_members(self._supervisor)

    def _adopt_members(self, supervisor: Cell) -> None:
        self.slots.clear()
        for cell in () if supervisor.children is None else tuple(supervisor.children.cells()):
            self._add(cell)
        self._dispatch()

    def _add(self, cell: Cell) -> None:
        taken = {slot.name for slot in self.slots}
        name = next(name for name in map(str, count()) if name not in taken)
        slot = MemberSlot(name, cell, self._dispatch_soon)
        self.slots.append(slot)
        self.slots.sort(key=lambda one: int(one.name))
        self._slot_of[cell] = slot
        cell.ensure_extras().call_when_ended(lambda _exit: self._lost(cell))

    def _lost(self, cell: Cell) -> None:
        """Forget a member that has ended for good."""
        slot = self._slot_of.pop(cell, None)
        if slot in self.slots:
            self.slots.remove(slot)
        self._dispatch_soon()

    def _ended(self) -> None:
        """Fail the waiting messages, because the supervisor has ended for good."""
        self._closed = True
        queue, self._queue = self._queue, deque()
        for envelope in queue:
            envelope.asked.fail(NotStarted(f"{envelope.asked.cell.path} ended before a member was free"))
        self._notifier.notify_all()

    async def _end(self, *, now: bool) -> None:
        await self.shutdown(cancel=now)

    async def shutdown(self, cancel: bool = False) -> None:
        """Take no more messages, let the members handle all waiting messages, and stop them. A checkpoint.

        Args:
            cancel: kill the members at once: the messages that they handle are cancelled, waiting messages are refused.
        """
        self._closed = True
        supervisor = self._supervisor
        if supervisor is None or self._system is None:
            return
        if cancel:
            supervisor.kill("the pool was shut down")
        else:
            await self.drain()
            supervisor.shut_down()
        await Ref[Any](supervisor).ended()

    async def drain(self) -> None:
        """Wait until no message waits in the pool for a free member. A checkpoint."""
        await self._running().runtime.backend.checkpoint()
        while self._queue:
            await self._notifier.wait()

    def resize(self, size: int) -> None:
        """Change the number of members. Not a checkpoint.

        The pool removes surplus members from the last one on. A removed member handles its mailbox, and then ends.

        Args:
            size: the new number of members.

        Raises:
            ValueError: `size` is less than 1.
            PoolClosed: the pool is not running.
        """
        supervisor = self._running()
        self._size = check_whole("size", size, 1)
        for slot in self.slots[size:]:
            slot.cell.stop()
        del self.slots[size:]
        children = supervisor.ensure_children()
        while len(self.slots) < size:
            self._add(children.start_child(self._spec))
        self._dispatch()

    def _running(self) -> Cell:
        if self._supervisor is None:
            raise PoolClosed(f"the actor pool {self.name!r} is not running: use `async with`, or await start()")
        if self._generation != forks.generation:
            raise PoolClosed(
                f"the members of the actor pool {self.name!r} are in the process that has forked this one: make a new "
                f"pool here"
            )
        return self._supervisor

    # Messages.

    def tell_nowait(self, message: M) -> None:
        """Send a message without waiting for room. Not a checkpoint.

        Raises:
            MailboxFull: there is no room in the pool, or in the mailbox of the member.
            ActorNotFound: no member is alive.
            PoolClosed: the pool is not running.
        """
        supervisor = self._open()
        if not self._may_wait:
            for slot in self._chosen(message):
                Ref[Any](slot.cell).tell_nowait(message)
        elif len(self._queue) >= self._capacity:
            raise MailboxFull(
                f"{len(self._queue)} messages wait in {supervisor.path}: await tell() to wait for room, give it more "
                f"capacity, or more members"
            )
        else:
            self._post(Envelope(PendingAsk(message, supervisor, math.inf), self, told=True))

    async def tell(self, message: M) -> None:
        """Send a message, and wait for room if there is none.

        A checkpoint if it waits, and otherwise from time to time. If the call is cancelled while it waits, the message
        was not sent (with `broadcast`: not to all members).

        Raises:
            ActorNotFound: no member is alive.
            PoolClosed: the pool is not running.
        """
        supervisor = self._open()
        if not self._may_wait:
            for slot in self._chosen(message):
                await Ref[Any](slot.cell).tell(message)
            return
        while len(self._queue) >= self._capacity:
            await self._notifier.wait()
            supervisor = self._open()
        self._post(Envelope(PendingAsk(message, supervisor, math.inf), self, told=True))
        runtime = supervisor.runtime
        runtime.tells_since_yield += 1
        if runtime.tells_since_yield >= TELLS_PER_YIELD:
            runtime.tells_since_yield = 0
            await runtime.backend.checkpoint()

    def ask(self, message: Answerable[M, R], timeout: float | None = None) -> Reply[R]:
        """Send a request to one member, and return its reply, which the caller awaits. As `Ref.ask`.

        Args:
            message: the request.
            timeout: seconds until the answer must be there, including the time that the request waits in the pool;
                None takes the `ask_timeout` of the system.

        Raises:
            ValueError: the rule chose several members, as `broadcast` does: use `ask_all`.
            ActorNotFound: no member is alive.
            PoolClosed: the pool is not running.
            TypeError, ValueError: the time-out is not a number of seconds.
            RuntimeError: the pool belongs to the event loop of another thread.
        """
        if timeout is not None:
            check_seconds("ask(timeout)", timeout)
        supervisor = self._open()
        if self._may_wait:
            asked = PendingAsk(message, supervisor, supervisor.runtime.ask_timeout if timeout is None else timeout)
            asker = current_cell.get()
            if asker is not None:
                asked.due = asker.deadline()
            envelope = Envelope(asked, self, told=False)
            self._post(envelope)
            sender = background_work.get() if asker is None else asker
            reply: Any = envelope.reply
            if sender is not None and not envelope.is_done:
                sender.has_sent(reply)  # the sender withdraws the request when it ends
            pooled: Reply[R] = reply
            return pooled
        chosen = self._chosen(message)
        if len(chosen) != 1:
            raise ValueError(f"ask() has one answer, and {len(chosen)} members were chosen: use ask_all()")
        return Ref[Any](chosen[0].cell).ask(message, timeout)

    async def ask_all(self, message: Answerable[M, R], timeout: float | None = None) -> list[R]:
        """Send a request to all members, regardless of the rule, and wait for all answers.

        Args:
            message: the request.
            timeout: seconds for each answer, as for `Ref.ask`.

        Raises:
            AskError: a request failed; the other requests are cancelled.
            PoolClosed: the pool is not running.
            TypeError, ValueError: the time-out is not a number of seconds.
        """
        self._open()
        replies: list[Reply[Any]] = [Ref[Any](slot.cell).ask(message, timeout) for slot in self.slots]
        try:
            return [await reply for reply in replies]
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise

    def _open(self) -> Cell:
        supervisor = self._running()
        if self._closed:
            raise PoolClosed(f"the actor pool {self.name!r} was shut down: make a new one")
        if get_ident() != supervisor.runtime.thread:
            raise supervisor.runtime.wrong_thread(supervisor)
        return supervisor

    def _chosen(self, message: Any) -> list[MemberSlot]:
        slots = self.slots
        if not slots:
            raise ActorNotFound(f"no member of the actor pool {self.name!r} is alive: resize() starts new ones")
        positions = self._routing(slots, message, self._next_turn())
        try:
            return [slots[at] for at in positions]
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"the rule of the actor pool {self.name!r} returned {safe_repr(positions)}: return a sequence with the "
                f"positions of members, 0 to {len(slots) - 1}"
            ) from error

    # Waiting in the pool.

    def _post(self, envelope: Envelope) -> None:
        self._queue.append(envelope)
        if len(self._queue) == 1:
            self._dispatch()

    def _dispatch(self) -> None:
        """Give waiting messages to free members."""
        self._will_dispatch = False
        queue = self._queue
        while queue and self.slots:
            envelope = queue[0]
            try:
                chosen = self._chosen(envelope.asked.message)
            except BaseException as error:  # the sender gets the error; the rule may accept the next message
                fatal = ends_the_program(error)
                envelope.asked.fail(as_failure(f"the rule of the actor pool {self.name!r}", error))
                if fatal:
                    self._dispatch_soon()
                    raise
                continue
            if not chosen:
                self._dispatch_when_restarted()
                break
            queue.popleft()
            chosen[0].assigned += 1
            envelope.give_to(chosen[0].cell)
            self._notifier.notify_all()

    def _dispatch_soon(self) -> None:
        # Not at once: this runs in the middle of a turn, before it is known whether the member is still alive.
        if not self._will_dispatch and self._queue and self._supervisor is not None:
            self._will_dispatch = True
            self._supervisor.runtime.post(self._dispatch)

    def _dispatch_when_restarted(self) -> None:
        for slot in self.slots:
            if not (slot.live or slot.cell.dead or slot.is_restart_watched):
                slot.is_restart_watched = True
                slot.cell.ensure_extras().call_when_started(slot.restarted)

    def done(self, envelope: Envelope) -> None:
        """Settle or requeue an envelope whose slot is done, in the queue or at a member."""
        slot = None if envelope.cell is None else self._slot_of.get(envelope.cell)
        if slot is not None:
            slot.assigned -= 1
        if envelope.cell is None:
            if envelope in self._queue:
                self._queue.remove(envelope)
                self._notifier.notify_all()
            envelope.settle()
        elif envelope.not_begun and self._supervisor is not None and not self._supervisor.closed:
            envelope.reset(self._supervisor)
            self._queue.appendleft(envelope)
        else:
            envelope.settle()
        self._dispatch_soon()

    # Inspection.

    @property
    def system(self) -> ActorSystem:
        """The actor system in which the members run.

        Raises:
            PoolClosed: the pool creates its own system, and was not entered yet.
        """
        if self._system is None:
            raise PoolClosed(f"the actor pool {self.name!r} is not running: use `async with`, or await start()")
        return self._system

    @property
    def members(self) -> tuple[Ref[M], ...]:
        """The live members, in the order of their places in the pool."""
        return tuple(Ref(slot.cell) for slot in self.slots)

    def stats(self) -> ActorPoolStats:
        """The current state of the pool and of its members."""
        return ActorPoolStats(len(self._queue), {slot.name: Ref(slot.cell).statistics() for slot in self.slots})
