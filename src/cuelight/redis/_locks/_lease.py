"""A lease: the right of a holder for a limited time, and the notification of its loss."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from cuelight._log import get_log
from cuelight.errors import LeaseLost, ends_the_program
from cuelight.redis._locks._ticket import now

if TYPE_CHECKING:
    import anyio

    from cuelight.redis._locks._renewal import Keeper
    from cuelight.redis._locks._ticket import Ticket

log = get_log("cuelight.redis")

_guard: Final = threading.Lock()


class Lease:
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
        "_told",
        "claim",
        "fence",
        "home",
        "name",
        "over",
        "owner",
        "renew_at",
        "renewing",
        "scope",
        "ticket",
        "until",
    )

    def __init__(self, name: str, ticket: Ticket, fence: int, *, asked: float, owner: Any, home: Keeper) -> None:
        self.name, self.ticket, self.fence, self.owner, self.home = name, ticket, fence, owner, home
        self.until = ticket.terms.valid_until(asked)
        self.renew_at = asked + ticket.terms.lease / 3
        self.renewing = self._told = self.over = False
        self._reason: str | None = None
        self.scope: anyio.CancelScope | None = None  # the scope of the holder's block
        self.claim: Any = None  # a reference, so that a manager does not forget a lock that is held

    @property
    def weight(self) -> int:
        """The number of permits held."""
        return self.ticket.weight

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

    # For the keeper and the holder's block.

    def end(self) -> None:
        """Mark the lease as released, so that it can no longer be lost."""
        self.over = True

    def renewed(self, asked: float) -> None:
        """Extend the lease after a renewal that was requested at `asked`."""
        if self._reason is None:
            self.until = max(self.until, self.ticket.terms.valid_until(asked))
            self.renew_at = asked + self.ticket.terms.lease / 3

    def lose(self, reason: str) -> None:
        """Mark the lease as lost and react as `on_loss` says, at most once. Only in the keeper's loop."""
        with _guard:
            if self._told or self.over:
                return
            self._told = True
            self._reason = self._reason or reason
        log.warning("the lease on %s (fence %d) was lost: %s", self.name, self.fence, self._reason)
        on_loss = self.ticket.terms.on_loss
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
                if ends_the_program(error) and not self.home.ours:
                    raise

    def disown(self, reason: str) -> None:
        """Mark the lease as held by another process, without a notification."""
        self._told, self._reason = True, reason

    def __repr__(self) -> str:
        state = "over" if self.over else "lost" if self.lost else f"{self.remaining():.3f} s left"
        return f"<Lease of {self.name}, fence {self.fence}, {state}>"
