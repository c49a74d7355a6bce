"""The interface between a system and its cluster. The redis package implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cuelight.actors._ref import Ref
    from cuelight.actors._runtime import Runtime


class Node(Protocol):
    """The membership of a system in a cluster: it registers names of actors and resolves names to refs."""

    async def join(self, runtime: Runtime) -> None:
        """Enter the cluster. Called once, when the system's block is entered."""
        ...

    async def expose(self, ref: Ref[Any], name: str) -> None:
        """Register an actor of this system under a name."""
        ...

    async def unexpose(self, name: str) -> None:
        """Remove a name."""
        ...

    async def resolve(self, name: str, timeout: float) -> Ref[Any]:
        """Return the actor with this name, wherever it is in the cluster."""
        ...

    def withdraw(self, runtime: Runtime) -> None:
        """Begin to remove all names, because the system is about to end. Do nothing if another system has joined."""
        ...

    async def leave(self, runtime: Runtime) -> None:
        """Leave the cluster, as far as it was entered, and wait for that. Every actor has ended.

        Do nothing if another system has joined. This must neither raise nor take long. If it is cancelled, it is called
        again to continue the wait.
        """
        ...
