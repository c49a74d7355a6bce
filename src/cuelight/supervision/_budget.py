"""Budgets: limits on the resources of a subtree. An exceeded budget ends the subtree, as too many restarts do."""

from __future__ import annotations

import math
import os
import sys
from collections import deque

from cuelight.errors import BudgetExceeded


class Budget:
    """The resources that a subtree may use: `Budget(tokens=200_000, usd=2, wall=3600, memory=2**30)`.

    Actors report their spending with `self.spend(tokens=1200, usd=0.02)`; every budget above them is charged. A subtree
    that exceeds its budget ends with `BudgetExceeded`. It is restarted only if it is `permanent`.
    """

    __slots__ = ("limits", "memory", "wall", "within")

    def __init__(
        self, *, within: float = math.inf, wall: float = math.inf, memory: float = math.inf, **limits: float
    ) -> None:
        """Set the limits.

        Args:
            within: seconds after which an amount no longer counts. By default every amount counts.
            wall: seconds that the subtree may live.
            memory: bytes of resident memory of this process, checked once a second.
            **limits: the largest amount of each unit.

        Raises:
            ValueError: a limit is not a number of 0 or more.
        """
        for unit, limit in {"within": within, "wall": wall, "memory": memory, **limits}.items():
            if not limit >= 0:
                raise ValueError(f"Budget({unit}={limit!r}): give a number, 0 or more")
        self.within, self.wall, self.memory, self.limits = within, wall, memory, limits

    def __repr__(self) -> str:
        shown = {**self.limits, "wall": self.wall, "memory": self.memory, "within": self.within}
        return f"Budget({', '.join(f'{unit}={limit}' for unit, limit in shown.items() if limit != math.inf)})"


class BudgetCounter:
    """The amounts charged to one budget. It has no clock: callers pass the time."""

    __slots__ = ("_budget", "_entries", "_sums")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._entries: deque[tuple[float, dict[str, float]]] = deque()
        self._sums: dict[str, float] = dict.fromkeys(budget.limits, 0.0)

    def spent(self, now: float) -> dict[str, float]:
        """Return the amounts within the budget's window, by unit."""
        self._forget(now)
        return dict(self._sums)

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0][0] < now - self._budget.within:
            for unit, amount in self._entries.popleft()[1].items():
                self._sums[unit] -= amount

    def charge(self, amounts: dict[str, float], now: float) -> BudgetExceeded | None:
        """Add amounts by unit and return an error if a limit is exceeded. Units without a limit are ignored."""
        mine = {unit: amount for unit, amount in amounts.items() if unit in self._sums}
        for unit, amount in mine.items():
            self._sums[unit] += amount
        if self._budget.within < math.inf:
            self._entries.append((now, mine))
            self._forget(now)
        for unit, limit in self._budget.limits.items():
            if self._sums[unit] > limit:
                window = f" within {self._budget.within} s" if self._budget.within < math.inf else ""
                return BudgetExceeded(f"spent {self._sums[unit]:g} of at most {limit:g} {unit}{window}")
        return None


def resident_memory() -> int:
    """Return the resident memory of this process in bytes; without `/proc`, return its peak."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # noqa: PLC0415 - not on every system, and rarely needed

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
