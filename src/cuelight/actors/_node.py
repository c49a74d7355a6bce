"""The seam between a system and the other systems that its actors talk with. The redis package fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cuelight.actors._ref import Ref
    from cuelight.actors._runtime import Runtime

__all__ = ["Node"]


class Node(Protocol):
    """A system's place among others: it gives names to actors, and refs to names."""

    async def join(self, runtime: Runtime) -> None:
        """Enter the cluster; called once, when the block of the system is entered."""
        ...

    async def expose(self, ref: Ref[Any], name: str) -> None:
        """Make an actor of this system known by a name."""
        ...

    async def unexpose(self, name: str) -> None:
        """Take a name back."""
        ...

    async def resolve(self, name: str, timeout: float) -> Ref[Any]:
        """The actor that has this name, wherever it is."""
        ...

    def withdraw(self, runtime: Runtime) -> None:
        """Begin to take all names back: the system is about to end. Nothing happens if another system has joined."""
        ...

    async def leave(self, runtime: Runtime) -> None:
        """Leave the cluster, as far as it was entered, and wait for that: every actor has ended.

        Nothing happens if it is another system that has joined. Must neither raise nor take long. If it is cancelled it
        is called again, to wait on.
        """
        ...
