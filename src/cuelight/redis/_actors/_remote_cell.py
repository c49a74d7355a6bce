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
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight._text import safe_repr, safe_str
from cuelight.actors import Actor, Cell, Exit, Reply, Start
from cuelight.actors._cell import DEAD, LIVE
from cuelight.actors._cell_extras import CellExtras
from cuelight.actors._reply import RUNNING, PendingAsk, StreamSlot
from cuelight.actors._reply import WINDOW as CHUNKS
from cuelight.actors._spec import DEFAULTS
from cuelight.errors import MessageRefused, NotStarted, Unknown, UnknownTimeout
from cuelight.mailbox import Mailbox, WaitingSender, wait
from cuelight.redis._actors._frames import (
    AskFrame,
    CancelFrame,
    Frame,
    LinkFrame,
    MoreFrame,
    OpenFrame,
    SignalFrame,
    TellFrame,
    WatchFrame,
)

if TYPE_CHECKING:
    from cuelight.actors import ActorRuntime
    from cuelight.redis._actors._registry import Coder

WINDOW: Final = 512
"""The number of messages that may be under way to one actor."""

GRACE: Final = 1.0
"""Seconds for a node to report the progress of a request whose time is over."""


class CellHost(Protocol):
    """What the cells of other nodes' actors ask of the membership."""

    runtime: ActorRuntime
    coder: Coder
    pending_requests: PendingRequests

    def export(self, cell: Cell) -> int: ...


class PeerLink(Protocol):
    """What a cell asks of the node that its actor is on."""

    identity: str

    @property
    def membership(self) -> CellHost: ...

    def send(self, frame: Frame, size: int = 0) -> None: ...

    def keep(self, cell: RemoteCell) -> None: ...

    def forget(self, cell: RemoteCell) -> None: ...


class RemoteCell(Cell):
    """An actor of another node. Its mailbox is the window of messages that are under way."""

    __slots__ = ("in_flight", "peer", "there")

    def __init__(self, peer: PeerLink, serial: int, path: str) -> None:
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
        self.supervisor = _NO_SUPERVISOR
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
            number = self.peer.membership.pending_requests.begin(item, self)
            if isinstance(item, StreamSlot):
                item.writer = _StreamReader(item, self.peer, number)
                frame = OpenFrame(self.serial, number, name, body)
            else:
                frame = AskFrame(self.serial, number, name, body, self._left(item))
        else:
            frame = TellFrame(self.serial, name, body)
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
        self._release_if_idle()

    def unsendable(self, error: Exception) -> None:
        """Fail the first of the messages under way, which was not sent because its frame cannot be encoded.

        The cause is an invalid address, so this happens to all messages for this actor, in their order.
        """
        item = self.in_flight[0] if self.in_flight else None
        if isinstance(item, PendingAsk):
            self.peer.membership.pending_requests.end(item)
            item.fail(NotStarted(f"{safe_repr(item.message)} could not be sent to {self.path}: {safe_str(error)}"))
        elif item is not None:
            self.runtime.dead_letters.add(item, self, "unsendable", error)
        self.credited(1)

    def _release_if_idle(self) -> None:
        if not self.in_flight:
            self.in_flight = None
            if self.extras is None:
                self.peer.forget(self)

    # Requests whose askers have given up.

    def cancel_request(self, ask: PendingAsk) -> None:
        pending = self.peer.membership.pending_requests.end(ask)
        if pending is None:
            super().cancel_request(ask)
            return
        self.peer.send(CancelFrame(pending.number, False))
        ask.fail(
            Unknown(
                f"the request {safe_repr(ask.message)} was cancelled; whether {self.path} had begun it is not known"
            )
        )

    def request_timed_out(self, ask: PendingAsk) -> None:
        pending = self.peer.membership.pending_requests.of(ask)
        if pending is None:
            super().request_timed_out(ask)
        elif not pending.overdue:
            pending.overdue = True
            self.peer.send(CancelFrame(pending.number, True))
            ask.due = self.runtime.backend.time() + GRACE
            ask.timed = True
            self.runtime.timers.add(ask.due, ask)
        else:
            self.peer.membership.pending_requests.end(ask)
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
            self.peer.send(WatchFrame(self.serial))
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
        self._release_if_idle()

    def lost(self, exit_: Exit) -> None:
        """Handle the loss of the node: unconfirmed messages may never have reached the actor."""
        self.end(exit_)
        in_flight, self.in_flight = self.in_flight, None
        for item in in_flight or ():
            if not isinstance(item, PendingAsk):
                self.runtime.dead_letters.add(item, self, "node_lost")

    def on_restarted(self) -> None:
        """Note that a later incarnation has started, for callers that wait in `stop` or `kill`."""
        self.incarnation += 1
        self.notify_started()

    def linked_by(self, other: Cell) -> None:
        self._link(other, True)

    def unlinked_by(self, other: Cell) -> None:
        self._link(other, False)

    def _link(self, other: Cell, on: bool) -> None:
        membership = self.peer.membership
        self.peer.send(LinkFrame(self.serial, membership.export(other), other.path, on))

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
        self.peer.send(SignalFrame(self.serial, verb, why))
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


class _StreamReader:
    """Tells the writer of a stream that there is room again. The stream wakes it when the reader has taken chunks."""

    __slots__ = ("granted", "number", "peer", "received", "slot")

    def __init__(self, slot: StreamSlot, peer: PeerLink, number: int) -> None:
        self.slot, self.peer, self.number = slot, peer, number
        self.received = self.granted = 0

    def wake(self) -> None:
        """Report the taken chunks, at half of the window."""
        taken = self.received - len(self.slot.chunks)
        if taken - self.granted >= CHUNKS // 2 and not self.slot.done:
            self.peer.send(MoreFrame(self.number, taken - self.granted))
            self.granted = taken

    def __await__(self) -> Any:
        raise NotImplementedError


_NO_SUPERVISOR: Any = None
"""The supervisor of cells of other nodes."""


class PendingRequest:
    """One pending request.

    Attributes:
        number: the number by which the other node knows it.
        batch: the number of the batch that contains it; None before it is in one.
        overdue: whether its time is over, so that the other node was asked for its progress.
    """

    __slots__ = ("ask", "batch", "cell", "number", "overdue")

    def __init__(self, number: int, ask: PendingAsk, cell: RemoteCell) -> None:
        self.number, self.ask, self.cell = number, ask, cell
        self.batch: int | None = None
        self.overdue = False

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return isinstance(self.ask, StreamSlot)

    def give(self, chunk: Any) -> None:
        """Deliver one more chunk of the stream."""
        slot: Any = self.ask
        slot.writer.received += 1
        slot.add_chunk(chunk)


class PendingRequests:
    """The pending requests of one membership. Each is removed once."""

    def __init__(self) -> None:
        self._next: Final[Callable[[], int]] = count(1).__next__
        self._by_number: dict[int, PendingRequest] = {}
        self._by_ask: dict[PendingAsk, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def begin(self, ask: PendingAsk, cell: RemoteCell) -> int:
        """Register a request and return its number."""
        pending = PendingRequest(self._next(), ask, cell)
        self._by_number[pending.number] = self._by_ask[ask] = pending
        return pending.number

    def of(self, ask: PendingAsk) -> PendingRequest | None:
        """Return a pending request by its slot."""
        return self._by_ask.get(ask)

    def numbered(self, number: int) -> PendingRequest | None:
        """Return a pending request by its number."""
        return self._by_number.get(number)

    def end(self, ask: PendingAsk) -> PendingRequest | None:
        """Remove and return a pending request; None if it was removed before."""
        pending = self._by_ask.pop(ask, None)
        if pending is not None:
            del self._by_number[pending.number]
        return pending

    def lost(self, identity: str, read: int | None, why: str) -> None:
        """Fail the requests to the actors of a node that is gone.

        Args:
            identity: the identity of the node.
            read: the number of the last batch that the node had read; None if it may have read all.
            why: the reason, for the errors.
        """
        for pending in [one for one in self._by_number.values() if one.cell.peer.identity == identity]:
            ask, cell = pending.ask, pending.cell
            self.end(ask)
            message = safe_repr(ask.message)
            if pending.batch is None or (read is not None and pending.batch > read):
                ask.fail(NotStarted(f"{cell.path} never saw {message}: {why}"))
            else:
                ask.fail(Unknown(f"{cell.path} may have handled {message}, wholly, in part or not at all: {why}"))
