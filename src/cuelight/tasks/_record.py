"""A task in the form in which a store gets it."""

from __future__ import annotations

from math import inf

import msgspec

from cuelight.tasks._task import Limit


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A task that a producer adds to a store. Payloads and results are opaque bytes.

    Attributes:
        id: the identifier, unique in the queue.
        nonce: made by the producer for this one enqueue. If a task with the same id and the same nonce exists, this is
            a repetition of that enqueue, whose answer was lost: the outcome is "added", and nothing changes.
        limits: the limits, each with a different key.
        due: the earliest time for a claim, in seconds since the epoch; 0 for at once.
        delay: seconds from now, by the clock of the store; added to `due` if both are given.
        deadline: seconds since the epoch; `math.inf` for none.
        tenant: the tenant that the task belongs to. All tasks with None count as one more tenant.
        weight: the number of turns of its tenant for each turn of a tenant with weight 1; 1 without a tenant.
    """

    id: str
    type: str
    nonce: str = ""
    payload: bytes = b""
    priority: int = 2
    deadline: float = inf
    due: float = 0.0
    delay: float = 0.0
    created: float = 0.0
    max_retries: int = 3
    max_timeouts: int = 3
    max_crashes: int = 3
    timeout: float | None = None
    unique: str | None = None
    unique_for: float | None = None
    limits: tuple[Limit, ...] = ()
    result_ttl: float = 3600.0
    tenant: str | None = None
    weight: float = 1.0
