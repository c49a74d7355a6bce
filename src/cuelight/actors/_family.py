"""The interface between a cell and its supervisor. The supervision package implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cuelight.actors._cell import Cell
    from cuelight.actors._exits import Exit
    from cuelight.actors._runtime import Runtime
    from cuelight.actors._spec import ChildSpec


class Family(Protocol):
    """The children of one cell and their supervision."""

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
            spec: the spec of the child.
            sponsored: a caller waits for the start and gets its failure. Otherwise a failed start is a crash.
        """
        ...

    def has_started(self, cell: Cell) -> None:
        """Note that a child's incarnation has started."""
        ...

    def ended(self, cell: Cell, exit_: Exit) -> None:
        """Restart or bury a child whose incarnation is over."""
        ...

    def buried(self, cell: Cell) -> None:
        """Note that a child has ended permanently."""
        ...

    def give_up(self, cell: Cell, exit_: Exit) -> None:
        """Bury a child that was stopped or killed while it waited for its restart."""
        ...

    def close(self, exit_: Exit) -> None:
        """Stop all children in the reverse of their start order. Notify the owner when none is left."""
        ...

    def kill(self, why: str) -> None:
        """Kill all children. Notify the owner when none is left."""
        ...

    def spent(self) -> dict[str, float]:
        """Return the amounts charged to this family's budget, by unit; empty if it has none."""
        ...

    def spend(self, amounts: dict[str, float]) -> None:
        """Charge the budgets of this family and of the families above it."""
        ...
