"""The actor that has the life of a task queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight.actors import Actor, Start, WasRestarted, on
from cuelight.tasks._queue_life import Life, Resolve, Step, Told

if TYPE_CHECKING:
    from cuelight.actors import Exit

__all__ = ["QueueActor"]

AGAIN = 1.0
"""Seconds after which it tries again what the store did not answer."""


class QueueActor(Actor[Resolve | Told | Step]):
    """Has the life of one handle."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def started(self, why: Start) -> None:
        """Open the store."""
        await self._life.open()
        if isinstance(why, WasRestarted):
            self.step(Step())  # its timers have ended with the incarnation before

    @on(Resolve)
    async def resolve(self, msg: Resolve) -> None:
        """See to what nobody waits for any more."""
        if not await self._life.resolve():
            self.after(AGAIN, msg)

    @on(Told)
    def told(self, msg: Told) -> None:
        """Hear of leases."""
        self._life.told(msg.beat)

    @on(Step)
    def step(self, msg: Step) -> None:
        """Renew leases in the loop."""
        if self._life.heartbeat == "loop":
            self.after(self._life.step(), msg, key=Step)

    async def stopped(self, why: Exit) -> None:
        """Give everything back."""
        await self._life.close()
