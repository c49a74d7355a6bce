"""The cell that represents an actor of another node, so that a ref to it is like any other ref.

Invariants:
1. Messages are sent in the order in which they were put, including those of senders that had to wait for room.
2. At most `WINDOW` messages from one node to one actor are under way: on the wire, in the node's inbox, or waiting for
   room in the actor's mailbox. Further senders wait here.
3. A message stays here until the other side reports that it entered the mailbox or was dropped. If the node is lost
   before that, the message becomes a dead letter here.
4. A request is completed once: by its answer, by the caller that gives it up, or by the loss of the node.
"""

# Messages and answers are Any here: no annotation could be more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from cuelight._text import safe_repr, safe_str
from cuelight.actors import Actor, Cell, Exit, Reply, Start
from cuelight.actors._cell import DEAD, LIVE
from cuelight.actors._cell_extras import CellExtras
from cuelight.actors._reply import RUNNING, PendingAsk, StreamSlot
from cuelight.actors._reply import WINDOW as CHUNKS
from cuelight.actors._spec import DEFAULTS
from cuelight.errors import MessageRefused, NotStarted, Unknown, UnknownTimeout
from cuelight.mailbox import Mailbox, WaitingSender, wait
from cuelight.redis._actors._frames import Ask, Cancel, Frame, Link, More, Open, Signal, Tell, Watch

if TYPE_CHECKING:
    from cuelight.redis._actors._peer import Peer

WINDOW: Final = 512
"""The number of messages that may be under way to one actor."""

GRACE: Final = 1.0
"""Seconds for a node to report the progress of a request whose time is over."""


class RemoteCell(Cell):
    """An actor of another node. Its mailbox is the window of messages that are under way."""

    __slots__ = ("in_flight", "peer", "there")

    def __init__(self, peer: Peer, serial: int, path: str) -> None:
        Mailbox.__init__(self, WINDOW, wait)
        self.in_flight: deque[Any] | None = None  # `items` stays None, because a ref appends to a queue found there
        self.peer = peer
        self.there = path
        self.serial = serial
        self.runtime = peer.membership.runtime
        self.label = path.rpartition("/")[2]
        self.table, self.options = Actor.__table__, DEFAULTS
        self.factory, self.args, self.kwargs = Actor, (), None
        self.context, self.state = Context(), LIVE
        self.parent = self.actor = self.running = self.exit = self.asks = self.sent = self.children = self.extras = None
        self.supervisor = _NOBODY
        self.signals = self.restarts = self.incarnation = self.handled = 0
        self.awaited_start = False

    def __len__(self) -> int:
        return len(self.in_flight or ())

    @property
    def path(self) -> str:
        """The actor's path on its own node, and the identity of that node."""
        return f"{self.there}@{self.peer.identity}"

    # Sending.

    def put(self, item: Any) -> bool:
        if self.closed:
            self.discard(item, "stopped")
            return True
        coded = self.peer.membership.coder.message(self.content(item))
        if len(self) >= self.limit:
            return False
        self._transmit(item, coded)
        return True

    def put_or_drop(self, message: Any) -> bool:
        try:
            if self.put(message):
                return not self.closed
        except MessageRefused as error:
            self.runtime.dead_letters.add(message, self, "unsendable", error)
            return False
        self.discard(message, "mailbox_full")
        return False

    def fill_place(self, sender: WaitingSender, item: Any) -> None:
        if sender.granted:
            self.granted -= 1
        if self.closed:
            self.discard(item, "stopped")
            return
        self._transmit(item, self.peer.membership.coder.message(self.content(item)))
        self.admit()

    def drop_cancelled(self) -> None:
        """Remove waiting requests whose askers have given up. Requests under way stay until they are confirmed."""
        self.cancelled_count = 0
        waiting = self.senders or ()
        self.senders = deque(one for one in waiting if not self.is_cancelled(one))
        self.admit()

    def admit(self) -> None:
        senders = self.senders
        while senders and not self.closed and len(self) + self.granted < self.capacity:
            if self.granted:
                break  # a sender is about to use its place; trio would wake two in any order
            sender = senders.popleft()
            if self.is_cancelled(sender):
                self.cancelled_count = max(0, self.cancelled_count - 1)
            elif type(sender) is WaitingSender:
                sender.granted = True
                self.granted += 1
                sender.waiter.wake()
            else:
                self._transmit(sender, self.peer.membership.coder.message(self.content(sender)))
        if not self.closed:
            self._set_limit()

    def _transmit(self, item: Any, coded: tuple[str, bytes]) -> None:
        name, body = coded
        if self.in_flight is None:
            self.in_flight = deque()
            self.peer.keep(self)
        self.in_flight.append(item)
        frame: Frame
        if isinstance(item, PendingAsk):
            item.state = RUNNING  # its state is not known here until the other side reports it
            number = self.peer.membership.flights.begin(item, self)
            if isinstance(item, StreamSlot):
                item.writer = _Reading(item, self.peer, number)
                frame = Open(self.serial, number, name, body)
            else:
                frame = Ask(self.serial, number, name, body, self._left(item))
        else:
            frame = Tell(self.serial, name, body)
        self.peer.send(frame, len(body))

    def _left(self, ask: PendingAsk) -> float | None:
        left = ask.timeout
        if ask.due:
            left = min(left, max(0.0, ask.due - self.runtime.backend.time()))
        return None if left == math.inf else left

    def credited(self, count: int) -> None:
        """Remove `count` messages that have entered the mailbox from the window."""
        in_flight = self.in_flight
        for _ in range(min(count, len(self))):
            assert in_flight is not None  # noqa: S101 - it has a length
            in_flight.popleft()
        if self.senders:
            self.admit()
        self._let_go()

    def unsendable(self, error: Exception) -> None:
        """Fail the first of the messages under way, which was not sent because its frame cannot be encoded.

        The cause is an invalid address, so this happens to all messages for this actor, in their order.
        """
        item = self.in_flight[0] if self.in_flight else None
        if isinstance(item, PendingAsk):
            self.peer.membership.flights.end(item)
            item.fail(NotStarted(f"{safe_repr(item.message)} could not be sent to {self.path}: {safe_str(error)}"))
        elif item is not None:
            self.runtime.dead_letters.add(item, self, "unsendable", error)
        self.credited(1)

    def _let_go(self) -> None:
        if not self.in_flight:
            self.in_flight = None
            if self.extras is None:
                self.peer.forget(self)

    # Requests whose askers have given up.

    def cancel_request(self, ask: PendingAsk) -> None:
        flight = self.peer.membership.flights.end(ask)
        if flight is None:
            super().cancel_request(ask)
            return
        self.peer.send(Cancel(flight.number, False))
        ask.fail(
            Unknown(
                f"the request {safe_repr(ask.message)} was cancelled; whether {self.path} had begun it is not known"
            )
        )

    def request_timed_out(self, ask: PendingAsk) -> None:
        flight = self.peer.membership.flights.of(ask)
        if flight is None:
            super().request_timed_out(ask)
        elif not flight.overdue:
            flight.overdue = True
            self.peer.send(Cancel(flight.number, True))
            ask.due = self.runtime.backend.time() + GRACE
            ask.timed = True
            self.runtime.timers.add(ask.due, ask)
        else:
            self.peer.membership.flights.end(ask)
            ask.fail(
                UnknownTimeout(
                    f"{self.path} did not answer {safe_repr(ask.message)} in time, and its node did not say within "
                    f"{GRACE:g} s how far it was"
                )
            )

    # Lifecycle.

    def ensure_extras(self) -> CellExtras[Cell]:
        if self.extras is None:
            self.extras = CellExtras()
            self.peer.keep(self)
            self.peer.send(Watch(self.serial))
        return self.extras

    def end(self, exit_: Exit) -> None:
        """Handle the actor's end or loss: notify everything that waits for it."""
        if self.state == DEAD:
            return
        self.exit = exit_
        self.state = DEAD
        self.close()
        if self.extras is not None:
            self.notify_ended(exit_)
            self.extras = None
        self._let_go()

    def lost(self, exit_: Exit) -> None:
        """Handle the loss of the node: unconfirmed messages may never have reached the actor."""
        self.end(exit_)
        in_flight, self.in_flight = self.in_flight, None
        for item in in_flight or ():
            if not isinstance(item, PendingAsk):
                self.runtime.dead_letters.add(item, self, "node_lost")

    def came_up(self) -> None:
        """Note that a later incarnation has started, for callers that wait in `stop` or `kill`."""
        self.incarnation += 1
        self.notify_started()

    def linked_by(self, other: Cell) -> None:
        self._link(other, True)

    def unlinked_by(self, other: Cell) -> None:
        self._link(other, False)

    def _link(self, other: Cell, on: bool) -> None:
        membership = self.peer.membership
        self.peer.send(Link(self.serial, membership.export(other), other.path, on))

    def stop(self) -> None:
        self._signal("stop", "")

    def kill(self, why: str) -> None:
        self._signal("kill", why)

    def interrupt(self, why: str) -> bool:
        """Request the cancellation of the running handler. Returns whether the request was sent, not its effect."""
        return self._signal("interrupt", why)

    def _signal(self, verb: str, why: str) -> bool:
        if self.state == DEAD:
            return False
        self.peer.send(Signal(self.serial, verb, why))
        return True

    def fail_with(self, error: BaseException) -> None:
        """Do nothing: the actor's own node notices the same end and handles the link."""

    # Operations of local cells only.

    def begin(self, why: Start) -> None:
        raise NotImplementedError

    def on_mail(self) -> None:
        """Do nothing: no actor runs here."""

    def ask_now(self, message: Any, call: Callable[..., Any]) -> Reply[Any]:
        raise NotImplementedError

    def cancel_turn(self) -> None:
        """Do nothing: no actor runs here."""

    def cancel_ending(self) -> None:
        """Do nothing: no actor runs here."""

    def cancel_running(self, ask: PendingAsk) -> None:
        """Do nothing: no actor runs here."""

    def runs(self, task: Any) -> bool:
        return False

    def finalize(self, exit_: Exit) -> None:
        raise NotImplementedError


class _Reading:
    """Tells the writer of a stream that there is room again. The stream wakes it when the reader has taken chunks."""

    __slots__ = ("granted", "number", "peer", "received", "slot")

    def __init__(self, slot: StreamSlot, peer: Peer, number: int) -> None:
        self.slot, self.peer, self.number = slot, peer, number
        self.received = self.granted = 0

    def wake(self) -> None:
        """Report the taken chunks, at half of the window."""
        taken = self.received - len(self.slot.chunks)
        if taken - self.granted >= CHUNKS // 2 and not self.slot.done:
            self.peer.send(More(self.number, taken - self.granted))
            self.granted = taken

    def __await__(self) -> Any:
        raise NotImplementedError


_NOBODY: Any = None
"""The keeper of cells of other nodes."""
