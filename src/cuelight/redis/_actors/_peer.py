"""Another node as this one sees it: what goes out to it, one batch after the other, and its actors that are known here.

Invariants:
1. Batches are numbered from 1, and one is sent only when the one before is in the inbox: so frames arrive in the order
   in which they were given to `send`, each of them once.
2. A peer that is lost is sent nothing more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis._actors._frames import Ask, Credit, Frame, Open, Tell, encode_frames
from cuelight.redis._actors._inbound import Inbound
from cuelight.redis._actors._outbound import Outbound
from cuelight.redis._actors._remote_cell import WINDOW, RemoteCell

if TYPE_CHECKING:
    from cuelight.redis._actors._membership import Membership

__all__ = ["Peer"]

log = get_log("cuelight.redis")

BATCH: Final = 65536
"""Bytes after which a batch is closed."""

FRAME: Final = 24
"""Bytes that a frame has beside its body, about."""

PATIENCE: Final = 0.02
"""Seconds that a confirmation may wait for something to go along with."""


class Peer:
    """One other node."""

    def __init__(self, membership: Membership, identity: str) -> None:
        self.membership, self.identity = membership, identity
        self.inbound, self.outbound = Inbound(self), Outbound(self)
        self.lost = False
        self.flushing = False
        self.cells: dict[int, RemoteCell] = {}  # those that must live on: mail is under way, or somebody watches
        self._out: deque[tuple[Frame, int]] = deque()
        self._credits: dict[int, int] = {}
        self._owed = 0
        self._reminded = False
        self._number = 0

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
            self._flush_soon()

    def credit(self, serial: int) -> None:
        """A message of this peer has arrived in a mailbox, or is done with: say so soon."""
        if self.lost:
            return
        self._credits[serial] = self._credits.get(serial, 0) + 1
        self._owed += 1
        if self._owed >= WINDOW // 4:
            self._flush_soon()
        elif not self._reminded:
            self._reminded = True
            self.membership.runtime.later(PATIENCE, self._remember)

    def _remember(self) -> None:
        self._reminded = False
        if self._credits and not self.lost:
            self._flush_soon()

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to be sent."""
        return self.lost or not (self._out or self._credits or self.flushing)

    def _flush_soon(self) -> None:
        if not self.flushing:
            self.flushing = True
            self.membership.start(self._flush)

    async def _flush(self) -> None:
        try:
            while (self._out or self._credits) and not self.lost:
                await checkpoint()  # what is sent in the same pass goes along
                payload, bad = encode_frames(self._take())
                for frame, error in bad:
                    self._refuse(frame, error)
                await self._deliver(payload)
        finally:
            self.flushing = False
        self.membership.went_quiet()

    def _take(self) -> list[Frame]:
        """The frames of the next batch."""
        frames: list[Frame] = [Credit(serial, count) for serial, count in self._credits.items()]
        self._credits.clear()
        self._owed = 0
        self._number += 1
        size = 0
        while self._out and size < BATCH:
            frame, weight = self._out.popleft()
            size += weight
            frames.append(frame)
            if isinstance(frame, Ask | Open):
                flight = self.membership.flights.numbered(frame.number)
                if flight is not None:
                    flight.batch = self._number
        self.membership.sent += len(frames)
        return frames

    def _refuse(self, frame: Frame, error: Exception) -> None:
        """A frame cannot be encoded: it costs what it was part of, and nothing else."""
        log.error("a %s for %s cannot be encoded and is not sent: %s", type(frame).__name__, self.identity, error)
        if isinstance(frame, Tell | Ask | Open):
            cell = self.membership.known(self.identity, frame.to)
            if cell is not None:
                cell.unsendable(error)

    async def _deliver(self, payload: bytes) -> None:
        """Have a batch in the inbox of the peer, however long that takes; or find that one of both is gone."""
        pause, complained = 0.004, False
        while not self.lost:
            try:
                said = await self.membership.directory.send(self.identity, self._number, payload)
            except (StoreUnavailable, StoreRefused, ResponseError) as error:
                if not complained and not isinstance(error, StoreUnavailable):
                    complained = True
                    log.warning("nothing can be sent to %s, and goes on being tried: %s", self.identity, error)
                said = "away"
            if said == "ok":
                return
            if said == "gone":
                self.membership.gone(self.identity)
                return
            if said == "expelled":
                self.membership.expelled("the server says so")
                return
            pause = min(pause * 2, 0.1 if said == "full" else 0.5)
            await anyio.sleep(pause * spread.uniform(0.5, 1.0))
