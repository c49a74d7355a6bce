"""An admitted request and its charge on the server."""

from __future__ import annotations

from typing import Any


class Charge:
    """An admitted request: the costs charged on the server, and the costs to charge.

    Attributes:
        id: the name of the request.
        costs: the costs to charge.
        charged: the costs that the server has charged.
        tickets: the records that the server needs to change the charge.
        ended: whether the request has ended.
        known_ended: whether the server knows that it has ended.
        attempt: the message that was sent to the server and not answered yet.
        busy: whether a task is about to send a message.
        waited: seconds that the request waited; None if it did not have to.
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
        """Whether the server knows everything."""
        return self.attempt is None and self.costs == self.charged and self.ended == self.known_ended

    def next_attempt(self) -> dict[str, Any]:
        """Return the message for the server. It stays the same until the server has answered."""
        if self.attempt is None:
            self._target = self.costs, self.ended
            self.attempt = {"id": self.id, "was": self.charged, "costs": self.costs, "ended": self.ended}
            if self.costs != self.charged:
                self._amended += 1
                self.attempt |= {"as": f"{self.id}/{self._amended}", "tickets": self.tickets}
        return self.attempt

    def succeeded(self, tickets: list[Any] | None) -> None:
        """Record the answer of the server, with new tickets if the costs changed."""
        self.tickets = tickets or self.tickets
        self.charged, self.known_ended = self._target
        self.attempt = None
