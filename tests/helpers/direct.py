"""Direct connections between nodes, to look at and to disturb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuelight import ActorSystem
from helpers.nodes import node_of

__all__ = ["Held", "incoming_of", "outgoing_of", "peer_of", "traffic"]


def peer_of(system: ActorSystem, other: ActorSystem) -> Any:
    """How one system sees the node of another."""
    return node_of(system)._membership.peer(node_of(other).identity)


def traffic(system: ActorSystem, other: ActorSystem) -> Any:
    """The statistics of what goes between the two, as the first one counts it."""
    identity = node_of(other).identity
    return next(one for one in node_of(system).statistics().by_peer if one.identity == identity)


def outgoing_of(system: ActorSystem, other: ActorSystem) -> Any:
    """The connection over which one system sends to another; None if there is none."""
    return peer_of(system, other).delivery._outgoing


def incoming_of(system: ActorSystem, other: ActorSystem) -> Any:
    """The same as the receiving side has it."""
    return peer_of(other, system).incoming


class Held:
    """What comes over a connection from now on, kept back until it is released."""

    def __init__(self, incoming: Any) -> None:
        self._connection = incoming._connection
        self._pass_on: Callable[[bytes], None] = self._connection.on_data
        self.data: list[bytes] = []
        self._connection.on_data = self.data.append

    def release(self) -> None:
        """Pass it on, in its order, also if the connection has ended meanwhile."""
        self._connection.on_data = self._pass_on
        for part in self.data:
            if not self._connection.ended:
                self._pass_on(part)
        self.data.clear()
