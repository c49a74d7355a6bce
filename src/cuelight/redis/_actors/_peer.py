"""Another node as this one sees it: frames that wait for the next batch to it, batches that came, its actors.

Invariants:
1. Batches that came are dealt with once each, and in the order of their numbers: those that came over connections and
   those that came through the inbox together.
2. What one frame costs, it costs nobody else.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from cuelight._log import get_log
from cuelight.redis._actors._delivery import Batch, Delivery
from cuelight.redis._actors._frames import Ask, Credit, Fail, Frame, Open, Reply, Tell, encode_frames
from cuelight.redis._actors._inbound import Inbound
from cuelight.redis._actors._outbound import Outbound
from cuelight.redis._actors._remote_cell import WINDOW, RemoteCell

if TYPE_CHECKING:
    from cuelight.redis._actors._direct import Incoming
    from cuelight.redis._actors._directory import Entry
    from cuelight.redis._actors._membership import Membership

__all__ = ["Peer", "PeerStatistics"]

log = get_log("cuelight.redis")

BATCH: Final = 65536
"""Bytes after which a batch is closed."""

FRAME: Final = 24
"""Bytes that a frame has beside its body, about."""

URGENT: Final = frozenset({Ask, Reply, Fail})
"""Frames for which somebody waits."""

PATIENCE: Final = 0.02
"""Seconds that a confirmation may wait for something to go along with."""


class PeerStatistics(msgspec.Struct, frozen=True):
    """What goes between a node and one other, at one moment.

    Attributes:
        identity: of the other node.
        sends_directly: whether what is sent there goes over a direct connection now; else it goes through the server.
        receives_directly: whether that node has a direct connection to this one.
        connects: how often this node has connected to that one; all but the first were after a connection had ended.
        sent_directly: frames that were sent over connections.
        sent_by_inbox: frames that were sent through the server. What a connection had not confirmed when it ended is
            sent again, and counts in both.
        received_directly: frames that came over connections.
        received_by_inbox: frames that came through the server.
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
        number: of the last batch that was made for it.
        seen: the number up to which its batches were dealt with, without a gap.
        seen_directly: the number of the last of them that came over a connection.
        incoming: its connection to this node.
    """

    def __init__(self, membership: Membership, identity: str) -> None:
        self.membership, self.identity = membership, identity
        self.inbound, self.outbound = Inbound(self), Outbound(self)
        self.lost = False
        self.cells: dict[int, RemoteCell] = {}  # those that must live on: mail is under way, or somebody watches
        self._out: deque[tuple[Frame, int]] = deque()
        self._credits: dict[int, int] = {}
        self._owed = 0
        self._reminded = False
        self.number = 0
        self.delivery = Delivery(self)
        self.incoming: Incoming | None = None
        self.seen = self.seen_directly = 0
        self.received_directly = self.received_by_inbox = 0

    # The cells.

    def keep(self, cell: RemoteCell) -> None:
        """Keep a cell, whoever else forgets it."""
        self.cells[cell.serial] = cell

    def forget(self, cell: RemoteCell) -> None:
        """Keep it no more."""
        if self.cells.get(cell.serial) is cell:
            del self.cells[cell.serial]

    # Sending.

    def send(self, frame: Frame, size: int = 0) -> None:
        """Send a frame behind all others. Not a checkpoint."""
        if not self.lost:
            self._out.append((frame, size + FRAME))
            self.delivery.flush_soon(now=type(frame) in URGENT)

    def credit(self, serial: int) -> None:
        """A message of this peer has arrived in a mailbox, or is done with: say so soon."""
        if self.lost:
            return
        self._credits[serial] = self._credits.get(serial, 0) + 1
        self._owed += 1
        if self._owed >= WINDOW // 4:
            self.delivery.flush_soon()
        elif not self._reminded:
            self._reminded = True
            self.membership.runtime.later(PATIENCE, self._remember)

    def _remember(self) -> None:
        self._reminded = False
        if self._credits and not self.lost:
            self.delivery.flush_soon()

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to be sent."""
        return self.lost or (self.delivery.is_done and not (self._out or self._credits))

    @property
    def has_frames(self) -> bool:
        """Whether there is something for the next batch."""
        return bool(self._out or self._credits) and not self.lost

    def next_batch(self) -> Batch:
        """The next batch; `has_frames` says whether there is one."""
        frames = self._take()
        payload, bad = encode_frames(frames)
        for frame, error in bad:
            self._refuse(frame, error)
        return Batch(self.number, payload, len(frames))

    def _take(self) -> list[Frame]:
        """The frames of the next batch."""
        frames: list[Frame] = [Credit(serial, count) for serial, count in self._credits.items()]
        self._credits.clear()
        self._owed = 0
        self.number += 1
        size = 0
        while self._out and size < BATCH:
            frame, weight = self._out.popleft()
            size += weight
            frames.append(frame)
            if isinstance(frame, Ask | Open):
                flight = self.membership.flights.numbered(frame.number)
                if flight is not None:
                    flight.batch = self.number
        self.membership.sent += len(frames)
        return frames

    def _refuse(self, frame: Frame, error: Exception) -> None:
        """A frame cannot be encoded: it costs what it was part of, and nothing else."""
        log.error("a %s for %s cannot be encoded and is not sent: %s", type(frame).__name__, self.identity, error)
        if isinstance(frame, Tell | Ask | Open):
            cell = self.membership.known(self.identity, frame.to)
            if cell is not None:
                cell.unsendable(error)

    # Receiving.

    def came_directly(self, number: int, payload: bytes) -> bool:
        """A batch came over a connection. Returns whether it is one that may come now."""
        if number == self.seen + 1:
            self.seen = self.seen_directly = number
            self.received_directly += self.membership.deal_with(self, payload)
        return number <= self.seen

    def came_by_inbox(self, entry: Entry) -> None:
        """A batch came through the inbox."""
        if 0 < entry.number <= self.seen_directly:
            return  # the connection over which it had come ended before that was confirmed
        if entry.number == self.seen + 1:
            self.seen = entry.number
        self.received_by_inbox += self.membership.deal_with(self, entry.payload)
        if self.incoming is not None:
            self.incoming.confirm()  # the other node waits for that before it uses the connection

    def disconnect(self, why: str) -> None:
        """End the connections in both directions."""
        self.delivery.end(why)
        if self.incoming is not None:
            self.incoming.end(why)

    def statistics(self) -> PeerStatistics:
        """What goes between this node and that."""
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
