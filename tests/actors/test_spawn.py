"""Starting actors: from where, of what, with which options, and what a start that fails leaves behind."""

import asyncio
import math
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorNotFound, ActorSystem, Channel, Exit, Message, Ref, Request, SystemClosed, child, on
from cuelight.actors import Inbox, Killed, Options, Spawned, Start
from cuelight.errors import NameTaken, StartError
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.players import Bang, Busy, Get, Plain, Put, outcome, settle


class Spawn(Request[Any]):
    factory: Any
    args: tuple[Any, ...] = ()


class Children(Request[list[Any]]):
    pass


class Parent(Actor[Spawn | Children]):
    @on(Spawn)
    async def spawn_one(self, message: Spawn) -> Any:
        return await outcome(self.spawn(message.factory, *message.args))

    @on(Children)
    async def list_them(self, message: Children) -> list[Any]:
        return list(self.children)


async def test_actors_are_spawned_by_the_system_and_by_actors() -> None:
    async with ActorSystem("s") as system:
        parent = await system.spawn(Parent)
        assert await parent.ask(Children()) == []
        first = await parent.ask(Spawn(Plain))
        second = await parent.ask(Spawn(child(Busy).with_options(name="busy")))
        assert await parent.ask(Children()) == [first, second]
        assert second.path == f"{parent.path}/busy"
        assert first.path.startswith(f"{parent.path}/Plain-")
        assert parent.statistics().children == 2
        await parent.stop()
        assert not first.alive
        assert not second.alive
        assert isinstance(await parent.ended(), Exit)


async def test_functions_are_actors_too() -> None:
    async def adder(inbox: Inbox[Put | Get], start: int, *, step: int = 1) -> None:
        total = start
        async for message in inbox:
            if isinstance(message, Put):
                total += step * message.item
            else:
                inbox.reply([total])

    async with ActorSystem() as system:
        ref = await system.spawn(adder, 10, step=2)
        await ref.tell(Put(1))
        assert await ref.ask(Get()) == [12]
        assert ref.name.startswith("FunctionActor")
        assert await (await system.spawn(child(adder, 1))).ask(Get()) == [1]


async def test_a_function_may_make_the_actor_of_each_incarnation() -> None:
    log: list[Any] = []

    class Hooked(Plain):
        def started(self, why: Start) -> None:
            log.append(type(why).__name__)

        def stopped(self, why: Exit) -> None:
            log.append("stopped")

    class Running(Actor[Get]):
        async def run(self) -> None:
            log.append("running")
            async for _ in self.inbox:
                self.inbox.reply([1])

    async with ActorSystem() as system:
        ref = await system.spawn(lambda: Hooked([1]))
        assert log == ["Spawned"]
        assert await ref.ask(Get()) == [1]
        await ref.tell(Bang())
        assert await ref.ask(Get()) == [1]
        assert log == ["Spawned", "WasRestarted"]
        await ref.stop()
        assert log.pop() == "stopped"
        running = await system.spawn(lambda: Running())
        await settle()
        assert log.pop() == "running"
        assert await running.ask(Get()) == [1]
        plain = await system.spawn(lambda: Plain([2]))
        assert await plain.ask(Get()) == [2]
        wrong: Any = lambda: 5  # noqa: E731
        with pytest.raises(StartError, match="returned 5, not an Actor"):
            await system.spawn(wrong)


async def test_what_cannot_be_spawned_is_refused_with_a_reason() -> None:
    async with ActorSystem() as system:
        spawn: Any = system.spawn
        for wrong, text in (
            (int, "int is not an Actor"),
            (5, "cannot spawn 5"),
            (Plain(), "cannot spawn"),
        ):
            with pytest.raises(TypeError, match=text):
                await spawn(wrong)
        with pytest.raises(TypeError, match="a spec has its arguments already"):
            await spawn(child(Plain), [1])
        with pytest.raises(TypeError, match="give an Actor class, or a function"):
            child(5)  # type: ignore[call-overload]
        assert system.alive == 1
        with pytest.raises(StartError, match="unexpected keyword"):
            await spawn(Plain, nonsense=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"restart": "sometimes"}, "is not one of 'permanent', 'transient', 'temporary'"),
        ({"shutdown": -1}, "give seconds, 0 or more"),
        ({"capacity": 0}, "a mailbox holds 1 message or more"),
        ({"capacity": True}, "a mailbox holds 1 message or more"),
        ({"capacity": 1.5}, "a mailbox holds 1 message or more"),
        ({"redeliver": -1}, "give the number of incarnations"),
        ({"significant": True, "restart": "permanent"}, "a permanent child never ends"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        child(Plain).with_options(**options)
    with pytest.raises(ValueError, match=text):
        Options(**options)


def test_the_name_of_an_overflow_policy_is_not_a_policy() -> None:
    with pytest.raises(TypeError, match=r"overflow='fail': give a function, such as cuelight\.fail"):
        child(Plain).with_options(overflow="fail")
    wrong: Any = "fail"
    with pytest.raises(TypeError, match=r"overflow='fail': give a function, such as cuelight\.fail"):
        Channel[int](1, overflow=wrong)


def test_unknown_options_are_refused_and_specs_are_never_changed() -> None:
    spec = child(Plain)
    with pytest.raises(TypeError, match="no such option: capcity; there are restart, shutdown, capacity"):
        spec.with_options(capcity=5)
    changed = spec.with_options(capacity=math.inf, name="a")
    assert (spec.options.capacity, spec.name) == (1000, None)
    assert (changed.options.capacity, changed.name) == (math.inf, "a")
    assert changed.with_options(name="b").options is changed.options


class Failing(Actor[Put]):
    """Fails where it is told to; it has a child, and every hook."""

    def __init__(self, where: str, log: list[str]) -> None:
        self.where, self.log = where, log
        if where == "child in init":
            self.spawn_nowait(child(Busy))
        if where in {"init", "child in init"}:
            raise OSError(where)

    @on(Put)
    def put(self, message: Put) -> None: ...

    def started(self, why: Start) -> Any:
        self.every(1, Put(1))
        if self.where == "started":
            raise OSError(self.where)

    def restarting(self, why: Exit) -> Any:
        self.log.append("restarting")

    def stopped(self, why: Exit) -> Any:
        self.log.append("stopped")


class AsyncFailing(Failing):
    async def started(self, why: Start) -> Any:
        await self.spawn(Busy)
        super().started(why)


class BareFailing(Plain):
    def __init__(self, where: str, log: list[str]) -> None:
        raise OSError(where)


class AsyncBareFailing(Busy):
    def __init__(self, where: str, log: list[str]) -> None:
        raise OSError(where)


@pytest.mark.parametrize("where", ["init", "started", "child in init"])
@pytest.mark.parametrize("kind", [Failing, AsyncFailing, BareFailing, AsyncBareFailing])
async def test_a_start_that_fails_raises_start_error_and_leaves_nothing(kind: Any, where: str) -> None:
    log: list[str] = []
    async with ActorSystem("s") as system:
        with pytest.raises(StartError, match=f"did not start: OSError: {where}") as caught:
            await system.spawn(child(kind, where, log).with_options(name="x"))
        assert isinstance(caught.value.__cause__, OSError)
        assert system.alive == 1  # the root
        assert len(system.timers) == 0
        with pytest.raises(ActorNotFound):
            system.find("x")
        assert log == []  # no hook of an actor that never was
    assert_no_orphans(system)


class SlowStart(Actor[Put]):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def started(self, why: Start) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("cut")

    async def stopped(self, why: Exit) -> None:
        self.log.append("stopped")

    @on(Put)
    def put(self, message: Put) -> None: ...


async def test_a_spawner_that_is_cancelled_takes_the_starting_child_with_it(anyio_backend_name: str) -> None:
    async with ActorSystem() as system:
        log: list[str] = []
        with anyio.move_on_after(0.01) as scope:
            await system.spawn(SlowStart, log)
        assert scope.cancelled_caught
        await wait_until_idle(system)
        assert (log, system.alive) == (["cut"], 1)
        if anyio_backend_name == "asyncio":
            task = asyncio.ensure_future(system.spawn(SlowStart, log))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await wait_until_idle(system)
            assert (log, system.alive) == (["cut", "cut"], 1)


async def test_an_actor_that_is_killed_while_it_starts_did_not_start() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        log: list[str] = []
        results: list[Any] = []

        async def spawn() -> None:
            results.append(await outcome(system.spawn(child(SlowStart, log).with_options(name="slow"))))

        tasks.start_soon(spawn)
        await settle()
        ref = system.find("slow")
        assert ref.statistics().state == "starting"
        await ref.tell(Put(1))
        assert not ref.interrupt()
        await ref.kill("enough")
        assert await ref.ended() == Killed("enough")
        await settle()
        assert isinstance(results[0], StartError)
        assert "killed (enough)" in str(results[0])
        assert log == ["cut"]
        assert system.dead_letters.counts == {"stopped": 1}


async def test_an_actor_that_is_stopped_while_it_starts_starts_drains_and_ends() -> None:
    go = anyio.Event()
    log: list[Any] = []

    class Slow(Busy):
        async def started(self, why: Start) -> None:
            await go.wait()
            log.append(why)

    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        tasks.start_soon(system.spawn, child(Slow, log).with_options(name="slow"))
        await settle()
        ref = system.find("slow")
        ref.tell_nowait(Put(1))
        tasks.start_soon(ref.stop)
        await settle()
        assert ref.alive
        go.set()
        await ref.ended()
        assert log == [Spawned(), 1]


async def test_a_child_that_crashes_right_after_its_start_did_start() -> None:
    class Brief(Actor[Put]):
        def started(self, why: Start) -> None:
            self.ref.tell_nowait(Put(1))

        @on(Put)
        async def put(self, message: Put) -> None:
            raise OSError

    async with ActorSystem() as system:
        ref = await system.spawn(child(Brief).with_options(restart="temporary"))
        await ref.ended()


async def test_names_are_unique_found_kept_over_restarts_and_freed_at_the_end() -> None:
    async with ActorSystem("s") as system:
        spec = child(Plain).with_options(name="counter")
        ref = await system.spawn(spec)
        with pytest.raises(NameTaken, match="/s/counter has the name 'counter' already"):
            await system.spawn(spec)
        assert system.find("counter") == ref
        await ref.tell(Bang())
        await ref.ask(Get())
        assert system.find("counter") == ref
        with pytest.raises(ActorNotFound, match="no actor is named 'x'; names in use: counter"):
            system.find("x")
        await ref.stop()
        with pytest.raises(ActorNotFound, match="names in use: none"):
            system.find("counter")
        again = await system.spawn(spec)
        assert again != ref
        assert {ref, again} == {system.find("counter"), ref}
        assert repr(again) == "<ref /s/counter>"
        assert repr(ref) == "<ref /s/counter ended>"


async def test_an_actor_that_is_ending_can_have_no_more_children_timers_or_background_tasks() -> None:
    errors: list[Any] = []

    class Late(Actor[Put]):
        @on(Put)
        def put(self, message: Put) -> None: ...

        async def stopped(self, why: Exit) -> None:
            errors.append(await outcome(self.spawn(Plain)))
            for attempt in (
                lambda: self.after(1, Put(1)),
                lambda: self.pipe_to_self(anyio.sleep(1), Put),
                lambda: self.pipe_to_self(Plain2(), Put),
            ):
                try:
                    attempt()
                except SystemClosed as error:
                    errors.append(error)

    class Plain2:
        def __await__(self) -> Any:
            yield

    async with ActorSystem() as system:
        await (await system.spawn(Late)).stop()
        assert [str(error).split("no more ")[1] for error in errors] == [
            "children",
            "timers",
            "background tasks",
            "background tasks",
        ]


class Deeper(Message):
    levels: int
    last: Any


class Level(Actor[Deeper]):
    @on(Deeper)
    async def deeper(self, message: Deeper) -> None:
        if message.levels:
            below: Ref[Deeper] = await self.spawn(Level)
            await below.tell(Deeper(message.levels - 1, message.last))
        else:
            message.last.set()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_tree_a_thousand_deep_works_and_ends(end: str) -> None:
    async with ActorSystem(shutdown_timeout=50) as system:
        top = await system.spawn(Level)
        last = anyio.Event()
        await top.tell(Deeper(1000, last))
        await last.wait()
        assert system.alive == 1002
        await (top.stop() if end == "stop" else top.kill())
        assert system.alive == 1
    assert_no_orphans(system)
