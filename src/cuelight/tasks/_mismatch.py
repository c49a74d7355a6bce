"""Tasks whose arguments do not fit the function that this worker has.

While a new version is rolled out, a worker of the old one is given tasks that the new one has sent, and the other way
round. Such a task is put back for a worker that has the other version, after 5, 10, 20 ... 300 seconds. A task that has
fitted no worker for an hour is given up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cuelight.errors import Rejected, StoreUnavailable
from cuelight.supervision import Backoff
from cuelight.tasks._outcome import MISMATCH

if TYPE_CHECKING:
    from cuelight.tasks._parameters import ArgumentMismatch
    from cuelight.tasks._store import Lease, Store
    from cuelight.tasks._task import Attempt

__all__ = ["PATIENCE", "Mismatch", "verdict_on"]

PATIENCE: Final = 3600.0
"""Seconds for which a task that fits nobody is kept."""

AGAIN: Final = Backoff(minimum=5.0, maximum=300.0, jitter=0.2)


class Mismatch(Exception):
    """The task is to be put back.

    Attributes:
        delay: seconds before it is tried again.
    """

    def __init__(self, message: str, delay: float) -> None:
        super().__init__(message)
        self.delay = delay


async def verdict_on(store: Store, lease: Lease, error: ArgumentMismatch) -> Mismatch | Rejected:
    """What becomes of a task that did not fit. A checkpoint.

    Args:
        store: of the task; its history says how often that was so before.
        lease: of the task.
        error: what did not fit.
    """
    try:
        [snapshot] = await store.get([lease.record.id])
        before = _mismatches(() if snapshot is None else snapshot.history)
    except StoreUnavailable:
        before = []
    if before and store.now() - before[0].at >= PATIENCE:
        return Rejected(f"no worker has had a function that fits for {PATIENCE / 60:g} minutes: {error}")
    return Mismatch(str(error), AGAIN.delay(len(before), random.random()))  # noqa: S311 - no secret


def _mismatches(history: Sequence[Attempt]) -> list[Attempt]:
    """The last attempts in a row that did not fit. Those that were given back in between say nothing."""
    found: list[Attempt] = []
    for attempt in reversed(history):
        if attempt.kind == MISMATCH:
            found.append(attempt)
        elif attempt.kind != "released":
            break
    return found[::-1]
