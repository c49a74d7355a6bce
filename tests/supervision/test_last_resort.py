"""A system ends, whatever handlers do: those that swallow cancellations, and blocks that nobody leaves."""

# Actors and messages are Any here: no annotation could say more.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorSystem, Message, child, on
from cuelight.errors import ShutdownTimeout
from cuelight.testing import assert_no_orphans
from helpers import players
from helpers.players import Busy, Plain, Put, Wait


class Hold(Message):
    pass


class Work(Message):
    pass


class Swallow(Actor[Hold | Work]):
    """Goes on for `seconds` after its cancellation, whatever anybody says."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @on(Hold)
    async def hold(self, message: Hold) -> None:
        await self._hold()

    @on(Work)
    def work(self, message: Work) -> None:
        self.pipe_to_self(self._hold(), lambda _: Hold())

    async def _hold(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.seconds)


@pytest.mark.parametrize("what", [Hold, Work])
async def test_a_block_is_left_without_actors_that_go_on_although_they_were_cancelled(
    what: Any, caplog: pytest.LogCaptureFixture
) -> None:
    began = anyio.current_time()
    others: list[Any] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with ActorSystem(shutdown_timeout=2) as system:
            stuck = await system.spawn(child(Swallow, 60).with_options(name="stuck"))
            others += [await system.spawn(kind) for kind in (Plain, Busy)]
            await stuck.tell(what())
            await anyio.sleep(0.1)
    assert anyio.current_time() - began < 15
    (failure,) = caught.value.exceptions
    assert isinstance(failure, ShutdownTimeout)
    assert "/system/stuck did not end within 5 s after being cancelled" in str(failure)
    assert "/system/stuck continues to run although it was cancelled. Its stack:" in caplog.text
    assert ", in _hold" in caplog.text
    assert not any(ref.alive for ref in others)
    await anyio.sleep(100)  # the task that went on ends without a word when it ends
    assert "internal error" not in caplog.text


async def test_those_that_take_their_time_but_end_are_waited_for() -> None:
    class Cleaning(Busy):
        async def stopped(self, why: Any) -> None:
            await anyio.sleep(4)

    async with ActorSystem(shutdown_timeout=1) as system:
        slow = await system.spawn(Swallow, 4.0)
        await slow.tell(Hold())
        parent = await system.spawn(Parent, Cleaning, 3)
        assert await parent.ask(Wait()) == "3"
        await anyio.sleep(0.1)
    assert_no_orphans(system)


class Parent(Actor[Wait]):
    """A chain of actors, each of which has a `stopped` hook that takes its time."""

    def __init__(self, kind: Any, depth: int) -> None:
        self.kind, self.depth = kind, depth

    async def started(self, why: Any) -> None:
        await self.spawn(self.kind)
        if self.depth:
            await self.spawn(Parent, self.kind, self.depth - 1)

    async def stopped(self, why: Any) -> None:
        await anyio.sleep(4)

    @on(Wait)
    def wait(self, message: Wait) -> str:
        return str(self.depth)


LEFT_OPEN = """
    import asyncio, sys, threading
    from cuelight import Actor, ActorSystem, Request, on

    class Ping(Request[str]):
        pass

    class Pong(Actor[Ping]):
        @on(Ping)
        async def ping(self, message):
            return "pong"

        async def stopped(self, why):
            print("stopped")
            await asyncio.sleep(0)

    async def resource():
        async with ActorSystem(shutdown_timeout=1) as system:
            yield system

    async def main():
        if {how!r} == "generator":
            global kept
            kept = resource()
            system = await anext(kept)
        else:
            system = ActorSystem(shutdown_timeout=1)
            await system.__aenter__()
        ref = await system.spawn(Pong)
        print(await ref.ask(Ping()))

    asyncio.run(main())
    print("returned", [thread.name for thread in threading.enumerate()])
"""


@pytest.mark.parametrize("how", ["generator", "entered"])
def test_a_loop_ends_although_the_block_of_a_system_was_never_left(how: str) -> None:
    program = textwrap.dedent(LEFT_OPEN).format(how=how)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[:2] == ["pong", "stopped"]
    assert "returned ['MainThread']" in done.stdout


# Many that wait, and many members.


async def test_many_that_wait_for_an_actor_may_stop_waiting() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Plain)
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ref.ended)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert ref._cell.extras is not None
        assert not ref._cell.extras.when_ended
        busy = await system.spawn(Busy)
        await busy.tell(players.Hold())
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(busy.stop)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert busy._cell.extras is not None
        assert not busy._cell.extras.when_started
        assert busy.interrupt()


async def test_a_group_picks_its_members_in_turn_and_forgets_those_that_left() -> None:
    async with ActorSystem() as system:
        group: Any = system.group("all")
        refs = [await system.spawn(Plain) for _ in range(5)]
        for ref in refs:
            group.join(ref)
            group.join(ref)
        assert [group.pick() for _ in range(7)] == [*refs, *refs[:2]]
        group.leave(refs[2])
        await refs[3].stop()
        assert [group.pick() for _ in range(4)] == [refs[4], refs[0], refs[1], refs[4]]
        assert list(group) == [refs[0], refs[1], refs[4]]  # still in the order in which they joined
        group.join(refs[2])
        assert [group.pick() for _ in range(4)] == [refs[0], refs[1], refs[4], refs[2]]
        assert group.broadcast(Put(1)) == 4
