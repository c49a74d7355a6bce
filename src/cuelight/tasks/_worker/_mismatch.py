"""Tasks whose arguments do not fit the function of this worker.

During the rollout of a new version, a worker of the old version gets tasks that the new version sent, and vice versa.
Such a task is put back for a worker of the other version, after 5, 10, 20 ... 300 seconds. A task that has fitted no
worker for an hour is given up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cuelight.errors import Rejected, StoreUnavailable
from cuelight.supervision import Backoff
from cuelight.tasks._worker._failure import MISMATCH

if TYPE_CHECKING:
    from cuelight._dead_letters._attempt import Attempt
    from cuelight.tasks._functions._parameters import ArgumentMismatch
    from cuelight.tasks._stores._protocol import Lease, Store

GIVE_UP_AFTER: Final = 3600.0
"""Seconds after which a task that fits no worker is given up."""

RETRIES: Final = Backoff(minimum=5.0, maximum=300.0, jitter=0.2)


class Mismatch(Exception):
    """Raised for a task that is put back.

    Attributes:
        delay: seconds before the task is tried again.
    """

    def __init__(self, message: str, delay: float) -> None:
        super().__init__(message)
        self.delay = delay


async def mismatch_outcome(store: Store, lease: Lease, error: ArgumentMismatch) -> Mismatch | Rejected:
    """Decide whether a task that did not fit is put back or given up. A checkpoint.

    Args:
        store: the store of the task, whose history shows how often it did not fit.
        lease: the lease of the task.
        error: the mismatch.
    """
    try:
        [snapshot] = await store.get([lease.record.id])
        before = _mismatches(() if snapshot is None else snapshot.history)
    except StoreUnavailable:
        before = []
    if before and store.now() - before[0].at >= GIVE_UP_AFTER:
        return Rejected(f"no worker has had a function that fits for {GIVE_UP_AFTER / 60:g} minutes: {error}")
    return Mismatch(str(error), RETRIES.delay(len(before), random.random()))  # noqa: S311 - no secret


def _mismatches(history: Sequence[Attempt]) -> list[Attempt]:
    """The latest consecutive mismatches. Attempts in between that were given back are ignored."""
    found: list[Attempt] = []
    for attempt in reversed(history):
        if attempt.kind == MISMATCH:
            found.append(attempt)
        elif attempt.kind != "released":
            break
    return found[::-1]
