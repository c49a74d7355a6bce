"""One incarnation of a node in its cluster, from joining until it leaves or is lost, and the heartbeat of its lease.

A thread sends the heartbeats, because a blocked loop is not a dead node.

Invariants:
1. Received batches are processed in the order in which they arrived, each of them once.
2. A membership that has ended sends nothing, and everything that waited for other nodes through it has failed.
3. The lease is renewed every fifth of its length while the server answers, even if the loop is blocked.
4. A node does not declare others lost if it was itself out of touch just before: after an outage, all have a chance to
   renew.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import anyio
import msgspec
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.actors import ActorRuntime, Cell, Exit, Ref, Stopped
from cuelight.actors._cell import DEAD
from cuelight.coordination._spread import spread
from cuelight.errors import MessageRefused, NotStarted, StoreRefused, StoreUnavailable, ends_the_program
from cuelight.redis._actors import _frames as frames
from cuelight.redis._actors._connection import NodeConnection
from cuelight.redis._actors._directory import ENTRIES_AT_ONCE, LARGEST, Directory, InboxEntry
from cuelight.redis._actors._listener import DirectListener
from cuelight.redis._actors._outcomes import EndedActor, NodeLost, fail_frame
from cuelight.redis._actors._peer import Peer, PeerStatistics
from cuelight.redis._actors._registry import Address, Registry
from cuelight.redis._actors._remote_cell import PendingRequests, RemoteCell
from cuelight.redis._actors._transport import Transport
from cuelight.redis._client import Subscription

log = get_log("cuelight.redis")

HEARTBEATS: Final = 5
"""Beats in one lease."""


class HeartbeatListener(Protocol):
    """Callbacks of the heartbeat, called in its thread."""

    def known_nodes(self) -> Sequence[str]:
        """Return the identities of the nodes to check."""
        ...

    def nodes_lost(self, identities: list[str]) -> None:
        """Handle that some of them are no longer members."""
        ...

    def was_removed(self) -> None:
        """Handle that this node is no longer a member."""
        ...


class HeartbeatThread:
    """The thread that renews the lease of one membership.

    Attributes:
        renewed: the time at which the last successful beat was sent, on `time.monotonic`.
    """

    def __init__(self, directory: Directory, lease: float, listener: HeartbeatListener) -> None:
        self._directory, self._lease, self._listener = directory, lease, listener
        self.renewed = math.inf
        self._failing = False
        self._closed = threading.Event()
        name = f"cuelight heartbeat of {directory.identity}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, joined: float) -> None:
        """Start the thread.

        Args:
            joined: the earliest time at which the lease began.
        """
        self.renewed = joined
        self._thread.start()

    @property
    def overdue(self) -> bool:
        """Whether the other nodes may take this one for lost."""
        return time.monotonic() - self.renewed > self._lease * 0.9

    def close(self) -> None:
        """End the thread soon."""
        self._closed.set()

    def join(self) -> None:
        """Wait until the thread has ended, at most for the duration of one call to the server. Blocks."""
        self._thread.join()

    def _run(self) -> None:
        pause = self._lease / HEARTBEATS
        while not self._closed.wait(pause):
            try:
                pause = self._send_heartbeat()
            except BaseException as error:  # any error: the lease continues to run, and so must this thread
                if not self._failing and not self._closed.is_set():
                    log.warning(
                        "%s cannot renew its lease, and goes on trying: %s", self._directory.identity, safe_str(error)
                    )
                self._failing = True
                pause = self._lease / HEARTBEATS * spread.uniform(0.3, 0.6)

    def _send_heartbeat(self) -> float:
        """Renew the lease and report the result. Returns the seconds until the next beat."""
        began, before = time.monotonic(), self.renewed
        beat = self._directory.heartbeat(self._listener.known_nodes())
        if not beat.member:
            self._notify(self._listener.was_removed)
            self._closed.set()
            return 0.0
        self.renewed, self._failing = began, False
        gone = beat.gone
        in_touch = began - before < self._lease / 2
        if in_touch:
            gone = gone + [one for one in beat.expired if self._directory.remove_expired(one)]
        if gone:
            self._notify(lambda: self._listener.nodes_lost(gone))
        pause = self._lease / HEARTBEATS
        if beat.soonest is not None and in_touch:
            pause = min(pause, max(0.01, beat.soonest + 0.005))
        return pause

    def _notify(self, what: Callable[[], None]) -> None:
        if not self._closed.is_set():
            what()


T = TypeVar("T")


POLL: Final = 1.0
"""Seconds after which the inbox is read without a notification."""

READ_AGAIN: Final = 256 * 1024
"""Bytes read after which the inbox is read again without waiting, so that the server can delete them."""

MAX_REMEMBERED: Final = 1000
"""The number of ended actors whose exits are kept for nodes that watch them too late."""


class Undecoded(msgspec.Struct, frozen=True):
    """Takes the place of a message in a dead letter if the received data could not be decoded.

    Attributes:
        kind: the name of the message's type; "batch" or "frame" if the data did not contain a message.
        body: the first 1,000 bytes of the received data.
        sender: the identity of the sending node.
    """

    kind: str
    body: bytes
    sender: str


class Membership:
    """The membership of this node, with everything that depends on it."""

    def __init__(
        self,
        directory: Directory,
        runtime: ActorRuntime,
        registry: Registry,
        lease: float,
        on_end: Callable[[Membership], None],
        *,
        transport: Transport,
    ) -> None:
        self.transport: Transport = transport
        self.directory, self.runtime, self.registry = directory, runtime, registry
        self.identity = directory.identity
        self.coder = registry.coder(self.address_of, self.ref_at)
        self.pending_requests = PendingRequests()
        self.sent = self.received = self.refused = 0
        self.over = self._joined = self._heartbeat_started = False
        self._lease = lease
        self._on_end = on_end
        self._heartbeat_thread = HeartbeatThread(directory, lease, self)
        self._peers: dict[str, Peer] = {}
        self._cells: WeakValueDictionary[tuple[str, int], RemoteCell] = WeakValueDictionary()
        # The numbers of the last processed batches of lost nodes.
        self._lost_nodes: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.connections: dict[NodeConnection, None] = {}
        self.listener = DirectListener(self, transport)
        self._context = copy_context()
        self._exported: dict[int, Cell] = {}
        self._ended_actors: OrderedDict[int, EndedActor] = OrderedDict()
        self._tasks = 0
        self._scopes: dict[anyio.CancelScope, None] = {}
        self._inbox_changed = anyio.Event()
        self._activity = anyio.Event()

    # Lifecycle.

    async def begin(self, about: str) -> None:
        """Join the cluster, and start to listen and to renew the lease."""
        await self.listener.open()
        try:
            endpoint = b"" if self.listener.endpoint is None else self.listener.endpoint.encode()
            self._joined = True  # the join may succeed even if its reply is lost
            began = -math.inf
            while time.monotonic() - began > self._lease / 2:  # otherwise the lease may be over when this is known
                began = time.monotonic()
                await self.directory.join(about, endpoint)
        except BaseException:
            self.listener.close()
            raise
        self._heartbeat_thread.start(began)
        self._heartbeat_started = True
        self.start(self._guard)
        self.start(self._receive)
        self.listener.start()

    def start(self, function: Callable[[], Coroutine[Any, Any, None]], context: Context | None = None) -> None:
        """Run a function in the background until the membership ends. May be called from any callback of the loop."""
        self._tasks += 1

        async def run() -> None:
            try:
                with anyio.CancelScope() as scope:
                    self._scopes[scope] = None
                    try:
                        if not self.over:
                            await function()
                    finally:
                        del self._scopes[scope]
            except BaseException as error:
                if not (isinstance(error, Exception) or ends_the_program(error)):
                    raise
                self.handle_error(error)
            finally:
                self._tasks -= 1
                self._activity.set()

        self.runtime.backend.spawn(run, context=context or copy_context(), name=f"cuelight node {self.identity}")

    def start_beside(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Like `start`, in the context in which the node joined: the function outlives the caller."""
        self.start(function, self._context.copy())

    def handle_error(self, error: BaseException) -> None:
        """Handle an error of a background function: it ends the membership, not the loop."""
        if ends_the_program(error):
            self.runtime.abort(error)  # from code of users; it ends the system in order
        else:  # most likely from a `Server` of the user, or from a credential provider
            log.error("%s failed", self.identity, error=error)
        self.removed(f"it failed with {describe_error(error)}")

    async def _guard(self) -> None:
        """End the membership when the lease is overdue by this node's own clock, also while the server is away."""
        while not self.over:
            await anyio.sleep(self._lease / 20)
            if self._heartbeat_thread.overdue:
                self.removed("its lease could not be renewed")

    def removed(self, why: str) -> None:
        """End the membership: other nodes take this one for lost, or will. Everything that depends on them fails."""
        if self.over:
            return
        self.over = True
        for identity, peer in list(self._peers.items()):
            self._fail_all_of(peer, None, NodeLost(identity, f"this node was declared lost: {why}"))
        self._peers.clear()
        self._stop()
        self._on_end(self)

    @property
    def fenced(self) -> bool:
        """Whether other nodes may take this one for lost. If so, it neither sends to them nor accepts from them."""
        return self.over or self._heartbeat_thread.overdue

    def _stop(self) -> None:
        self._heartbeat_thread.close()
        self.listener.withdraw()
        for connection in list(self.connections):
            connection.end("this node is a member no more")
        for scope in list(self._scopes):
            scope.cancel()

    async def leave(self, timeout: float) -> None:
        """Send the pending frames, then end the membership."""
        if self._joined and not self.over:
            with anyio.move_on_after(timeout / 2):
                while not all(peer.is_drained for peer in self._peers.values()):
                    await self._changed()
            with anyio.move_on_after(timeout / 2):
                try:
                    await self.directory.leave(self.known_nodes())
                except Exception as error:  # any error: the heartbeat must stop in any case
                    log.warning(
                        "%s could not take leave of its cluster: its lease will run out: %s", self.identity, error
                    )
            self.over = True
            for identity, peer in list(self._peers.items()):
                self._fail_all_of(peer, None, NodeLost(identity, "this node has left the cluster"))
            self._peers.clear()
            self._stop()
        await self.finish()

    async def finish(self) -> None:
        """Wait until all tasks and the heartbeat have ended."""
        while self._tasks:
            await self._changed()
        self.listener.close()
        if self._heartbeat_started:
            await anyio.to_thread.run_sync(self._heartbeat_thread.join, abandon_on_cancel=True)

    async def _changed(self) -> None:
        """Wait until a peer has sent everything or a task has ended."""
        if self._activity.is_set():
            self._activity = anyio.Event()
        await self._activity.wait()

    def on_quiet(self) -> None:
        """Note that a peer has sent everything."""
        self._activity.set()

    # Called by the heartbeat, in its thread.

    def known_nodes(self) -> tuple[str, ...]:
        """Return the identities of the nodes to check."""
        return tuple(self._peers)

    def nodes_lost(self, identities: list[str]) -> None:
        """Handle that some of them are no longer members."""
        self.runtime.call_threadsafe(self._nodes_lost, identities)

    def _nodes_lost(self, identities: list[str]) -> None:
        for identity in identities:
            self.node_lost(identity)

    def was_removed(self) -> None:
        """Handle that this node is no longer a member."""
        self.runtime.call_threadsafe(self.removed, "its lease ran out")

    # Peers and addresses.

    @property
    def peers(self) -> int:
        """The number of other nodes that this one is in touch with."""
        return len(self._peers)

    def peer(self, identity: str) -> Peer:
        """Return the peer with this identity, whether it is alive or not."""
        peer = self._peers.get(identity)
        if peer is None:
            peer = self._peers[identity] = Peer(self, identity)
            peer.seen, peer.seen_directly = self._lost_nodes.get(identity, (0, 0))
        return peer

    def is_lost_node(self, identity: str) -> bool:
        """Return whether a node is known to be no longer a member."""
        peer = self._peers.get(identity)
        return identity in self._lost_nodes or (peer is not None and peer.lost)

    def statistics_of_peers(self) -> tuple[PeerStatistics, ...]:
        """Return the traffic between this node and each other one."""
        return tuple(peer.statistics() for peer in self._peers.values())

    def node_lost(self, identity: str) -> None:
        """Handle that a node is no longer a member."""
        peer = self._peers.get(identity)
        if peer is not None and not peer.lost:
            peer.lost = True
            peer.disconnect("the other node is no member any more")
            self.start(partial(self._finish_lost, peer))

    async def _finish_lost(self, peer: Peer) -> None:
        """Find out which batches the lost node had read, and fail everything that waits for it."""
        read: int | None = None
        try:
            read = max(await self.directory.read_of(peer.identity), peer.delivery.reached)
        except (StoreUnavailable, StoreRefused, ResponseError) as error:
            log.warning("what %s had read before it was lost is not known: %s", peer.identity, error)
        if self._peers.pop(peer.identity, None) is peer:
            self._fail_all_of(peer, read, NodeLost(peer.identity, "it has left the cluster, or its lease ran out"))
        with contextlib.suppress(StoreUnavailable, StoreRefused, ResponseError):  # the record has a time to live
            await self.directory.forget(peer.identity)

    def _fail_all_of(self, peer: Peer, read: int | None, exit_: NodeLost) -> None:
        peer.lost = True
        peer.disconnect("one of the two nodes is no member any more")
        self._lost_nodes[peer.identity] = peer.seen, peer.seen_directly
        if len(self._lost_nodes) > MAX_REMEMBERED:
            self._lost_nodes.popitem(last=False)
        cells = {cell for key, cell in list(self._cells.items()) if key[0] == peer.identity}
        for cell in cells | set(peer.cells.values()):
            cell.lost(exit_)
        self.pending_requests.lost(peer.identity, read, exit_.describe())
        peer.cells.clear()
        peer.incoming_requests.close()
        self.on_quiet()

    def export(self, cell: Cell) -> int:
        """Let other nodes reach an actor while it lives. Returns its serial."""
        serial = cell.serial
        if serial not in self._exported and cell.state != DEAD:
            self._exported[serial] = cell
            cell.ensure_extras().call_when_ended(partial(self._has_ended, cell))
        elif cell.state == DEAD and cell.exit is not None:
            self._remember(cell, cell.exit)
        return serial

    def _has_ended(self, cell: Cell, exit_: Exit) -> None:
        self._exported.pop(cell.serial, None)
        self._remember(cell, exit_)

    def _remember(self, cell: Cell, exit_: Exit) -> None:
        self._ended_actors[cell.serial] = EndedActor(cell.path, exit_)
        if len(self._ended_actors) > MAX_REMEMBERED:
            self._ended_actors.popitem(last=False)

    def exported(self, serial: int) -> Cell | None:
        """Return the live actor with this serial, or None."""
        return self._exported.get(serial)

    def ended_actor(self, serial: int) -> EndedActor:
        """Return the path and exit of an actor that has ended."""
        return self._ended_actors.get(serial) or EndedActor(f"actor {serial} of {self.identity}", Stopped())

    def address_of(self, ref: Ref[Any]) -> Address:
        """Return the address of a ref for other nodes. They can reach an actor of this system from now on."""
        cell = ref._cell
        if isinstance(cell, RemoteCell):
            return cell.peer.identity, cell.serial, cell.there
        if cell.runtime is not self.runtime:
            raise TypeError(f"{cell.path} belongs to another system of this process: expose it there and resolve it")
        return self.identity, self.export(cell), cell.path

    def ref_at(self, address: Address) -> Ref[Any]:
        """Return the ref for an address."""
        identity, serial, _ = address
        if not (identity and 0 < serial <= LARGEST):
            raise ValueError(f"{safe_repr(address)} is the address of no actor")
        own = self._exported.get(serial) if identity == self.identity else None
        return Ref(self.cell_at(address) if own is None else own)

    def cell_at(self, address: Address) -> RemoteCell:
        """Return the cell that represents an actor of another node, or an actor of this node that has ended."""
        identity, serial, path = address
        cell = self._cells.get((identity, serial))
        if cell is None:
            peer = Peer(self, identity) if identity == self.identity or self.over else self.peer(identity)
            cell = self._cells[identity, serial] = RemoteCell(peer, serial, path)
            if identity == self.identity:
                peer.lost = True
                cell.end(self.ended_actor(serial).exit)
            elif self.over:
                peer.lost = True
                cell.end(NodeLost(identity, "this node was declared lost"))
        return cell

    def known(self, identity: str, serial: int) -> RemoteCell | None:
        """Return the cell that represents an actor of another node, or None."""
        return self._cells.get((identity, serial))

    # Receiving.

    async def _receive(self) -> None:
        subscription = await self._retry_until_done(self._listen)
        try:
            last, total = "0-0", 0
            while not self.over:
                self._inbox_changed = hint = anyio.Event()  # before the read, so that no later hint is missed
                entries = await self._retry_until_done(partial(self.directory.receive, last, total))
                if entries is None:
                    self.removed("the server says so")
                    return
                before = total
                for entry in entries:
                    self._process_entry(entry)
                    last, total = entry.id, max(total, entry.total)
                    await checkpoint()
                # The next read deletes the processed entries from the server. If they were many, it follows without
                # waiting.
                if len(entries) < ENTRIES_AT_ONCE and total - before < READ_AGAIN:
                    with anyio.move_on_after(POLL):
                        await hint.wait()
        finally:
            subscription.close()

    async def _listen(self) -> Subscription:
        hear = self.directory.server.subscribe
        return await hear(self.directory.channel, lambda _: self.check_inbox_soon(), self.check_inbox_soon)

    def check_inbox_soon(self) -> None:
        """Note that the inbox may have entries."""
        self._inbox_changed.set()

    async def _retry_until_done(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step until the server executes it. If that takes too long, `_guard` ends the membership."""
        complained = False
        while True:
            try:
                return await step()
            except StoreUnavailable:
                await anyio.sleep(min(0.1, self._lease / 20))
            except (StoreRefused, ResponseError) as error:
                if not complained:
                    complained = True
                    log.warning("%s cannot read what comes, and goes on trying: %s", self.identity, error)
                await anyio.sleep(min(1.0, self._lease / 5))

    def _process_entry(self, entry: InboxEntry) -> None:
        peer = self.peer(entry.sender)
        if entry.format != str(frames.FORMAT):
            error = MessageRefused(f"it has format {entry.format}, this version speaks {frames.FORMAT}")
            self.refuse("batch", entry.payload, EndedActor(self.identity, Stopped()), entry.sender, error)
        else:
            peer.receive_from_inbox(entry)

    def process_batch(self, peer: Peer, payload: bytes) -> int:
        """Process a batch. Returns the number of valid frames."""
        good, bad = frames.frames_of(payload)
        for part, problem in bad:
            refusal = MessageRefused(f"what came is no frame: {problem}")
            self.refuse("frame", part, EndedActor(self.identity, Stopped()), peer.identity, refusal)
            self._guarded(partial(self._answer_for, peer, part, refusal), part)
        self.received += len(good)
        for frame in good:
            self._guarded(partial(_HANDLERS[type(frame)], peer, frame), frame)
        return len(good)

    def _guarded(self, step: Callable[[], None], what: Any) -> None:
        """Process one frame. An error in it does not affect the others."""
        try:
            step()
        except BaseException as error:
            if ends_the_program(error):
                raise
            log.exception("an internal error of Cuelight in dealing with %r; please report it", what)

    def _answer_for(self, peer: Peer, part: bytes, error: MessageRefused) -> None:
        """Notify the caller that waits for an unreadable frame, if the start of the frame identifies one."""
        tag, first, second = frames.addressee_of(part)
        match _TAGS.get(tag):
            case "tell":
                peer.credit(first)
            case "ask":
                peer.credit(first)
                peer.send(fail_frame(second, NotStarted(f"the request could not be read: {error}"), self.registry))
            case "answer":
                peer.incoming_replies.unreadable(first, error)
            case _:
                pass

    def refuse(self, kind: str, body: bytes, addressee: Any, sender: str, error: MessageRefused) -> None:
        """Count data that is not a valid message, and add it to the dead letters."""
        self.refused += 1
        self.runtime.dead_letters.add(Undecoded(kind, body[:1000], sender), addressee, "undecodable", error)


_HANDLERS: Final[dict[type[Any], Callable[[Peer, Any], None]]] = {
    frames.TellFrame: lambda peer, frame: peer.incoming_requests.tell(frame),
    frames.AskFrame: lambda peer, frame: peer.incoming_requests.ask(frame),
    frames.OpenFrame: lambda peer, frame: peer.incoming_requests.open(frame),
    frames.MoreFrame: lambda peer, frame: peer.incoming_requests.more(frame),
    frames.CancelFrame: lambda peer, frame: peer.incoming_requests.cancel(frame),
    frames.WatchFrame: lambda peer, frame: peer.incoming_requests.watch(frame),
    frames.SignalFrame: lambda peer, frame: peer.incoming_requests.signal(frame),
    frames.LinkFrame: lambda peer, frame: peer.incoming_requests.link(frame),
    frames.ReplyFrame: lambda peer, frame: peer.incoming_replies.reply(frame),
    frames.FailFrame: lambda peer, frame: peer.incoming_replies.fail(frame),
    frames.ChunkFrame: lambda peer, frame: peer.incoming_replies.chunk(frame),
    frames.CreditFrame: lambda peer, frame: peer.incoming_replies.credit(frame),
    frames.EndedFrame: lambda peer, frame: peer.incoming_replies.ended(frame),
    frames.UpFrame: lambda peer, frame: peer.incoming_replies.up(frame),
}

_TAGS: Final = {
    frame.__struct_config__.tag: role
    for frame, role in (
        (frames.TellFrame, "tell"),
        (frames.AskFrame, "ask"),
        (frames.OpenFrame, "ask"),
        (frames.ReplyFrame, "answer"),
        (frames.FailFrame, "answer"),
        (frames.ChunkFrame, "answer"),
    )
}
"""The roles of the frames for which a caller waits."""
