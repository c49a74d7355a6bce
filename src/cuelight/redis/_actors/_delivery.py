"""Delivers batches to one other node: over a direct connection while there is one, else through its inbox.

Invariants:
1. Batches are numbered from 1 and take one route at a time. A connection carries the batches that directly follow the
   last one that the other node has processed. A batch goes into the inbox only when the previous one is there.
2. A batch is kept until it is in the inbox or confirmed. When a connection ends, the kept batches go through the inbox
   or over the next connection; the other node drops those that it has seen. So frames arrive in the order in which they
   were passed to `send`, each of them once.
3. A connection on which nothing is confirmed for `SILENT` ticks is left. Later batches go into the inbox; the server
   knows which of them were read.
4. Nothing is sent to a peer that is lost, and a node whose lease has expired sends nothing.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import anyio
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis._actors._connector import Connector, ConnectorHost
from cuelight.redis._actors._direct import LONGEST_BATCH, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = get_log("cuelight.redis")

TICK: Final = 0.025
"""Seconds. Ticks are counted, so a time in which this node itself was busy counts as one."""

SILENT: Final = 4

WINDOW: Final = 4 << 20
"""Maximum unconfirmed bytes on a connection."""

UNSENT: Final = 1 << 20
"""Maximum bytes that wait here for a connection to accept them."""

SHORTEST_INTERVAL: Final = 0.00005
"""Minimum seconds between two batches that are sent immediately: requests made in a row go together."""

INBOX_GRACE: Final = 0.1
"""Seconds that the server still has to accept a batch once there is a connection."""


class Batch(NamedTuple):
    """Frames that are sent together.

    Attributes:
        number: the number of the batch.
        payload: the encoded frames.
        frames: the number of frames.
    """

    number: int
    payload: bytes
    frames: int


class DeliveryHost(ConnectorHost, Protocol):
    """What a delivery asks of the membership."""

    @property
    def fenced(self) -> bool: ...

    def start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None: ...

    def on_quiet(self) -> None: ...

    def node_lost(self, identity: str) -> None: ...

    def removed(self, why: str) -> None: ...


class ReceivingPeer(Protocol):
    """What a delivery asks of the node that it sends to."""

    identity: str
    lost: bool
    number: int

    @property
    def has_frames(self) -> bool: ...

    def next_batch(self) -> Batch: ...


class BatchDelivery:
    """The delivery to one peer.

    Attributes:
        sent_directly: frames sent over connections.
        sent_by_inbox: frames sent through the inbox. Frames sent both ways count in both.
        reached: the number of the last batch that was sent over a connection, and so may have arrived.
        connects: the number of connections so far.
        is_direct: whether a connection is in use now.
    """

    def __init__(self, peer: ReceivingPeer, membership: DeliveryHost) -> None:
        self.sent_directly = self.sent_by_inbox = self.reached = self.connects = 0
        self.is_direct = False
        self._peer, self._membership = peer, membership
        self._connector = Connector(self, peer.identity, membership)
        self._outgoing: Outgoing | None = None
        self._kept_batches: deque[Batch] = deque()
        self._size = 0
        self._flushing = self._flush_scheduled = self._ticking = False
        self._silent = 0
        self._last_immediate = 0.0
        self._scope: anyio.CancelScope | None = None

    @property
    def is_done(self) -> bool:
        """Whether no batch is kept or being sent."""
        return not (self._kept_batches or self._flushing)

    def flush_soon(self, *, now: bool = False) -> None:
        """Send the peer's frames soon. Not a checkpoint.

        Args:
            now: whether a caller waits for a frame, which makes a batch of its own worthwhile.
        """
        outgoing = self._outgoing
        if outgoing is None:
            if not self._flushing:
                self._flushing = True
                self._membership.start(self._flush)
        elif not self._flush_scheduled:
            if now:
                moment = monotonic()
                if moment - self._last_immediate > SHORTEST_INTERVAL:
                    self._last_immediate = moment
                    self._flush_directly()
                    return
            self._flush_scheduled = True  # later frames of the same pass join the batch
            outgoing.connection.soon(self._flush_rest)

    def end(self, why: str) -> None:
        if self._outgoing is not None:
            self._outgoing.end(why)

    # Over a connection.

    def connected(self, outgoing: Outgoing) -> None:
        """Handle a new connection. It is used as soon as the other node has read its inbox."""
        if self._peer.lost:
            outgoing.end("the other node is no member any more")
            return
        self._outgoing = outgoing
        self.connects += 1
        if self._flushing:
            self._membership.runtime.call_later(INBOX_GRACE, self._cancel_inbox_send, outgoing, self._scope)
        else:
            self.confirmed(outgoing)

    def _cancel_inbox_send(self, outgoing: Outgoing, scope: anyio.CancelScope | None) -> None:
        """Stop waiting for a server that does not accept a batch: the connection can carry it too."""
        if self._outgoing is outgoing and self._scope is scope and scope is not None:
            scope.cancel()

    def confirmed(self, outgoing: Outgoing) -> None:
        """Handle a report of the other node on the batches that it has processed."""
        if self._outgoing is not outgoing:
            return
        seen = outgoing.seen
        if seen > self._peer.number:
            self._connector.give_up()
            outgoing.end(f"the other node confirms batch {seen}, and {self._peer.number} was the last")
            return
        self._silent = 0
        kept = self._kept_batches
        while kept and kept[0].number <= seen:
            self._size -= len(kept.popleft().payload)
        if not (self.is_direct or self._flushing):
            self._begin(outgoing)
        elif self._peer.has_frames:
            self.flush_soon()
        if not kept:
            self._membership.on_quiet()

    def _begin(self, outgoing: Outgoing) -> None:
        """Send the kept batches if they directly follow the processed ones; else some are still in the inbox there."""
        first = self._kept_batches[0].number if self._kept_batches else self._peer.number + 1
        self._tick_soon()
        if first == outgoing.seen + 1:
            self.is_direct = True
            for batch in list(self._kept_batches):
                if self._outgoing is outgoing:
                    self._send(outgoing, batch)
            self._flush_directly()

    def _flush_rest(self) -> None:
        self._flush_scheduled = False
        self._flush_directly()

    def _flush_directly(self) -> None:
        peer, outgoing = self._peer, self._outgoing
        while peer.has_frames and self.is_direct and outgoing is not None:
            if self._size > WINDOW or outgoing.connection.waiting > UNSENT:
                return  # until a batch is confirmed or data is sent
            if self._membership.fenced:
                if not self._membership.over:  # the lease may still be renewed
                    self._membership.runtime.call_later(TICK, self.flush_soon)
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
        self._kept_batches.append(batch)
        self._size += len(batch.payload)
        return batch

    def _tick_soon(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._silent = 0
            self._membership.runtime.call_later(TICK, self._tick, self._outgoing)

    def _tick(self, outgoing: Outgoing) -> None:
        if self._outgoing is not outgoing:
            return
        if self.is_direct and not self._kept_batches:
            self._ticking = False
            return
        self._silent += 1
        if self._silent > SILENT:
            outgoing.end("nothing is confirmed")
        else:
            self._membership.runtime.call_later(TICK, self._tick, outgoing)

    def disconnected(self, outgoing: Outgoing, why: str) -> None:
        """Handle the end of the connection: unconfirmed batches go through the inbox."""
        if self._outgoing is not outgoing:
            return
        log.debug("the connection to %s has ended: %s", self._peer.identity, why)
        self._outgoing = None
        self.is_direct = self._flush_scheduled = self._ticking = False
        self._connector.disconnected()
        if not self._peer.lost and (self._kept_batches or self._peer.has_frames):
            self.flush_soon()

    # Through the inbox.

    async def _flush(self) -> None:
        peer = self._peer
        try:
            while self._outgoing is None and not peer.lost and (self._kept_batches or peer.has_frames):
                await checkpoint()  # later frames of the same pass join the batch
                if self._outgoing is not None:
                    break
                self._connector.connect_soon()
                if not self._kept_batches:
                    self._next()
                await self._deliver(self._kept_batches[0])
        finally:
            self._flushing = False
        if self._outgoing is not None:
            self.confirmed(self._outgoing)
        self._membership.on_quiet()

    async def _deliver(self, batch: Batch) -> None:
        """Put a batch into the peer's inbox, however long that takes, or find out that one of the two nodes is gone."""
        pause, complained = 0.004, False
        with anyio.CancelScope() as self._scope:
            while not self._peer.lost:
                try:
                    answer = await self._membership.directory.send(self._peer.identity, batch.number, batch.payload)
                except (StoreUnavailable, StoreRefused, ResponseError) as error:
                    if not complained and not isinstance(error, StoreUnavailable):
                        complained = True
                        log.warning(
                            "nothing can be sent to %s, and goes on being tried: %s", self._peer.identity, error
                        )
                    answer = "away"
                if answer in _FINAL_ANSWERS:
                    self._delivered(batch, answer)
                    return
                pause = min(pause * 2, 0.1 if answer == "full" else 0.5)
                await anyio.sleep(pause * spread.uniform(0.5, 1.0))

    def _delivered(self, batch: Batch, answer: str) -> None:
        if answer == "gone":
            self._membership.node_lost(self._peer.identity)
        elif answer == "expelled":
            self._membership.removed("the server says so")
        else:
            self.sent_by_inbox += batch.frames
            if self._kept_batches and self._kept_batches[0] is batch:  # otherwise it was confirmed meanwhile
                self._kept_batches.popleft()
                self._size -= len(batch.payload)


_FINAL_ANSWERS: Final = frozenset({"ok", "gone", "expelled"})
