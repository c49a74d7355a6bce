"""Who is restarted, when, how often, in which order, and what becomes of the mail."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Backoff,
    Crashed,
    Exit,
    Ref,
    Request,
    WasRestarted,
    child,
    on,
    one_for_all,
    rest_for_one,
    supervisor,
)
from cuelight.actors import Killed, Start
from cuelight.errors import RestartLimitExceeded
from cuelight.supervision import RestartLimit
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.recorder import Crash, Get, Log, Note, Recorder, Sleep

NOW = Backoff(0, 0)


def member(name: str, log: Log, **options: Any) -> Any:
    return child(Recorder, name, log).with_options(name=name, **options)


async def test_restart_types_say_when_a_child_is_restarted() -> None:
    log: Log = []
    async with ActorSystem(max_restarts=100, backoff=NOW) as system:
        permanent = await system.spawn(member("p", log, restart="permanent"))
        transient = await system.spawn(member("t", log, restart="transient"))
        temporary = await system.spawn(member("x", log, restart="temporary"))
        log.clear()
        for ref in (permanent, transient, temporary):
            await ref.tell(Crash())
        await wait_until_idle(system)
        assert sorted(log) == sorted(["-x", "~p", "+p", "~t", "+t"])
        assert [ref.alive for ref in (permanent, transient, temporary)] == [True, True, False]
        log.clear()
        await transient.stop()
        await permanent.stop()
        await wait_until_idle(system)
        assert not transient.alive
        assert permanent.alive
        assert await permanent.ask(Get()) == 0
        await permanent.kill("test")
        await wait_until_idle(system)
        assert permanent.alive
        await permanent.tell(Note("again"))
        assert await permanent.ask(Get()) == 1
    assert_no_orphans(system)


@pytest.mark.parametrize("verb", ["stop", "kill"])
async def test_stopping_a_permanent_actor_returns_once_its_successor_is_up(verb: str) -> None:
    log: Log = []
    async with ActorSystem(backoff=Backoff(1, 1, 0)) as system:
        ref = await system.spawn(member("a", log, restart="permanent"))
        await ref.tell(Note("x"))
        began = anyio.current_time()
        with anyio.fail_after(10):
            await (ref.stop() if verb == "stop" else ref.kill())
        assert anyio.current_time() - began == pytest.approx(1)
        assert log[-2:] == ["~a", "+a"]
        assert await ref.ask(Get()) == 0
    assert_no_orphans(system)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (one_for_all, ["~a", "+a", "~b", "+b", "~c", "+c"]),
        (rest_for_one, ["~b", "+b", "~c", "+c"]),
    ],
)
async def test_group_restarts_keep_order_and_mail(strategy: Any, expected: list[str]) -> None:
    log: Log = []
    async with ActorSystem() as system:
        await system.spawn(supervisor(*(member(n, log) for n in "abc"), strategy=strategy))
        assert log == ["+a", "+b", "+c"]
        log.clear()
        a, b, c = (system.find(n) for n in "abc")
        await b.tell(Crash())
        for ref in (a, b, c):
            await ref.tell(Note("kept"))
        with anyio.fail_after(60):
            await wait_until_idle(system)
        assert [entry for entry in log if ":" not in entry] == expected
        assert sorted(entry for entry in log if ":" in entry) == ["a:kept", "b:kept", "c:kept"]
        assert system.dead_letters.counts == {"crashed": 1}
    assert_no_orphans(system)


async def test_a_group_restart_cuts_short_a_sibling_that_takes_too_long() -> None:
    log: Log = []
    async with ActorSystem() as system:
        await system.spawn(
            supervisor(member("a", log), member("b", log, shutdown=2), strategy=one_for_all, backoff=NOW)
        )
        slow = system.find("b").ask(Sleep(1000), timeout=math.inf)
        await wait_tick()
        began = anyio.current_time()
        await system.find("a").tell(Crash())
        with pytest.raises(Exception, match="interrupted"):
            await slow
        await wait_until_idle(system)
        assert 2 <= anyio.current_time() - began < 3
        assert log == ["+a", "+b", "~a", "+a", "~b", "+b"]


async def wait_tick() -> None:
    await anyio.wait_all_tasks_blocked()


async def test_a_failed_group_restart_is_tried_again_and_counts() -> None:
    log: Log = []
    failures = iter([False, True, True, False])

    class Fragile(Recorder):
        async def started(self, why: Start) -> None:
            if next(failures, False):
                raise OSError("no start")
            await super().started(why)

    async with ActorSystem() as system:
        ref = await system.spawn(
            supervisor(
                member("a", log), child(Fragile, "f", log).with_options(name="f"), strategy=one_for_all, max_restarts=3
            ).with_options(restart="temporary")
        )
        await system.find("a").tell(Crash())
        await wait_until_idle(system)
        assert ref.alive
        assert await system.find("f").ask(Get()) == 0
        assert log == ["+a", "+f", "~a", "+a", "~f", "~a", "+a", "~a", "+a", "+f"]
        await system.find("a").tell(Crash())
        await ref.ended()
        assert not ref.alive


async def test_backoff_delays_restarts_and_forgets_after_health() -> None:
    starts: list[float] = []

    class Flaky(Actor[Crash]):
        def started(self, why: Start) -> None:
            starts.append(anyio.current_time())

        @on(Crash)
        def crash(self, message: Crash) -> None:
            raise RuntimeError

    async with ActorSystem(max_restarts=100, backoff=Backoff(1, 4, jitter=0)) as system:
        ref = await system.spawn(Flaky)
        for _ in range(4):
            await ref.tell(Crash())
            await wait_until_idle(system)
        assert [round(b - a, 3) for a, b in pairwise(starts)] == [1, 2, 4, 4]
        await anyio.sleep(2.6)  # healthy: longer than (1 + 4) / 2
        crashed = anyio.current_time()
        await ref.tell(Crash())
        await wait_until_idle(system)
        assert round(starts[-1] - crashed, 3) == 1
        assert ref.statistics().restarts == 1


async def test_the_restart_limit_escalates_to_the_block_as_a_group() -> None:
    log: Log = []
    system = ActorSystem("top", max_restarts=2, within=60)
    with pytest.raises(ExceptionGroup) as caught:
        async with system:
            await system.spawn(member("a", log))
            b = await system.spawn(member("b", log))
            for _ in range(3):
                await b.tell(Crash("too often"))
            await anyio.sleep_forever()
    (error,) = caught.value.exceptions
    assert isinstance(error, RestartLimitExceeded)
    assert isinstance(error.__cause__, RuntimeError)
    assert "more than 2 restarts within 60 s" in str(error)
    assert log[-2:] == ["-b", "-a"]
    assert_no_orphans(system)


async def test_a_nested_supervisor_is_restarted_by_its_own() -> None:
    log: Log = []
    inner = supervisor(member("a", log), member("b", log), max_restarts=0).with_options(name="inner")
    async with ActorSystem(backoff=NOW) as system:
        outer = await system.spawn(supervisor(inner, max_restarts=1).with_options(restart="temporary"))
        first = system.find("a")
        await first.tell(Crash())
        await first.ended()
        await wait_until_idle(system)
        assert log == ["+a", "+b", "-b", "-a", "+a", "+b"]
        again = system.find("a")
        assert again != first
        await again.tell(Crash())
        exit_ = await outer.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, RestartLimitExceeded)
    assert_no_orphans(system)


async def test_the_message_that_crashed_its_actor_is_not_run_again() -> None:
    log: Log = []
    async with ActorSystem() as system:
        ref = await system.spawn(member("a", log))
        for text in "12":
            await ref.tell(Note(text))
        await ref.tell(Crash())
        await ref.tell(Note("3"))
        await wait_until_idle(system)
        assert log == ["+a", "a:1", "a:2", "~a", "+a", "a:3"]
        (letter,) = system.dead_letters
        assert (letter.message, letter.reason, letter.actor) == (Crash(), "crashed", "/system/a")
        assert isinstance(letter.error, RuntimeError)


class Poison(Request[str]):
    until: int


class Taster(Actor[Poison | Note]):
    tries = 0

    @on(Poison)
    def taste(self, message: Poison) -> str:
        Taster.tries += 1
        if Taster.tries < message.until:
            raise RuntimeError(f"try {Taster.tries}")
        return f"fine at {Taster.tries}"

    @on(Note)
    def note(self, message: Note) -> None:
        raise RuntimeError("told")


async def test_poison_is_quarantined_without_burning_the_budget() -> None:
    Taster.tries = 0
    async with ActorSystem(max_restarts=0, backoff=NOW) as system:
        ref = await system.spawn(child(Taster).with_options(redeliver=3))
        assert await ref.ask(Poison(3)) == "fine at 3"
        Taster.tries = 0
        with pytest.raises(ActorCrashed) as caught:
            await ref.ask(Poison(99))
        assert str(caught.value.__cause__) == "try 3"
        await ref.tell(Note("x"))
        await wait_until_idle(system)
        assert ref.alive
        ask_letter, tell_letter = system.dead_letters
        assert (ask_letter.reason, tell_letter.reason) == ("quarantined", "quarantined")
        assert [str(error) for error in ask_letter.history] == ["try 1", "try 2", "try 3"]
        assert len(tell_letter.history) == 3


async def test_crash_reports_teach(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []
    with caplog.at_level(logging.ERROR, "cuelight"):
        async with ActorSystem("demo") as system:
            ref = await system.spawn(member("worker", log))
            await ref.tell(Crash("because"))
            await wait_until_idle(system)
            gone = await system.spawn(member("brief", log, restart="temporary"))
            await gone.tell(Crash("once"))
            await gone.ended()
    report, last = (record.getMessage() for record in caplog.records)
    for part in (
        "/demo/worker",
        "Crash(why='because')",
        "RuntimeError: because",
        "transient",
        "1 of at most 3",
    ):
        assert part in report
    assert "not restarted" in last


async def test_restarts_tell_why() -> None:
    whys: list[object] = []

    class Told(Actor[Crash]):
        def started(self, why: Start) -> None:
            whys.append(why)

        def restarting(self, why: Exit) -> None:
            whys.append(why)

        def stopped(self, why: Exit) -> None:
            whys.append(why)

        @on(Crash)
        def crash(self, message: Crash) -> None:
            raise RuntimeError

    async with ActorSystem() as system:
        ref = await system.spawn(Told)
        await ref.tell(Crash())
        await wait_until_idle(system)
        await ref.kill("enough")
    spawned, restarting, restarted, stopped = whys
    assert type(spawned).__name__ == "Spawned"
    assert isinstance(restarting, Crashed)
    assert restarting.message == Crash()
    assert restarted == WasRestarted(restarting, 1)
    assert stopped == Killed("enough")


class Spawn(Request[Ref[Any]]):
    pass


class Parent(Actor[Spawn | Crash]):
    def __init__(self, log: Log) -> None:
        self.log = log

    @on(Spawn)
    async def spawn_child(self, message: Spawn) -> Ref[Any]:
        return await self.spawn(Recorder, f"child{len(self.children)}", self.log)

    @on(Crash)
    async def crash(self, message: Crash) -> None:
        raise RuntimeError


async def test_children_end_before_their_parent_is_restarted() -> None:
    log: Log = []
    async with ActorSystem() as system:
        parent = await system.spawn(Parent, log)
        children = [await parent.ask(Spawn()) for _ in range(3)]
        await parent.tell(Crash())
        await wait_until_idle(system)
        assert log == ["+child0", "+child1", "+child2", "-child2", "-child1", "-child0"]
        assert not any(ref.alive for ref in children)
        assert parent.alive
        assert parent.statistics().children == 0


async def test_a_parent_whose_children_crash_too_often_crashes() -> None:
    log: Log = []
    async with ActorSystem(backoff=NOW) as system:
        parent = await system.spawn(Parent, log)
        ref = await parent.ask(Spawn())
        for _ in range(4):
            await ref.tell(Crash())
        await ref.ended()
        await wait_until_idle(system)
        assert parent.alive
        assert parent.statistics().restarts == 1


async def test_a_child_with_a_limit_of_its_own_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []
    async with ActorSystem(max_restarts=1, within=60, backoff=NOW) as system:
        bad = await system.spawn(member("bad", log, restart_limit=RestartLimit(2, 60)))
        good = await system.spawn(member("good", log))
        for _ in range(3):
            await bad.tell(Crash())
            await wait_until_idle(system)
        assert not bad.alive
        exit_ = await bad.ended()
        assert isinstance(exit_, Crashed)
        assert log.count("+bad") == 3
        await good.tell(Crash())  # the limit of the top has lost nothing
        await wait_until_idle(system)
        assert await good.ask(Get()) == 0
    assert "it is not restarted, and its supervisor continues: more than 2 restarts within 60 s" in caplog.text
    assert_no_orphans(system)


def test_a_limit_of_its_own_must_be_one() -> None:
    with pytest.raises(TypeError, match="restart_limit=3: give a RestartLimit"):
        child(Recorder, "a", []).with_options(restart_limit=3)
