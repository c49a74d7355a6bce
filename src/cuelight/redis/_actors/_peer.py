"""Another node as seen from this one: the frames for the next batch to it, the received batches, and its actors.

Invariants:
1. Each received batch is processed once. Batches are processed in the order of their numbers, whether they arrived over
   connections or through the inbox.
2. An error in one frame does not affect others.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from cuelight._log import get_log
from cuelight.redis._actors._delivery import Batch, BatchDelivery
from cuelight.redis._actors._frames import Ask, Credit, Fail, Frame, Open, Reply, Tell, encode_frames
from cuelight.redis._actors._inbound import Inbound
from cuelight.redis._actors._outbound import Outbound
from cuelight.redis._actors._remote_cell import WINDOW, RemoteCell

if TYPE_CHECKING:
    from cuelight.redis._actors._direct import Incoming
    from cuelight.redis._actors._directory import Entry
    from cuelight.redis._actors._membership import Membership

log = get_log("cuelight.redis")

BATCH: Final = 65536
"""Bytes after which a batch is closed."""

FRAME: Final = 24
"""The approximate bytes of a frame without its body."""

URGENT: Final = frozenset({Ask, Reply, Fail})
"""Frames for which a caller waits."""

PATIENCE: Final = 0.02
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

    def __init__(self, membership: Membership, identity: str) -> None:
        self.membership, self.identity = membership, identity
        self.inbound, self.outbound = Inbound(self), Outbound(self)
        self.lost = False
        self.cells: dict[int, RemoteCell] = {}  # cells with mail under way or with watchers must live on
        self._out: deque[tuple[Frame, int]] = deque()
        self._credits: dict[int, int] = {}
        self._owed = 0
        self._reminded = False
        self.number = 0
        self.delivery = BatchDelivery(self)
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
            self._out.append((frame, size + FRAME))
            self.delivery.flush_soon(now=type(frame) in URGENT)

    def credit(self, serial: int) -> None:
        """Report soon that a message of this peer has entered a mailbox or was dropped."""
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
        """Whether no frames are left to send."""
        return self.lost or (self.delivery.is_done and not (self._out or self._credits))

    @property
    def has_frames(self) -> bool:
        """Whether there are frames for the next batch."""
        return bool(self._out or self._credits) and not self.lost

    def next_batch(self) -> Batch:
        """Return the next batch; `has_frames` says whether there is one."""
        frames = self._take()
        payload, bad = encode_frames(frames)
        for frame, error in bad:
            self._refuse(frame, error)
        return Batch(self.number, payload, len(frames))

    def _take(self) -> list[Frame]:
        """Return the frames of the next batch."""
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
        """Handle a frame that cannot be encoded: its message or request fails, and nothing else."""
        log.error("a %s for %s cannot be encoded and is not sent: %s", type(frame).__name__, self.identity, error)
        if isinstance(frame, Tell | Ask | Open):
            cell = self.membership.known(self.identity, frame.to)
            if cell is not None:
                cell.unsendable(error)

    # Receiving.

    def came_directly(self, number: int, payload: bytes) -> bool:
        """Process a batch from a connection. Returns whether it is valid at this point."""
        if number == self.seen + 1:
            self.seen = self.seen_directly = number
            self.received_directly += self.membership.deal_with(self, payload)
        return number <= self.seen

    def came_by_inbox(self, entry: Entry) -> None:
        """Process a batch from the inbox."""
        if 0 < entry.number <= self.seen_directly:
            return  # the connection over which it arrived ended before it was confirmed
        if entry.number == self.seen + 1:
            self.seen = entry.number
        self.received_by_inbox += self.membership.deal_with(self, entry.payload)
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
