"""A tree of supervisors: the actors that are restarted after a crash, their order, and escalation to the next level.

    /shop
      front            one_for_one: its children do not depend on each other
        door
        backroom       rest_for_one: each child depends on those before it
          store
          cache
          orders

Run it with `python examples/04_supervision_tree.py`, or with `--backend trio`.
"""

import logging
import sys
from collections.abc import Iterable
from typing import Any

import anyio

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Backoff,
    ChildSpec,
    Exit,
    Ref,
    Request,
    Supervisor,
    WasRestarted,
    child,
    on,
    one_for_one,
    rest_for_one,
)
from cuelight.actors import Start

AT_ONCE = Backoff(minimum=0, maximum=0)
"""No delay before a restart, so that the demonstration is short. The default delay is 0.1 s and doubles each time."""


class Work(Request[str]):
    task: str


class Clerk(Actor[Work]):
    """Does the requested work; crashes on an impossible task."""

    def started(self, why: Start) -> None:
        print(f"    {self.name} {'started again' if isinstance(why, WasRestarted) else 'started'}")

    @on(Work)
    def work(self, message: Work) -> str:
        if message.task == "impossible":
            raise RuntimeError("this cannot be done")
        return f"{self.name} did: {message.task}"

    def stopped(self, why: Exit) -> None:
        print(f"    {self.name} ended: {why.describe()}")


class Backroom(Supervisor):
    strategy = rest_for_one
    max_restarts = 1  # so the second crash within five seconds exceeds the limit
    within = 5.0
    backoff = AT_ONCE

    def specs(self) -> Iterable[ChildSpec[Any]]:
        for name in ("store", "cache", "orders"):
            yield child(Clerk).with_options(name=name)


class Front(Supervisor):
    strategy = one_for_one
    backoff = AT_ONCE

    def specs(self) -> Iterable[ChildSpec[Any]]:
        yield child(Clerk).with_options(name="door")
        yield child(Backroom).with_options(name="backroom")


async def crash(system: ActorSystem, name: str) -> None:
    """Crash an actor, and wait until its supervisors have reacted."""
    clerk: Ref[Work] = system.find(name)
    try:
        await clerk.ask(Work("impossible"))
    except ActorCrashed as error:
        print(f"    (the asker is told: {error.__cause__})")
    await system.wait_until_idle()


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the crash reports, which are logged as errors
    async with ActorSystem("shop") as system:
        print("Children start in order:")
        await system.spawn(child(Front).with_options(name="front"))

        print("The door crashes. one_for_one: only the door is restarted.")
        await crash(system, "door")

        print("The cache crashes. rest_for_one: what was started after it is restarted too, the store is not.")
        await crash(system, "cache")

        print("The cache crashes again. That is beyond the restart limit of the backroom: the backroom itself")
        print("crashes. Its children end in reverse order, and its supervisor starts it anew.")
        await crash(system, "cache")

        clerk: Ref[Work] = system.find("cache")
        done = await clerk.ask(Work("count the tins"))
        print(f"The shop is open. {done}")
        print("Leaving the system ends the tree in the reverse of its start order:")


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
