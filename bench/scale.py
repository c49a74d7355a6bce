"""Large sizes that must work. Each is run once and checked, and its seconds are printed.

`python -m bench.scale NAME LOOP` is the process that runs one of them, so that one that hangs does not stop the others.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from bench._actors import ADD, TOTAL, Async, Plain, unbounded
from bench._harness import OURS, Result, reason, run_in
from cuelight import Actor, ActorSystem, Backoff, ChildSpec, Message, Ref, Request, child, on, one_for_all, supervisor
from cuelight.actors import Start
from cuelight.supervision import WhichChildren

MILLION = 1_000_000
MANY = 100_000
CHAIN = 10_000
DEPTH = 1_000
PATIENCE = 60.0

Run = Callable[[ActorSystem], Awaitable[None]]


def million_tells(kind: type[Actor[Any]]) -> Run:
    async def run(system: ActorSystem) -> None:
        ref = await system.spawn(unbounded(kind))
        for _ in range(MILLION):
            ref.tell_nowait(ADD)
        assert await ref.ask(TOTAL) == MILLION

    return run


def many_actors(kind: type[Actor[Any]]) -> Run:
    async def run(system: ActorSystem) -> None:
        refs = [await system.spawn(kind) for _ in range(MANY)]
        for ref in refs:
            ref.tell_nowait(ADD)
        await system.wait_until_idle()
        for ref in refs[:: MANY // 100]:
            assert await ref.ask(TOTAL) == 1

    return run


class Pass(Message):
    hops: int


class PlainLink(Actor[Pass]):
    def __init__(self, following: Ref[Pass] | None, over: Callable[[int], None]) -> None:
        self.following, self.over = following, over

    @on(Pass)
    def pass_on(self, message: Pass) -> None:
        if self.following is None:
            self.over(message.hops)
        else:
            self.following.tell_nowait(Pass(message.hops + 1))


class AsyncLink(PlainLink):
    @on(Pass)
    async def pass_on(self, message: Pass) -> None:
        super().pass_on(message)


def chain(kind: type[PlainLink]) -> Run:
    async def run(system: ActorSystem) -> None:
        over = anyio.Event()
        hops: list[int] = []

        def finish(count: int) -> None:
            hops.append(count)
            over.set()

        ref: Ref[Pass] | None = None
        for _ in range(CHAIN):
            ref = await system.spawn(kind, ref, finish)
        assert ref is not None
        ref.tell_nowait(Pass(1))
        await over.wait()
        assert hops == [CHAIN]

    return run


class Count(Request[int]):
    pass


class AskLink(Actor[Count]):
    """Asks the next actor in the chain while it handles an ask."""

    def __init__(self, following: Ref[Count] | None) -> None:
        self.following = following

    @on(Count)
    async def count(self, message: Count) -> int:
        return 1 if self.following is None else 1 + await self.following.ask(message)


async def chain_of_asks(system: ActorSystem) -> None:
    ref: Ref[Count] | None = None
    for _ in range(DEPTH):
        ref = await system.spawn(AskLink, ref)
    assert ref is not None
    assert await ref.ask(Count(), timeout=60) == DEPTH


class AsyncNode(Actor[Count]):
    """Spawns its only child when it starts."""

    def __init__(self, below: int) -> None:
        self.below = below

    async def started(self, why: Start) -> None:
        if self.below:
            await self.spawn(AsyncNode, self.below - 1)

    @on(Count)
    async def count(self, message: Count) -> int:
        return 1 + sum([await ref.ask(message) for ref in self.children])


class PlainNode(Actor[Count]):
    """The same with a `def` hook."""

    def __init__(self, below: int, over: Callable[[], None]) -> None:
        self.below, self.over = below, over

    def started(self, why: Start) -> None:
        if self.below:
            below: ChildSpec[Count] = child(PlainNode, self.below - 1, self.over)
            self.spawn_nowait(below)
        else:
            self.over()

    @on(Count)
    def count(self, message: Count) -> int:
        return len(self.children)


async def async_tree(system: ActorSystem) -> None:
    ref = await system.spawn(AsyncNode, DEPTH - 1)
    assert await ref.ask(Count(), timeout=60) == DEPTH
    await ref.stop()


async def plain_tree(system: ActorSystem) -> None:
    deepest = anyio.Event()
    ref = await system.spawn(PlainNode, DEPTH - 1, deepest.set)
    await deepest.wait()
    assert await ref.ask(Count()) == 1
    await ref.stop()


class Crash(Message):
    """Makes the actor crash."""


class Fragile(Actor[Crash]):
    @on(Crash)
    def crash(self, message: Crash) -> None:
        raise ValueError


def restarted_together(count: int) -> Run:
    async def run(system: ActorSystem) -> None:
        spec = supervisor(*[child(Fragile) for _ in range(count)], strategy=one_for_all, backoff=Backoff(minimum=0))
        top = await system.spawn(spec)
        refs = [info.ref for info in await top.ask(WhichChildren())]
        logging.disable(logging.CRITICAL)
        refs[0].tell_nowait(Crash())
        await system.wait_until_idle()
        assert all(ref._cell.incarnation == 2 for ref in refs)

    return run


def picked_in_turn(count: int) -> Run:
    async def run(system: ActorSystem) -> None:
        group = system.group("all")
        for _ in range(count):
            group.join(await system.spawn(Plain))
        for _ in range(2 * count):
            group.pick()

    return run


def cancelled_waits(count: int) -> Run:
    async def run(system: ActorSystem) -> None:
        ref = await system.spawn(Plain)
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(ref.ended)
            await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    return run


RUNS: dict[str, Run] = {
    "a million tells to one actor, def": million_tells(Plain),
    "a million tells to one actor, async": million_tells(Async),
    "100,000 live actors told once each, def": many_actors(Plain),
    "100,000 live actors told once each, async": many_actors(Async),
    "a chain of 10,000, def": chain(PlainLink),
    "a chain of 10,000, async": chain(AsyncLink),
    "a chain of 1,000 that ask, async": chain_of_asks,
    "a tree 1,000 deep, def": plain_tree,
    "a tree 1,000 deep, async": async_tree,
} | {
    f"{count:,} {what}": make(count)
    for what, make in (
        ("restarted together", restarted_together),
        ("members of a group, picked in turn", picked_in_turn),
        ("tasks that wait for an end, cancelled", cancelled_waits),
    )
    for count in (10_000, 20_000, 40_000)  # shows whether the time is proportional to the number
}


def _one(name: str, loop: str) -> None:
    figures: dict[str, float] = {}

    async def main() -> None:
        async with ActorSystem("bench") as system:
            begun = time.perf_counter()
            await RUNS[name](system)
            figures[OURS] = time.perf_counter() - begun
            begun = time.perf_counter()
        figures["leaving"] = time.perf_counter() - begun

    try:
        run_in(loop, main)
    except BaseException as error:
        sys.exit(reason(error))
    print(json.dumps(figures))


def _measure(name: str, loop: str) -> Result:
    result = Result("scale", name, loop, unit="s")
    command = [sys.executable, "-m", "bench.scale", name, loop]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        result.failures[OURS] = f"had not ended after {PATIENCE:g} s"
        return result
    if done.returncode:
        result.failures[OURS] = done.stderr.strip().rpartition("\n")[2]
    else:
        result.figures.update(json.loads(done.stdout))
    return result


MEASURES: dict[str, Callable[[str, str], Result]] = dict.fromkeys(RUNS, _measure)

if __name__ == "__main__":
    logging.disable(logging.ERROR)
    _one(sys.argv[1], sys.argv[2])
