"""One task asks a thousand actors and gathers the answers. An operation is an ask."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from bench._actors import TOTAL, Async, Plain, actio_counter, in_actio, in_system, pykka_counter
from bench._harness import Aim, Rivals, Workload
from cuelight import Actor, ActorSystem

WIDTH = 1000


def ours(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        refs = [await system.spawn(kind) for _ in range(WIDTH)]
        started = perf_counter()
        for _ in range(n // WIDTH):
            for reply in [ref.ask(TOTAL) for ref in refs]:
                await reply
        return perf_counter() - started

    return in_system(measure)


def pykka(n: int) -> float:
    refs = [pykka_counter() for _ in range(WIDTH)]
    started = perf_counter()
    for _ in range(n // WIDTH):
        for reply in [ref.ask(TOTAL, block=False) for ref in refs]:
            reply.get()
    took = perf_counter() - started
    for ref in refs:
        ref.stop()
    return took


async def _actio(system: Any, n: int) -> float:
    refs = [system.create(actio_counter()) for _ in range(WIDTH)]
    new = asyncio.get_running_loop().create_future
    await asyncio.sleep(0.01)
    started = perf_counter()
    for _ in range(n // WIDTH):
        replies = [new() for _ in refs]
        for ref, reply in zip(refs, replies, strict=True):
            system.tell(ref, reply)
        for reply in replies:
            await reply
    return perf_counter() - started


WORKLOADS: dict[str, Rivals] = {
    "fan out to 1,000 and gather, def": {"cuelight": ours(Plain), "pykka": pykka, "actio": in_actio(_actio)},
    "fan out to 1,000 and gather, async": {"cuelight": ours(Async), "pykka": pykka, "actio": in_actio(_actio)},
}

AIMS = {"fan out to 1,000 and gather, async": Aim("actio", 1.5, trio=0.5)}
