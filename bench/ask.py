"""Asks of one actor: one after another, and a thousand in flight."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from bench._actors import TOTAL, Async, Plain, actio_counter, in_actio, in_system, pykka_counter
from bench._harness import Aim, Rivals, Workload
from cuelight import Actor, ActorSystem

IN_FLIGHT = 1000


def one_by_one(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        ref = await system.spawn(kind)
        started = perf_counter()
        for _ in range(n):
            await ref.ask(TOTAL)
        return perf_counter() - started

    return in_system(measure)


def in_flight(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        ref = await system.spawn(kind)
        started = perf_counter()
        for _ in range(n // IN_FLIGHT):
            for reply in [ref.ask(TOTAL) for _ in range(IN_FLIGHT)]:
                await reply
        return perf_counter() - started

    return in_system(measure)


def pykka_one_by_one(n: int) -> float:
    ref = pykka_counter()
    started = perf_counter()
    for _ in range(n):
        ref.ask(TOTAL)
    took = perf_counter() - started
    ref.stop()
    return took


def pykka_in_flight(n: int) -> float:
    ref = pykka_counter()
    started = perf_counter()
    for _ in range(n // IN_FLIGHT):
        for reply in [ref.ask(TOTAL, block=False) for _ in range(IN_FLIGHT)]:
            reply.get()
    took = perf_counter() - started
    ref.stop()
    return took


async def _actio_one_by_one(system: Any, n: int) -> float:
    ref, new = system.create(actio_counter()), asyncio.get_running_loop().create_future
    started = perf_counter()
    for _ in range(n):
        reply = new()
        system.tell(ref, reply)
        await reply
    return perf_counter() - started


async def _actio_in_flight(system: Any, n: int) -> float:
    ref, new = system.create(actio_counter()), asyncio.get_running_loop().create_future
    started = perf_counter()
    for _ in range(n // IN_FLIGHT):
        replies = [new() for _ in range(IN_FLIGHT)]
        for reply in replies:
            system.tell(ref, reply)
        for reply in replies:
            await reply
    return perf_counter() - started


def _one(kind: type[Actor[Any]]) -> Rivals:
    return {"cuelight": one_by_one(kind), "pykka": pykka_one_by_one, "actio": in_actio(_actio_one_by_one)}


def _many(kind: type[Actor[Any]]) -> Rivals:
    return {"cuelight": in_flight(kind), "pykka": pykka_in_flight, "actio": in_actio(_actio_in_flight)}


WORKLOADS: dict[str, Rivals] = {
    "ask one at a time, def": _one(Plain),
    "ask one at a time, async": _one(Async),
    "ask 1,000 in flight, def": _many(Plain),
    "ask 1,000 in flight, async": _many(Async),
}

AIMS = {
    "ask one at a time, def": Aim("actio", 9.5, absent=True, why="BEAM"),
    "ask one at a time, async": Aim("actio", 4, trio=0.6),
    "ask 1,000 in flight, def": Aim("actio", 1.6),
    "ask 1,000 in flight, async": Aim("actio", 1, trio=0.75),
}
