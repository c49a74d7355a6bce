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
from cuelight.redis._locks._lease import Lease, Terms, now
from cuelight.redis._locks._renewal import Keeper, keeper_here, loop_has_ended, pause, the_thread
from cuelight.redis._locks._script import LEASE, Answer, client_name, describe_member
from cuelight.redis._locks._shared_state import Ear, Hint, TaskHint, ThreadHint

if TYPE_CHECKING:
    from cuelight.redis._locks._shared_state import SharedLockState

log = get_log("cuelight.redis")

SOON = 3
"""The number of places at the head of the queue whose waiters ask again as soon as a lease expires, in case the waiters
before them have died as well.
"""

SLOW = 3
"""The number of answers that may arrive too late for the leases that they grant."""


class _Errand:
    """A request for a lease: the part that tasks and threads share."""

    def __init__(
        self,
        state: SharedLockState,
        terms: Terms,
        weight: int,
        timeout: float | None,
        *,
        clock: Callable[[], float],
        since: float,
    ) -> None:
        self.state, self.terms, self.timeout, self._clock = state, terms, timeout, clock
        self._deadline = math.inf if timeout is None else since + timeout
        first = state.writers_first and weight == state.capacity
        self.ticket = state.ticket(terms, weight, first)
        self.asked = 0.0
        self._answer: Answer | None = None
        self._answered = False  # whether the last call was answered
        self._failures = self._slow = 0

    def left(self) -> float:
        """Seconds until the timeout."""
        return self._deadline - self._clock()

    def limit(self) -> float | None:
        """Seconds that a call of the server may take; None for the client's default."""
        return None if self.timeout is None else answer_time(self.timeout, self.left())

    def begin(self) -> None:
        """Prepare for a call of the server."""
        self.asked, self._answered = now(), False

    def granted(self, answer: Answer) -> bool:
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

    def stale(self) -> bool:
        """Whether an answer took so long that the lease must be requested again, which renews it.

        Raises:
            StoreUnavailable: too many answers took so long.
        """
        if now() - self.asked < self.terms.lease / 2:
            return False
        self._slow += 1
        if self._slow > SLOW:
            raise StoreUnavailable(
                f"{self.state.server.name} takes longer to answer than half the lease on {self.state.label}, which is "
                f"{self.terms.lease:g} s: give it a longer one"
            )
        return True

    def failed(self, error: StoreUnavailable) -> None:
        """Continue after a failed call if the server has answered before.

        Raises:
            StoreUnavailable: the server has never answered, or its answers are too slow.
        """
        if self._answer is None or self._slow > SLOW:
            raise error
        if not self._failures:
            log.warning("%s goes on waiting for %s: %s", describe(current_owner()), self.state.label, error)
        self._failures += 1

    def sleep_for(self) -> float:
        """Seconds until it is time to ask again.

        Raises:
            LockTimeout: the timeout is over.
        """
        left = self.left()
        if left <= 0:
            raise self.late()
        if self._failures:
            return min(left, pause(self._failures))
        seconds = self.terms.lease / 3
        answer = self._answer
        if answer is not None and 0 <= answer.place < SOON:
            seconds = min(seconds, max(0.01, answer.wait) + 0.005 + 0.02 * answer.place)
        return min(left, seconds)

    def late(self) -> LockTimeout:
        """The error for a timeout."""
        timeout = self.timeout or 0
        return LockTimeout(
            f"{describe(current_owner())} did not get {self.state.label} within {timeout:g} s: {self.holder()}"
        )

    def holder(self) -> str:
        """Describe the holder in words."""
        answer = self._answer
        if answer is None or not answer.holder:
            return "nobody holds it"
        if answer.holder.startswith(f"{client_name()}/"):
            return "this process has just given it back"
        return f"{describe_member(answer.holder)} holds it"

    def lease(self, answer: Answer, keeper: Keeper) -> Lease:
        """Make the lease for a grant and start to renew it."""
        lease = Lease(self.state.label, self.ticket, answer.fence, asked=self.asked, owner=current_owner(), home=keeper)
        self.state.enter(lease)
        keeper.hold(lease, self.state)
        return lease

    def give_up(self) -> None:
        """Queue a release, unless the server's last answer says that it does not have the ticket."""
        answer = self._answer
        if answer is not None and self._answered and not answer.granted and answer.place < 0:
            self.state.drop_ticket(self.ticket)
        else:
            self.state.give_back(self.ticket, 0, now() + self.terms.lease, sure=answer is not None)

    def ear(self, loop: Any) -> Ear:
        """The ear of a loop."""
        state = self.state
        ear = state.ears.get(loop)
        if ear is None:
            for old in [old for old in state.ears if loop_has_ended(old)]:
                state.ears.pop(old, None)
            ear = Ear(state.server, state.names.channels + client_name())
            ear = state.ears.setdefault(loop, ear)
            weakref.finalize(state, ear.close).atexit = False
        return ear

    def listen(self, ear: Ear, hint: Hint) -> None:
        """Start to pass notifications to `hint`."""
        ear.hints[self.ticket.member.encode()] = hint

    def unlisten(self, ear: Ear) -> None:
        """Stop passing notifications."""
        ear.hints.pop(self.ticket.member.encode(), None)


async def take(state: SharedLockState, terms: Terms, weight: int, timeout: float | None, since: float) -> Lease:
    """Request a lease, and wait until it is granted. A checkpoint.

    Args:
        state: the lock; the caller already has it in this process.
        terms: the terms of the lease.
        weight: the number of permits.
        timeout: seconds to wait, counted from `since`.
        since: a time of the loop.

    Raises:
        LockTimeout: the lock could not be acquired within the timeout.
        StoreUnavailable: the server cannot be reached.
        StoreRefused: the server rejects the call.
    """
    keeper = keeper_here()
    errand = _Errand(state, terms, weight, timeout, clock=loop_time, since=since)
    ear, hint = errand.ear(keeper.loop), TaskHint()
    errand.listen(ear, hint)
    try:
        while True:
            try:
                errand.begin()
                answer = await state.acquire(errand.ticket, errand.left() > 0, errand.limit())
                if errand.granted(answer):
                    if errand.stale():
                        continue
                    if terms.wait_replicas:
                        await _confirm(errand)
                    return errand.lease(answer, keeper)
                if errand.left() <= 0:
                    raise errand.late()
                if not ear.open:
                    await ear.listen(errand.limit())
                    continue
            except StoreUnavailable as error:
                errand.failed(error)
            await hint.wait(errand.sleep_for())
    except BaseException:
        errand.give_up()
        keeper.flush(state)
        raise
    finally:
        errand.unlisten(ear)


def take_blocking(state: SharedLockState, terms: Terms, weight: int, timeout: float | None, since: float) -> Lease:
    """Like `take`, but blocks the thread; `since` is a time of `time.monotonic`."""
    errand = _Errand(state, terms, weight, timeout, clock=time.monotonic, since=since)
    with the_thread as keeper:
        ear, hint = errand.ear(keeper.loop), ThreadHint()
        errand.listen(ear, hint)
        try:
            while True:
                try:
                    answer = _ask_once(errand, errand.left() > 0)
                    if errand.granted(answer):
                        if errand.stale():
                            continue
                        if terms.wait_replicas:
                            the_thread.call(_confirm, errand)
                        return errand.lease(answer, keeper)
                    if errand.left() <= 0:
                        raise errand.late()
                    if not ear.open:
                        the_thread.call(ear.listen, errand.limit())
                        continue
                except StoreUnavailable as error:
                    errand.failed(error)
                hint.wait(errand.sleep_for())
        except BaseException:
            errand.give_up()
            the_thread.flush(state)
            raise
        finally:
            errand.unlisten(ear)


def take_nowait(state: SharedLockState, terms: Terms, weight: int) -> Lease:
    """Request a lease once, without waiting for other holders.

    This blocks the thread, and any event loop in it, for one round trip.

    Raises:
        LockHeld: others hold the lock or wait for it.
        StoreUnavailable: the server cannot be reached.
        StoreRefused: the server rejects the call.
    """
    errand = _Errand(state, terms, weight, None, clock=time.monotonic, since=0)
    with the_thread as of_threads:
        keeper = of_threads if running_loop() is None else keeper_here()
        try:
            answer = _ask_once(errand, wait=False)
            while answer.granted and errand.stale():
                answer = _ask_once(errand, wait=False)
            if errand.granted(answer):
                if terms.wait_replicas:
                    the_thread.call(_confirm, errand)
                return errand.lease(answer, keeper)
            raise LockHeld(f"{state.label} is held: {errand.holder()}")
        except BaseException:
            errand.give_up()
            the_thread.flush(state)
            raise


def _ask_once(errand: _Errand, wait: bool) -> Answer:
    errand.begin()
    if running_loop() is None:
        state = errand.state
        return state.read(
            "acquire", Answer, state.ask_blocking("acquire", errand.ticket.arguments(wait), errand.limit())
        )
    return the_thread.call(errand.state.acquire, errand.ticket, wait, errand.limit())


async def _confirm(errand: _Errand) -> None:
    """Wait until `wait_replicas` replicas have the grant.

    WAIT covers only the writes of its own connection, so this connection first repeats the request.

    Raises:
        StoreRefused: fewer replicas have it.
        StoreUnavailable: the server does not answer in time.
    """
    state, wanted = errand.state, errand.terms.wait_replicas
    server: Any = state.server
    arguments = state.arguments("acquire", (), errand.ticket.arguments(False))
    known = -1
    with anyio.move_on_after(errand.limit()):
        async with server.dedicated() as connection:
            await connection.execute("EVAL", LEASE.text, len(state.names.keys), *state.names.keys, *arguments)
            known = await connection.execute("WAIT", wanted, round(min(1.0, errand.terms.lease / 3) * 1000))
    if known < 0:
        raise StoreUnavailable(
            f"{state.server.name} did not say in time how many replicas know of the grant of {state.label}"
        )
    if known < wanted:
        raise StoreRefused(
            f"{known} replicas of {state.server.name} know of the grant of {state.label}, wait_replicas={wanted}: it "
            f"was given back. Look after the replicas, or ask for fewer"
        )
