"""How batches get to one other node: over a direct connection while there is one, else through its inbox.

Invariants:
1. Batches are numbered from 1 and go one way at a time. Over a connection goes what comes right behind what the other
   node has dealt with; into the inbox goes a batch only when the one before is there.
2. A batch is kept until it is in the inbox or confirmed. When a connection ends, those that are kept go through the
   inbox, or over the next connection; the other node drops what it has seen. So frames arrive in the order in which
   they were given to `send`, each of them once.
3. A connection over which nothing is confirmed for `SILENT` ticks is left: what is sent from then on goes into the
   inbox, of which the server knows what was read.
4. A peer that is lost is sent nothing more, and a node whose lease has run out sends nothing.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis._actors._connector import Connector
from cuelight.redis._actors._direct import LONGEST_BATCH, Outgoing

if TYPE_CHECKING:
    from cuelight.redis._actors._peer import Peer

__all__ = ["Batch", "Delivery"]

log = get_log("cuelight.redis")

TICK: Final = 0.025
"""Seconds. Ticks are counted, so that the time in which this node itself was busy counts as one."""

SILENT: Final = 4

WINDOW: Final = 4 << 20
"""Bytes that may be on a connection without being confirmed."""

UNSENT: Final = 1 << 20
"""Bytes that may wait here for a connection to take them."""

APART: Final = 0.00005
"""Seconds between two batches that leave at once: requests that are made in a row go together."""

HURRY: Final = 0.1
"""Seconds that the server still has to take a batch when there is a connection."""


class Batch(NamedTuple):
    """What goes at once.

    Attributes:
        number: of the batch.
        payload: the frames as bytes.
        frames: how many there are.
    """

    number: int
    payload: bytes
    frames: int


class Delivery:
    """To one peer.

    Attributes:
        sent_directly: frames that went over connections.
        sent_by_inbox: frames that went into the inbox. What went both ways counts in both.
        reached: the number of the last batch that went over a connection, and so may have arrived.
        connects: how many connections there were.
        is_direct: whether a connection is in use now.
    """

    def __init__(self, peer: Peer) -> None:
        self.sent_directly = self.sent_by_inbox = self.reached = self.connects = 0
        self.is_direct = False
        self._peer, self._membership = peer, peer.membership
        self._connector = Connector(peer)
        self._outgoing: Outgoing | None = None
        self._kept: deque[Batch] = deque()
        self._size = 0
        self._flushing = self._passing = self._ticking = False
        self._silent = 0
        self._hurried = 0.0
        self._scope: anyio.CancelScope | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is kept or under way."""
        return not (self._kept or self._flushing)

    def flush_soon(self, *, now: bool = False) -> None:
        """Send what the peer has for us. Not a checkpoint.

        Args:
            now: whether it is worth a batch of its own: somebody waits for it.
        """
        outgoing = self._outgoing
        if outgoing is None:
            if not self._flushing:
                self._flushing = True
                self._membership.start(self._flush)
        elif not self._passing:
            if now:
                moment = monotonic()
                if moment - self._hurried > APART:
                    self._hurried = moment
                    self._flush_directly()
                    return
            self._passing = True  # what comes later in the same pass goes along
            outgoing.connection.soon(self._flush_rest)

    def end(self, why: str) -> None:
        """End the connection, if there is one."""
        if self._outgoing is not None:
            self._outgoing.end(why)

    # Over a connection.

    def connected(self, outgoing: Outgoing) -> None:
        """There is a connection: use it as soon as the other node has read its inbox."""
        if self._peer.lost:
            outgoing.end("the other node is no member any more")
            return
        self._outgoing = outgoing
        self.connects += 1
        if self._flushing:
            self._membership.runtime.later(HURRY, self._hurry, outgoing, self._scope)
        else:
            self.confirmed(outgoing)

    def _hurry(self, outgoing: Outgoing, scope: anyio.CancelScope | None) -> None:
        """The server does not take a batch: it can go over the connection, too."""
        if self._outgoing is outgoing and self._scope is scope and scope is not None:
            scope.cancel()

    def confirmed(self, outgoing: Outgoing) -> None:
        """The other node has said up to where it has dealt with batches."""
        if self._outgoing is not outgoing:
            return
        seen = outgoing.seen
        if seen > self._peer.number:
            self._connector.give_up()
            outgoing.end(f"the other node confirms batch {seen}, and {self._peer.number} was the last")
            return
        self._silent = 0
        kept = self._kept
        while kept and kept[0].number <= seen:
            self._size -= len(kept.popleft().payload)
        if not (self.is_direct or self._flushing):
            self._begin(outgoing)
        elif self._peer.has_frames:
            self.flush_soon()
        if not kept:
            self._membership.went_quiet()

    def _begin(self, outgoing: Outgoing) -> None:
        """Send what is kept, if it is what comes next there; else that is still in its inbox."""
        first = self._kept[0].number if self._kept else self._peer.number + 1
        self._tick_soon()
        if first == outgoing.seen + 1:
            self.is_direct = True
            for batch in list(self._kept):
                if self._outgoing is outgoing:
                    self._send(outgoing, batch)
            self._flush_directly()

    def _flush_rest(self) -> None:
        self._passing = False
        self._flush_directly()

    def _flush_directly(self) -> None:
        peer, outgoing = self._peer, self._outgoing
        while peer.has_frames and self.is_direct and outgoing is not None:
            if self._size > WINDOW or outgoing.connection.waiting > UNSENT:
                return  # until something is confirmed, or has left
            if self._membership.fenced:
                if not self._membership.over:  # the lease may still be renewed
                    self._membership.runtime.later(TICK, self.flush_soon)
                return
            batch = self._next()
            self._send(outgoing, batch)
            outgoing = self._outgoing

    def _send(self, outgoing: Outgoing, batch: Batch) -> None:
        if len(batch.payload) > LONGEST_BATCH:
            outgoing.end(f"a batch of {len(batch.payload)} bytes goes through the server")
            return
        self.reached = max(self.reached, batch.number)
        self.sent_directly += batch.frames
        outgoing.send(batch.number, batch.payload)
        if not self._ticking:
            self._tick_soon()

    def _next(self) -> Batch:
        batch = self._peer.next_batch()
        self._kept.append(batch)
        self._size += len(batch.payload)
        return batch

    def _tick_soon(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._silent = 0
            self._membership.runtime.later(TICK, self._tick, self._outgoing)

    def _tick(self, outgoing: Outgoing) -> None:
        if self._outgoing is not outgoing:
            return
        if self.is_direct and not self._kept:
            self._ticking = False
            return
        self._silent += 1
        if self._silent > SILENT:
            outgoing.end("nothing is confirmed")
        else:
            self._membership.runtime.later(TICK, self._tick, outgoing)

    def disconnected(self, outgoing: Outgoing, why: str) -> None:
        """The connection has ended: what was not confirmed goes through the inbox."""
        if self._outgoing is not outgoing:
            return
        log.debug("the connection to %s has ended: %s", self._peer.identity, why)
        self._outgoing = None
        self.is_direct = self._passing = self._ticking = False
        self._connector.disconnected()
        if not self._peer.lost and (self._kept or self._peer.has_frames):
            self.flush_soon()

    # Through the inbox.

    async def _flush(self) -> None:
        peer = self._peer
        try:
            while self._outgoing is None and not peer.lost and (self._kept or peer.has_frames):
                await checkpoint()  # what is sent in the same pass goes along
                if self._outgoing is not None:
                    break
                self._connector.connect_soon()
                if not self._kept:
                    self._next()
                await self._deliver(self._kept[0])
        finally:
            self._flushing = False
        if self._outgoing is not None:
            self.confirmed(self._outgoing)
        self._membership.went_quiet()

    async def _deliver(self, batch: Batch) -> None:
        """Have a batch in the inbox of the peer, however long that takes; or find that one of both is gone."""
        pause, complained = 0.004, False
        with anyio.CancelScope() as self._scope:
            while not self._peer.lost:
                try:
                    said = await self._membership.directory.send(self._peer.identity, batch.number, batch.payload)
                except (StoreUnavailable, StoreRefused, ResponseError) as error:
                    if not complained and not isinstance(error, StoreUnavailable):
                        complained = True
                        log.warning(
                            "nothing can be sent to %s, and goes on being tried: %s", self._peer.identity, error
                        )
                    said = "away"
                if said in _ENDS:
                    self._delivered(batch, said)
                    return
                pause = min(pause * 2, 0.1 if said == "full" else 0.5)
                await anyio.sleep(pause * spread.uniform(0.5, 1.0))

    def _delivered(self, batch: Batch, said: str) -> None:
        if said == "gone":
            self._membership.gone(self._peer.identity)
        elif said == "expelled":
            self._membership.expelled("the server says so")
        else:
            self.sent_by_inbox += batch.frames
            if self._kept and self._kept[0] is batch:  # else it was confirmed meanwhile
                self._kept.popleft()
                self._size -= len(batch.payload)


_ENDS: Final = frozenset({"ok", "gone", "expelled"})
