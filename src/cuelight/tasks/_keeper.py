"""Keeps leases: renews them from a thread, so that a blocked event loop is not taken for a dead one.

Invariants, in the words of `tests/tasks/worker/test_keeper.py`:

1. A lease that is held is renewed every third of its length, whatever the loop does.
2. A lease is reported lost at most once, and only while it is held.
3. While the store is away, a lease is reported lost before it can have run out by the clock of the store.
4. A wish to cancel is reported once for each lease, within `every` seconds of a store that answers.
5. After `close` nothing is reported, and no thread is left.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from cuelight._log import get_log
from cuelight._text import describe_error
from cuelight.errors import ends_the_program
from cuelight.tasks._store import Beat, Store

__all__ = ["Keeper"]

log = get_log("cuelight.tasks")

Held = tuple[str, int]

MARGIN: Final = 0.1
"""The share of a lease that is given away, for clocks that do not run alike and for the time that cancelling takes."""


class Keeper:
    """Renews what one worker holds, and tells what was lost or is to be cancelled.

    `hold`, `drop`, `expire` and `close` may be called from any thread. `clock()` is what its times are in.
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
        pulse: Callable[[], object] | None = None,
    ) -> None:
        """Set it up; `start` makes its thread.

        Args:
            store: whose leases.
            worker: the name under which they were claimed.
            lease: seconds for which they are claimed and renewed.
            notify: called in the keeper's thread with leases that were lost and wishes to cancel; it must not block.
            every: seconds between two looks for these.
            clock: seconds that pass evenly; the time of the loop where `step` is called by a loop.
            pulse: called in the keeper's thread at each step while something is held.

        Raises:
            ValueError: a time is not more than 0.
        """
        for name, seconds in {"lease": lease, "every": every}.items():
            if not seconds > 0:
                raise ValueError(f"{name}={seconds!r}: give more than 0 seconds")
        self._store, self._worker, self._lease, self._notify, self.clock = store, worker, lease, notify, clock
        self._every, self._pulse = min(every, lease / 3), pulse
        # Until when, by our clock; in a list, so that a beat cannot put back what was dropped meanwhile.
        self._held: dict[Held, list[float]] = {}
        self._told: set[Held] = set()
        self._renewed = clock()
        self._away = 0
        self._idle = self._closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to renew, in a thread of its own that does not keep the program alive. May be called once."""
        self._thread = threading.Thread(target=self._run, name=f"cuelight leases of {self._worker}", daemon=True)
        self._thread.start()

    def hold(self, task_id: str, epoch: int, since: float | None = None) -> None:
        """Renew this lease from now on.

        Args:
            task_id: the task.
            epoch: of the lease.
            since: when the claim was sent, by the keeper's clock; now by default. The lease began no earlier.
        """
        self._held[task_id, epoch] = [(self.clock() if since is None else since) + self._lease]
        if self._idle:
            self._wake.set()

    def drop(self, task_id: str, epoch: int) -> None:
        """Renew this lease no more. Do so before its finish is sent: a lease that has ended looks like a lost one."""
        self._held.pop((task_id, epoch), None)

    @property
    def away(self) -> bool:
        """Whether the store did not answer the last beat."""
        return self._away > 0

    def close(self) -> None:
        """End the thread and wait for it, at most as long as one call of the store takes. May be called again."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # One step. The thread takes one after the other; under a virtual clock the loop does.

    def step(self) -> float:
        """Renew or look, as it is due, and tell. Blocks.

        Returns:
            Seconds until the next step.
        """
        began = self.clock()
        held = self._held.copy()
        if not held:
            self._told.clear()
            return self._every
        renew = self._away > 0 or began - self._renewed >= self._lease / 3 - self._every / 2
        try:
            beat = self._store.beat(self._worker, list(held), self._lease if renew else None)
        except BaseException as error:  # whatever it is, the leases run on, and so must this
            if self._thread is None and ends_the_program(error):
                raise
            self._missed(error)
            self.expire()
            # The jitter keeps the workers of a fleet from coming back all at once.
            return self._every * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if self._away:
            log.warning("%s reaches its store again, after %d missed beats", self._worker, self._away)
            self._away = 0
        if renew:
            self._renewed = began
            for until in held.values():
                until[0] = began + self._lease
        self._told &= held.keys()
        self._tell(beat)
        return self._every

    def expire(self) -> None:
        """Report what must have run out by our own clock. Needs no store, so any thread may do it at any time."""
        over = self.clock() + self._lease * MARGIN
        lost = [key for key, until in self._held.copy().items() if until[0] <= over]
        if lost:
            self._tell(Beat(lost, []))

    def _missed(self, error: BaseException) -> None:
        if not self._away and not self._closed:
            log.warning("%s cannot renew its leases, and goes on trying: %s", self._worker, describe_error(error))
        self._away += 1

    def _tell(self, beat: Beat) -> None:
        lost = [key for key in beat.lost if self._held.pop(key, None) is not None]
        cancelled = [key for key in beat.cancelled if key in self._held and key not in self._told]
        if not (lost or cancelled) or self._closed:
            return
        self._told.update(cancelled)
        try:
            self._notify(Beat(lost, cancelled))
        except BaseException as error:
            if self._thread is None and ends_the_program(error):
                raise
            log.exception("%s could not tell of lost or cancelled tasks", self._worker)

    def _run(self) -> None:
        while not self._closed:
            seconds = self.step()
            if self._pulse is not None and self._held:
                self._pulse()
            if self._held:
                self._wake.wait(seconds)
            else:
                self._idle = True
                if not self._held and not self._closed:  # a lease that came before the flag was seen by nobody
                    self._wake.wait()
                self._idle = False
                self._renewed = self.clock()
            self._wake.clear()
