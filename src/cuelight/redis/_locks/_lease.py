"""A lease: what a holder has, and how it learns that it has it no more."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from cuelight._log import get_log
from cuelight.errors import LeaseLost, ends_the_program
from cuelight.redis._locks._terms import now

if TYPE_CHECKING:
    import anyio

    from cuelight.redis._locks._calls import Ticket
    from cuelight.redis._locks._keeper import Keeper

__all__ = ["Lease"]

log = get_log("cuelight.redis")

_guard: Final = threading.Lock()


class Lease:
    """What a holder has of a lock, a semaphore or a read-write lock of Redis: for a time, and renewed meanwhile.

    Usable from any thread.

    Attributes:
        name: of what is held.
        fence: the fencing token: greater than that of all who held it before. What is protected can refuse whoever
            comes with a lesser one, see `fenced_set`.
        weight: how much of it is held.
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
        self.scope: anyio.CancelScope | None = None  # of the block of its holder
        self.claim: Any = None  # a manager must not forget a lock that is held

    @property
    def weight(self) -> int:
        """How much is held."""
        return self.ticket.weight

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold it now."""
        return self._reason is not None or (not self.over and now() >= self.until)

    def remaining(self) -> float:
        """Seconds for which it is surely held, if nothing is renewed any more; 0 if it was lost or given back."""
        return 0.0 if self.over or self._reason is not None else max(0.0, self.until - now())

    def check(self) -> None:
        """Make sure that it is still held. Call it right before what must not happen twice. Not a checkpoint.

        It asks the clock, not the server: a loop that was blocked, or a machine that slept, is noticed here first.

        Raises:
            LeaseLost: it is not, or not surely.
        """
        if self._reason is None and not self.over:
            if now() < self.until:
                return
            self._reason = "it was not renewed in time"
        raise self.error()

    def error(self) -> LeaseLost:
        """What to raise when it was lost."""
        why = self._reason or "it was given back"
        return LeaseLost(
            f"the lease on {self.name} (fence {self.fence}) is over: {why}. Somebody else may hold it by now; what was "
            f"done under it counts only where the fence is checked"
        )

    # What the keeper and the holder's block do with it.

    def end(self) -> None:
        """It is given back: nothing can be lost any more."""
        self.over = True

    def renewed(self, asked: float) -> None:
        """The server has renewed it, asked at a time."""
        if self._reason is None:
            self.until = max(self.until, self.ticket.terms.valid_until(asked))
            self.renew_at = asked + self.ticket.terms.lease / 3

    def lose(self, reason: str) -> None:
        """It is lost: do as the terms say. Only in the loop of its keeper; once."""
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
                # `sys.exit` ends the loop that it is called in: that of a user, but not that of all threads.
                if ends_the_program(error) and not self.home.ours:
                    raise

    def disown(self, reason: str) -> None:
        """It is another's: nobody is told."""
        self._told, self._reason = True, reason

    def __repr__(self) -> str:
        state = "over" if self.over else "lost" if self.lost else f"{self.remaining():.3f} s left"
        return f"<Lease of {self.name}, fence {self.fence}, {state}>"
