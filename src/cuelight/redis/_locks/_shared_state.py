"""The state of a lock that processes share: the holders of this process and the unsent releases.

A caller first acquires this state, as it would acquire a local lock, and then a lease from the server. So the callers
of one process wait in a local queue, where cycles of waits are found and no network is needed. Only the caller whose
turn it is in this process waits in the server's queue.

Invariants:
1. A request keeps its own slot until the server has confirmed its end or cannot know it any more.
2. A release that the server has not confirmed is in `pending` or being sent; if sending fails, it returns to `pending`.
3. A holder that has ended without a release is found when its lease is to be renewed, if not before.
4. A lost notification of a grant only costs time: a waiter also asks again by itself after a while, and always after a
   gap.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import anyio
from redis.exceptions import ResponseError

from cuelight._text import safe_str
from cuelight.coordination._lock_state import CapacityState
from cuelight.coordination._lock_waiting import monitor, now, untrack
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import await_until, call_in_loop, interruptible, loop_time, new_slot
from cuelight.redis._client import read_reply
from cuelight.redis._locks._lease import LeaseOptions, LeaseRequest
from cuelight.redis._locks._lease import now as clock
from cuelight.redis._locks._script import (
    LEASE_SCRIPT,
    AcquireReply,
    LockNames,
    PendingRelease,
    client_name,
    parse_outcomes,
    parse_renewals,
    renewal_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cuelight.mailbox import Slot
    from cuelight.redis._client import Argument, Server, Subscription
    from cuelight.redis._locks._lease import LockLease


T = TypeVar("T")

next_number: Final = count(1).__next__


class _Slots:
    """The slots of all requests of this process, by lock, even if several clients lead to one server.

    The lowest free slot is used, so that a server has to remember few of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[str, tuple[set[int], list[int]]] = {}

    def take(self, tag: str) -> int:
        """Return a free slot."""
        with self._lock:
            used, free = self._pools.setdefault(tag, (set(), []))
            slot = heappop(free) if free else len(used)
            used.add(slot)
            return slot

    def put(self, tag: str, slot: int) -> None:
        """Free a slot."""
        with self._lock:
            used, free = self._pools[tag]
            used.discard(slot)
            heappush(free, slot)
            if not used:
                del self._pools[tag]


_slots = _Slots()


class SharedLockState(CapacityState):
    """This process's part of a lock on a server."""

    def __init__(
        self,
        label: str,
        names: LockNames,
        server: Server,
        capacity: int,
        *,
        multiple_holds: bool,
        writers_first: bool,
        debug: bool,
    ) -> None:
        super().__init__(label, capacity, multiple_holds=multiple_holds, writers_first=writers_first, debug=debug)
        self.names, self.server = names, server
        self.leases: dict[Any, list[LockLease]] = {}
        self.blocks: dict[Any, list[tuple[LockLease, anyio.CancelScope]]] = {}  # those of `async with`, innermost last
        self.grant_channels: dict[Any, GrantChannel] = {}
        self.pending: deque[PendingRelease] = deque()
        self._guard = threading.Lock()
        self._channels = names.channels

    # Tickets.

    def request(self, options: LeaseOptions, weight: int, first: bool) -> LeaseRequest:
        """Make a request for one acquisition."""
        slot = _slots.take(self.names.tag)
        return LeaseRequest(f"{client_name()}/{slot}", slot, next_number(), weight=weight, first=first, options=options)

    def queue_release(self, request: LeaseRequest, left: int, until: float, *, sure: bool = True) -> PendingRelease:
        """Queue the release of a request down to the weight `left`. The caller must arrange the sending."""
        pending_release = PendingRelease(request, left, until, sure)
        if request.member.startswith(f"{client_name()}/"):
            self.pending.append(pending_release)
        else:  # a fork has only a copy of the request
            pending_release.over = True
        return pending_release

    def must_release(self) -> bool:
        """Whether a release is pending for a request that the server is known to have."""
        return any(pending_release.sure for pending_release in list(self.pending))

    def take_pending(self) -> list[PendingRelease]:
        """Take the pending releases. The caller sends them and then calls `settle` or `unsent`."""
        if not self.pending:
            return []
        with self._guard:
            batch = list(self.pending)
            self.pending.clear()
        return batch

    def restore_unsent(self, batch: list[PendingRelease]) -> None:
        """Return releases that could not be sent to `pending`, unless their time is over."""
        at = clock()
        for pending_release in reversed(batch):
            if pending_release.until > at:
                self.pending.appendleft(pending_release)
            else:
                self._finish_release(pending_release, None)

    def drop_releases(self) -> None:
        """Give up the pending releases: the server frees the locks when their leases end."""
        for pending_release in self.take_pending():
            self._finish_release(pending_release, None)

    def confirm_releases(self, batch: list[PendingRelease], results: Sequence[int]) -> None:
        """Record the server's answer to releases."""
        for pending_release, outcome in zip(batch, results, strict=True):
            self._finish_release(pending_release, outcome)

    def _finish_release(self, pending_release: PendingRelease, outcome: int | None) -> None:
        with self._guard:
            pending_release.outcome, pending_release.over = outcome, True
            waiting = pending_release.waiting
        if pending_release.left == 0:
            self.drop_request(pending_release.request)
        if waiting is not None:
            call_in_loop(*waiting)

    def on_released(self, pending_release: PendingRelease, wake: Callable[[], object], loop: Any) -> None:
        """Call `wake` in a loop when a release is settled, or soon if it already is."""
        with self._guard:
            pending_release.waiting = (loop, wake)
            over = pending_release.over
        if over:  # pragma: no cover - a thread settled it since the caller looked
            call_in_loop(loop, wake)

    # Leases.

    def newest_lease(self, owner: Any, weight: int) -> LockLease | None:
        """The owner's newest lease of this weight."""
        for lease in reversed(self.leases.get(owner, ())):
            if lease.weight == weight:
                return lease
        return None

    def add_lease(self, lease: LockLease) -> None:
        """Add a granted lease; its owner already has the lock."""
        self.leases.setdefault(lease.owner, []).append(lease)

    def remove_lease(self, lease: LockLease) -> None:
        """Remove a lease that its owner releases."""
        held = self.leases.get(lease.owner, [])
        if lease in held:
            held.remove(lease)
            if not held:
                del self.leases[lease.owner]

    def release(self, owner: Any, weight: int, now: float) -> bool:
        released = super().release(owner, weight, now)
        if released and owner in self.leases and not self.is_held_by(owner):
            for lease in self.leases.pop(owner):  # the owner ended without releasing these
                lease.renewer.release_abandoned(self, lease)
        return released

    def detach(self) -> None:
        """In the child of a fork, give up the holders that stayed in the parent."""
        self._guard = threading.Lock()
        self.pending.clear()
        self.grant_channels.clear()
        for leases in self.leases.values():
            for lease in leases:
                lease.detach("it stays with the process that this one was forked from")

    def undo_acquire(self, owner: Any, weight: int) -> None:
        """Release the lock for an owner that gets no lease, so that the next caller may try.

        The owner may have ended.
        """
        with monitor:
            self.release(owner, weight, now())
            untrack(self, owner)

    # Calls.

    def arguments(self, op: str, batch: Sequence[PendingRelease], own: Sequence[Argument]) -> list[Argument]:
        """The arguments of a call of the script."""
        flat: list[Argument] = [op, self._channels, self.capacity, len(batch)]
        for pending_release in batch:
            flat += (pending_release.request.member, pending_release.request.number, pending_release.left)
        flat += own
        return flat

    async def ask(self, op: str, own: Sequence[Argument] = (), timeout: float | None = None) -> Any:
        """Call the script, and send the pending releases with the call. A checkpoint."""
        batch = self.take_pending()
        try:
            reply = await self.server.run(
                LEASE_SCRIPT, self.names.keys, self.arguments(op, batch, own), timeout=timeout
            )
            done = self.read(op, partial(parse_outcomes, size=len(batch)), reply)
        except BaseException as error:
            self.restore_unsent(batch)
            if isinstance(error, ResponseError | StoreRefused):
                raise self._translated(error) from error
            raise
        self.confirm_releases(batch, done)
        return reply

    def ask_blocking(self, op: str, own: Sequence[Argument] = (), timeout: float | None = None) -> Any:
        """Like `ask`, but blocks the thread: for threads without an event loop."""
        batch = self.take_pending()
        try:
            reply = self.server.run_blocking(
                LEASE_SCRIPT, self.names.keys, self.arguments(op, batch, own), timeout=timeout
            )
            done = self.read(op, partial(parse_outcomes, size=len(batch)), reply)
        except BaseException as error:
            self.restore_unsent(batch)
            if isinstance(error, ResponseError | StoreRefused):
                raise self._translated(error) from error
            raise
        self.confirm_releases(batch, done)
        return reply

    def read(self, op: str, read: Callable[[Any], T], reply: Any) -> T:
        """Parse a reply of the script.

        Raises:
            StoreRefused: the reply is malformed.
        """
        return read_reply(self.server.name, f"{op!r} of {self.label}", read, reply)

    def _translated(self, error: ResponseError | StoreRefused) -> Exception:
        text = safe_str(error)
        if "BADARG" in text or (isinstance(error, StoreRefused) and self.label in text):
            return error
        if "script" not in text and "CORRUPT" not in text and "FUTURE" not in text:
            return StoreRefused(f"{self.server.name} refused a call of {self.label}: {text}")
        return StoreRefused(
            f"the state of {self.label} on {self.server.name} is not to be used: {text}. It was written by a newer "
            f"version, or by something else: delete {self.names.keys[0]} and its neighbours, or use another prefix"
        )

    def drop_request(self, request: LeaseRequest) -> None:
        """Free the slot of a request that the server does not know."""
        _slots.put(self.names.tag, request.slot)

    async def acquire(self, request: LeaseRequest, wait: bool, timeout: float | None) -> AcquireReply:
        """Request a lease once."""
        return self.read("acquire", AcquireReply, await self.ask("acquire", request.arguments(wait), timeout))

    async def renew(self, requests: list[LeaseRequest]) -> list[int]:
        """Renew leases. Returns 1 for each that is held, else 0."""
        reply = await self.ask("renew", renewal_arguments(requests))
        return self.read("renew", partial(parse_renewals, size=len(requests)), reply)


_shared_states: Final[WeakValueDictionary[tuple[Server, str], SharedLockState]] = WeakValueDictionary()
_making = threading.Lock()


def shared_state(
    label: str,
    names: LockNames,
    server: Server,
    capacity: int,
    *,
    multiple_holds: bool = False,
    writers_first: bool = False,
    debug: bool = False,
) -> SharedLockState:
    """Return the state of a lock on a server. All users of one lock in this process share one state.

    Raises:
        ValueError: others in this process use the lock with other settings.
    """
    with _making:
        state = _shared_states.get((server, names.tag))
        if state is None:
            state = SharedLockState(
                label, names, server, capacity, multiple_holds=multiple_holds, writers_first=writers_first, debug=debug
            )
            _shared_states[server, names.tag] = state
    if state.capacity != capacity:
        raise ValueError(
            f"{label} has {state.capacity} places elsewhere in this process, and {capacity} here: give both the same"
        )
    if state.writers_first != writers_first:
        raise ValueError(f"{label} has another writer_preference elsewhere in this process: give both the same")
    return state


def _after_fork() -> None:
    global _making, _slots
    _making, _slots = threading.Lock(), _Slots()
    for state in list(_shared_states.values()):
        state.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Notification(Protocol):
    """A waiter for a notification."""

    def notify(self) -> None:
        """Wake the waiter."""
        ...


class GrantChannel:
    """The subscription of this process to one lock's channel, in one loop. It does not refer to the lock."""

    def __init__(self, server: Server, channel: str) -> None:
        self._server, self._channel = server, channel
        self._lock = anyio.Lock()
        self._subscription: Subscription | None = None
        self.notifications: dict[bytes, Notification] = {}

    @property
    def open(self) -> bool:
        """Whether the subscription is active."""
        return self._subscription is not None

    async def listen(self, timeout: float | None = None) -> None:
        """Subscribe. A checkpoint.

        Raises:
            StoreUnavailable: the server did not confirm the subscription within `timeout` seconds.
        """
        with anyio.move_on_after(timeout):
            async with self._lock:
                if self._subscription is None:
                    self._subscription = await self._server.subscribe(self._channel, self._on_message, self._on_gap)
            return
        raise StoreUnavailable(f"{self._server.name} did not begin to tell of changes within {timeout:.3g} s")

    def close(self) -> None:
        """Unsubscribe. Any thread may call it."""
        if self._subscription is not None:
            self._subscription.close()

    def _on_message(self, member: bytes) -> None:
        notification = self.notifications.get(member)
        if notification is not None:
            notification.notify()

    def _on_gap(self) -> None:
        for notification in list(self.notifications.values()):
            notification.notify()


class TaskNotification:
    """A task that waits for a notification, in the loop that receives it."""

    __slots__ = ("_notified", "_slot")

    def __init__(self) -> None:
        self._notified = False
        self._slot: Slot | None = None

    def notify(self) -> None:
        self._notified = True
        slot = self._slot
        if slot is not None and not slot.done():
            slot.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Sleep until a notification has arrived since the last call, or for `seconds`."""
        if not self._notified:
            self._slot = slot = new_slot()
            try:
                await await_until(slot, loop_time() + seconds)
            finally:
                self._slot = None
        self._notified = False


class ThreadNotification:
    """A thread that waits for a notification."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def notify(self) -> None:
        self._event.set()

    @interruptible
    def wait(self, seconds: float) -> None:
        """Sleep until a notification has arrived since the last call, or for `seconds`."""
        self._event.wait(seconds)
        self._event.clear()
