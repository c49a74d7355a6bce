"""Accidents on top of accidents: while a group restarts, while a block is left, from outside of all handlers."""

from __future__ import annotations

import logging
import signal
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    Backoff,
    ChildSpec,
    Message,
    Request,
    child,
    on,
    one_for_all,
    rest_for_one,
    run,
    supervisor,
)
from cuelight.actors import Killed, Start
from cuelight.actors._plain_cell import PlainCell
from cuelight.supervision import StopChild
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.recorder import Crash, Log, Note, Recorder, Sleep


def member(name: str, log: Log, **options: Any) -> ChildSpec[Any]:
    return child(Recorder, name, log).with_options(name=name, **options)


class Raise(Message):
    error: Any


class Raiser(Actor[Raise]):
    @on(Raise)
    async def now(self, message: Raise) -> None:
        raise message.error


class PlainRaiser(Actor[Raise]):
    @on(Raise)
    def now(self, message: Raise) -> None:
        raise message.error


async def test_exception_groups_are_readable_in_reports(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with ActorSystem() as system:
            ref = await system.spawn(Raiser)
            inner = ExceptionGroup("inner", [ValueError("one"), OSError("two")])
            await ref.tell(Raise(ExceptionGroup("outer", [inner, KeyError("three")])))
            await wait_until_idle(system)
    text = caplog.records[0].getMessage()
    for line in (
        "  ExceptionGroup: outer",
        "    ExceptionGroup: inner",
        "      ValueError: one",
        "    KeyError: 'three'",
    ):
        assert line in text


@pytest.mark.parametrize("kind", [Raiser, PlainRaiser])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_ends_the_system_with_it(kind: Any, error: Any) -> None:
    log: Log = []
    system = ActorSystem()
    with pytest.raises(error):
        async with system:
            await system.spawn(member("a", log))
            ref = await system.spawn(kind)
            await ref.tell(Raise(error()))
            await anyio.sleep_forever()
    assert log == ["+a", "-a"]
    assert_no_orphans(system)


async def test_an_error_in_the_block_and_a_crash_beyond_the_limit_leave_together() -> None:
    system = ActorSystem(max_restarts=0)
    with pytest.raises(ExceptionGroup) as caught:
        async with system:
            ref = await system.spawn(Raiser)
            await ref.tell(Raise(ValueError("crash")))
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("cleaning up failed")
    assert sorted(type(error).__name__ for error in caught.value.exceptions) == ["OSError", "RestartLimitExceeded"]
    assert_no_orphans(system)


async def test_a_sibling_may_crash_while_its_group_stops() -> None:
    log: Log = []
    async with ActorSystem(backoff=Backoff(0, 0)) as system:
        await system.spawn(supervisor(*(member(n, log) for n in "abc"), strategy=one_for_all))
        c = system.find("c")
        await c.tell(Sleep(1))
        await c.tell(Crash())
        await anyio.wait_all_tasks_blocked()
        await system.find("a").tell(Crash())
        await c.tell(Note("kept"))
        await wait_until_idle(system)
        assert log.count("+a") >= 2
        assert "c:kept" in log
        assert all(system.find(n).alive for n in "abc")


async def test_a_sibling_may_crash_while_its_group_starts() -> None:
    log: Log = []
    crashes = iter([False, False, True])

    class Slow(Recorder):
        async def started(self, why: Start) -> None:
            await super().started(why)
            await anyio.sleep(1)
            if next(crashes, False):
                system.find("a").tell_nowait(Crash())
                await anyio.sleep(1)

    async with ActorSystem() as system:
        top = await system.spawn(
            supervisor(
                member("a", log),
                child(Slow, "b", log).with_options(name="b"),
                child(Slow, "c", log).with_options(name="c"),
                strategy=one_for_all,
                max_restarts=5,
            )
        )
        await system.find("a").tell(Crash())
        await wait_until_idle(system)
        assert top.alive
        assert all(system.find(n).statistics().state == "running" for n in "abc")
        assert log.count("+a") == 3
    assert_no_orphans(system)


async def test_a_temporary_sibling_goes_with_its_group_and_does_not_come_back() -> None:
    log: Log = []
    async with ActorSystem() as system:
        top = await system.spawn(
            supervisor(member("a", log), member("x", log, restart="temporary"), member("c", log), strategy=rest_for_one)
        )
        await system.find("a").tell(Crash())
        await wait_until_idle(system)
        assert log == ["+a", "+x", "+c", "-x", "~a", "+a", "~c", "+c"]
        assert top.statistics().children == 2


async def test_members_of_a_group_may_be_stopped_or_killed_meanwhile() -> None:
    log: Log = []
    async with ActorSystem() as system:
        top = await system.spawn(
            supervisor(*(member(n, log) for n in "abcd"), strategy=one_for_all, backoff=Backoff(10, 10, 0))
        )
        refs = {n: system.find(n) for n in "abcd"}
        await refs["b"].tell(Crash())
        await anyio.sleep(1)
        await refs["c"].kill()
        await top.ask(StopChild("d"))
        await refs["a"].stop()
        await anyio.sleep(20)
        assert [ref.alive for ref in refs.values()] == [False, True, False, False]
        assert log[-2:] == ["~b", "+b"]
    assert_no_orphans(system)


async def test_a_member_killed_while_its_group_starts_stays_ended() -> None:
    log: Log = []

    class Slow(Recorder):
        async def started(self, why: Start) -> None:
            await anyio.sleep(1)
            await super().started(why)

    async with ActorSystem(backoff=Backoff(0, 0)) as system:
        top = await system.spawn(
            supervisor(
                member("a", log),
                child(Slow, "b", log).with_options(name="b"),
                member("c", log),
                strategy=one_for_all,
                backoff=Backoff(0, 0),
            )
        )
        b = system.find("b")
        await system.find("a").tell(Crash())
        await anyio.sleep(0.5)
        assert b.statistics().state == "starting"
        await b.kill()
        await wait_until_idle(system)
        assert [system.find(n).alive for n in "ac"] == [True, True]
        assert top.statistics().children == 2
        assert log[-1] == "+c"
    assert_no_orphans(system)


@pytest.mark.parametrize("seconds", [0, 0.05, 1, 1.05, 5])
async def test_a_block_may_be_left_at_any_point_of_a_group_restart(seconds: float) -> None:
    log: Log = []
    system = ActorSystem()
    async with system:
        await system.spawn(supervisor(*(member(n, log) for n in "abc"), strategy=one_for_all, backoff=Backoff(1, 1, 0)))
        await system.find("a").tell(Crash())
        await system.find("c").tell(Sleep(2))
        await anyio.sleep(seconds)
        system.root.kill("test")
        await anyio.sleep(seconds)
    assert [entry for entry in log if entry[0] == "-"].count("-b") == 1
    assert_no_orphans(system)


async def test_a_system_that_is_killed_ends_its_block() -> None:
    system = ActorSystem()
    async with system:
        ref = await system.spawn(Recorder, "a", [])
        system.root.kill("test")
        await anyio.sleep_forever()
    assert await ref.ended() == Killed("test")
    assert_no_orphans(system)


async def test_wait_can_be_cancelled() -> None:
    async with ActorSystem() as system:
        await system.spawn(Recorder, "a", [])
        with anyio.move_on_after(1) as scope:
            await system.wait()
        assert scope.cancelled_caught


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("forced", [False, True])
def test_signals_reach_the_main_thread(backend: str, forced: bool) -> None:
    log: Log = []

    async def app(system: ActorSystem) -> None:
        ref = await system.spawn(Slow)
        await ref.tell(Note("x"))
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep_forever()

    class Slow(Actor[Note]):
        @on(Note)
        async def note(self, message: Note) -> None:
            if forced:
                await anyio.wait_all_tasks_blocked()
                signal.raise_signal(signal.SIGTERM)
                await anyio.sleep_forever()
            log.append("done")

    if forced:
        with pytest.raises(SystemExit) as caught:
            run(app, backend=backend)
        assert caught.value.code == 128 + signal.SIGTERM
        assert log == []
    else:
        assert run(app, backend=backend) is None
        assert log == ["done"]


async def test_a_crash_is_reported_also_while_the_system_ends(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Actor[Note]):
        @on(Note)
        async def note(self, message: Note) -> None:
            await anyio.sleep(6)  # longer than the system drains
            raise RuntimeError("late")

    with caplog.at_level(logging.ERROR):
        async with ActorSystem() as system:
            ref = await system.spawn(Late)
            await ref.tell(Note("x"))
    (record,) = caplog.records
    assert "its supervisor is stopping" in record.getMessage()
    assert system.dead_letters.counts == {"crashed": 1}
    assert_no_orphans(system)


async def test_a_fault_of_the_library_in_the_turn_of_an_actor_costs_that_incarnation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Sum(Request[int]):
        number: int

    class Adder(Actor[Sum]):
        total = 0

        @on(Sum)
        def add(self, message: Sum) -> int:
            self.total += message.number
            return self.total

    turn = PlainCell.turn
    faults = [RuntimeError("a fault")]

    def broken(cell: PlainCell) -> bool:
        if faults and cell.path == hit.path:
            raise faults.pop()
        return turn(cell)

    async with ActorSystem(backoff=Backoff(0, 0)) as system:
        hit, other = await system.spawn(Adder), await system.spawn(Adder)
        monkeypatch.setattr(PlainCell, "turn", broken)
        await hit.tell(Sum(1))
        await other.tell(Sum(1))
        await wait_until_idle(system)
        assert await other.ask(Sum(1)) == 2
        assert await hit.ask(Sum(1)) == 2  # a new incarnation; its mail was kept
        assert hit.statistics().restarts == 1
    assert "an internal error of Cuelight" in caplog.text
    assert_no_orphans(system)


async def test_callbacks_of_the_library_that_raise_are_reported_and_cost_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[str] = []

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    def hears(_: object) -> None:
        called.append("ended")

    async with ActorSystem() as system:
        ref = await system.spawn(Recorder, "a", [])
        cell: Any = ref._cell
        extras = cell.ensure_extras()
        extras.call_when_ended(fails)
        extras.call_when_ended(hears)
        system.post(fails)
        await ref.stop()
        await wait_until_idle(system)
    assert called == ["ended"]
    assert caplog.text.count("an internal error of Cuelight") == 2


async def test_a_fault_that_ends_programs_ends_the_system() -> None:
    def ends() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with ActorSystem() as system:
            system.post(ends)
            await anyio.sleep_forever()
