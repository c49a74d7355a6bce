"""A task as it goes to a store."""

from __future__ import annotations

from math import inf

import msgspec

from cuelight.tasks._task import Limit

__all__ = ["Record"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A task as a producer gives it to a store. Payloads and results are bytes here: nobody looks inside.

    Attributes:
        id: unique in the queue.
        nonce: made by the producer for this one enqueue. Adding a record whose id is taken by the same nonce is the
            same enqueue again (its answer was lost): "added", and nothing changes.
        limits: each with a key of its own.
        due: not to be claimed before, in seconds since the epoch; 0 for at once.
        delay: seconds from now, by the clock of the store; added to `due` if that is given too.
        deadline: seconds since the epoch; `math.inf` for none.
        tenant: on whose behalf; None for nobody's in particular, which is a tenant too.
        weight: how many turns its tenant has for one of a tenant with weight 1; without a tenant it is 1.
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
