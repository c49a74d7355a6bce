"""The terms of a lease: its duration, and the reaction to its loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from cuelight.redis._locks._lease import Lease

from cuelight._text import safe_repr

OnLoss = Literal["cancel", "flag"] | Callable[["Lease"], object]

LONGEST: Final = 3600.0
SHORTEST: Final = 0.05


def _clock() -> Callable[[], float]:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boot is None else lambda: time.clock_gettime(boot)


now: Final = _clock()
"""The lease clock, in seconds. Where the system has such a clock, it also counts while the machine sleeps, as the
server's leases do.
"""


class Terms:
    """The terms of a lease.

    Attributes:
        lease: seconds without a renewal after which the server gives the lock to others.
        on_loss: the reaction to a lost lease.
        delay: seconds after the expiry of a lease during which nobody gets the lock.
        wait_replicas: the number of replicas that must have a grant.
    """

    __slots__ = ("delay", "delay_ms", "lease", "lease_ms", "on_loss", "wait_replicas")

    def __init__(self, lease: float, on_loss: OnLoss, lock_delay: float, wait_replicas: int) -> None:
        """Check and store the terms.

        Raises:
            ValueError: a value is invalid.
        """
        if not SHORTEST <= lease <= LONGEST:
            raise ValueError(
                f"lease={safe_repr(lease)}: give seconds, {SHORTEST:g} to {LONGEST:g}; it is renewed while held"
            )
        if not callable(on_loss) and on_loss not in ("cancel", "flag"):
            raise ValueError(f"on_loss={safe_repr(on_loss)}: give 'cancel', 'flag' or a function of the lease")
        if not 0 <= lock_delay <= LONGEST:
            raise ValueError(f"lock_delay={safe_repr(lock_delay)}: give seconds, 0 to {LONGEST:g}")
        if wait_replicas < 0 or wait_replicas != int(wait_replicas):
            raise ValueError(f"wait_replicas={safe_repr(wait_replicas)}: give a number of replicas, 0 or more")
        self.lease, self.on_loss, self.delay, self.wait_replicas = lease, on_loss, lock_delay, wait_replicas
        self.lease_ms, self.delay_ms = max(1, round(lease * 1000)), round(lock_delay * 1000)

    def valid_until(self, asked: float) -> float:
        """Return the time until which a lease requested at `asked` is certainly held.

        The server's lease began after the request; the margin covers small differences between the clocks.
        """
        return asked + self.lease * 0.99 - 0.002
