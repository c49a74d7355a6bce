"""A lease: the right of a holder for a limited time, and the notification of its loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import LeaseLost, ends_the_program

if TYPE_CHECKING:
    import anyio

    from cuelight.redis._client import Argument

log = get_log("cuelight.redis")

_guard: Final = threading.Lock()

OnLoss = Literal["cancel", "flag"] | Callable[["LockLease"], object]

LONGEST_LEASE: Final = 3600.0
SHORTEST_LEASE: Final = 0.05


def _clock() -> Callable[[], float]:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boot is None else lambda: time.clock_gettime(boot)


now: Final = _clock()
"""The lease clock, in seconds. Where the system has such a clock, it also counts while the machine sleeps, as the
server's leases do.
"""


class LeaseOptions:
    """The options of a lease.

    Attributes:
        lease: seconds without a renewal after which the server gives the lock to others.
        on_loss: the reaction to a lost lease.
        delay: seconds after the expiry of a lease during which nobody gets the lock.
        wait_replicas: the number of replicas that must have a grant.
    """

    __slots__ = ("delay", "delay_ms", "lease", "lease_ms", "on_loss", "wait_replicas")

    def __init__(self, lease: float, on_loss: OnLoss, lock_delay: float, wait_replicas: int) -> None:
        """Check and store the options.

        Raises:
            ValueError: a value is invalid.
        """
        if not SHORTEST_LEASE <= lease <= LONGEST_LEASE:
            raise ValueError(
                f"lease={safe_repr(lease)}: give {SHORTEST_LEASE:g} to {LONGEST_LEASE:g} seconds; it is renewed"
            )
        if not callable(on_loss) and on_loss not in ("cancel", "flag"):
            raise ValueError(f"on_loss={safe_repr(on_loss)}: give 'cancel', 'flag' or a function of the lease")
        if not 0 <= lock_delay <= LONGEST_LEASE:
            raise ValueError(f"lock_delay={safe_repr(lock_delay)}: give seconds, 0 to {LONGEST_LEASE:g}")
        if wait_replicas < 0 or wait_replicas != int(wait_replicas):
            raise ValueError(f"wait_replicas={safe_repr(wait_replicas)}: give a number of replicas, 0 or more")
        self.lease, self.on_loss, self.delay, self.wait_replicas = lease, on_loss, lock_delay, wait_replicas
        self.lease_ms, self.delay_ms = max(1, round(lease * 1000)), round(lock_delay * 1000)

    def valid_until(self, asked: float) -> float:
        """Return the time until which a lease requested at `asked` is certainly held.

        The server's lease began after the request; the margin covers small differences between the clocks.
        """
        return asked + self.lease * 0.99 - 0.002


class LeaseRequest:
    """One acquisition on the server: a member and the number of this acquisition."""

    __slots__ = ("first", "member", "number", "options", "slot", "weight")

    def __init__(self, member: str, slot: int, number: int, *, weight: int, first: bool, options: LeaseOptions) -> None:
        self.member, self.slot, self.number = member, slot, number
        self.weight, self.first, self.options = weight, first, options

    def arguments(self, wait: bool) -> tuple[Argument, ...]:
        """The arguments of `acquire`."""
        options = self.options
        # A waiting request expires after one lease without a sign of life. It gives three signs in that time.
        return (
            self.member,
            self.number,
            self.weight,
            options.lease_ms,
            options.lease_ms,
            options.delay_ms,
            int(self.first),
            int(wait),
        )


class Renewer(Protocol):
    """What a lease and its lock ask of the object that renews the lease."""

    is_background: bool

    def stop_renewing(self, lease: LockLease) -> None:
        """Stop renewing the lease."""
        ...

    def release_abandoned(self, state: Any, lease: LockLease) -> None:
        """Release a lease of the lock with the state `state` for a holder that has ended."""
        ...


class LockLease:
    """The lease of a holder on a Redis lock, semaphore or read-write lock. It is renewed while it is held.

    Usable from any thread.

    Attributes:
        name: the name of the lock or semaphore.
        fence: the fencing token: greater than those of all earlier holders. The protected resource can reject
            lesser tokens, see `fenced_set`.
        weight: the number of permits held.
    """

    __slots__ = (
        "_reason",
        "_reported",
        "fence",
        "lock",
        "name",
        "over",
        "owner",
        "renew_at",
        "renewer",
        "renewing",
        "request",
        "scope",
        "until",
    )

    def __init__(
        self, name: str, request: LeaseRequest, fence: int, *, asked: float, owner: Any, renewer: Renewer
    ) -> None:
        self.name, self.request, self.fence, self.owner, self.renewer = name, request, fence, owner, renewer
        self.until = request.options.valid_until(asked)
        self.renew_at = asked + request.options.lease / 3
        self.renewing = self._reported = self.over = False
        self._reason: str | None = None
        self.scope: anyio.CancelScope | None = None  # the scope of the holder's block
        self.lock: Any = None  # a reference, so that a manager does not forget a lock that is held

    @property
    def weight(self) -> int:
        """The number of permits held."""
        return self.request.weight

    @property
    def lost(self) -> bool:
        """Whether another owner may hold the lock now."""
        return self._reason is not None or (not self.over and now() >= self.until)

    def remaining(self) -> float:
        """Seconds for which the lock is certainly held without a further renewal; 0 after a loss or a release."""
        return 0.0 if self.over or self._reason is not None else max(0.0, self.until - now())

    def check(self) -> None:
        """Make sure that the lock is still held. Not a checkpoint.

        Call it right before an action that must not happen twice. It asks the clock, not the server, so it is the
        first to notice that the loop was blocked or the machine slept.

        Raises:
            LeaseLost: the lock is not held, or not certainly.
        """
        if self._reason is None and not self.over:
            if now() < self.until:
                return
            self._reason = "it was not renewed in time"
        raise self.error()

    def error(self) -> LeaseLost:
        """The error that reports the loss or the release."""
        why = self._reason or "it was given back"
        return LeaseLost(
            f"the lease on {self.name} (fence {self.fence}) is over: {why}. Somebody else may hold it by now; what was "
            f"done under it counts only where the fence is checked"
        )

    # For the renewer and the holder's block.

    def end(self) -> None:
        """Mark the lease as released, so that it can no longer be lost."""
        self.over = True

    def renewed(self, asked: float) -> None:
        """Extend the lease after a renewal that was requested at `asked`."""
        if self._reason is None:
            self.until = max(self.until, self.request.options.valid_until(asked))
            self.renew_at = asked + self.request.options.lease / 3

    def lose(self, reason: str) -> None:
        """Mark the lease as lost and react as `on_loss` says, at most once. Only in the renewer's loop."""
        with _guard:
            if self._reported or self.over:
                return
            self._reported = True
            self._reason = self._reason or reason
        log.warning("the lease on %s (fence %d) was lost: %s", self.name, self.fence, self._reason)
        on_loss = self.request.options.on_loss
        if on_loss == "cancel":
            if self.scope is not None:
                self.scope.cancel()
        elif callable(on_loss):
            try:
                on_loss(self)
            except BaseException as error:
                log.exception("on_loss of %s failed", self.name)
                # `sys.exit` ends the loop that it is called in. It may end a loop of the user, but not the one for all
                # threads.
                if ends_the_program(error) and not self.renewer.is_background:
                    raise

    def detach(self, reason: str) -> None:
        """Mark the lease as held by another process, without a notification."""
        self._reported, self._reason = True, reason

    def __repr__(self) -> str:
        state = "over" if self.over else "lost" if self.lost else f"{self.remaining():.3f} s left"
        return f"<LockLease of {self.name}, fence {self.fence}, {state}>"
