"""Random trees under random crashes, stops, kills and cancellations: what must hold however it goes."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import (
    Actor,
    ActorSystem,
    AskError,
    Backoff,
    ChildSpec,
    Exit,
    Message,
    Ref,
    Request,
    child,
    on,
    one_for_all,
    one_for_one,
    rest_for_one,
    supervisor,
)
from cuelight.actors import Start
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import run_on

STRATEGIES = (one_for_one, one_for_all, rest_for_one)
WITHIN = 5.0


class Do(Message):
    number: int
    crash: bool = False
    seconds: float = 0.0


class Answer(Request[int]):
    number: int
    crash: bool = False
    seconds: float = 0.0


@dataclass
class World:
    """What happened, as the actors saw it."""

    told: list[int] = field(default_factory=list[int])
    done: list[int] = field(default_factory=list[int])
    lives: Counter[int] = field(default_factory=Counter[int])  # incarnations that are up, by actor
    order: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    busy: Counter[int] = field(default_factory=Counter[int])
    leaves: dict[int, Ref[Any]] = field(default_factory=dict[int, Ref[Any]])


class Leaf(Actor[Do | Answer], abstract=True):
    def __init__(self, number: int, world: World) -> None:
        self.number, self.world = number, world

    def started(self, why: Start) -> None:
        world = self.world
        world.lives[self.number] += 1
        world.order.append(("start", self.number))
        world.leaves[self.number] = self.ref
        world.busy[self.number] = 0

    def restarting(self, why: Exit) -> None:
        self.world.lives[self.number] -= 1

    def stopped(self, why: Exit) -> None:
        self.world.lives[self.number] -= 1
        self.world.order.append(("stop", self.number))


class PlainLeaf(Leaf):
    @on(Do)
    def do(self, message: Do) -> None:
        if message.crash:
            raise RuntimeError(message.number)
        self.world.done.append(message.number)

    @on(Answer)
    def answer(self, message: Answer) -> int:
        if message.crash:
            raise RuntimeError(message.number)
        return message.number


class AsyncLeaf(Leaf):
    async def _work(self, message: Do | Answer) -> None:
        world = self.world
        assert not world.busy[self.number], "two messages at once"
        world.busy[self.number] = 1
        try:
            await anyio.sleep(message.seconds)
        finally:
            world.busy[self.number] = 0
        if message.crash:
            raise RuntimeError(message.number)

    @on(Do)
    async def do(self, message: Do) -> None:
        await self._work(message)
        self.world.done.append(message.number)

    @on(Answer)
    async def answer(self, message: Answer) -> int:
        await self._work(message)
        return message.number


leaf: st.SearchStrategy[Any] = st.tuples(
    st.just("leaf"), st.booleans(), st.sampled_from(["permanent", "transient", "temporary"])
)
node: st.SearchStrategy[Any] = st.recursive(
    leaf,
    lambda inner: st.tuples(
        st.just("node"), st.sampled_from(STRATEGIES), st.integers(0, 3), st.lists(inner, min_size=1, max_size=4)
    ),
    max_leaves=10,
)
seconds = st.sampled_from([0.0, 0.0, 0.01, 0.3, 2.0])
operation = st.tuples(
    st.sampled_from(["tell", "tell", "tell", "crash", "crash", "ask", "ask", "stop", "kill", "interrupt", "sleep"]),
    st.integers(0, 30),
    seconds,
    seconds,
)
ending = st.sampled_from(["leave", "raise", "cancel"])


def build(tree: Any, world: World, number: list[int]) -> ChildSpec[Any]:
    if tree[0] == "leaf":
        number[0] += 1
        _, plain, restart = tree
        kind: Any = PlainLeaf if plain else AsyncLeaf
        return child(kind, number[0], world).with_options(restart=restart, shutdown=1)
    _, strategy, limit, inner = tree
    return supervisor(
        *(build(one, world, number) for one in inner),
        strategy=strategy,
        max_restarts=limit,
        within=WITHIN,
        backoff=Backoff(0.05, 1, 0.2),
    )


async def perform(system: ActorSystem, world: World, tasks: Any, step: tuple[str, int, float, float], at: int) -> None:
    what, which, first, second = step
    refs = [world.leaves[key] for key in sorted(world.leaves)]
    ref = refs[which % len(refs)]
    if what in ("tell", "crash"):
        world.told.append(at)
        ref.tell_nowait(Do(at, crash=what == "crash", seconds=first))
    elif what == "ask":

        async def ask() -> None:
            with anyio.move_on_after(second or 5):
                try:
                    assert await ref.ask(Answer(at, crash=which % 5 == 0, seconds=first)) == at
                except AskError:
                    pass

        tasks.start_soon(ask)
    elif what == "stop":
        ref._cell.stop()
    elif what == "kill":
        ref._cell.kill("test")
    elif what == "interrupt":
        ref.interrupt()
    else:
        await anyio.sleep(first)


async def live(trees: list[Any], steps: list[Any], end: str) -> tuple[World, ActorSystem]:
    world = World()
    system = ActorSystem("t", max_restarts=3, within=WITHIN, backoff=Backoff(0.05, 1, 0.2), slow_after=None)
    number = [0]
    with anyio.move_on_after(3600) as scope:
        try:
            async with system, anyio.create_task_group() as tasks:
                for tree in trees:
                    await system.spawn(build(tree, world, number))
                for at, step in enumerate(steps):
                    await perform(system, world, tasks, step, at)
                if end == "raise":
                    raise ZeroDivisionError
                if end == "cancel":
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        except* (ZeroDivisionError, Exception):
            pass
    return world, system


def check(world: World, system: ActorSystem) -> None:
    assert_no_orphans(system)
    # Every incarnation that came up went down.
    assert not any(world.lives.values()), world.lives
    # Every message told was handled to its end, or is a dead letter, and not both or twice.
    dead = [letter.message.number for letter in system.dead_letters if isinstance(letter.message, Do)]
    assert sorted(world.done + dead) == sorted(world.told)
    assert not any(world.busy.values())


async def scenario(trees: list[Any], steps: list[Any], end: str) -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)
    try:
        check(*await live(trees, steps, end))
    finally:
        logging.getLogger("cuelight").setLevel(logging.NOTSET)


@pytest.mark.stress
@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
@given(trees=st.lists(node, min_size=1, max_size=3), steps=st.lists(operation, max_size=40), end=ending)
def test_random_trees_leave_no_orphan_and_lose_no_message(
    name: Any, trees: list[Any], steps: list[Any], end: str
) -> None:
    run_on(virtual_backend(name), scenario, trees, steps, end)


async def ordered(tree: Any) -> None:
    world = World()
    async with ActorSystem("t", slow_after=None) as system:
        await system.spawn(build(tree, world, [0]))
        starts = [number for what, number in world.order if what == "start"]
        assert starts == sorted(starts)
    stops = [number for what, number in world.order if what == "stop"]
    assert stops == sorted(starts, reverse=True)


@pytest.mark.stress
@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
@given(tree=node)
def test_random_trees_start_in_order_and_stop_in_reverse(name: Any, tree: Any) -> None:
    run_on(virtual_backend(name), ordered, tree)


async def budget(limit: int, gaps: list[float]) -> None:
    """Crash one child again and again; its supervisor may restart it so often within the window, and no more."""
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)
    starts: list[float] = []

    class Counted(Actor[Do]):
        def started(self, why: Start) -> None:
            starts.append(anyio.current_time())

        @on(Do)
        def do(self, message: Do) -> None:
            raise RuntimeError

    async with ActorSystem("t", slow_after=None) as system:
        spec = supervisor(
            child(Counted).with_options(name="c"), max_restarts=limit, within=WITHIN, backoff=Backoff(0, 0)
        )
        top = await system.spawn(spec.with_options(restart="temporary"))
        ref = system.find("c")
        crashes = 0
        for gap in gaps:
            await anyio.sleep(gap)
            if not ref.alive:
                break
            crashes += 1
            await ref.tell(Do(0))
            await system.wait_until_idle()
        restarts = starts[1:]
        for first, last in zip(restarts, restarts[limit:], strict=False):
            assert last - first >= WITHIN
        if not top.alive:
            assert len(restarts) == crashes - 1
    logging.getLogger("cuelight").setLevel(logging.NOTSET)
    assert all(before <= after for before, after in pairwise(starts))


@pytest.mark.stress
@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
@given(limit=st.integers(0, 3), gaps=st.lists(st.floats(0, 6), min_size=5, max_size=20))
def test_restart_budgets_are_kept(name: Any, limit: int, gaps: list[float]) -> None:
    run_on(virtual_backend(name), budget, limit, gaps)
