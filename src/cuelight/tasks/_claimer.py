"""The one who talks to the store: settles what has ended and claims for free slots, in one exchange after the other.

Where an exchange is a round trip a second one may be under way, so that the server works while answers travel and are
read: but only with as much to settle as makes it worth its while.

Invariants:

1. An exchange is made again, the same, until the store has answered it: a nonce and an epoch tell the store that it is
   the same. What one settles no other does, and what one claims the others leave room for.
2. A finish is dropped only when the store has answered it, or refuses to take that one finish whatever is tried.
3. While there is room the store is asked at least every few seconds, whatever happened before: a worker is never deaf.
4. No more is claimed than can be begun at once, and what will be begun within some milliseconds at the pace of now.
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
from cuelight.tasks._failures import QUIET
from cuelight.tasks._store import Claim, Exchange, Finish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.mailbox import Waiter
    from cuelight.tasks._shift import Shift
    from cuelight.tasks._store import Lease

__all__ = ["Claimer"]

log = get_log("cuelight.tasks")

T = TypeVar("T")

AWAY: Final = Backoff(minimum=0.05, maximum=5.0, jitter=1.0)
"""How long to wait for a store that did not answer. The jitter keeps a fleet from coming back all at once."""

AHEAD: Final = 0.02
"""Seconds of work that are claimed ahead of free slots, at the pace of the last moments."""

MOST_AHEAD: Final = 1000

LOOK: Final = 5.0
"""Seconds after which the store is asked even if nothing says that there is something."""

TRIES: Final = 3
"""How often a finish that the store chokes on is tried."""

BATCH: Final = 32
"""How much there must be to settle for a further exchange while another is under way."""


@dataclass(eq=False)
class Errand:
    """One exchange, until the store has answered it.

    Attributes:
        finishes: what it settles.
        claim: what it claims; None for nothing.
        sent: when it was sent last, by the clock of the keeper.
    """

    finishes: Sequence[Finish]
    claim: Claim | None
    sent: float


class Claimer:
    """Claims and settles for one shift."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._pending: list[Errand] = []
        self._most = 0  # what these claim
        self._parked: list[Waiter] = []
        self._thirsty: Waiter | None = None
        self._look = True
        self._since, self._wake_at = 0, 0.0
        self._early = self._failures = self._odd = 0
        self._window, self._ended, self._pace = shift.backend.time(), 0, 0.0
        self._numbers = 0
        self._prefix = uuid.uuid4().hex

    @property
    def unsent(self) -> int:
        """Finishes that the store has not answered."""
        return len(self._shift.finishes) + sum(len(errand.finishes) for errand in self._pending)

    def wake(self) -> None:
        """Something has ended, or there is room."""
        if self._parked:
            self._parked.pop().wake()

    def look(self) -> None:
        """There is room that nobody has expected: claim."""
        self._look = True
        self.wake()

    async def run(self) -> None:
        """Exchange for ever; may run twice at once. Cancelled, it leaves what was not answered to `flush`."""
        errand: Errand | None = None
        while True:
            if errand is None:
                errand = self._prepare()
            if errand is None:
                waiter = self._shift.backend.waiter()
                self._parked.append(waiter)
                await waiter
                continue
            errand = await self._try(errand)

    async def _try(self, errand: Errand) -> Errand | None:
        """Make an exchange. What is to be made again, or None if the store has answered it."""
        try:
            await self._send(errand)
        except StoreUnavailable as error:
            await self._wait_for_store(error)
            return errand
        except PoolClosed:
            raise
        except Exception as error:  # a worker outlives whatever its store does
            log.exception("%s: its store failed", self._shift.options.worker_id)
            if errand in self._pending:
                errand = self._take_apart(errand)
            await self._wait_for_store(error)
        return errand if errand in self._pending else None

    async def flush(self) -> None:
        """Send what is left, and give back what comes in answer to a claim that was cut off."""
        while self._pending or self._shift.finishes:
            if not self._pending:
                self._start(self._shift.finishes, None)
                self._shift.finishes = []
            try:
                await self._try(self._pending[0])
            except PoolClosed:
                log.warning(
                    "%s: its store was closed with %d unsent finishes", self._shift.options.worker_id, self.unsent
                )
                return

    async def claim_one(self) -> Lease | None:
        """Claim one task; None if there is none.

        Raises:
            StoreUnavailable: the store did not answer for as long as a lease lasts.
        """
        shift = self._shift
        claim = self._claim(1)
        errand = self._start((), claim)
        answer = await self.patiently(lambda: shift.store.exchange((), claim), shift.options.lease)
        self._end(errand)
        self._answered(claim)
        for lease in answer.leases:
            shift.keeper.hold(lease.record.id, lease.epoch, errand.sent)
            return lease
        return None

    async def patiently(self, step: Callable[[], Awaitable[T]], patience: float = float("inf")) -> T:
        """Take a step of the store that may be taken twice, until the store answers.

        Raises:
            StoreUnavailable: it did not, for `patience` seconds.
        """
        give_up = self._shift.backend.time() + patience
        while True:
            try:
                result = await step()
            except StoreUnavailable as error:
                if self._shift.backend.time() >= give_up:
                    raise
                await self._wait_for_store(error)
            else:
                self._is_back()
                return result

    # One exchange.

    def _prepare(self) -> Errand | None:
        """Decide on the next exchange. None if there is none to be made now."""
        shift = self._shift
        finishes: Sequence[Finish] = shift.finishes
        if self._pending and (self._odd or len(finishes) < BATCH):
            return None
        if self._odd and finishes:  # the store has choked on one of them: one by one
            shift.finishes = list(finishes[1:])
            return self._start(finishes[:1], None)
        self._measure(len(finishes))
        most = 0
        if not shift.draining and (self._look or finishes):
            most = shift.room + min(MOST_AHEAD, int(self._pace)) - self._most
        claim = self._claim(most) if most > 0 else None
        if not finishes and claim is None:
            return None
        shift.finishes = []
        return self._start(finishes, claim)

    def _start(self, finishes: Sequence[Finish], claim: Claim | None) -> Errand:
        errand = Errand(finishes, claim, self._shift.keeper.clock())
        self._pending.append(errand)
        self._most += claim.most if claim is not None else 0
        return errand

    def _end(self, errand: Errand) -> None:
        self._pending.remove(errand)
        self._most -= errand.claim.most if errand.claim is not None else 0

    def _claim(self, most: int) -> Claim:
        self._numbers += 1
        options = self._shift.options
        return Claim(options.worker_id, f"{self._prefix}:{self._numbers}", most, options.lease)

    def _measure(self, ended: int) -> None:
        """Keep the pace: how many attempts end in `AHEAD` seconds."""
        passed = self._shift.backend.time() - self._window
        if passed >= AHEAD:
            self._pace = self._ended * AHEAD / passed
            self._window += passed
            self._ended = 0
        self._ended += ended

    async def _send(self, errand: Errand) -> None:
        """Make the exchange; it is pending until it was answered."""
        finishes, claim = errand.finishes, errand.claim
        since = self._shift.store.version()
        errand.sent = self._shift.keeper.clock()
        answer = await self._shift.store.exchange(finishes, claim)
        self._end(errand)
        self._is_back()
        if self._odd:
            self._odd = self._odd - 1 if finishes else self._odd
        if claim is not None:
            self._shift.feed(answer.leases, errand.sent)
            self._answered(claim)
            self._look = len(answer.leases) >= claim.most
            if not self._look:
                self._since = since
                self._wait_for_more(answer)
        self._settled(finishes, answer)

    def _answered(self, claim: Claim) -> None:
        self._shift.tally.last_claim = self._shift.store.now()

    def _settled(self, finishes: Sequence[Finish], answer: Exchange) -> None:
        shift = self._shift
        worker, failures = shift.options.worker_id, shift.failures
        for finish, state in zip(finishes, answer.accepted, strict=True):
            if finish.kind == "done" and state:
                continue
            failed = failures.pop((finish.id, finish.epoch), None)
            attempt = finish.attempt
            if not state:
                shift.tally.lease_lost += 1
                log.warning("%s: lease_lost: the finish (%s) of %s was refused", worker, finish.kind, finish.id)
            elif failed is not None and attempt is not None and attempt.kind not in QUIET:
                text = f"{attempt.error}\n{attempt.traceback}".rstrip()
                failed.report(log, worker=worker, queue=shift.queue, kind=attempt.kind, state=state, text=text)

    # A store that is away, or fails.

    async def _wait_for_store(self, error: Exception) -> None:
        if not self._shift.tally.away:
            self._shift.tally.away = True
            log.warning("%s cannot reach its store, and goes on trying: %r", self._shift.options.worker_id, error)
        delay = AWAY.delay(self._failures, random.random())  # noqa: S311 - no secret
        self._failures += 1
        await anyio.sleep(delay)

    def _is_back(self) -> None:
        self._failures = 0
        if self._shift.tally.away:
            self._shift.tally.away = False
            log.warning("%s reaches its store again", self._shift.options.worker_id)

    def _take_apart(self, errand: Errand) -> Errand:
        """The store has choked on this exchange: find what it is, so that the rest gets through.

        Returns:
            What is left of it, which is to be made again if it is still pending.
        """
        finishes, claim = errand.finishes, errand.claim
        if not finishes:
            return errand
        self._end(errand)
        if claim is not None:
            errand = Errand((), claim, errand.sent)
            self._pending.append(errand)
            self._most += claim.most
        elif len(finishes) == 1 and self._odd >= TRIES:
            log.error(
                "%s drops the finish (%s) of %s, which its store does not take: it runs again after its lease",
                self._shift.options.worker_id,
                finishes[0].kind,
                finishes[0].id,
            )
            self._shift.failures.pop((finishes[0].id, finishes[0].epoch), None)
            finishes = ()
        self._shift.finishes[:0] = finishes
        self._odd += 1
        return errand

    # Waiting for something to claim.

    def _wait_for_more(self, answer: Exchange) -> None:
        """There is room for more than there was: have the watcher tell when there is something."""
        self._wake_at = answer.wake_at
        if self._thirsty is not None:
            thirsty, self._thirsty = self._thirsty, None
            thirsty.wake()

    async def watch(self) -> None:
        """Look out for something to claim, whenever there was less than there is room for."""
        store = self._shift.store
        while True:
            if self._look:
                self._thirsty = self._shift.backend.waiter()
                await self._thirsty
            try:
                await store.changed(self._since, self._patience(self._wake_at - store.now()))
            except Exception as error:  # whatever it is, the next claim says whether the store is well
                if not isinstance(error, StoreUnavailable):
                    log.exception("%s cannot watch its store", self._shift.options.worker_id)
                await anyio.sleep(AWAY.delay(2, random.random()))  # noqa: S311 - no secret
            self._look = True
            self.wake()

    def _patience(self, until: float) -> float:
        """Seconds to wait for a change."""
        if until > 0:
            self._early = 0
            return min(until, LOOK)
        # The store has promised something, and did not give it (it may be paused): do not ask in circles.
        self._early += 1
        return min(0.1, 0.001 * 2.0 ** min(self._early, 10))
