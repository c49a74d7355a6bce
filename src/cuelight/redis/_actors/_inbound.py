"""Frames of another node for the actors here: messages, requests, streams, watches, links.

Invariants:
1. Messages from one node to one actor enter its mailbox in the order in which they arrived. Those that find no room
   wait in the mailbox's queue of senders, as local senders do.
2. Each request is answered once: with its handler's answer, or with the reason why there is none.
3. When the other node is lost, its requests are cancelled and its watches end.
"""

# Messages and answers are Any here: no annotation could be more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr, safe_str
from cuelight.actors import Cell, Exit
from cuelight.actors._cell import DEAD
from cuelight.actors._reply import Asked, StreamSlot
from cuelight.errors import MessageRefused, NotStarted, ends_the_program
from cuelight.mailbox import WaitingSender
from cuelight.redis._actors._frames import Ask, Cancel, Chunk, Link, More, Open, Reply, Signal, Tell, Up, Watch
from cuelight.redis._actors._outcomes import ended_frame, fail_frame, unsendable

if TYPE_CHECKING:
    from cuelight.redis._actors._peer import Peer


class Inbound:
    """The frames of one peer for actors here."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.asks: dict[int, Asked] = {}
        self._watched: dict[int, tuple[Cell, Callable[[Exit], None]]] = {}

    # Messages.

    def tell(self, frame: Tell) -> None:
        """Put a message into the mailbox, or into its queue of senders."""
        membership, credit = self._peer.membership, partial(self._peer.credit, frame.to)
        cell = membership.exported(frame.to)
        addressee = membership.gone_actor(frame.to) if cell is None else cell
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
                _Entering.line_up(cell, message, credit)
                return
        except BaseException as error:  # an overflow policy rejects by raising any error
            if ends_the_program(error):
                raise
            membership.runtime.dead_letters.add(message, cell, "mailbox_full", error)
        credit()

    # Requests.

    def ask(self, frame: Ask) -> None:
        """Put a request into the mailbox."""
        if frame.left is not None and not frame.left >= 0:
            self._peer.credit(frame.to)
            self._refuse(frame.number, NotStarted(f"{frame.left!r} is no time that a request may take"))
            return
        self._request(frame, lambda message, cell: Asked(message, cell, math.inf if frame.left is None else frame.left))

    def open(self, frame: Open) -> None:
        """Put a request for a stream into the mailbox."""
        self._request(frame, lambda message, cell: _Sending(message, cell, self._peer, frame.number))

    def _request(self, frame: Ask | Open, make: Callable[[Any, Cell], Asked]) -> None:
        peer, membership = self._peer, self._peer.membership
        peer.credit(frame.to)  # a request that waits for room occupies none, as a local one
        cell = membership.exported(frame.to)
        if cell is None:
            where = membership.gone_actor(frame.to).path
            self._refuse(frame.number, NotStarted(f"{where} has ended, or was never there"))
            return
        try:
            message = membership.coder.read(frame.kind, frame.body)
        except MessageRefused as error:
            membership.refused += 1
            self._refuse(frame.number, NotStarted(f"the node of {cell.path} refused the request: {safe_str(error)}"))
            return
        asked = make(message, cell)
        asked.waiter = _Answering(self, frame.number, asked)
        self.asks[frame.number] = asked
        try:
            if not cell.put(asked):
                cell.line_up(asked)
        except BaseException as error:
            if ends_the_program(error):
                raise
            refusal = NotStarted(f"{cell.path} did not take {safe_repr(message)}: {safe_str(error)}")
            refusal.__cause__ = error
            asked.fail(refusal)

    def _refuse(self, number: int, error: NotStarted) -> None:
        self._peer.send(fail_frame(number, error, self._peer.membership.registry))

    def answer(self, number: int, asked: Asked) -> None:
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
                self._peer.send(Reply(number, body), len(body))
                return
        self._peer.send(fail_frame(number, error, membership.registry))

    def cancel(self, frame: Cancel) -> None:
        """Cancel a request; or, if it is overdue, let the asker know how far it is."""
        asked = self.asks.get(frame.number)
        if asked is None:
            return
        if frame.overdue:
            asked.cell.overdue(asked)
        else:
            del self.asks[frame.number]
            asked.cancel()

    def more(self, frame: More) -> None:
        """Handle that the reader of a stream has taken chunks."""
        asked = self.asks.get(frame.number)
        if isinstance(asked, _Sending):
            asked.taken(frame.chunks)

    # Lifecycle.

    def watch(self, frame: Watch) -> None:
        """Notify the other node when an actor ends; immediately if it has ended."""
        cell = self._peer.membership.exported(frame.to)
        if cell is None:
            exit_ = self._peer.membership.gone_actor(frame.to).exit
            self._peer.send(ended_frame(frame.to, exit_, self._peer.membership.registry))
        else:

            def ended(exit_: Exit) -> None:
                self._watched.pop(frame.to, None)
                self._peer.send(ended_frame(frame.to, exit_, self._peer.membership.registry))

            cell.bonds_made().call_when_ended(ended)
            self._watched[frame.to] = cell, ended

    def signal(self, frame: Signal) -> None:
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
            cell.bonds_made().call_when_started(partial(self._up, cell, frame.to))

    def _up(self, cell: Cell, serial: int) -> None:
        if cell.state != DEAD:
            self._peer.send(Up(serial))

    def link(self, frame: Link) -> None:
        """Link an actor here to one of the other node, through the cell that represents it, or unlink the two."""
        cell = self._peer.membership.exported(frame.to)
        if cell is None:
            return
        theirs = self._peer.membership.cell_at((self._peer.identity, frame.mine, frame.path))
        if frame.on:
            cell.bonds_made().links[theirs] = None
            theirs.bonds_made().links[cell] = None
        else:
            for one, other in ((cell, theirs), (theirs, cell)):
                if one.bonds is not None:
                    one.bonds.links.pop(other, None)

    def close(self) -> None:
        """Cancel the requests and watches of the other node, which is lost."""
        asks, self.asks = self.asks, {}
        for asked in asks.values():
            asked.cancel()
        for cell, ended in self._watched.values():
            if cell.bonds is not None:
                cell.bonds.when_ended.pop(ended, None)
        self._watched.clear()


class _Entering:
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
        cell.line_up(entering.sender)

    def wake(self) -> None:
        """Enter the mailbox, which has room now or was closed."""
        self.cell.redeem(self.sender, self.message)
        self.credit()

    def __await__(self) -> Any:
        raise NotImplementedError


class _Answering:
    """Takes the place of the task that asks a local request."""

    __slots__ = ("asked", "inbound", "number")

    def __init__(self, inbound: Inbound, number: int, asked: Asked) -> None:
        self.inbound, self.number, self.asked = inbound, number, asked

    def wake(self) -> None:
        self.inbound.answer(self.number, self.asked)

    def __await__(self) -> Any:
        raise NotImplementedError


class _Sending(StreamSlot):
    """The writing end of a stream with a remote reader. Chunks are sent immediately and count until they are taken."""

    __slots__ = ("_number", "_open", "_peer")

    def __init__(self, message: Any, cell: Cell, peer: Peer, number: int) -> None:
        StreamSlot.__init__(self, message, cell, math.inf)
        self._peer, self._number, self._open = peer, number, 0

    @property
    def ahead(self) -> int:
        return self._open

    def give(self, chunk: Any) -> None:
        try:
            body = self._peer.membership.coder.body(chunk)
        except MessageRefused as error:
            self.fail(unsendable(chunk, error))
            self.cell.cancel_running(self)
            return
        self._open += 1
        self._peer.send(Chunk(self._number, body), len(body))

    def taken(self, chunks: int) -> None:
        """Handle that the reader has taken `chunks` chunks."""
        self._open -= chunks
        if self.writer is not None:
            self.writer.wake()
