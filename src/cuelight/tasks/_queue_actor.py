"""The actor of a task queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuelight.actors import Actor, Start, WasRestarted, on
from cuelight.tasks._queue_life import Life, Resolve, Step, Told

if TYPE_CHECKING:
    from cuelight.actors import Exit

AGAIN = 1.0
"""Seconds after which unanswered steps are tried again."""


class QueueActor(Actor[Resolve | Told | Step]):
    """Opens and closes the store of one handle, renews its leases and resolves its abandoned steps."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def started(self, why: Start) -> None:
        """Open the store."""
        await self._life.open()
        if isinstance(why, WasRestarted):
            self.step(Step())  # the previous incarnation's timers have ended

    @on(Resolve)
    async def resolve(self, msg: Resolve) -> None:
        """Complete the steps whose callers no longer wait."""
        if not await self._life.resolve():
            self.after(AGAIN, msg)

    @on(Told)
    def told(self, msg: Told) -> None:
        """Handle lost leases and cancellations."""
        self._life.told(msg.beat)

    @on(Step)
    def step(self, msg: Step) -> None:
        """Renew leases in the loop."""
        if self._life.heartbeat == "loop":
            self.after(self._life.step(), msg, key=Step)

    async def stopped(self, why: Exit) -> None:
        """Give back all tasks."""
        await self._life.close()
