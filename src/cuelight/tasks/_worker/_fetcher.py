"""The worker's connection to the store. Each request (an exchange) reports finished tasks and claims new ones.

If an exchange is a network round trip, a second one may run at the same time, so that the server is busy while answers
travel and are read. The second one is only sent if it has enough finishes to be worthwhile.

Invariants:

1. An exchange is repeated unchanged until the store has answered it. A nonce and an epoch let the store recognize the
   repetition. No finish is in two exchanges, and each claim leaves out the slots that pending claims may fill.
2. A finish is dropped only when the store has answered it, or has rejected that finish on its own several times.
3. While there are free slots, the worker queries the store at least every few seconds, whatever happened before.
4. A claim asks for no more tasks than there are free slots, plus those that will start within some milliseconds at the
   current rate.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from cuelight._log import get_log
from cuelight.errors import PoolClosed, StoreUnavailable
from cuelight.supervision import Backoff
from cuelight.tasks._stores._protocol import Claim, Exchange, Finish
from cuelight.tasks._worker._failure import QUIET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.mailbox import Waiter
    from cuelight.tasks._stores._protocol import Lease
    from cuelight.tasks._worker._lease_slots import LeaseSlots

log = get_log("cuelight.tasks")

T = TypeVar("T")

STORE_BACKOFF: Final = Backoff(minimum=0.05, maximum=5.0, jitter=1.0)
"""Delays before a store that did not answer is tried again. With jitter, so that many workers do not retry at once."""

LOOKAHEAD_SECONDS: Final = 0.02
"""Seconds of work that are claimed in advance of free slots, at the current rate."""

MAX_LOOKAHEAD: Final = 1000

MAX_WATCH: Final = 5.0
"""Seconds after which the store is queried without a notification of a change."""

SINGLE_TRIES: Final = 3
"""How often a finish that makes the store fail is sent on its own."""

BATCH: Final = 32
"""The minimum number of finishes for a second exchange while another one is pending."""


@dataclass(eq=False)
class PendingExchange:
    """An exchange that the store has not answered yet.

    Attributes:
        finishes: the finishes that it reports.
        claim: the claim; None if it claims nothing.
        sent: when it was last sent, by the keeper's clock.
    """

    finishes: Sequence[Finish]
    claim: Claim | None
    sent: float


class Fetcher:
    """Claims and settles the tasks of one worker."""

    def __init__(self, slots: LeaseSlots) -> None:
        self._slots = slots
        self._pending: list[PendingExchange] = []
        self._requested = 0  # number of tasks that these claim
        self._idle_runs: list[Waiter] = []
        self._watch_waiter: Waiter | None = None
        self._must_claim = True
        self._since, self._wake_at = 0, 0.0
        self._early_wakes = self._failures = self._single_sends = 0
        self._window_start, self._ended, self._lookahead = slots.backend.time(), 0, 0.0
        self._numbers = 0
        self._prefix = uuid.uuid4().hex
        self._may_hand_over = False  # whether the store may hand over a task
        self._handed_over: list[Lease] = []  # tasks that were handed over since the last claim

    @property
    def unsent(self) -> int:
        """The number of finishes that the store has not acknowledged."""
        return len(self._slots.finishes) + sum(len(pending.finishes) for pending in self._pending)

    def wake(self) -> None:
        """Continue: an attempt has ended, or a slot is free."""
        if self._idle_runs:
            self._idle_runs.pop().wake()

    def fetch_more(self) -> None:
        """Claim for a slot that has become free unexpectedly."""
        self._must_claim = True
        self.wake()

    async def run(self) -> None:
        """Exchange until cancelled. May be called several times at once. Unanswered exchanges are left for `flush`."""
        pending: PendingExchange | None = None
        while True:
            if pending is None:
                pending = self._prepare()
            if pending is None:
                waiter = self._slots.backend.waiter()
                self._idle_runs.append(waiter)
                await waiter
                continue
            pending = await self._try(pending)

    async def _try(self, pending: PendingExchange) -> PendingExchange | None:
        """Make an exchange. Return the exchange to repeat, or None if the store has answered it."""
        try:
            await self._send(pending)
        except StoreUnavailable as error:
            await self._wait_for_store(error)
            return pending
        except PoolClosed:
            raise
        except Exception as error:  # no error of a store ends the worker
            log.exception("%s: its store failed", self._slots.options.worker_id)
            if pending in self._pending:
                pending = self._split(pending)
            await self._wait_for_store(error)
        return pending if pending in self._pending else None

    async def flush(self) -> None:
        """Send the remaining finishes, and return tasks whose claim was interrupted."""
        while self._pending or self._slots.finishes or self._may_hand_over:
            if not self._pending:
                self._start(self._slots.finishes, self._claim(0, None) if self._may_hand_over else None)
                self._slots.finishes = []
            try:
                await self._try(self._pending[0])
            except PoolClosed:
                log.warning(
                    "%s: its store was closed with %d unsent finishes", self._slots.options.worker_id, self.unsent
                )
                return

    async def claim_one(self) -> Lease | None:
        """Claim one task. Return None if there is none.

        Raises:
            StoreUnavailable: the store did not answer for the length of a lease.
        """
        slots = self._slots
        claim = self._claim(1, None)
        pending = self._start((), claim)
        answer = await self.with_retries(lambda: slots.store.exchange((), claim), slots.options.lease)
        self._end(pending)
        self._answered(claim)
        for lease in answer.leases:
            slots.keeper.hold(lease.record.id, lease.epoch, pending.sent)
            return lease
        return None

    async def with_retries(self, step: Callable[[], Awaitable[T]], retry_timeout: float = float("inf")) -> T:
        """Repeat an idempotent call of the store until it answers.

        Raises:
            StoreUnavailable: the store did not answer for `retry_timeout` seconds.
        """
        give_up = self._slots.backend.time() + retry_timeout
        while True:
            try:
                result = await step()
            except StoreUnavailable as error:
                if self._slots.backend.time() >= give_up:
                    raise
                await self._wait_for_store(error)
            else:
                self._is_back()
                return result

    # One exchange.

    def _prepare(self) -> PendingExchange | None:
        """Return the next exchange, or None if none is needed now."""
        slots = self._slots
        finishes: Sequence[Finish] = slots.finishes
        if self._pending and (self._single_sends or len(finishes) < BATCH):
            return None
        if self._single_sends and finishes:  # one of them made the store fail: send them one by one
            slots.finishes = list(finishes[1:])
            return self._start(finishes[:1], None)
        self._measure(len(finishes))
        most = 0
        if not slots.draining and (self._must_claim or finishes):
            most = max(0, slots.free_slots + min(MAX_LOOKAHEAD, int(self._lookahead)) - self._requested)
        claim = None
        if most > 0 or self._handed_over:
            claim = self._claim(most, None if slots.draining else self._start_handed_over)
        if not finishes and claim is None:
            return None
        slots.finishes = []
        return self._start(finishes, claim)

    def _start(self, finishes: Sequence[Finish], claim: Claim | None) -> PendingExchange:
        pending = PendingExchange(finishes, claim, self._slots.keeper.clock())
        self._pending.append(pending)
        self._requested += claim.most if claim is not None else 0
        return pending

    def _end(self, pending: PendingExchange) -> None:
        self._pending.remove(pending)
        self._requested -= pending.claim.most if pending.claim is not None else 0

    def _claim(self, most: int, take: Callable[[Lease], object] | None) -> Claim:
        self._numbers += 1
        slots, options = self._slots, self._slots.options
        handed, self._handed_over = self._handed_over, []
        leases = [(lease.record.id, lease.epoch) for lease in handed]
        confirmed = tuple(lease for lease in leases if slots.keeper.holds(*lease))
        return Claim(options.worker_id, f"{self._prefix}:{self._numbers}", most, options.lease, take, confirmed)

    def _start_handed_over(self, lease: Lease) -> None:
        """Start a task that the store has handed over. The next claim confirms its lease."""
        slots = self._slots
        since = slots.keeper.clock() + lease.expires - slots.store.now() - slots.options.lease
        self._handed_over.append(lease)
        slots.add_leases([lease], since)
        self.fetch_more()

    def _measure(self, ended: int) -> None:
        """Update `_lookahead`, the number of attempts that end in `LOOKAHEAD_SECONDS` seconds."""
        passed = self._slots.backend.time() - self._window_start
        if passed >= LOOKAHEAD_SECONDS:
            self._lookahead = self._ended * LOOKAHEAD_SECONDS / passed
            self._window_start += passed
            self._ended = 0
        self._ended += ended

    async def _send(self, pending: PendingExchange) -> None:
        """Make the exchange. It is pending until it is answered."""
        finishes, claim = pending.finishes, pending.claim
        since = self._slots.store.version()
        pending.sent = self._slots.keeper.clock()
        answer = await self._slots.store.exchange(finishes, claim)
        self._end(pending)
        self._is_back()
        if self._single_sends:
            self._single_sends = self._single_sends - 1 if finishes else self._single_sends
        if claim is not None:
            self._may_hand_over = answer.waits
            for lease in claim.confirmed:
                self._slots.keeper.renewed(*lease, pending.sent)
            self._slots.add_leases(answer.leases, pending.sent)
            self._answered(claim)
            self._must_claim = len(answer.leases) >= claim.most
            if not self._must_claim:
                self._since = since
                self._wait_for_more(answer)
        self._record_states(finishes, answer)

    def _answered(self, claim: Claim) -> None:
        self._slots.counters.last_claim = self._slots.store.now()

    def _record_states(self, finishes: Sequence[Finish], answer: Exchange) -> None:
        slots = self._slots
        worker, failures = slots.options.worker_id, slots.failures
        for finish, state in zip(finishes, answer.accepted, strict=True):
            if finish.kind == "done" and state:
                continue
            failed = failures.pop((finish.id, finish.epoch), None)
            attempt = finish.attempt
            if not state:
                slots.counters.lease_lost += 1
                log.warning("%s: lease_lost: the finish (%s) of %s was rejected", worker, finish.kind, finish.id)
            elif failed is not None and attempt is not None and attempt.kind not in QUIET:
                text = f"{attempt.error}\n{attempt.traceback}".rstrip()
                failed.report(log, worker=worker, queue=slots.queue, kind=attempt.kind, state=state, text=text)

    # A store that is unavailable or fails.

    async def _wait_for_store(self, error: Exception) -> None:
        if not self._slots.counters.away:
            self._slots.counters.away = True
            log.warning("%s cannot reach its store, and keeps trying: %r", self._slots.options.worker_id, error)
        delay = STORE_BACKOFF.delay(self._failures, random.random())  # noqa: S311 - no secret
        self._failures += 1
        await anyio.sleep(delay)

    def _is_back(self) -> None:
        self._failures = 0
        if self._slots.counters.away:
            self._slots.counters.away = False
            log.warning("%s can reach its store again", self._slots.options.worker_id)

    def _split(self, pending: PendingExchange) -> PendingExchange:
        """Split an exchange that made the store fail, so that one bad finish does not block the others.

        Returns:
            The remaining exchange, which must be repeated if it is still pending.
        """
        finishes, claim = pending.finishes, pending.claim
        if not finishes:
            return pending
        self._end(pending)
        if claim is not None:
            pending = PendingExchange((), claim, pending.sent)
            self._pending.append(pending)
            self._requested += claim.most
        elif len(finishes) == 1 and self._single_sends >= SINGLE_TRIES:
            log.error(
                "%s drops the finish (%s) of %s, which its store rejects: the task runs again after its lease",
                self._slots.options.worker_id,
                finishes[0].kind,
                finishes[0].id,
            )
            self._slots.failures.pop((finishes[0].id, finishes[0].epoch), None)
            finishes = ()
        self._slots.finishes[:0] = finishes
        self._single_sends += 1
        return pending

    # Waiting for something to claim.

    def _wait_for_more(self, answer: Exchange) -> None:
        """The claim returned fewer tasks than requested: have the watcher wait for more."""
        self._wake_at = answer.wake_at
        if self._watch_waiter is not None:
            waiter, self._watch_waiter = self._watch_waiter, None
            waiter.wake()

    async def watch(self) -> None:
        """Wait for claimable tasks after each claim that returned fewer tasks than requested."""
        store = self._slots.store
        while True:
            if self._must_claim:
                self._watch_waiter = self._slots.backend.waiter()
                await self._watch_waiter
            try:
                await store.changed(self._since, self._watch_timeout(self._wake_at - store.now()))
            except Exception as error:  # ignored, because the next claim shows whether the store works
                if not isinstance(error, StoreUnavailable):
                    log.exception("%s cannot watch its store", self._slots.options.worker_id)
                await anyio.sleep(STORE_BACKOFF.delay(2, random.random()))  # noqa: S311 - no secret
            self._must_claim = True
            self.wake()

    def _watch_timeout(self, until: float) -> float:
        """The number of seconds to wait for a change."""
        if until > 0:
            self._early_wakes = 0
            return min(until, MAX_WATCH)
        # The store announced a task and did not return it (it may be paused): avoid a busy loop.
        self._early_wakes += 1
        return min(0.1, 0.001 * 2.0 ** min(self._early_wakes, 10))
