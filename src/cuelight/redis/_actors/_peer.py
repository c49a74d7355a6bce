"""Another node as seen from this one: the frames for the next batch to it, the received batches, and its actors.

Invariants:
1. Each received batch is processed once. Batches are processed in the order of their numbers, whether they arrived over
   connections or through the inbox.
2. An error in one frame does not affect others.
3. Messages from one node to one actor enter its mailbox in the order in which they arrived. Those that find no room
   wait in the mailbox's queue of senders, as local senders do.
4. Each request is answered once: with its handler's answer, or with the reason why there is none.
5. When the other node is lost, its requests are cancelled and its watches end.
"""

# Messages and answers are Any here: no annotation could be more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from cuelight._log import get_log
from cuelight._text import safe_repr, safe_str
from cuelight.actors import Cell, Exit
from cuelight.actors._cell import DEAD
from cuelight.actors._reply import PendingAsk, StreamSlot
from cuelight.errors import Interrupted, MessageRefused, NotStarted, ends_the_program
from cuelight.mailbox import WaitingSender
from cuelight.redis._actors._delivery import Batch, BatchDelivery, DeliveryHost
from cuelight.redis._actors._frames import (
    AskFrame,
    CancelFrame,
    ChunkFrame,
    CreditFrame,
    EndedFrame,
    FailFrame,
    Frame,
    LinkFrame,
    MoreFrame,
    OpenFrame,
    ReplyFrame,
    SignalFrame,
    TellFrame,
    UpFrame,
    WatchFrame,
    encode_frames,
)
from cuelight.redis._actors._outcomes import ended_frame, error_of, exit_of, fail_frame, unsendable
from cuelight.redis._actors._remote_cell import WINDOW, CellHost, PendingRequest, RemoteCell

if TYPE_CHECKING:
    from cuelight.redis._actors._direct import Incoming
    from cuelight.redis._actors._directory import InboxEntry
    from cuelight.redis._actors._outcomes import EndedActor
    from cuelight.redis._actors._registry import Address, Registry


class PeerHost(CellHost, DeliveryHost, Protocol):
    """What a peer asks of the membership."""

    registry: Registry
    sent: int
    refused: int

    def exported(self, serial: int) -> Cell | None: ...

    def ended_actor(self, serial: int) -> EndedActor: ...

    def cell_at(self, address: Address) -> RemoteCell: ...

    def known(self, identity: str, serial: int) -> RemoteCell | None: ...

    def process_batch(self, peer: Peer, payload: bytes) -> int: ...

    def refuse(self, kind: str, body: bytes, addressee: Any, sender: str, error: MessageRefused) -> None: ...


class IncomingRequests:
    """The frames of one peer for actors here."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.asks: dict[int, PendingAsk] = {}
        self._watched: dict[int, tuple[Cell, Callable[[Exit], None]]] = {}

    # Messages.

    def tell(self, frame: TellFrame) -> None:
        """Put a message into the mailbox, or into its queue of senders."""
        membership, credit = self._peer.membership, partial(self._peer.credit, frame.to)
        cell = membership.exported(frame.to)
        addressee = membership.ended_actor(frame.to) if cell is None else cell
        try:
            message = membership.coder.read(frame.kind, frame.body)
        except MessageRefused as error:
            membership.refuse(frame.kind, frame.body, addressee, self._peer.identity, error)
            credit()
            return
        if cell is None:
            membership.runtime.dead_letters.add(message, addressee, "stopped")
            credit()
            return
        try:
            if not cell.put(message):
                _QueuedMessage.line_up(cell, message, credit)
                return
        except BaseException as error:  # an overflow policy rejects by raising any error
            if ends_the_program(error):
                raise
            membership.runtime.dead_letters.add(message, cell, "mailbox_full", error)
        credit()

    # Requests.

    def ask(self, frame: AskFrame) -> None:
        """Put a request into the mailbox."""
        if frame.left is not None and not frame.left >= 0:
            self._peer.credit(frame.to)
            self._refuse(frame.number, NotStarted(f"{frame.left!r} is no time that a request may take"))
            return
        self._request(
            frame, lambda message, cell: PendingAsk(message, cell, math.inf if frame.left is None else frame.left)
        )

    def open(self, frame: OpenFrame) -> None:
        """Put a request for a stream into the mailbox."""
        self._request(frame, lambda message, cell: _OutgoingStream(message, cell, self._peer, frame.number))

    def _request(self, frame: AskFrame | OpenFrame, make: Callable[[Any, Cell], PendingAsk]) -> None:
        peer, membership = self._peer, self._peer.membership
        peer.credit(frame.to)  # a request that waits for room occupies none, as a local one
        cell = membership.exported(frame.to)
        if cell is None:
            where = membership.ended_actor(frame.to).path
            self._refuse(frame.number, NotStarted(f"{where} has ended, or was never there"))
            return
        try:
            message = membership.coder.read(frame.kind, frame.body)
        except MessageRefused as error:
            membership.refused += 1
            self._refuse(frame.number, NotStarted(f"the node of {cell.path} refused the request: {safe_str(error)}"))
            return
        asked = make(message, cell)
        asked.waiter = _ReplySender(self, frame.number, asked)
        self.asks[frame.number] = asked
        try:
            if not cell.put(asked):
                cell.enqueue_sender(asked)
        except BaseException as error:
            if ends_the_program(error):
                raise
            refusal = NotStarted(f"{cell.path} did not take {safe_repr(message)}: {safe_str(error)}")
            refusal.__cause__ = error
            asked.fail(refusal)

    def _refuse(self, number: int, error: NotStarted) -> None:
        self._peer.send(fail_frame(number, error, self._peer.membership.registry))

    def answer(self, number: int, asked: PendingAsk) -> None:
        """Send the result of a completed request, unless the asker has stopped waiting."""
        if self.asks.pop(number, None) is None:
            return
        membership = self._peer.membership
        error = asked.error
        if error is None:
            try:
                body = membership.coder.body(asked.value)
            except MessageRefused as refusal:
                error = unsendable(asked.value, refusal)
            else:
                self._peer.send(ReplyFrame(number, body), len(body))
                return
        self._peer.send(fail_frame(number, error, membership.registry))

    def cancel(self, frame: CancelFrame) -> None:
        """Cancel a request; or, if it is overdue, let the asker know how far it is."""
        asked = self.asks.get(frame.number)
        if asked is None:
            return
        if frame.overdue:
            asked.cell.request_timed_out(asked)
        else:
            del self.asks[frame.number]
            asked.cancel()

    def more(self, frame: MoreFrame) -> None:
        """Handle that the reader of a stream has taken chunks."""
        asked = self.asks.get(frame.number)
        if isinstance(asked, _OutgoingStream):
            asked.taken(frame.chunks)

    # Lifecycle.

    def watch(self, frame: WatchFrame) -> None:
        """Notify the other node when an actor ends; immediately if it has ended."""
        cell = self._peer.membership.exported(frame.to)
        if cell is None:
            exit_ = self._peer.membership.ended_actor(frame.to).exit
            self._peer.send(ended_frame(frame.to, exit_, self._peer.membership.registry))
        else:

            def ended(exit_: Exit) -> None:
                self._watched.pop(frame.to, None)
                self._peer.send(ended_frame(frame.to, exit_, self._peer.membership.registry))

            cell.ensure_extras().call_when_ended(ended)
            self._watched[frame.to] = cell, ended

    def signal(self, frame: SignalFrame) -> None:
        cell = self._peer.membership.exported(frame.to)
        if cell is None:
            return
        if frame.verb == "interrupt":
            cell.interrupt(frame.why)
            return
        if frame.verb == "stop":
            cell.stop()
        else:
            cell.kill(frame.why)
        if cell.state != DEAD:
            cell.ensure_extras().call_when_started(partial(self._up, cell, frame.to))

    def _up(self, cell: Cell, serial: int) -> None:
        if cell.state != DEAD:
            self._peer.send(UpFrame(serial))

    def link(self, frame: LinkFrame) -> None:
        """Link an actor here to one of the other node, through the cell that represents it, or unlink the two."""
        cell = self._peer.membership.exported(frame.to)
        if cell is None:
            return
        theirs = self._peer.membership.cell_at((self._peer.identity, frame.mine, frame.path))
        if frame.on:
            cell.ensure_extras().links[theirs] = None
            theirs.ensure_extras().links[cell] = None
        else:
            for one, other in ((cell, theirs), (theirs, cell)):
                if one.extras is not None:
                    one.extras.links.pop(other, None)

    def close(self) -> None:
        """Cancel the requests and watches of the other node, which is lost."""
        asks, self.asks = self.asks, {}
        for asked in asks.values():
            asked.cancel()
        for cell, ended in self._watched.values():
            if cell.extras is not None:
                cell.extras.when_ended.pop(ended, None)
        self._watched.clear()


class _QueuedMessage:
    """A message in a mailbox's queue of senders. Unlike a sender, no task waits for it."""

    __slots__ = ("cell", "credit", "message", "sender")

    sender: WaitingSender

    def __init__(self, cell: Cell, message: Any, credit: Callable[[], None]) -> None:
        self.cell, self.message, self.credit = cell, message, credit

    @classmethod
    def line_up(cls, cell: Cell, message: Any, credit: Callable[[], None]) -> None:
        """Enter the queue of senders."""
        entering = cls(cell, message, credit)
        entering.sender = WaitingSender(entering)
        cell.enqueue_sender(entering.sender)

    def wake(self) -> None:
        """Enter the mailbox, which has room now or was closed."""
        self.cell.fill_place(self.sender, self.message)
        self.credit()

    def __await__(self) -> Any:
        raise NotImplementedError


class _ReplySender:
    """Takes the place of the task that asks a local request."""

    __slots__ = ("asked", "incoming_requests", "number")

    def __init__(self, incoming_requests: IncomingRequests, number: int, asked: PendingAsk) -> None:
        self.incoming_requests, self.number, self.asked = incoming_requests, number, asked

    def wake(self) -> None:
        self.incoming_requests.answer(self.number, self.asked)

    def __await__(self) -> Any:
        raise NotImplementedError


class _OutgoingStream(StreamSlot):
    """The writing end of a stream with a remote reader. Chunks are sent immediately and count until they are taken."""

    __slots__ = ("_actor", "_number", "_open", "_peer")

    def __init__(self, message: Any, cell: Cell, peer: Peer, number: int) -> None:
        StreamSlot.__init__(self, message, cell, math.inf)
        self._actor = cell
        self._peer, self._number, self._open = peer, number, 0

    @property
    def ahead(self) -> int:
        return self._open

    def add_chunk(self, chunk: Any) -> None:
        try:
            body = self._peer.membership.coder.body(chunk)
        except MessageRefused as error:
            self.fail(unsendable(chunk, error))
            self._actor.cancel_running(self)
            return
        self._open += 1
        self._peer.send(ChunkFrame(self._number, body), len(body))

    def taken(self, chunks: int) -> None:
        """Handle that the reader has taken `chunks` chunks."""
        self._open -= chunks
        if self.writer is not None:
            self.writer.wake()


class IncomingReplies:
    """The frames of one peer about its actors."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    # Requests.

    def reply(self, frame: ReplyFrame) -> None:
        """Deliver an answer, or end a stream. A late answer is counted, not delivered."""
        membership = self._peer.membership
        pending = membership.pending_requests.numbered(frame.number)
        if pending is None:
            membership.runtime.late_replies += 1
            return
        membership.pending_requests.end(pending.ask)
        if pending.streams:
            pending.ask.succeed(None)
            return
        try:
            value = membership.coder.answer(type(pending.ask.message), frame.body)
        except MessageRefused as error:
            self._unreadable(pending, error)
        else:
            pending.ask.succeed(value)

    def fail(self, frame: FailFrame) -> None:
        """Fail a request."""
        membership = self._peer.membership
        pending = membership.pending_requests.numbered(frame.number)
        if pending is not None:
            membership.pending_requests.end(pending.ask)
            pending.ask.fail(error_of(frame, membership.registry))

    def chunk(self, frame: ChunkFrame) -> None:
        """Deliver one chunk of a stream."""
        membership = self._peer.membership
        pending = membership.pending_requests.numbered(frame.number)
        if pending is None or not pending.streams:
            return
        try:
            chunk = membership.coder.answer(type(pending.ask.message), frame.body)
        except MessageRefused as error:
            membership.pending_requests.end(pending.ask)
            self._peer.send(CancelFrame(frame.number, False))
            self._unreadable(pending, error)
        else:
            pending.give(chunk)

    def unreadable(self, number: int, error: MessageRefused) -> None:
        """Fail a request whose answer could not be decoded."""
        membership = self._peer.membership
        pending = membership.pending_requests.numbered(number)
        if pending is not None and pending.cell.peer is self._peer:
            membership.pending_requests.end(pending.ask)
            self._peer.send(CancelFrame(number, False))
            self._unreadable(pending, error)

    def _unreadable(self, pending: PendingRequest, error: MessageRefused) -> None:
        self._peer.membership.refused += 1
        text = (
            f"{pending.cell.path} answered {safe_repr(pending.ask.message)}, and the answer was refused here: {error}"
        )
        failure = Interrupted(text)
        failure.__cause__ = error
        pending.ask.fail(failure)

    # Actors.

    def credit(self, frame: CreditFrame) -> None:
        """Make room for as many messages as have entered the mailbox of an actor."""
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.credited(frame.count)

    def ended(self, frame: EndedFrame) -> None:
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.end(exit_of(frame, self._peer.membership.registry))

    def up(self, frame: UpFrame) -> None:
        """Note that a later incarnation of an actor has started."""
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.on_restarted()


log = get_log("cuelight.redis")

BATCH: Final = 65536
"""Bytes after which a batch is closed."""

FRAME: Final = 24
"""The approximate bytes of a frame without its body."""

URGENT: Final = frozenset({AskFrame, ReplyFrame, FailFrame})
"""Frames for which a caller waits."""

CREDIT_DELAY: Final = 0.02
"""Seconds for which a confirmation waits for a batch to join."""


class PeerStatistics(msgspec.Struct, frozen=True):
    """The traffic between a node and one other node at one moment.

    Attributes:
        identity: the identity of the other node.
        sends_directly: whether frames to the other node are sent over a direct connection now; otherwise they are sent
            through the server.
        receives_directly: whether the other node has a direct connection to this one.
        connects: how often this node has connected to the other one; each time but the first was after the end of a
            connection.
        sent_directly: frames sent over connections.
        sent_by_inbox: frames sent through the server. Frames that a connection had not confirmed when it ended are sent
            again, and count in both.
        received_directly: frames received over connections.
        received_by_inbox: frames received through the server.
    """

    identity: str
    sends_directly: bool
    receives_directly: bool
    connects: int
    sent_directly: int
    sent_by_inbox: int
    received_directly: int
    received_by_inbox: int


class Peer:
    """One other node.

    Attributes:
        number: the number of the last batch that was made for it.
        seen: the number up to which all of its batches were processed.
        seen_directly: the number of the last of these batches that arrived over a connection.
        incoming: its connection to this node.
    """

    def __init__(self, membership: PeerHost, identity: str) -> None:
        self.membership, self.identity = membership, identity
        self.incoming_requests, self.incoming_replies = IncomingRequests(self), IncomingReplies(self)
        self.lost = False
        self.cells: dict[int, RemoteCell] = {}  # cells with mail under way or with watchers must live on
        self._frames: deque[tuple[Frame, int]] = deque()
        self._credits: dict[int, int] = {}
        self._credit_count = 0
        self._credit_scheduled = False
        self.number = 0
        self.delivery = BatchDelivery(self, membership)
        self.incoming: Incoming | None = None
        self.seen = self.seen_directly = 0
        self.received_directly = self.received_by_inbox = 0

    # The cells.

    def keep(self, cell: RemoteCell) -> None:
        """Keep a reference to a cell, even if no other is left."""
        self.cells[cell.serial] = cell

    def forget(self, cell: RemoteCell) -> None:
        """Drop the reference to a cell."""
        if self.cells.get(cell.serial) is cell:
            del self.cells[cell.serial]

    # Sending.

    def send(self, frame: Frame, size: int = 0) -> None:
        """Send a frame after all others. Not a checkpoint."""
        if not self.lost:
            self._frames.append((frame, size + FRAME))
            self.delivery.flush_soon(now=type(frame) in URGENT)

    def credit(self, serial: int) -> None:
        """Report soon that a message of this peer has entered a mailbox or was dropped."""
        if self.lost:
            return
        self._credits[serial] = self._credits.get(serial, 0) + 1
        self._credit_count += 1
        if self._credit_count >= WINDOW // 4:
            self.delivery.flush_soon()
        elif not self._credit_scheduled:
            self._credit_scheduled = True
            self.membership.runtime.call_later(CREDIT_DELAY, self._flush_credits)

    def _flush_credits(self) -> None:
        self._credit_scheduled = False
        if self._credits and not self.lost:
            self.delivery.flush_soon()

    @property
    def is_drained(self) -> bool:
        """Whether no frames are left to send."""
        return self.lost or (self.delivery.is_done and not (self._frames or self._credits))

    @property
    def has_frames(self) -> bool:
        """Whether there are frames for the next batch."""
        return bool(self._frames or self._credits) and not self.lost

    def next_batch(self) -> Batch:
        """Return the next batch; `has_frames` says whether there is one."""
        frames = self._take()
        payload, bad = encode_frames(frames)
        for frame, error in bad:
            self._refuse(frame, error)
        return Batch(self.number, payload, len(frames))

    def _take(self) -> list[Frame]:
        """Return the frames of the next batch."""
        frames: list[Frame] = [CreditFrame(serial, count) for serial, count in self._credits.items()]
        self._credits.clear()
        self._credit_count = 0
        self.number += 1
        size = 0
        while self._frames and size < BATCH:
            frame, weight = self._frames.popleft()
            size += weight
            frames.append(frame)
            if isinstance(frame, AskFrame | OpenFrame):
                pending = self.membership.pending_requests.numbered(frame.number)
                if pending is not None:
                    pending.batch = self.number
        self.membership.sent += len(frames)
        return frames

    def _refuse(self, frame: Frame, error: Exception) -> None:
        """Handle a frame that cannot be encoded: its message or request fails, and nothing else."""
        log.error("%s for %s cannot be encoded and is not sent: %s", type(frame).__name__, self.identity, error)
        if isinstance(frame, TellFrame | AskFrame | OpenFrame):
            cell = self.membership.known(self.identity, frame.to)
            if cell is not None:
                cell.unsendable(error)

    # Receiving.

    def receive_direct(self, number: int, payload: bytes) -> bool:
        """Process a batch from a connection. Returns whether it is valid at this point."""
        if number == self.seen + 1:
            self.seen = self.seen_directly = number
            self.received_directly += self.membership.process_batch(self, payload)
        return number <= self.seen

    def receive_from_inbox(self, entry: InboxEntry) -> None:
        """Process a batch from the inbox."""
        if 0 < entry.number <= self.seen_directly:
            return  # the connection over which it arrived ended before it was confirmed
        if entry.number == self.seen + 1:
            self.seen = entry.number
        self.received_by_inbox += self.membership.process_batch(self, entry.payload)
        if self.incoming is not None:
            self.incoming.confirm()  # the other node waits for this before it uses the connection

    def disconnect(self, why: str) -> None:
        """End the connections in both directions."""
        self.delivery.end(why)
        if self.incoming is not None:
            self.incoming.end(why)

    def statistics(self) -> PeerStatistics:
        """Return the traffic between this node and the other one."""
        delivery = self.delivery
        return PeerStatistics(
            identity=self.identity,
            sends_directly=delivery.is_direct,
            receives_directly=self.incoming is not None,
            connects=delivery.connects,
            sent_directly=delivery.sent_directly,
            sent_by_inbox=delivery.sent_by_inbox,
            received_directly=self.received_directly,
            received_by_inbox=self.received_by_inbox,
        )
