"""Leaving the block: phases, deadlines, and nothing left behind, however it is left."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    Budget,
    Exit,
    Message,
    NotStarted,
    Ref,
    Stopped,
    SystemClosed,
    child,
    every,
    on,
    select,
    supervisor,
)
from cuelight.actors import Inbox, Killed, ShutDown
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.recorder import Get, Log, Note, Recorder, Sleep


class Pass(Message):
    left: int


class Passer(Actor[Pass]):
    """Tells the next actor, which was started before or after it."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen
        self.to: Ref[Pass] | None = None

    @on(Pass)
    async def hand_on(self, message: Pass) -> None:
        await anyio.sleep(0.01)
        self.seen.append(message.left)
        if message.left and self.to is not None:
            await self.to.tell(Pass(message.left - 1))


async def test_leaving_the_block_drains_what_actors_tell_each_other() -> None:
    seen: list[int] = []
    async with ActorSystem() as system:
        first = await system.spawn(Passer, seen)
        second = await system.spawn(Passer, seen)
        for one, other in ((first, second), (second, first)):
            actor: Any = one._cell.actor
            actor.to = other
        await first.tell(Pass(50))
    assert seen == list(range(50, -1, -1))
    assert system.dead_letters.total == 0
    assert_no_orphans(system)


async def test_shutdown_has_one_deadline() -> None:
    log: Log = []
    began = anyio.current_time()
    async with ActorSystem(shutdown_timeout=4) as system:
        stuck = await system.spawn(child(Recorder, "stuck", log).with_options(shutdown=1000))
        await stuck.tell(Sleep(10_000))
        await stuck.tell(Note("never"))
        await anyio.wait_all_tasks_blocked()
    assert 4 <= anyio.current_time() - began < 4.5
    assert log == ["+stuck", "-stuck"]
    assert sorted(system.dead_letters.counts) == ["interrupted", "stopped"]
    exit_ = await stuck.ended()
    assert isinstance(exit_, Killed)
    assert "shutdown_timeout" in exit_.why
    assert_no_orphans(system)


async def test_a_child_that_overruns_its_shutdown_time_is_cancelled_and_the_rest_go_on() -> None:
    log: Log = []
    async with ActorSystem() as system:
        ref = await system.spawn(
            supervisor(child(Recorder, "a", log), child(Recorder, "b", log).with_options(name="b", shutdown=2))
        )
        await system.find("b").tell(Sleep(10_000))
        await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        await ref.stop()
        assert 2 <= anyio.current_time() - began < 2.1
        assert log == ["+a", "+b", "-b", "-a"]


async def test_an_exception_in_the_block_kills_and_passes_through() -> None:
    log: Log = []
    system = ActorSystem()
    with pytest.raises(ZeroDivisionError):
        async with system:
            ref = await system.spawn(Recorder, "a", log)
            await ref.tell(Sleep(10_000))
            await anyio.wait_all_tasks_blocked()
            raise ZeroDivisionError
    assert log == ["+a", "-a"]
    assert_no_orphans(system)


async def test_a_cancelled_block_leaves_no_actor_behind() -> None:
    log: Log = []
    system = ActorSystem()
    began = anyio.current_time()
    with anyio.move_on_after(5) as scope:
        async with system:
            ref = await system.spawn(Recorder, "a", log)
            await ref.tell(Sleep(10_000))
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(5)
    assert log == ["+a", "-a"]
    assert_no_orphans(system)


async def test_a_native_cancellation_leaves_no_actor_behind(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return  # there is no native cancellation beside scopes
    log: Log = []
    system = ActorSystem()

    async def block(again: bool) -> None:
        async with system:
            ref = await system.spawn(Recorder, "a", log)
            await ref.tell(Sleep(10_000))
            if not again:
                await anyio.sleep_forever()

    for again in (False, True):
        log.clear()
        system = ActorSystem(shutdown_timeout=1000)
        task = asyncio.create_task(block(again))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["+a", "-a"]
        assert_no_orphans(system)


async def test_nothing_can_be_spawned_before_or_after_the_block() -> None:
    system = ActorSystem()
    with pytest.raises((SystemClosed, AttributeError)):
        await system.spawn(Recorder, "a", [])
    async with system:
        ref = await system.spawn(Recorder, "a", [])
    with pytest.raises(SystemClosed):
        await system.spawn(Recorder, "b", [])
    with pytest.raises(SystemClosed, match="entered before"):
        async with system:
            pass
    with pytest.raises(NotStarted, match="has ended"):
        await ref.ask(Get())
    await ref.tell(Note("late"))
    assert system.dead_letters.counts["stopped"] == 1


async def test_actors_that_end_by_themselves_are_waited_for() -> None:
    done: list[int] = []

    async def worker(inbox: Inbox[Note], seconds: int) -> None:
        await anyio.sleep(seconds)
        done.append(seconds)

    async with ActorSystem() as system:
        for seconds in (3, 1, 2):
            await system.spawn(worker, seconds)
        await system.wait()
        assert done == [1, 2, 3]
        await system.wait()


async def test_exits_say_who_ended_an_actor() -> None:
    whys: list[Exit] = []

    class Told(Actor[Note]):
        def stopped(self, why: Exit) -> None:
            whys.append(why)

        @on(Note)
        def note(self, message: Note) -> None: ...

    async with ActorSystem() as system:
        await system.spawn(Told)
    assert whys == [ShutDown()]


async def test_a_stopped_hook_that_fails_or_overruns_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Actor[Note]):
        async def stopped(self, why: Exit) -> None:
            raise OSError("no disk")

        @on(Note)
        def note(self, message: Note) -> None: ...

    class Overruns(Actor[Note]):
        async def stopped(self, why: Exit) -> None:
            await anyio.sleep(1000)

        @on(Note)
        def note(self, message: Note) -> None: ...

    with caplog.at_level(logging.ERROR):
        async with ActorSystem() as system:
            await system.spawn(Fails)
            await system.spawn(child(Overruns).with_options(shutdown=1))
    text = caplog.text
    assert "no disk" in text
    assert "cancelled after 1" in text
    assert_no_orphans(system)


async def test_a_deep_tree_stops(anyio_backend_name: str) -> None:
    deepest: list[Ref[Any]] = []

    class Nest(Actor[Note]):
        def __init__(self, depth: int) -> None:
            self.depth = depth

        async def started(self, why: object) -> None:
            if self.depth:
                deepest[:] = [await self.spawn(Nest, self.depth - 1)]

        @on(Note)
        async def note(self, message: Note) -> None: ...

    async with ActorSystem(shutdown_timeout=60) as system:
        top = await system.spawn(Nest, 1000)
        assert system.alive == 1002
        await top.stop()
        assert system.alive == 1
        await system.spawn(Nest, 1000)
        await wait_until_idle(system)
    assert_no_orphans(system)


async def test_a_deep_tree_of_plain_actors_starts_and_stops() -> None:
    class Nest(Actor[Note]):
        def __init__(self, depth: int) -> None:
            self.depth = depth

        def started(self, why: object) -> None:
            if self.depth:
                self.spawn_nowait(child(Nest, self.depth - 1))

        @on(Note)
        def note(self, message: Note) -> None: ...

    async with ActorSystem(shutdown_timeout=60) as system:
        top = await system.spawn(Nest, 1000)
        await wait_until_idle(system)
        assert system.alive == 1002
        await top.stop()
        assert system.alive == 1
        await system.spawn(Nest, 1000)  # left while it still starts
    assert_no_orphans(system)


@pytest.mark.parametrize("bad", [{"ask_timeout": 0}, {"shutdown_timeout": -1}, {"max_restarts": -1}, {"slow_after": 0}])
async def test_bad_options_of_a_system_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="give"):
        ActorSystem(**bad)


async def test_a_loop_over_its_mailbox_and_a_timer_hears_that_it_is_to_stop() -> None:
    ticks: list[int] = []

    async def ticker(inbox: Inbox[Note]) -> None:
        timer = every(0.2)
        while True:
            case, _ = await select(inbox, timer)
            ticks.append(case)

    async with ActorSystem() as system:
        ref = await system.spawn(ticker)
        await anyio.sleep(1)
        await ref.tell(Note("last"))
        began = anyio.current_time()
        await ref.stop()
        assert anyio.current_time() == began
        assert isinstance(await ref.ended(), Stopped)
        await system.spawn(ticker)
        await anyio.sleep(0.1)
    assert anyio.current_time() - began < 0.2
    assert 0 in ticks


async def test_a_running_handler_does_not_go_on_spending_beyond_its_budget() -> None:
    spent: list[int] = []

    class Spender(Actor[Note]):
        @on(Note)
        async def note(self, message: Note) -> None:
            while True:
                spent.append(1)
                self.spend(tokens=1)
                await anyio.sleep(0.1)

    async with ActorSystem() as system:
        top = await system.spawn(supervisor(child(Spender).with_options(name="s"), budget=Budget(tokens=5)))
        await system.find("s").tell(Note("go"))
        await top.ended()
        assert len(spent) == 6
