"""A member of an actor pool."""

from __future__ import annotations

from collections.abc import Callable

from cuelight.actors import Cell
from cuelight.actors._cell import LIVE


class MemberSlot:
    """A member, for rules, with the messages that the pool has given it."""

    __slots__ = ("assigned", "cell", "is_restart_watched", "name", "on_change")

    def __init__(self, name: str, cell: Cell, on_change: Callable[[], object]) -> None:
        self.name, self.cell, self.assigned = name, cell, 0
        self.is_restart_watched, self.on_change = False, on_change

    @property
    def load(self) -> int:
        """Number of messages that the member handles or that wait for it."""
        return len(self.cell) + (self.cell.running is not None)

    @property
    def ready(self) -> bool:
        """Whether the member would handle a message at once."""
        return self.live and not (self.assigned or len(self.cell))

    @property
    def live(self) -> bool:
        """Whether the member is neither starting nor ending."""
        return self.cell.state == LIVE

    def restarted(self) -> None:
        """Called when the member was restarted or has ended for good."""
        self.is_restart_watched = False
        self.on_change()
