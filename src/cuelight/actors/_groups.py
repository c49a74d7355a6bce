"""Process groups: one name for many actors. A member leaves automatically when it ends."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from cuelight.actors._ref import Ref
from cuelight.errors import ActorNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cuelight.actors._cell import Cell
    from cuelight.actors._runtime import Runtime

M = TypeVar("M")


class Group(Generic[M]):
    """Many actors under one name, made by `system.group(name)`."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
        self.name = name
        self._members: dict[Cell, None] = {}
        self._turns: OrderedDict[Cell, None] = OrderedDict()  # in the order of the next calls of `pick`

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Ref[M]]:
        """Iterate over the members, in the order in which they joined."""
        refs: list[Ref[M]] = [Ref(cell) for cell in self._members]
        return iter(refs)

    def __contains__(self, ref: object) -> bool:
        return isinstance(ref, Ref) and ref._cell in self._members

    def join(self, ref: Ref[M]) -> None:
        """Add an actor. Adding a member again does nothing, and neither does adding an actor that has ended."""
        cell = ref._cell
        if ref.alive:
            self._members[cell] = self._turns[cell] = None
            cell.bonds_made().groups[self] = None

    def leave(self, ref: Ref[M]) -> None:
        """Remove an actor. Do nothing if it is not a member."""
        cell = ref._cell
        self.discard(cell)
        if cell.bonds is not None:
            cell.bonds.groups.pop(self, None)

    def discard(self, cell: Cell) -> None:
        """Remove a member that has ended."""
        self._members.pop(cell, None)
        self._turns.pop(cell, None)

    def broadcast(self, message: M) -> int:
        """Tell all members without waiting. Return the number of members that accepted the message.

        A message that finds no room becomes a dead letter.
        """
        self._runtime.check_thread(f"the group {self.name!r}")
        return sum(cell.put_or_drop(message) for cell in list(self._members))

    def pick(self) -> Ref[M]:
        """Return one member, taking turns.

        Raises:
            ActorNotFound: the group is empty.
        """
        for cell in self._turns:
            self._turns.move_to_end(cell)
            return Ref(cell)
        raise ActorNotFound(f"the group {self.name!r} is empty: join() an actor first")
