"""Hooks: called in order, told why, in every kind of actor; and what becomes of a hook that fails or overruns."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Crashed,
    DeadlockError,
    Exit,
    Ref,
    Stopped,
    WasRestarted,
    child,
    on,
)
from cuelight.actors import Killed, ShutDown, Spawned, Start
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Bang, Boom, Get, Put, outcome, settle


@pytest.fixture(params=[*VIRTUAL_BACKENDS])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Sync(Actor[Put | Bang | Boom | Get]):
    """`def` hooks. It fails in the hook that it is told."""

    def __init__(self, log: list[Any], fails: str = "") -> None:
        self.log, self.fails, self.number = log, fails, len(log)

    def note(self, hook: str, why: Any) -> None:
        self.log.append((hook, why))
        if self.fails == hook:
            raise OSError(hook)

    def started(self, why: Start) -> Any:
        self.note("started", why)

    def restarting(self, why: Exit) -> Any:
        self.note("restarting", why)

    def stopped(self, why: Exit) -> Any:
        self.note("stopped", why)

    @on(Put)
    def put(self, message: Put) -> None:
        self.log.append(message.item)
        if message.item == "stop":
            self.stop()

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError(message.why)

    @on(Boom)
    def boom(self, message: Boom) -> None:
        raise ValueError(message.why)

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return [self.number]


class Async(Sync):
    """The same with `async def` hooks."""

    async def started(self, why: Start) -> Any:
        await anyio.lowlevel.checkpoint()
        self.note("started", why)

    async def restarting(self, why: Exit) -> Any:
        await anyio.lowlevel.checkpoint()
        self.note("restarting", why)

    async def stopped(self, why: Exit) -> Any:
        await anyio.lowlevel.checkpoint()
        self.note("stopped", why)


class Looping(Async):
    async def run(self) -> None:
        async for message in self.inbox:
            await self.handle(message)


KINDS = [Sync, Async, Looping]


@pytest.mark.parametrize("kind", KINDS)
async def test_hooks_are_told_why(kind: Any) -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        ref: Ref[Any] = await system.spawn(kind, log)
        assert log == [("started", Spawned())]
        result = await outcome(ref.ask(Boom()))
        assert isinstance(result, ActorCrashed)
        await ref.ask(Get())
        crash = log[1][1]
        assert isinstance(crash, Crashed)
        assert isinstance(crash.error, ValueError)
        assert crash.message == Boom()
        assert crash.describe() == "crashed: ValueError: boom"
        assert log[1:] == [("restarting", crash), ("started", WasRestarted(crash, 1))]
        await ref.stop()
        assert log[3:] == [("stopped", Stopped())]
        await ref.stop()
        assert len(log) == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_the_stopped_hook_is_told_who_ended_it(kind: Any) -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        killed, stopped, itself = [await system.spawn(kind, log) for _ in range(3)]
        crashed = await system.spawn(child(kind, log).with_options(restart="temporary"))
        await system.spawn(kind, log)
        log.clear()
        await killed.kill("why not")
        await stopped.tell(Put(1))
        await stopped.stop()
        await itself.tell(Put("stop"))
        await itself.ended()
        await crashed.tell(Bang())
        exit_ = await crashed.ended()
    assert log == [
        ("stopped", Killed("why not")),
        1,
        ("stopped", Stopped()),
        "stop",
        ("stopped", Stopped()),
        ("stopped", exit_),
        ("stopped", ShutDown()),
    ]
    assert [one[1].describe() for one in (log[0], log[2], log[6])] == ["killed (why not)", "stopped", "shut down"]
    assert Killed().describe() == "killed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", ["restarting", "stopped"])
async def test_a_hook_at_the_end_that_raises_is_logged_and_ignored(
    kind: Any, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        ref = await system.spawn(kind, log, hook)
        await ref.tell(Bang())
        assert await ref.ask(Get()) == [2]
        await ref.stop()
        assert [one[0] for one in log] == ["started", "restarting", "started", "stopped"]
    assert f"the {hook} hook of {ref.path} failed and was ignored" in caplog.text


class Overrunning(Actor[Bang | Get]):
    def __init__(self, hook: str) -> None:
        self.hook = hook

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return []

    async def restarting(self, why: Exit) -> None:
        if self.hook == "restarting":
            await anyio.sleep_forever()

    async def stopped(self, why: Exit) -> None:
        if self.hook == "stopped":
            await anyio.sleep_forever()


@pytest.mark.parametrize("hook", ["restarting", "stopped"])
async def test_a_hook_at_the_end_that_overruns_is_cancelled(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Overrunning, hook).with_options(shutdown=2))
        await ref.tell(Bang())
        assert await ref.ask(Get()) == []
        await ref.stop()
    assert (
        f"the {hook} hook of {ref.path} failed and was ignored: TimeoutError: it was cancelled after 2" in caplog.text
    )


async def test_a_kill_cuts_the_stopped_hook_short() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await system.spawn(child(Overrunning, "stopped").with_options(shutdown=1e6))
        began = anyio.current_time()
        tasks.start_soon(ref.stop)
        await settle()
        assert ref.alive
        assert ref.statistics().state == "ending"
        await ref.kill()
        assert anyio.current_time() - began < 1


async def test_a_kill_cuts_the_restarting_hook_short() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Overrunning, "restarting").with_options(shutdown=1e6))
        await ref.tell(Bang())
        await anyio.sleep(10)
        assert ref.statistics().state == "starting"
        await ref.kill()
        assert not ref.alive
        assert system.alive == 1


async def test_children_and_timers_belong_to_their_incarnation() -> None:
    class Nest(Actor[Bang | Put | Get]):
        def __init__(self) -> None:
            self.got: list[Any] = []

        async def started(self, why: Start) -> None:
            await self.spawn(Overrunning, "")
            self.every(10, Put(type(why).__name__))

        @on(Bang)
        def bang(self, message: Bang) -> None:
            raise ValueError

        @on(Put)
        def put(self, message: Put) -> None:
            self.got.append(message.item)

        @on(Get)
        def get(self, message: Get) -> list[Any]:
            return [self.got, self.children]

    async with ActorSystem() as system:
        ref = await system.spawn(Nest)
        (_, first) = await ref.ask(Get())
        await ref.tell(Bang())
        (_, second) = await ref.ask(Get())
        assert len(first) == len(second) == 1
        assert first != second
        assert not first[0].alive
        await anyio.sleep(35)
        (got, _) = await ref.ask(Get())
        assert got == ["WasRestarted"] * 3


async def test_a_hook_that_asks_its_own_actor_does_not_hang() -> None:
    seen: list[Any] = []

    class Selfish(Actor[Get]):
        async def stopped(self, why: Exit) -> None:
            seen.append(type(await outcome(self.ref.ask(Get()))).__name__)

        @on(Get)
        async def get(self, message: Get) -> list[Any]:
            return [await outcome(self.ref.ask(Get()))]

    async with ActorSystem() as system:
        ref = await system.spawn(Selfish)
        assert isinstance((await ref.ask(Get()))[0], DeadlockError)
        await ref.stop()
        assert seen == ["NotStarted"]
        await wait_until_idle(system)
