"""A stock of units that were taken from the server at once, to be spent without asking it.

Invariants:

1. The units in stock were charged on the server, and are no more than a chunk. So in any span of time all processes
   together admit the limit at most, plus a chunk for each loop that has a stock.
2. Units that are not spent for some time are refunded, except for the part that time has paid off already.
3. In each loop, requests are admitted in the order of arrival.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from cuelight.mailbox import Slot, await_until, current_backend, loop_time, new_slot
from cuelight.redis._limits._charge import Charge
from cuelight.redis._limits._desk import Desk

_IDLE: Final = 0.5
"""Seconds without a request after which the rest is refunded; it may take twice as long."""

Take = Callable[[int, float | None, int], Awaitable[Charge | None]]
"""Takes at least the first number of units, within a timeout, and at most the last number of units. Returns None if the
request was admitted without the server.
"""


class Stock:
    """The units in stock of one limiter in one loop."""

    def __init__(self, desk: Desk, chunk: int, take: Take, name: str) -> None:
        self._desk, self._chunk, self._take, self._name = desk, chunk, take, name
        self._lock = anyio.Lock()
        self._charge: Charge | None = None
        self._used = self._watched = False
        self._rest: Slot | None = None
        self.units = 0

    def spend(self, cost: int) -> bool:
        """Admit a request at once, if there are enough units and no request waits."""
        if not 0 < cost <= self.units or self._lock.locked():
            return False
        self.units -= cost
        self._used = True
        self._desk.admitted += 1
        return True

    async def acquire(self, cost: int, timeout: float | None) -> None:
        """Wait until a request is admitted. A checkpoint.

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
        """Refund the units that are left. A checkpoint if there are any."""
        units, charge = self.units, self._charge
        self.units, self._charge = 0, None
        if charge is not None and units:
            # The rest of an older chunk stays charged: it is small, and mostly paid off.
            charge.costs = [max(0, charge.charged[0] - units)]
            await self._desk.settle(charge)
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)
