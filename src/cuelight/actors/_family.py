"""The seam between a cell and whoever supervises it. The supervision package fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cuelight.actors._cell import Cell
    from cuelight.actors._exits import Exit
    from cuelight.actors._runtime import Runtime
    from cuelight.actors._spec import ChildSpec

__all__ = ["Family"]


class Family(Protocol):
    """The children of one cell, and what becomes of them."""

    runtime: Runtime
    owner: Cell | None

    @property
    def empty(self) -> bool:
        """Whether no child is left."""
        ...

    def children(self) -> Iterable[Cell]:
        """The children, in the order in which they were started."""
        ...

    def adopt(self, spec: ChildSpec[Any], *, sponsored: bool = False) -> Cell:
        """Make a cell and begin its first incarnation. Its `state` says whether it is up, failed or still starting.

        Args:
            spec: what to start.
            sponsored: somebody waits for the start, and is told if it fails; else a failure is a crash.
        """
        ...

    def has_started(self, cell: Cell) -> None:
        """A child's incarnation is up."""
        ...

    def ended(self, cell: Cell, exit_: Exit) -> None:
        """A child's incarnation is over: restart or bury it."""
        ...

    def buried(self, cell: Cell) -> None:
        """A child has ended for good."""
        ...

    def give_up(self, cell: Cell, exit_: Exit) -> None:
        """A child that waits for its restart was stopped or killed: bury it."""
        ...

    def close(self, exit_: Exit) -> None:
        """Stop all children in the reverse of their start order; tell the owner when none is left."""
        ...

    def kill(self, why: str) -> None:
        """Kill all children; tell the owner when none is left."""
        ...

    def spent(self) -> dict[str, float]:
        """What was charged to the budget of this family, by unit; empty if it has none."""
        ...

    def spend(self, amounts: dict[str, float]) -> None:
        """Charge budgets of this family and of those above it."""
        ...
