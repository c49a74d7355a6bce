"""Renews leases in a separate thread, so that the leases of a worker with a blocked event loop do not expire.

Invariants:

1. A held lease is renewed every third of its length, whatever the loop does.
2. A lease is reported as lost at most once, and only while it is held.
3. While the store is unavailable, a lease is reported as lost before it can have expired by the store's clock.
4. A request to cancel is reported once per lease, within `every` seconds while the store answers.
5. After `close`, nothing is reported and the thread has ended.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.errors import ends_the_program
from cuelight.tasks._stores._protocol import Beat, Store

log = get_log("cuelight.tasks")

Heartbeat = Literal["thread", "loop"]
"""Where leases are renewed: in a thread of their own, or in the event loop."""

LeaseKey = tuple[str, int]

MARGIN: Final = 0.1
"""The fraction of a lease by which it is given up early, because clocks differ and cancelling takes time."""


class LeaseKeeper:
    """Renews the leases of one worker, and reports leases that were lost and tasks that must be cancelled.

    `hold`, `drop`, `expire` and `close` may be called from any thread. Times are those of `clock()`.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        *,
        lease: float,
        notify: Callable[[Beat], None],
        every: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[], object] | None = None,
    ) -> None:
        """Set up the keeper; `start` starts its thread.

        Args:
            store: the store of the leases.
            worker: the worker that claimed them.
            lease: the length of a claim and of a renewal, in seconds.
            notify: called in the keeper's thread with lost leases and tasks to cancel; must not block.
            every: the number of seconds between two checks for these.
            clock: a monotonic clock in seconds; the loop's clock if a loop calls `step`.
            on_step: called in the keeper's thread at each step while a lease is held.

        Raises:
            ValueError: a time is not more than 0.
        """
        for name, seconds in {"lease": lease, "every": every}.items():
            if not seconds > 0:
                raise ValueError(f"{name}={seconds!r}: give more than 0 seconds")
        self._store, self._worker, self._lease, self._notify, self.clock = store, worker, lease, notify, clock
        self._every, self._on_step = min(every, lease / 3), on_step
        # The expiry by our clock. It is in a list, so that a renewal does not restore a lease that was dropped in the
        # meantime.
        self._held: dict[LeaseKey, list[float]] = {}
        self._reported_cancelled: set[LeaseKey] = set()
        self._renewed = clock()
        self._missed_renewals = 0
        self._idle = self._closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which is a daemon. May be called once."""
        self._thread = threading.Thread(target=self._run, name=f"cuelight leases of {self._worker}", daemon=True)
        self._thread.start()

    def hold(self, task_id: str, epoch: int, since: float | None = None) -> None:
        """Renew this lease from now on.

        Args:
            task_id: the identifier of the task.
            epoch: the epoch of the lease.
            since: when the claim was sent, by the keeper's clock; now by default. The lease did not begin before that.
        """
        self._held[task_id, epoch] = [(self.clock() if since is None else since) + self._lease]
        if self._idle:
            self._wake.set()

    def holds(self, task_id: str, epoch: int) -> bool:
        """Whether this lease is renewed."""
        return (task_id, epoch) in self._held

    def renewed(self, task_id: str, epoch: int, since: float) -> None:
        """Note that a step sent at `since`, by the keeper's clock, has renewed a lease, if it is still held."""
        until = self._held.get((task_id, epoch))
        if until is not None:
            until[0] = max(until[0], since + self._lease)

    def drop(self, task_id: str, epoch: int) -> None:
        """Stop renewing this lease. Call this before its finish is sent: an ended lease looks like a lost one."""
        self._held.pop((task_id, epoch), None)

    @property
    def away(self) -> bool:
        """Whether the store did not answer the last beat."""
        return self._missed_renewals > 0

    def close(self) -> None:
        """End the thread and wait for it, at most as long as one call of the store takes. May be called repeatedly."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # One step. The thread repeats it; under a virtual clock, the loop does.

    def step(self) -> float:
        """Renew or check the leases, whichever is due, and report the results. Blocks.

        Returns:
            The number of seconds until the next step.
        """
        began = self.clock()
        held = self._held.copy()
        if not held:
            self._reported_cancelled.clear()
            return self._every
        renew = self._missed_renewals > 0 or began - self._renewed >= self._lease / 3 - self._every / 2
        try:
            beat = self._store.beat(self._worker, list(held), self._lease if renew else None)
        except BaseException as error:  # leases expire whatever the error is, so the keeper must continue
            if self._thread is None and ends_the_program(error):
                raise
            self._missed(error)
            self.expire()
            # The jitter spreads the retries of many workers over time.
            return self._every * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if self._missed_renewals:
            log.warning("%s can reach its store again, after %d missed renewals", self._worker, self._missed_renewals)
            self._missed_renewals = 0
        if renew:
            self._renewed = began
            for until in held.values():
                until[0] = began + self._lease
        self._reported_cancelled &= held.keys()
        self._report(beat)
        return self._every

    def expire(self) -> None:
        """Report leases that must have expired by our own clock, without the store. May be called from any thread."""
        over = self.clock() + self._lease * MARGIN
        lost = [key for key, until in self._held.copy().items() if until[0] <= over]
        if lost:
            self._report(Beat(lost, []))

    def _missed(self, error: BaseException) -> None:
        if not self._missed_renewals and not self._closed:
            log.warning("%s cannot renew its leases, and keeps trying: %s", self._worker, describe_error(error))
        self._missed_renewals += 1

    def _report(self, beat: Beat) -> None:
        lost = [key for key in beat.lost if self._held.pop(key, None) is not None]
        cancelled = [key for key in beat.cancelled if key in self._held and key not in self._reported_cancelled]
        if not (lost or cancelled) or self._closed:
            return
        self._reported_cancelled.update(cancelled)
        try:
            self._notify(Beat(lost, cancelled))
        except BaseException as error:
            if self._thread is None and ends_the_program(error):
                raise
            log.exception("%s could not report lost or cancelled tasks", self._worker)

    def _run(self) -> None:
        while not self._closed:
            seconds = self.step()
            if self._on_step is not None and self._held:
                self._on_step()
            if self._held:
                self._wake.wait(seconds)
            else:
                self._idle = True
                # checked again, because `hold` does not wake the thread before `_idle` is set
                if not self._held and not self._closed:
                    self._wake.wait()
                self._idle = False
                self._renewed = self.clock()
            self._wake.clear()
