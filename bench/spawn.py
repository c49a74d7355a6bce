"""Lifetimes of actors: spawned and stopped one after another, also with one ask in between; and a thousand at once."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from bench._actors import TOTAL, Async, Plain, actio_counter, in_actio, in_system, pykka_counter
from bench._harness import Aim, Rivals, Workload
from cuelight import Actor, ActorSystem

CROWD = 1000


def one_by_one(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        started = perf_counter()
        for _ in range(n):
            ref = await system.spawn(kind)
            await ref.stop()
        return perf_counter() - started

    return in_system(measure)


def asked(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        started = perf_counter()
        for _ in range(n):
            ref = await system.spawn(kind)
            await ref.ask(TOTAL)
            await ref.stop()
        return perf_counter() - started

    return in_system(measure)


def crowd(kind: type[Actor[Any]]) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        started = perf_counter()
        for _ in range(n // CROWD):
            for ref in [await system.spawn(kind) for _ in range(CROWD)]:
                await ref.stop()
        return perf_counter() - started

    return in_system(measure)


def pykka(n: int) -> float:
    started = perf_counter()
    for _ in range(n):
        pykka_counter().stop()
    return perf_counter() - started


def pykka_asked(n: int) -> float:
    started = perf_counter()
    for _ in range(n):
        ref = pykka_counter()
        ref.ask(TOTAL)
        ref.stop()
    return perf_counter() - started


def pykka_crowd(n: int) -> float:
    started = perf_counter()
    for _ in range(n // CROWD):
        for ref in [pykka_counter() for _ in range(CROWD)]:
            ref.stop()
    return perf_counter() - started


async def _actio(system: Any, n: int) -> float:
    started = perf_counter()
    for _ in range(n):
        actor = actio_counter()
        ref = system.create(actor)
        system.stop(ref)
        await actor._context.is_stopped.wait()
    return perf_counter() - started


async def _actio_asked(system: Any, n: int) -> float:
    new = asyncio.get_running_loop().create_future
    started = perf_counter()
    for _ in range(n):
        actor, reply = actio_counter(), new()
        ref = system.create(actor)
        system.tell(ref, reply)
        await reply
        system.stop(ref)
        await actor._context.is_stopped.wait()
    return perf_counter() - started


async def _actio_crowd(system: Any, n: int) -> float:
    started = perf_counter()
    for _ in range(n // CROWD):
        actors = [actio_counter() for _ in range(CROWD)]
        for ref in [system.create(actor) for actor in actors]:
            system.stop(ref)
        for actor in actors:
            await actor._context.is_stopped.wait()
    return perf_counter() - started


def _one(kind: type[Actor[Any]]) -> Rivals:
    return {"cuelight": one_by_one(kind), "pykka": pykka, "actio": in_actio(_actio)}


def _asked(kind: type[Actor[Any]]) -> Rivals:
    return {"cuelight": asked(kind), "pykka": pykka_asked, "actio": in_actio(_actio_asked)}


def _crowd(kind: type[Actor[Any]]) -> Rivals:
    return {"cuelight": crowd(kind), "pykka": pykka_crowd, "actio": in_actio(_actio_crowd)}


WORKLOADS: dict[str, Rivals] = {
    "spawn + stop, def": _one(Plain),
    "spawn + stop, async": _one(Async),
    "spawn + ask + stop, def": _asked(Plain),
    "spawn + ask + stop, async": _asked(Async),
    "spawn 1,000, then stop them, def": _crowd(Plain),
    "spawn 1,000, then stop them, async": _crowd(Async),
}

_BEAM = Aim("actio", 4.2, absent=True, why="0.65 x BEAM")

AIMS = {
    "spawn + stop, def": _BEAM,
    "spawn + stop, async": _BEAM,
    "spawn + ask + stop, async": Aim("actio", 3.5, trio=0.4),
    "spawn 1,000, then stop them, def": _BEAM,
    "spawn 1,000, then stop them, async": _BEAM,
}
