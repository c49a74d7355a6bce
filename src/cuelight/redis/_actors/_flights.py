"""The pending requests of this node to other nodes, by number."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from cuelight._text import safe_repr
from cuelight.actors._reply import Asked, StreamSlot
from cuelight.errors import NotStarted, Unknown

if TYPE_CHECKING:
    from cuelight.redis._actors._remote_cell import RemoteCell


class Flight:
    """One pending request.

    Attributes:
        number: the number by which the other node knows it.
        batch: the number of the batch that contains it; None before it is in one.
        overdue: whether its time is over, so that the other node was asked for its progress.
    """

    __slots__ = ("ask", "batch", "cell", "number", "overdue")

    def __init__(self, number: int, ask: Asked, cell: RemoteCell) -> None:
        self.number, self.ask, self.cell = number, ask, cell
        self.batch: int | None = None
        self.overdue = False

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return isinstance(self.ask, StreamSlot)

    def give(self, chunk: Any) -> None:
        """Deliver one more chunk of the stream."""
        slot: Any = self.ask
        slot.writer.received += 1
        slot.give(chunk)


class Flights:
    """The pending requests of one membership. Each is removed once."""

    def __init__(self) -> None:
        self._next: Final[Callable[[], int]] = count(1).__next__
        self._by_number: dict[int, Flight] = {}
        self._by_ask: dict[Asked, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def begin(self, ask: Asked, cell: RemoteCell) -> int:
        """Register a request and return its number."""
        flight = Flight(self._next(), ask, cell)
        self._by_number[flight.number] = self._by_ask[ask] = flight
        return flight.number

    def of(self, ask: Asked) -> Flight | None:
        """Return a pending request by its slot."""
        return self._by_ask.get(ask)

    def numbered(self, number: int) -> Flight | None:
        """Return a pending request by its number."""
        return self._by_number.get(number)

    def end(self, ask: Asked) -> Flight | None:
        """Remove and return a pending request; None if it was removed before."""
        flight = self._by_ask.pop(ask, None)
        if flight is not None:
            del self._by_number[flight.number]
        return flight

    def lost(self, identity: str, read: int | None, why: str) -> None:
        """Fail the requests to the actors of a node that is gone.

        Args:
            identity: the identity of the node.
            read: the number of the last batch that the node had read; None if it may have read all.
            why: the reason, for the errors.
        """
        for flight in [one for one in self._by_number.values() if one.cell.peer.identity == identity]:
            ask, cell = flight.ask, flight.cell
            self.end(ask)
            message = safe_repr(ask.message)
            if flight.batch is None or (read is not None and flight.batch > read):
                ask.fail(NotStarted(f"{cell.path} never saw {message}: {why}"))
            else:
                ask.fail(Unknown(f"{cell.path} may have handled {message}, wholly, in part or not at all: {why}"))
