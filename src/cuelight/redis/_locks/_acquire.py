"""Requests a lease from the server after the caller's turn has come in this process, in a task or in a thread.

Both work the same way. They ask the server. If the lock is not available, they wait in the server's queue and sleep
until a notification arrives or it is time to ask again, and then ask again. When the server grants the lock to a
waiter, it sends a notification and reserves the lock for a moment. The waiter's next request then gets a whole lease.

Invariants:
1. If the caller is cancelled, interrupted, late or rejected, the lock is released, whatever the server did meanwhile.
2. Until the server's first answer, an unreachable server is an error. Callers in the queue continue to wait.
3. A lease counts from before its request, and most of it is left when its holder gets it.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from cuelight._log import get_log
from cuelight.coordination._owner import current_owner, describe
from cuelight.errors import LockHeld, LockTimeout, StoreRefused, StoreUnavailable
from cuelight.mailbox import loop_time, running_loop
from cuelight.redis._client import answer_time
from cuelight.redis._locks._lease import LeaseOptions, LockLease, now
from cuelight.redis._locks._renewal import LeaseRenewer, background_loop, backoff, current_renewer, loop_has_ended
from cuelight.redis._locks._script import LEASE_SCRIPT, AcquireReply, client_name, describe_member
from cuelight.redis._locks._shared_state import GrantChannel, Notification, TaskNotification, ThreadNotification

if TYPE_CHECKING:
    from cuelight.redis._locks._shared_state import SharedLockState

log = get_log("cuelight.redis")

EAGER_PLACES = 3
"""The number of places at the head of the queue whose waiters ask again as soon as a lease expires, in case the waiters
before them have died as well.
"""

MAX_SLOW_ANSWERS = 3
"""The number of answers that may arrive too late for the leases that they grant."""


class _LeaseAcquirer:
    """A request for a lease: the part that tasks and threads share."""

    def __init__(
        self,
        state: SharedLockState,
        options: LeaseOptions,
        weight: int,
        timeout: float | None,
        *,
        clock: Callable[[], float],
        since: float,
    ) -> None:
        self.state, self.options, self.timeout, self._clock = state, options, timeout, clock
        self._deadline = math.inf if timeout is None else since + timeout
        first = state.writers_first and weight == state.capacity
        self.request = state.request(options, weight, first)
        self.asked = 0.0
        self._answer: AcquireReply | None = None
        self._answered = False  # whether the last call was answered
        self._failures = self._slow = 0

    def remaining(self) -> float:
        """Seconds until the timeout."""
        return self._deadline - self._clock()

    def call_timeout(self) -> float | None:
        """Seconds that a call of the server may take; None for the client's default."""
        return None if self.timeout is None else answer_time(self.timeout, self.remaining())

    def begin(self) -> None:
        """Prepare for a call of the server."""
        self.asked, self._answered = now(), False

    def granted(self, answer: AcquireReply) -> bool:
        """Record an answer, and return whether it grants the lock.

        Raises:
            StoreRefused: the server can never grant this request.
        """
        state = self.state
        if answer.capacity:
            raise StoreRefused(
                f"{state.label} on {state.server.name} has {answer.capacity} places for those who use it now, and "
                f"{state.capacity} here: give it the same everywhere; once nobody holds it or waits, it can change"
            )
        if answer.gone:
            raise StoreRefused(
                f"{state.server.name} says that this acquisition of {state.label} was given back already"
            )
        self._answer, self._answered, self._failures = answer, True, 0
        return answer.granted

    def is_too_slow(self) -> bool:
        """Whether an answer took so long that the lease must be requested again, which renews it.

        Raises:
            StoreUnavailable: too many answers took so long.
        """
        if now() - self.asked < self.options.lease / 2:
            return False
        self._slow += 1
        if self._slow > MAX_SLOW_ANSWERS:
            raise StoreUnavailable(
                f"{self.state.server.name} takes longer to answer than half the lease on {self.state.label}, which is "
                f"{self.options.lease:g} s: give it a longer one"
            )
        return True

    def on_failure(self, error: StoreUnavailable) -> None:
        """Continue after a failed call if the server has answered before.

        Raises:
            StoreUnavailable: the server has never answered, or its answers are too slow.
        """
        if self._answer is None or self._slow > MAX_SLOW_ANSWERS:
            raise error
        if not self._failures:
            log.warning("%s goes on waiting for %s: %s", describe(current_owner()), self.state.label, error)
        self._failures += 1

    def next_wait(self) -> float:
        """Seconds until it is time to ask again.

        Raises:
            LockTimeout: the timeout is over.
        """
        left = self.remaining()
        if left <= 0:
            raise self.timeout_error()
        if self._failures:
            return min(left, backoff(self._failures))
        seconds = self.options.lease / 3
        answer = self._answer
        if answer is not None and 0 <= answer.place < EAGER_PLACES:
            seconds = min(seconds, max(0.01, answer.wait) + 0.005 + 0.02 * answer.place)
        return min(left, seconds)

    def timeout_error(self) -> LockTimeout:
        """The error for a timeout."""
        timeout = self.timeout or 0
        return LockTimeout(
            f"{describe(current_owner())} did not get {self.state.label} within {timeout:g} s: {self.describe_holder()}"
        )

    def describe_holder(self) -> str:
        """Describe the holder in words."""
        answer = self._answer
        if answer is None or not answer.holder:
            return "nobody holds it"
        if answer.holder.startswith(f"{client_name()}/"):
            return "this process has just given it back"
        return f"{describe_member(answer.holder)} holds it"

    def make_lease(self, answer: AcquireReply, renewer: LeaseRenewer) -> LockLease:
        """Make the lease for a grant and start to renew it."""
        lease = LockLease(
            self.state.label, self.request, answer.fence, asked=self.asked, owner=current_owner(), renewer=renewer
        )
        self.state.add_lease(lease)
        renewer.start_renewing(lease, self.state)
        return lease

    def queue_release(self) -> None:
        """Queue a release, unless the server's last answer says that it does not have the request."""
        answer = self._answer
        if answer is not None and self._answered and not answer.granted and answer.place < 0:
            self.state.drop_request(self.request)
        else:
            self.state.queue_release(self.request, 0, now() + self.options.lease, sure=answer is not None)

    def grant_channel(self, loop: Any) -> GrantChannel:
        """The channel of a loop."""
        state = self.state
        grant_channel = state.grant_channels.get(loop)
        if grant_channel is None:
            for old in [old for old in state.grant_channels if loop_has_ended(old)]:
                state.grant_channels.pop(old, None)
            grant_channel = GrantChannel(state.server, state.names.channels + client_name())
            grant_channel = state.grant_channels.setdefault(loop, grant_channel)
            weakref.finalize(state, grant_channel.close).atexit = False
        return grant_channel

    def listen(self, grant_channel: GrantChannel, notification: Notification) -> None:
        """Start to pass notifications to `notification`."""
        grant_channel.notifications[self.request.member.encode()] = notification

    def unregister(self, grant_channel: GrantChannel) -> None:
        """Stop passing notifications."""
        grant_channel.notifications.pop(self.request.member.encode(), None)


async def acquire_lease(
    state: SharedLockState, options: LeaseOptions, weight: int, timeout: float | None, since: float
) -> LockLease:
    """Request a lease, and wait until it is granted. A checkpoint.

    Args:
        state: the lock; the caller already has it in this process.
        options: the options of the lease.
        weight: the number of permits.
        timeout: seconds to wait, counted from `since`.
        since: a time of the loop.

    Raises:
        LockTimeout: the lock could not be acquired within the timeout.
        StoreUnavailable: the server cannot be reached.
        StoreRefused: the server rejects the call.
    """
    renewer = current_renewer()
    acquirer = _LeaseAcquirer(state, options, weight, timeout, clock=loop_time, since=since)
    grant_channel, notification = acquirer.grant_channel(renewer.loop), TaskNotification()
    acquirer.listen(grant_channel, notification)
    try:
        while True:
            try:
                acquirer.begin()
                answer = await state.acquire(acquirer.request, acquirer.remaining() > 0, acquirer.call_timeout())
                if acquirer.granted(answer):
                    if acquirer.is_too_slow():
                        continue
                    if options.wait_replicas:
                        await _confirm(acquirer)
                    return acquirer.make_lease(answer, renewer)
                if acquirer.remaining() <= 0:
                    raise acquirer.timeout_error()
                if not grant_channel.open:
                    await grant_channel.listen(acquirer.call_timeout())
                    continue
            except StoreUnavailable as error:
                acquirer.on_failure(error)
            await notification.wait(acquirer.next_wait())
    except BaseException:
        acquirer.queue_release()
        renewer.flush(state)
        raise
    finally:
        acquirer.unregister(grant_channel)


def acquire_lease_blocking(
    state: SharedLockState, options: LeaseOptions, weight: int, timeout: float | None, since: float
) -> LockLease:
    """Like `acquire_lease`, but blocks the thread; `since` is a time of `time.monotonic`."""
    acquirer = _LeaseAcquirer(state, options, weight, timeout, clock=time.monotonic, since=since)
    with background_loop as renewer:
        grant_channel, notification = acquirer.grant_channel(renewer.loop), ThreadNotification()
        acquirer.listen(grant_channel, notification)
        try:
            while True:
                try:
                    answer = _ask_once(acquirer, acquirer.remaining() > 0)
                    if acquirer.granted(answer):
                        if acquirer.is_too_slow():
                            continue
                        if options.wait_replicas:
                            background_loop.call(_confirm, acquirer)
                        return acquirer.make_lease(answer, renewer)
                    if acquirer.remaining() <= 0:
                        raise acquirer.timeout_error()
                    if not grant_channel.open:
                        background_loop.call(grant_channel.listen, acquirer.call_timeout())
                        continue
                except StoreUnavailable as error:
                    acquirer.on_failure(error)
                notification.wait(acquirer.next_wait())
        except BaseException:
            acquirer.queue_release()
            background_loop.flush(state)
            raise
        finally:
            acquirer.unregister(grant_channel)


def acquire_lease_nowait(state: SharedLockState, options: LeaseOptions, weight: int) -> LockLease:
    """Request a lease once, without waiting for other holders.

    This blocks the thread, and any event loop in it, for one round trip.

    Raises:
        LockHeld: others hold the lock or wait for it.
        StoreUnavailable: the server cannot be reached.
        StoreRefused: the server rejects the call.
    """
    acquirer = _LeaseAcquirer(state, options, weight, None, clock=time.monotonic, since=0)
    with background_loop as of_threads:
        renewer = of_threads if running_loop() is None else current_renewer()
        try:
            answer = _ask_once(acquirer, wait=False)
            while answer.granted and acquirer.is_too_slow():
                answer = _ask_once(acquirer, wait=False)
            if acquirer.granted(answer):
                if options.wait_replicas:
                    background_loop.call(_confirm, acquirer)
                return acquirer.make_lease(answer, renewer)
            raise LockHeld(f"{state.label} is held: {acquirer.describe_holder()}")
        except BaseException:
            acquirer.queue_release()
            background_loop.flush(state)
            raise


def _ask_once(acquirer: _LeaseAcquirer, wait: bool) -> AcquireReply:
    acquirer.begin()
    if running_loop() is None:
        state = acquirer.state
        return state.read(
            "acquire",
            AcquireReply,
            state.ask_blocking("acquire", acquirer.request.arguments(wait), acquirer.call_timeout()),
        )
    return background_loop.call(acquirer.state.acquire, acquirer.request, wait, acquirer.call_timeout())


async def _confirm(acquirer: _LeaseAcquirer) -> None:
    """Wait until `wait_replicas` replicas have the grant.

    WAIT covers only the writes of its own connection, so this connection first repeats the request.

    Raises:
        StoreRefused: fewer replicas have it.
        StoreUnavailable: the server does not answer in time.
    """
    state, wanted = acquirer.state, acquirer.options.wait_replicas
    server: Any = state.server
    arguments = state.arguments("acquire", (), acquirer.request.arguments(False))
    known = -1
    with anyio.move_on_after(acquirer.call_timeout()):
        async with server.dedicated() as connection:
            await connection.execute("EVAL", LEASE_SCRIPT.text, len(state.names.keys), *state.names.keys, *arguments)
            known = await connection.execute("WAIT", wanted, round(min(1.0, acquirer.options.lease / 3) * 1000))
    if known < 0:
        raise StoreUnavailable(
            f"{state.server.name} did not say in time how many replicas know of the grant of {state.label}"
        )
    if known < wanted:
        raise StoreRefused(
            f"{known} replicas of {state.server.name} know of the grant of {state.label}, wait_replicas={wanted}: it "
            f"was given back. Look after the replicas, or ask for fewer"
        )
