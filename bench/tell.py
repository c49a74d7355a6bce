"""One task tells one actor, until the actor has handled everything."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from anyio.lowlevel import checkpoint

from bench._actors import ADD, TOTAL, Async, Plain, actio_counter, in_actio, in_system, pykka_counter, unbounded
from bench._harness import Aim, Rivals, Workload
from cuelight import Actor, ActorSystem

BURST = 1000


def nowait(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        ref = await system.spawn(unbounded(kind))
        tell = ref.tell_nowait
        started = perf_counter()
        for _ in range(n // BURST):
            for _ in range(BURST):
                tell(ADD)
            await checkpoint()
        assert await ref.ask(TOTAL) == n
        return perf_counter() - started

    return in_system(measure)


def waiting(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        ref = await system.spawn(kind)
        tell = ref.tell
        started = perf_counter()
        for _ in range(n):
            await tell(ADD)
        assert await ref.ask(TOTAL) == n
        return perf_counter() - started

    return in_system(measure)


def pykka(n: int) -> float:
    ref = pykka_counter()
    tell = ref.tell
    started = perf_counter()
    for _ in range(n):
        tell(ADD)
    assert ref.ask(TOTAL) == n
    took = perf_counter() - started
    ref.stop()
    return took


async def _actio(system: Any, n: int) -> float:
    ref = system.create(actio_counter())
    tell = system.tell
    started = perf_counter()
    for _ in range(n // BURST):
        for _ in range(BURST):
            tell(ref, ADD)
        await asyncio.sleep(0)
    total = asyncio.get_running_loop().create_future()
    tell(ref, total)
    assert await total == n
    return perf_counter() - started


def _rivals(ours: Workload) -> Rivals:
    return {"cuelight": ours, "pykka": pykka, "actio": in_actio(_actio)}


WORKLOADS: dict[str, Rivals] = {
    "tell_nowait, def": _rivals(nowait(Plain)),
    "tell_nowait, async": _rivals(nowait(Async)),
    "await tell, def": _rivals(waiting(Plain)),
    "await tell, async": _rivals(waiting(Async)),
}

AIMS = {
    "tell_nowait, def": Aim("pykka", 5),
    "tell_nowait, async": Aim("pykka", 4, trio=2.5),
    "await tell, def": Aim("pykka", 5),
    "await tell, async": Aim("pykka", 4.5, trio=3.5),
}
