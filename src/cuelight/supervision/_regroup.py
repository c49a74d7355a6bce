"""A restart of several children: they stop in reverse order, then start in order, one at a time.

The supervisor does not wait and can do other work between the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuelight.actors import Cell, Exit
    from cuelight.supervision._children import Children


class Regroup:
    __slots__ = ("_affected", "_delay", "_ended", "_family", "_running", "_starting", "_timer")

    def __init__(self, family: Children, affected: list[Cell], delay: float) -> None:
        self._family = family
        self._affected = set(affected)  # children that have not started again yet
        # Both lists are consumed from the end. They may contain children that have ended for good in the meantime.
        self._running = list(affected)
        self._ended = affected[::-1]
        self._delay = delay
        self._starting: Cell | None = None
        self._timer: Any = None

    def begin(self) -> None:
        """Stop the last child that is still running. When none is left, set the timer for the start."""
        self.abandon()  # two children may have ended at the same time
        while self._running:
            cell = self._running[-1]
            if cell in self._affected and not cell.over:
                self._timer = self._family.runtime.later(cell.options.shutdown, cell.cancel_turn)
                cell.recycle()
                return
            self._running.pop()
        self._timer = self._family.runtime.later(self._delay, self._start_next)

    def heard(self, cell: Cell, exit_: Exit) -> bool:
        """Handle the end of a child's incarnation. Returns False if the child is not part of this restart."""
        if cell not in self._affected:
            return False
        stays_ended = cell.options.restart == "temporary" or (cell.closed and cell.options.restart != "permanent")
        if self._starting is cell:
            self._starting = None
            if not stays_ended:
                self._family.start_failed_again(cell, exit_)
                return True
            step = self._start_next
        else:
            self._family.report(cell, exit_, "it ended while its group was being stopped for a restart")
            step = self.begin
        if stays_ended:
            self._affected.discard(cell)
            self._family.bury(cell, exit_)
        self._family.runtime.post(self._if_current, step)
        return True

    def _if_current(self, step: Any) -> None:
        if self._family.regroup is self:
            step()

    def _start_next(self) -> None:
        while self._ended:
            cell = self._ended.pop()
            if cell in self._affected:
                self._starting = cell
                self._family.restart(cell)
                return
        self._family.regrouped()

    def has_started(self, cell: Cell) -> None:
        """Start the next child."""
        if self._starting is cell:
            self._starting = None
            self._affected.discard(cell)
            self._family.runtime.post(self._if_current, self._start_next)

    def gone(self, cell: Cell) -> None:
        """Forget a child that another caller has stopped or killed."""
        if self._starting is not cell:
            self._affected.discard(cell)

    def abandon(self) -> None:
        """Cancel the timer, because the family is closing or the next step is due now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
