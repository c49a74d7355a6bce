"""A queue of waiters in which only the first one is active.

Invariants:

1. The waiter with the lowest ticket is the first one, even if it joined after the others.
2. When the first waiter leaves, normally or cancelled, the next one is woken.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from contextlib import contextmanager

from cuelight.mailbox import Waiter


class Line:
    """The waiters. Belongs to one event loop."""

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self._new_waiter = waiter
        self._tickets: list[int] = []
        self._places: dict[int, Waiter | None] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._places)

    def ticket(self) -> int:
        """A new ticket, for a caller that may have to wait later."""
        self._last += 1
        return self._last

    @contextmanager
    def joined(self, ticket: int) -> Generator[None]:
        """Be in the queue inside the block."""
        heapq.heappush(self._tickets, ticket)
        self._places[ticket] = None
        try:
            yield
        finally:
            del self._places[ticket]
            first = self._first()
            waiter = None if first is None else self._places[first]
            if waiter is not None:
                waiter.wake()

    async def until_first(self, ticket: int) -> None:
        """Wait until this ticket is the first one. A checkpoint only if it is not the first one yet."""
        while self._first() != ticket:
            waiter = self._places[ticket] = self._new_waiter()
            try:
                await waiter
            finally:
                self._places[ticket] = None

    def _first(self) -> int | None:
        while self._tickets and self._tickets[0] not in self._places:
            heapq.heappop(self._tickets)
        return self._tickets[0] if self._tickets else None
