"""Units that were taken from the server in one piece, to be spent here without asking it.

Invariants:

1. What is in stock was charged on the server, and is no more than a chunk. So in any span of time all processes
   together let through what the limit allows, and a chunk for each loop that has one.
2. What is not spent for a while goes back, as far as it was not paid off by time yet.
3. Requests are let through in the order in which they came, in each loop.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from cuelight.mailbox import Slot, await_until, current_backend, loop_time, new_slot
from cuelight.redis._limits._charge import Charge
from cuelight.redis._limits._desk import Desk

__all__ = ["Stock"]

_IDLE: Final = 0.5
"""Seconds without a request after which the rest goes back; it may take twice as long."""

Take = Callable[[int, float | None, int], Awaitable[Charge | None]]
"""Takes at least so much, in that time, and up to a chunk. None if the request was let through without the server."""


class Stock:
    """What one loop has in stock of one limiter."""

    def __init__(self, desk: Desk, chunk: int, take: Take, name: str) -> None:
        self._desk, self._chunk, self._take, self._name = desk, chunk, take, name
        self._lock = anyio.Lock()
        self._charge: Charge | None = None
        self._used = self._watched = False
        self._rest: Slot | None = None
        self.units = 0

    def spend(self, cost: int) -> bool:
        """Let a request through at once, if there is enough and nobody waits."""
        if not 0 < cost <= self.units or self._lock.locked():
            return False
        self.units -= cost
        self._used = True
        self._desk.admitted += 1
        return True

    async def acquire(self, cost: int, timeout: float | None) -> None:
        """Wait until a request is let through. A checkpoint.

        Raises:
            TimeoutError: its turn does not come in time.
        """
        began, acquired = loop_time(), False
        with anyio.move_on_after(timeout):
            await self._lock.acquire()
            acquired = True
        if not acquired:
            raise TimeoutError(f"{self._name}: others wait for units, longer than {timeout} s")
        left = None if timeout is None else max(0.0, began + timeout - loop_time())
        try:
            if 0 < cost <= self.units:
                self.units -= cost
                self._desk.admitted += 1
                return
            charge = await self._take(cost - self.units, left, max(cost - self.units, self._chunk))
            if charge is not None:
                self.units += charge.charged[0] - cost
                self._charge = charge
                if self.units:
                    self._watch()
        finally:
            self._lock.release()

    def _watch(self) -> None:
        self._used = True
        if not self._watched:
            self._watched = True
            current_backend().spawn(
                self._give_back_when_idle,
                context=contextvars.copy_context(),
                name=f"cuelight units in stock: {self._name}",
            )

    async def _give_back_when_idle(self) -> None:
        try:
            while self.units and self._used:
                self._used = False
                self._rest = slot = new_slot()
                await await_until(slot, loop_time() + _IDLE)
                self._rest = None
            await self.give_back()
        finally:
            self._watched, self._rest = False, None

    async def give_back(self) -> None:
        """Give back what is left. A checkpoint if there is anything."""
        units, charge = self.units, self._charge
        self.units, self._charge = 0, None
        if charge is not None and units:
            # What was left of an older chunk stays charged: it is little, and mostly paid off.
            charge.costs = [max(0, charge.charged[0] - units)]
            await self._desk.settle(charge)
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)
