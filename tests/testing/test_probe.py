"""The probe, and the accidents, on a virtual clock."""

import anyio
import pytest

from cuelight import Actor, ActorCrashed, ActorSystem, Message, Ref, ReplyError, Request, child, on
from cuelight.testing import (
    VIRTUAL_BACKENDS,
    InjectedCrash,
    Probe,
    assert_no_orphans,
    crash_once,
    virtual_backend,
    wait_until_idle,
)
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Say(Message):
    text: str


class Question(Request[int]):
    pass


class Talker(Actor[Say | Question]):
    def __init__(self, to: Ref[Say]) -> None:
        self.to = to

    @on(Say)
    def say(self, message: Say) -> None:
        self.to.tell_nowait(message)

    @on(Question)
    async def question(self, message: Question) -> int:
        return 1


async def test_a_probe_sees_what_it_is_sent() -> None:
    async with ActorSystem() as system:
        probe = await Probe.start(system)
        talker = await system.spawn(Talker, probe.ref)
        await talker.tell(Say("a"))
        assert await probe.expect(Say("a")) == Say("a")
        for text in "bcd":
            await talker.tell(Say(text))
        assert await probe.fish(lambda message: message == Say("c")) == Say("c")
        assert await probe.receive(1) == [Say("d")]
        await probe.expect_none(within=3600)
        await probe.watch(talker)
        await wait_until_idle(system)
        await talker.stop()
        assert (await probe.expect_terminated(talker)).ref == talker
    assert_no_orphans(system)


async def test_a_probe_says_what_it_missed() -> None:
    async with ActorSystem() as system:
        probe = await Probe.start(system)
        with pytest.raises(AssertionError, match="got nothing within 60 s"):
            await probe.expect(Say, within=60)
        await probe.ref.tell(Say("x"))
        with pytest.raises(AssertionError, match="expected Say"):
            await probe.expect(Say("y"))
        await probe.ref.tell(Say("x"))
        with pytest.raises(AssertionError, match="expected nothing"):
            await probe.expect_none()
        await probe.ref.tell(Say("z"))
        with pytest.raises(AssertionError, match="caught only"):
            await probe.fish(lambda message: message is None, within=1)
        with pytest.raises(AssertionError, match="told, not asked"):
            probe.reply(1)


async def test_a_probe_answers_and_refuses() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        probe = await Probe.start(system)
        answers: list[object] = []

        async def ask() -> None:
            try:
                answers.append(await probe.ref.ask(Question()))
            except ReplyError as refusal:
                answers.append(str(refusal))

        tasks.start_soon(ask)
        await probe.expect(Question)
        probe.reply(5)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask)
        await probe.expect(Question)
        probe.refuse(ReplyError("no"))
        await anyio.wait_all_tasks_blocked()
        assert answers == [5, "no"]


async def test_crash_once_crashes_once() -> None:
    async with ActorSystem() as system:
        probe = await Probe.start(system)
        talker = await system.spawn(child(Talker, probe.ref))
        with crash_once(Talker, Question), crash_once(Talker, Say, ValueError("x")):
            with pytest.raises(ActorCrashed) as caught:
                await talker.ask(Question())
            assert isinstance(caught.value.__cause__, InjectedCrash)
            await talker.tell(Say("lost"))
            await talker.tell(Say("kept"))
            await probe.expect(Say("kept"))
            assert await talker.ask(Question()) == 1
        with pytest.raises(ValueError, match="no handler"), crash_once(Talker, Probe):
            pass


async def test_orphans_are_found() -> None:
    async with ActorSystem("leaky") as system:
        await system.spawn(Talker, (await Probe.start(system)).ref)
        with pytest.raises(AssertionError, match="3 actors"):
            assert_no_orphans(system)
