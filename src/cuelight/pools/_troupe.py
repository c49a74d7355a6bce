"""The members of an actor pool, for rules and statistics, and their supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight.actors import ActorStatistics, ChildSpec, Start
from cuelight.actors._cell import LIVE
from cuelight.supervision import RestartLimit, Supervisor
from cuelight.supervision._children import Plan

if TYPE_CHECKING:
    from cuelight.actors import Cell
    from cuelight.pools._actor_pool import ActorPool


class ActorPoolStats(msgspec.Struct, frozen=True):
    """A snapshot of an actor pool.

    Attributes:
        queued: number of messages that wait in the pool for a free member.
        members: statistics of each member, by its name in the pool.
    """

    queued: int
    members: dict[str, ActorStatistics]


class Seat:
    """A member, for rules, with the messages that the pool has given it."""

    __slots__ = ("cell", "expected", "given", "name", "pump")

    def __init__(self, name: str, cell: Cell, pump: Callable[[], object]) -> None:
        self.name, self.cell, self.given = name, cell, 0
        self.expected, self.pump = False, pump

    @property
    def load(self) -> int:
        """Number of messages that the member handles or that wait for it."""
        return len(self.cell) + (self.cell.running is not None)

    @property
    def ready(self) -> bool:
        """Whether the member would handle a message at once."""
        return self.live and not (self.given or len(self.cell))

    @property
    def live(self) -> bool:
        """Whether the member is neither starting nor ending."""
        return self.cell.state == LIVE

    def returned(self) -> None:
        """Called when the member was restarted or has ended for good."""
        self.expected = False
        self.pump()


class Troupe(Supervisor):
    """The supervisor of the members."""

    def __init__(self, pool: ActorPool[Any], limit: RestartLimit) -> None:
        self._pool = pool
        self._limit = limit

    def plan(self) -> Plan:
        return Plan(limit=self._limit, backoff=self.backoff)

    def specs(self) -> Iterable[ChildSpec[Any]]:
        return self._pool.members_to_be()

    async def started(self, why: Start) -> None:
        await super().started(why)
        self._pool.manned()
