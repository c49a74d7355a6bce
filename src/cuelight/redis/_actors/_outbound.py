"""Frames of another node about its actors, and about the requests that this node has sent to them."""

# Messages and answers are Any here: no annotation could be more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight._text import safe_repr
from cuelight.errors import Interrupted, MessageRefused
from cuelight.redis._actors._frames import Cancel, Chunk, Credit, Ended, Fail, Reply, Up
from cuelight.redis._actors._outcomes import error_of, exit_of

if TYPE_CHECKING:
    from cuelight.redis._actors._flights import Flight
    from cuelight.redis._actors._peer import Peer


class Outbound:
    """The frames of one peer about its actors."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    # Requests.

    def reply(self, frame: Reply) -> None:
        """Deliver an answer, or end a stream. A late answer is counted, not delivered."""
        membership = self._peer.membership
        flight = membership.flights.numbered(frame.number)
        if flight is None:
            membership.runtime.late_replies += 1
            return
        membership.flights.end(flight.ask)
        if flight.streams:
            flight.ask.succeed(None)
            return
        try:
            value = membership.coder.answer(type(flight.ask.message), frame.body)
        except MessageRefused as error:
            self._unreadable(flight, error)
        else:
            flight.ask.succeed(value)

    def fail(self, frame: Fail) -> None:
        """Fail a request."""
        membership = self._peer.membership
        flight = membership.flights.numbered(frame.number)
        if flight is not None:
            membership.flights.end(flight.ask)
            flight.ask.fail(error_of(frame, membership.registry))

    def chunk(self, frame: Chunk) -> None:
        """Deliver one chunk of a stream."""
        membership = self._peer.membership
        flight = membership.flights.numbered(frame.number)
        if flight is None or not flight.streams:
            return
        try:
            chunk = membership.coder.answer(type(flight.ask.message), frame.body)
        except MessageRefused as error:
            membership.flights.end(flight.ask)
            self._peer.send(Cancel(frame.number, False))
            self._unreadable(flight, error)
        else:
            flight.give(chunk)

    def unreadable(self, number: int, error: MessageRefused) -> None:
        """Fail a request whose answer could not be decoded."""
        membership = self._peer.membership
        flight = membership.flights.numbered(number)
        if flight is not None and flight.cell.peer is self._peer:
            membership.flights.end(flight.ask)
            self._peer.send(Cancel(number, False))
            self._unreadable(flight, error)

    def _unreadable(self, flight: Flight, error: MessageRefused) -> None:
        self._peer.membership.refused += 1
        text = f"{flight.cell.path} answered {safe_repr(flight.ask.message)}, and the answer was refused here: {error}"
        failure = Interrupted(text)
        failure.__cause__ = error
        flight.ask.fail(failure)

    # Actors.

    def credit(self, frame: Credit) -> None:
        """Make room for as many messages as have entered the mailbox of an actor."""
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.credited(frame.count)

    def ended(self, frame: Ended) -> None:
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.end(exit_of(frame, self._peer.membership.registry))

    def up(self, frame: Up) -> None:
        """Note that a later incarnation of an actor has started."""
        cell = self._peer.membership.known(self._peer.identity, frame.of)
        if cell is not None:
            cell.came_up()
