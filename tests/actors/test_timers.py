"""Time in actors, on a virtual clock: timers, and the heap under them."""

from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorSystem, Message, child, on
from cuelight.actors import ActorTimer
from cuelight.actors._timers import ScheduledCall, TimerHeap
from cuelight.mailbox import current_backend
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Bang, Get, Put


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Set(Message):
    """Set a timer."""

    seconds: float
    item: Any
    key: Any = None
    again: bool = False


class Clocked(Actor[Set | Put | Get | Bang]):
    def __init__(self) -> None:
        self.fired: list[Any] = []
        self.timers: list[ActorTimer] = []

    @on(Set)
    def set(self, message: Set) -> None:
        make = self.every if message.again else self.after
        self.timers.append(make(message.seconds, Put(message.item), key=message.key))

    @on(Put)
    def put(self, message: Put) -> None:
        self.fired.append((message.item, anyio.current_time()))

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return self.fired

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError


async def test_after_tells_once_and_every_without_drift() -> None:
    async with ActorSystem() as system:
        began = anyio.current_time()
        ref = await system.spawn(Clocked)
        await ref.tell(Set(3, "once"))
        await ref.tell(Set(0.7, "again", again=True))
        await anyio.sleep(70.1)
        fired = await ref.ask(Get())
        assert [at - began for item, at in fired if item == "once"] == [pytest.approx(3)]
        again = [at - began for item, at in fired if item == "again"]
        assert again == [pytest.approx(0.7 * number) for number in range(1, 101)]


async def test_every_skips_periods_that_were_missed() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clocked)
        await ref.tell(Set(1, "x", again=True))
        await wait_until_idle(system)
        actor: Any = ref._cell.actor
        timer = actor.timers[0]
        timer._due -= 5.5  # as if the loop had been blocked
        due = timer._due
        system.timers.remove(due + 5.5, timer)
        timer.fire()
        assert timer._due == pytest.approx(due + 5)


async def test_a_timer_is_replaced_by_one_with_its_key_and_can_be_cancelled() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clocked)
        for seconds, item, key in ((5, "a", "k"), (1, "b", "k"), (2, "c", None), (3, "d", None)):
            await ref.tell(Set(seconds, item, key))
        await wait_until_idle(system)
        actor: Any = ref._cell.actor
        first, second, third, fourth = actor.timers
        assert [timer.active for timer in actor.timers] == [False, True, True, True]
        fourth.cancel()
        fourth.cancel()
        await anyio.sleep(10)
        assert [item for item, _ in await ref.ask(Get())] == ["b", "c"]
        assert not any(timer.active for timer in (first, second, third, fourth))


async def test_timers_end_with_their_incarnation() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clocked)
        await ref.tell(Set(1, "x", again=True))
        await ref.tell(Bang())
        await anyio.sleep(20)
        assert await ref.ask(Get()) == []
        await ref.tell(Set(1, "y", again=True))
        await wait_until_idle(system)
        await ref.stop()
        await anyio.sleep(20)
        assert not system.dead_letters.counts["stopped"]
        assert len(system.timers) == 0
    assert_no_orphans(system)


async def test_a_timer_that_finds_no_room_makes_a_dead_letter() -> None:
    class Stuck(Clocked):
        @on(Set)
        async def set_later(self, message: Set) -> None:
            self.every(1, Put(message.item))
            await anyio.sleep(3.5)

    async with ActorSystem() as system:
        ref = await system.spawn(child(Stuck).with_options(capacity=1))
        await ref.tell(Set(1, "x"))
        await anyio.sleep(3.2)
        assert system.dead_letters.counts == {"mailbox_full": 2}


async def test_every_wants_a_period_of_more_than_nothing() -> None:
    async with ActorSystem() as system:
        actor: Any = (await system.spawn(Clocked))._cell.actor
        for period in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=r"a period is more than 0 seconds|not a number of seconds"):
                actor.every(period, Put(1))


async def test_entries_of_one_instant_that_are_cancelled_by_the_first_do_not_ring() -> None:
    timers = TimerHeap(current_backend(), lambda error: pytest.fail(repr(error)))
    fired: list[str] = []
    due = anyio.current_time() + 1

    def first() -> None:
        fired.append("first")
        second.cancel()
        ScheduledCall(timers, due, fired.append, "third")  # at an instant that is here

    ScheduledCall(timers, due, first)
    second = ScheduledCall(timers, due, fired.append, "second")
    ScheduledCall(timers, due + 1, fired.append, "last")
    await anyio.sleep(1.5)
    assert fired == ["first", "third"]
    await anyio.sleep(1)
    assert fired == ["first", "third", "last"]
    assert len(timers) == 0


async def test_cancelled_timers_leave_nothing_behind() -> None:
    timers = TimerHeap(current_backend(), lambda error: pytest.fail(repr(error)))
    fired: list[int] = []
    now = anyio.current_time()
    keep = ScheduledCall(timers, now + 10_000, fired.append, 0)
    for number in range(1000):
        ScheduledCall(timers, now + 1 + number, fired.append, number).cancel()
    assert len(timers._heap) < 200
    early = ScheduledCall(timers, now + 1, fired.append, 1)
    ScheduledCall(timers, now + 2, fired.append, 2)
    early.cancel()
    early.cancel()
    await anyio.sleep(5)
    assert fired == [2]
    keep.cancel()
    assert len(timers) == 0
    ScheduledCall(timers, anyio.current_time() + 1, fired.append, 3)
    timers.close()
    await anyio.sleep(5)
    assert fired == [2]


async def test_times_that_are_no_numbers_are_refused_where_they_are_given() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clocked)
        actor: Any = ref._cell.actor
        wrong: list[Any] = [float("nan"), "1", None]
        for seconds in wrong:
            error = ValueError if isinstance(seconds, float) else TypeError
            with pytest.raises(error, match=r"after\(delay\)"):
                actor.after(seconds, Put(1))
            with pytest.raises(error, match=r"every\("):
                actor.every(seconds, Put(1))
            if seconds is not None:
                with pytest.raises(error, match=r"ask\(timeout\)"):
                    await ref.ask(Get(), timeout=seconds)
                with pytest.raises(error, match=r"stream\(timeout\)"):
                    actor.ref.stream(Get(), timeout=seconds)
                with pytest.raises(error, match=r"stop\(timeout\)"):
                    await ref.stop(timeout=seconds)
        with pytest.raises(ValueError, match="finite"):
            actor.every(float("inf"), Put(1))
        assert await ref.ask(Get(), timeout=1) == []  # deadlines hold still
        assert len(system.timers) == 0
