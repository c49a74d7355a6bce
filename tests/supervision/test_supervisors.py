"""Declared and dynamic supervisors: order of start and stop, requests, significant children, budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import anyio
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    Backoff,
    Budget,
    ChildSpec,
    Crashed,
    DynamicSupervisor,
    Interrupted,
    Message,
    ReplyError,
    Request,
    StartChild,
    Stopped,
    Supervisor,
    child,
    on,
    rest_for_one,
    supervisor,
)
from cuelight.actors import ShutDown, Start
from cuelight.errors import BudgetExceeded, MaxChildren, NameTaken, StartError
from cuelight.supervision import RestartChild, StopChild, Strategy, WhichChildren
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.recorder import Crash, Get, Log, Note, Recorder


def member(name: str, log: Log, **options: Any) -> ChildSpec[Any]:
    return child(Recorder, name, log).with_options(name=name, **options)


class RecordersSupervisor(Supervisor):
    strategy: ClassVar[Strategy] = rest_for_one
    max_restarts = 5

    def __init__(self, log: Log) -> None:
        self.log = log

    def specs(self) -> Iterable[ChildSpec[Any]]:
        return [member(name, self.log) for name in "abc"]


async def test_children_start_in_order_and_stop_in_reverse() -> None:
    log: Log = []
    async with ActorSystem() as system:
        await system.spawn(RecordersSupervisor, log)
        await system.spawn(supervisor(member("d", log), supervisor(member("e", log), member("f", log))))
        assert log == ["+a", "+b", "+c", "+d", "+e", "+f"]
        log.clear()
    assert log == ["-f", "-e", "-d", "-c", "-b", "-a"]
    assert_no_orphans(system)


async def test_a_child_that_does_not_start_fails_its_supervisor_and_stops_the_others() -> None:
    log: Log = []

    class Broken(Actor[Note]):
        def started(self, why: Start) -> None:
            raise OSError("no disk")

        @on(Note)
        def note(self, message: Note) -> None: ...

    async with ActorSystem() as system:
        with pytest.raises(StartError, match="no disk"):
            await system.spawn(supervisor(member("a", log), child(Broken), member("c", log)))
        await wait_until_idle(system)
        assert log == ["+a", "-a"]
        assert system.alive == 1
    assert_no_orphans(system)


async def test_a_supervisor_starts_stops_restarts_and_lists_children_on_request() -> None:
    log: Log = []
    async with ActorSystem() as system:
        supervisor_ref = await system.spawn(RecordersSupervisor, log)
        ref = await supervisor_ref.ask(StartChild(member("d", log)))
        await ref.tell(Note("hello"))
        assert [info.name for info in await supervisor_ref.ask(WhichChildren())] == ["a", "b", "c", "d"]
        await supervisor_ref.ask(StopChild("b"))
        await supervisor_ref.ask(StopChild(ref))
        await supervisor_ref.ask(RestartChild("a"))
        await supervisor_ref.ask(RestartChild("c"))
        await wait_until_idle(system)
        infos = await supervisor_ref.ask(WhichChildren())
        assert [(info.name, info.state) for info in infos] == [("a", "running"), ("c", "running")]
        assert [e for e in log if e[0] in "-~"] == ["-b", "-d", "~a", "~c"]
        with pytest.raises(ReplyError, match="no child 'z'"):
            await supervisor_ref.ask(StopChild("z"))
        with pytest.raises(ReplyError, match="has the name 'a' already") as caught:
            await supervisor_ref.ask(StartChild(member("a", log)))
        assert isinstance(caught.value.__cause__, NameTaken)


async def test_a_start_on_request_that_fails_is_refused() -> None:
    class Slow(Actor[Note]):
        async def started(self, why: Start) -> None:
            await anyio.sleep(1)
            raise OSError("too late")

        @on(Note)
        def note(self, message: Note) -> None: ...

    class Never(Slow):
        def __init__(self) -> None:
            raise OSError("never")

        def started(self, why: Start) -> None: ...  # type: ignore[override]

    async with ActorSystem() as system:
        dynamic = await system.spawn(DynamicSupervisor)
        with pytest.raises(ReplyError, match="too late"):
            await dynamic.ask(StartChild(child(Slow)))
        with pytest.raises(ReplyError, match="never"):
            await dynamic.ask(StartChild(child(Never)))
        assert await dynamic.ask(WhichChildren()) == []


async def test_a_dynamic_supervisor_has_a_limit_and_stops_its_children_together() -> None:
    log: Log = []
    began = 0.0

    class Lingers(Actor[Note]):
        async def stopped(self, why: Any) -> None:
            await anyio.sleep(3)
            log.append(f"{anyio.current_time() - began:.0f}")

        @on(Note)
        async def note(self, message: Note) -> None: ...

    async with ActorSystem() as system:
        dynamic = await system.spawn(DynamicSupervisor, max_children=3)
        for _ in range(3):
            await dynamic.ask(StartChild(child(Lingers)))
        with pytest.raises(ReplyError, match="max_children") as caught:
            await dynamic.ask(StartChild(child(Lingers)))
        assert isinstance(caught.value.__cause__, MaxChildren)
        began = anyio.current_time()
        await dynamic.stop()
        assert log == ["3", "3", "3"]
    assert_no_orphans(system)


@pytest.mark.parametrize(("rule", "ends_after"), [("any_significant", 1), ("all_significant", 2)])
async def test_significant_children_end_their_supervisor(rule: Any, ends_after: int) -> None:
    log: Log = []
    async with ActorSystem() as system:
        ref = await system.spawn(
            supervisor(
                member("helper", log),
                member("a", log, significant=True),
                member("b", log, significant=True),
                auto_shutdown=rule,
            )
        )
        for count, name in enumerate("ab", 1):
            assert ref.alive
            await system.find(name).stop()
            await wait_until_idle(system)
            if count == ends_after:
                break
        assert isinstance(await ref.ended(), Stopped)
        assert log[-1] == "-helper"


async def test_significant_needs_auto_shutdown() -> None:
    async with ActorSystem() as system:
        with pytest.raises(StartError, match="set auto_shutdown"):
            await system.spawn(supervisor(member("a", [], significant=True)))
    with pytest.raises(ValueError, match="auto_shutdown='sometimes'"):
        supervisor(auto_shutdown="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_children=0"):
        DynamicSupervisor(max_children=0)


class Spend(Message):
    tokens: float


class Spent(Request[dict[str, float]]):
    pass


class SpendAndAnswer(Request[str]):
    tokens: float


class Spender(Actor[Spend | Spent | SpendAndAnswer]):
    @on(Spend)
    def use(self, message: Spend) -> None:
        self.spend(tokens=message.tokens)

    @on(Spent)
    def say(self, message: Spent) -> dict[str, float]:
        return self.spent

    @on(SpendAndAnswer)
    async def work(self, message: SpendAndAnswer) -> str:
        self.spend(tokens=message.tokens)
        await anyio.sleep(1)
        return "never"


async def test_a_budget_ends_its_subtree_and_no_other() -> None:
    log: Log = []
    async with ActorSystem() as system:
        session = await system.spawn(
            supervisor(
                child(Spender).with_options(name="spender"), member("a", log), budget=Budget(tokens=100, within=60)
            )
        )
        other = await system.spawn(Recorder, "other", log)
        spender = system.find("spender")
        await spender.tell(Spend(60))
        await anyio.sleep(61)
        await spender.tell(Spend(60))
        await wait_until_idle(system)
        assert session.alive
        await spender.tell(Spend(41))
        exit_ = await session.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, BudgetExceeded)
        assert await other.ask(Get()) == 0
        assert "-a" in log
    assert_no_orphans(system)


async def test_what_was_spent_can_be_read_and_is_named_when_it_was_too_much() -> None:
    async with ActorSystem() as system:
        spec = child(Spender).with_options(name="spender")
        session = await system.spawn(supervisor(spec, budget=Budget(tokens=100)))
        spender = system.find("spender")
        actor: Any = spender._cell.actor
        assert await spender.ask(Spent()) == {"tokens": 0}
        await spender.tell(Spend(60))
        assert await spender.ask(Spent()) == {"tokens": 60}
        assert session.statistics().spent == {"tokens": 60}
        assert spender.statistics().spent == {}
        for amount, error in ((math.nan, ValueError), (math.inf, ValueError), ("much", TypeError)):
            with pytest.raises(error, match=r"spend\(tokens\)"):
                actor.spend(tokens=amount)
        with pytest.raises(Interrupted, match="spent 120 of at most 100 tokens"):
            await spender.ask(SpendAndAnswer(60))
    assert_no_orphans(system)


def test_a_supervisor_refuses_what_is_no_spec() -> None:
    wrong: Any = Spender
    with pytest.raises(TypeError, match=r"give child\(Spender\), a spec"):
        supervisor(wrong)


async def test_requests_to_a_supervisor_about_what_is_no_child_are_refused() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    async with ActorSystem() as system:
        dynamic = await system.spawn(DynamicSupervisor)
        other = await system.spawn(Spender)
        given: list[Any] = [Spender, Hostile(), "nobody", other, 5]
        for wrong in given:
            for request in (StopChild(wrong), RestartChild(wrong)):
                with pytest.raises(ReplyError):
                    await dynamic.ask(request)
        for wrong in given[:2]:
            with pytest.raises(ReplyError, match="spec"):
                await dynamic.ask(StartChild(wrong))
        assert await dynamic.ask(WhichChildren()) == []
        assert dynamic.statistics().restarts == 0


@pytest.mark.parametrize(("budget", "text"), [(Budget(wall=30), "lived for 30 s"), (Budget(memory=1), "bytes")])
async def test_wall_time_and_memory_are_budgets_too(budget: Budget, text: str) -> None:
    async with ActorSystem() as system:
        session = await system.spawn(supervisor(member("a", []), budget=budget))
        with anyio.fail_after(60):
            exit_ = await session.ended()
        assert isinstance(exit_, Crashed)
        assert text in str(exit_.error)
    assert_no_orphans(system)


async def test_memory_within_its_budget_is_looked_at_again_and_again() -> None:
    async with ActorSystem() as system:
        session = await system.spawn(supervisor(member("a", []), budget=Budget(memory=math.inf, wall=math.inf)))
        roomy = await system.spawn(supervisor(member("b", []), budget=Budget(memory=2**50)))
        await anyio.sleep(10)
        assert session.alive
        assert roomy.alive
    assert_no_orphans(system)


class Hurry(Request[None]):
    pass


async def test_restarting_on_request_while_a_group_restarts_waits_its_turn() -> None:
    log: Log = []
    async with ActorSystem() as system:
        supervisor_ref = await system.spawn(
            supervisor(*(member(n, log) for n in "ab"), strategy=rest_for_one, backoff=Backoff(1, 1))
        )
        await system.find("a").tell(Crash())
        await anyio.sleep(0.5)
        await supervisor_ref.ask(RestartChild("b"))
        await wait_until_idle(system)
        assert log == ["+a", "+b", "~a", "+a", "~b", "+b", "~b", "+b"]
        await supervisor_ref.ask(StopChild("a"))
        assert isinstance(system.find("b").statistics().restarts, int)


async def test_stopping_a_child_that_waits_for_its_restart_ends_it() -> None:
    log: Log = []
    async with ActorSystem(backoff=Backoff(100, 100)) as system:
        ref = await system.spawn(member("a", log))
        other = await system.spawn(member("b", log))
        await ref.tell(Crash())
        await other.tell(Crash())
        await anyio.sleep(1)
        assert ref.statistics().state == "restarting"
        await ref.stop()
        await other.kill()
        assert not ref.alive
        assert log == ["+a", "+b", "-a", "-b"]
        assert isinstance(await ref.ended(), Stopped)
    assert_no_orphans(system)


async def test_a_supervisor_in_back_off_still_stops_at_once() -> None:
    log: Log = []
    async with ActorSystem() as system:
        ref = await system.spawn(supervisor(*(member(n, log) for n in "ab"), backoff=Backoff(1000, 1000)))
        await system.find("a").tell(Crash())
        await anyio.sleep(1)
        began = anyio.current_time()
        assert len(await ref.ask(WhichChildren())) == 2
        await ref.stop()
        assert anyio.current_time() - began < 0.01
        assert log == ["+a", "+b", "-b", "-a"]
        assert isinstance(await ref.ended(), Stopped | ShutDown)
    assert_no_orphans(system)
