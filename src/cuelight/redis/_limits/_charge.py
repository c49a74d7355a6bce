"""A request that was let through."""

from __future__ import annotations

from typing import Any

__all__ = ["Charge"]


class Charge:
    """A request that was let through: what it was charged, and what it is to be charged.

    Attributes:
        id: its name.
        costs: what it is to cost.
        charged: what the server knows that it costs.
        tickets: what the server needs to change that.
        ended: whether it is under way no more.
        known_ended: whether the server knows that.
        attempt: what the server was told, and has not answered.
        busy: whether somebody is about to tell it.
        waited: seconds that it waited; None if it did not have to.
    """

    __slots__ = (
        "_amended",
        "_target",
        "attempt",
        "busy",
        "charged",
        "costs",
        "ended",
        "id",
        "known_ended",
        "tickets",
        "waited",
    )

    def __init__(self, name: str, costs: list[int], tickets: list[Any], waited: float | None, ended: bool) -> None:
        self.id, self.tickets, self.waited = name, tickets, waited
        self.costs = self.charged = costs
        self.ended = self.known_ended = ended
        self.attempt: dict[str, Any] | None = None
        self.busy = False
        self._amended = 0
        self._target = self.costs, ended

    @property
    def settled(self) -> bool:
        """Whether the server knows all."""
        return self.attempt is None and self.costs == self.charged and self.ended == self.known_ended

    def next_attempt(self) -> dict[str, Any]:
        """What to tell the server: the same again, until it has answered."""
        if self.attempt is None:
            self._target = self.costs, self.ended
            self.attempt = {"id": self.id, "was": self.charged, "costs": self.costs, "ended": self.ended}
            if self.costs != self.charged:
                self._amended += 1
                self.attempt |= {"as": f"{self.id}/{self._amended}", "tickets": self.tickets}
        return self.attempt

    def succeeded(self, tickets: list[Any] | None) -> None:
        """The server has answered, with other tickets if the costs changed."""
        self.tickets = tickets or self.tickets
        self.charged, self.known_ended = self._target
        self.attempt = None
