"""A restart of several children: stop them in reverse order, wait, start them in order. One at a time, and no waiting
that keeps the supervisor from anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuelight.actors import Cell, Exit
    from cuelight.supervision._children import Children

__all__ = ["Regroup"]


class Regroup:
    """One group restart of one family."""

    __slots__ = ("_affected", "_at", "_delay", "_family", "_starting", "_timer")

    def __init__(self, family: Children, affected: list[Cell], delay: float) -> None:
        self._family = family
        self._affected = affected
        self._delay = delay
        self._starting: Cell | None = None
        self._at = len(affected)
        self._timer: Any = None

    def begin(self) -> None:
        """Stop the last of those still running; when none is left, set the timer for the start."""
        self.abandon()  # two children may have ended in one moment
        while self._at:
            cell = self._affected[self._at - 1]
            if not cell.over:
                self._timer = self._family.runtime.later(cell.options.shutdown, cell.cancel_turn)
                cell.recycle()
                return
            self._at -= 1
        self._timer = self._family.runtime.later(self._delay, self._start_next)

    def heard(self, cell: Cell, exit_: Exit) -> bool:
        """A child's incarnation is over. Returns whether that is this restart's business."""
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
            self._affected.remove(cell)
            self._at = min(self._at, len(self._affected))
            self._family.bury(cell, exit_)
        self._family.runtime.post(self._if_current, step)
        return True

    def _if_current(self, step: Any) -> None:
        if self._family.regroup is self:
            step()

    def _start_next(self) -> None:
        if self._affected:
            self._starting = self._affected[0]
            self._family.restart(self._starting)
        else:
            self._family.regrouped()

    def has_started(self, cell: Cell) -> None:
        """A child is up: the next one."""
        if self._starting is cell:
            self._starting = None
            self._affected.remove(cell)
            self._family.runtime.post(self._if_current, self._start_next)

    def gone(self, cell: Cell) -> None:
        """A child was stopped or killed by somebody else meanwhile."""
        if cell in self._affected and self._starting is not cell:
            position = self._affected.index(cell)
            del self._affected[position]
            if position < self._at:
                self._at -= 1

    def abandon(self) -> None:
        """Forget the timer: the family is being closed, or the next step is due now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
