"""The dead letters of actors, through the same window as those of tasks."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from cuelight import Actor, ActorNotFound, ActorSystem, Message, Ref, SystemClosed, child, fail, on
from cuelight.errors import MailboxFull, TaskNotFound
from cuelight.tasks import Counts, DeadLetterQueue
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend


class Pay(Message):
    amount: int


class Purse(Actor[Pay]):
    """Takes no debts."""

    def __init__(self, paid: list[int]) -> None:
        self.paid = paid

    @on(Pay)
    def pay(self, message: Pay) -> None:
        if message.amount < 0:
            raise ArithmeticError(f"{message.amount} is a debt")
        self.paid.append(message.amount)


class Clerk(Actor[Pay]):
    """Has a purse below it in the tree."""

    def __init__(self, paid: list[int]) -> None:
        self.given = paid
        self.purse: Ref[Pay] | None = None

    async def started(self, why: object) -> None:
        self.purse = await self.spawn(child(Purse, self.given).with_options(name="inner"))

    @on(Pay)
    async def pay(self, message: Pay) -> None:
        assert self.purse is not None
        await self.purse.tell(message)


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


async def idle() -> None:
    """Until everything was handled; also restarts, which wait."""
    await anyio.sleep(5)


async def test_dead_letters_of_actors_look_like_those_of_tasks() -> None:
    paid: list[int] = []
    async with ActorSystem("shop", max_restarts=10) as system:
        purse = await system.spawn(child(Purse, paid).with_options(name="purse"))
        await purse.tell(Pay(-1))
        await idle()
        dlq = DeadLetterQueue.of(system)  # it knows what the system has kept
        await purse.tell(Pay(-2))
        await idle()
        first, second = await dlq.list()
        assert (first.source, first.task_type, first.payload, first.reason) == (
            "/shop/purse",
            "Pay",
            Pay(-1),
            "crashed",
        )
        assert first.error == "ArithmeticError: -1 is a debt"
        assert "in pay" in first.traceback
        assert first.counts == Counts(errors=1)
        assert [attempt.worker for attempt in first.history] == ["/shop/purse"]
        assert abs(first.dead_at - time.time()) < 60
        assert second.payload == Pay(-2)
        assert await dlq.count(error="-2 is") == 1


async def test_a_message_is_edited_and_told_to_its_actor_again() -> None:
    paid: list[int] = []
    async with ActorSystem("shop", max_restarts=10) as system, DeadLetterQueue.of(system) as dlq:
        clerk = await system.spawn(child(Clerk, paid).with_options(name="clerk"))
        for amount in (-1, -2, 3):
            await clerk.tell(Pay(amount))
        await idle()
        letters = await dlq.list()
        assert [letter.source for letter in letters] == ["/shop/clerk/inner", "/shop/clerk/inner"]
        await dlq.edit(letters[0].id, Pay(1))
        await dlq.replay(letters[0].id)
        await idle()
        assert paid == [3, 1]
        report = await dlq.replay_all()
        await idle()
        assert (report.replayed, report.failed) == (1, 0)
        again = await dlq.list()
        assert [letter.payload for letter in again] == [Pay(-2)]  # it failed again, which is another letter
        assert again[0].id != letters[1].id
        with pytest.raises(TaskNotFound):
            await dlq.get(letters[1].id)


async def test_a_message_to_an_actor_that_ended_goes_to_its_successor_or_to_another() -> None:
    paid: list[int] = []
    async with ActorSystem("shop") as system, DeadLetterQueue.of(system) as dlq:
        purse = await system.spawn(child(Purse, paid).with_options(name="purse"))
        await purse.stop()
        for amount in (1, 2, 3):
            await purse.tell(Pay(amount))
        one, two, three = await dlq.list(reason="stopped")
        with pytest.raises(ActorNotFound, match=r"no actor '/shop/purse' is alive: name a destination"):
            await dlq.replay(one.id)
        assert (await dlq.replay_all()).failed == 3
        assert await dlq.count() == 3
        other = await system.spawn(Purse, paid)
        await dlq.replay(one.id, to=other)
        await system.spawn(child(Purse, paid).with_options(name="purse"))
        await dlq.replay(two.id)
        await idle()
        assert paid == [1, 2]
        assert await dlq.remove(three.id)
        assert await dlq.count() == 0


async def test_a_replay_that_waits_for_room_and_is_cancelled_leaves_the_letter() -> None:
    gate, entered = anyio.Event(), anyio.Event()

    class Slow(Actor[Pay]):
        @on(Pay)
        async def pay(self, message: Pay) -> None:
            entered.set()
            await gate.wait()

    async with ActorSystem("shop") as system:
        slow = await system.spawn(child(Slow).with_options(name="slow", capacity=1))
        dlq = DeadLetterQueue.of(system)
        await slow.tell(Pay(1))
        await entered.wait()
        slow.interrupt()
        entered = anyio.Event()
        await slow.tell(Pay(2))
        await idle()
        await slow.tell(Pay(3))
        [letter] = await dlq.list(reason="interrupted")
        with anyio.move_on_after(0.01) as scope:
            await dlq.replay(letter.id)
        assert scope.cancelled_caught
        assert [found.payload for found in await dlq.list()] == [Pay(1)]
        gate.set()
        await dlq.replay(letter.id)
        assert await dlq.count() == 0


async def test_replays_that_are_cancelled_at_any_await_lose_and_double_nothing() -> None:
    """Telling an actor yields every so often, after it has sent: that must not look as if it had not."""
    paid: list[int] = []
    async with ActorSystem("shop") as system, DeadLetterQueue.of(system) as dlq:
        purse = await system.spawn(child(Purse, paid).with_options(name="purse"))
        await purse.stop()
        for amount in range(600):
            await purse.tell(Pay(amount))
        await system.spawn(child(Purse, paid).with_options(name="purse", capacity=10))
        for patience in itertools.cycle(range(12)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dlq.replay_all)
                for _ in range(patience):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            if not await dlq.count():
                break
    assert sorted(paid) == list(range(600))


async def test_letters_that_were_added_beside_those_of_actors_are_listed_with_them() -> None:
    async with ActorSystem("shop") as system:
        dlq = DeadLetterQueue.of(system)
        added = await dlq.add("something else", source="pool")
        assert await dlq.list() == [added]
        with pytest.raises(ActorNotFound, match="no actor 'pool' is alive"):
            await dlq.replay(added.id)
        nowhere = await dlq.add("something else")
        with pytest.raises(ActorNotFound, match="it came from no actor"):
            await dlq.replay(nowhere.id)


async def test_dead_letters_of_actors_that_are_crowded_out_are_counted() -> None:
    async with ActorSystem("shop") as system:
        purse = await system.spawn(Purse, [])
        await purse.stop()
        dlq = DeadLetterQueue.of(system, keep=3)
        for amount in range(10):
            await purse.tell(Pay(amount))
        assert [letter.payload.amount async for letter in dlq] == [7, 8, 9]
        await purse.tell(Pay(10))
        assert [letter.payload.amount async for letter in dlq] == [8, 9, 10]
        assert dlq.dropped == 8


async def test_the_end_of_the_block_ends_the_subscription() -> None:
    async with ActorSystem("shop") as system:
        purse = await system.spawn(Purse, [])
        await purse.stop()
        async with DeadLetterQueue.of(system) as dlq:
            await purse.tell(Pay(1))
        await purse.tell(Pay(2))
        assert [letter.payload.amount async for letter in dlq] == [1]


async def test_dead_letters_can_be_looked_at_after_the_system_has_ended() -> None:
    async with ActorSystem("shop") as system:
        purse = await system.spawn(child(Purse, []).with_options(name="purse"))
        dlq = DeadLetterQueue.of(system)
        await purse.stop()
        await purse.tell(Pay(1))
    [letter] = await dlq.list()
    with pytest.raises(ActorNotFound):
        await dlq.replay(letter.id)


async def test_a_system_that_does_not_run_has_no_dead_letters() -> None:
    with pytest.raises(SystemClosed, match="the system 'shop' is not running"):
        DeadLetterQueue.of(ActorSystem("shop"))


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_blocking_code_sees_the_dead_letters_of_its_actors(backend_name: str) -> None:
    paid: list[int] = []
    with ActorSystem.blocking("shop", backend=backend_name) as system:
        purse = system.spawn(child(Purse, paid).with_options(name="purse"))
        with DeadLetterQueue.of(system) as dlq:
            purse.stop()
            purse.tell(Pay(1))
            [letter] = dlq.list()
            assert letter.payload == Pay(1)
            assert dlq.dropped == 0
            system.spawn(child(Purse, paid).with_options(name="purse"))
            dlq.replay(letter.id)
            assert dlq.count() == 0
        assert system.find("purse").ref.alive  # the system lives on
    assert paid == [1]


async def test_dead_letters_of_actors_are_refused_to_other_threads() -> None:
    async with ActorSystem("shop") as system:
        dlq = DeadLetterQueue.of(system)

        def enter() -> None:
            dlq.__enter__()

        def look() -> None:
            anyio.run(dlq.count)

        for attempt in (enter, look):
            with pytest.raises(RuntimeError, match="belong to the loop of their system: use them there"):
                await anyio.to_thread.run_sync(attempt)
        assert await dlq.count() == 0


async def test_a_message_that_crashed_several_incarnations_has_them_all_in_its_history() -> None:
    async with ActorSystem("shop", max_restarts=10) as system:
        purse = await system.spawn(child(Purse, []).with_options(name="purse", redeliver=3))
        dlq = DeadLetterQueue.of(system)
        await purse.tell(Pay(-1))
        await idle()
        [letter] = await dlq.list(reason="quarantined")
        assert (len(letter.history), letter.counts) == (3, Counts(errors=3))


async def test_a_replay_into_a_mailbox_that_is_full_leaves_the_letter_and_says_so() -> None:
    gate, entered = anyio.Event(), anyio.Event()

    class Slow(Actor[Pay]):
        @on(Pay)
        async def pay(self, message: Pay) -> None:
            entered.set()
            await gate.wait()

    async with ActorSystem("shop") as system, DeadLetterQueue.of(system) as dlq:
        slow = await system.spawn(child(Slow).with_options(name="slow", capacity=1, overflow=fail))
        await slow.tell(Pay(1))
        await entered.wait()
        await slow.tell(Pay(2))
        with pytest.raises(MailboxFull):
            await slow.tell(Pay(3))
        slow.interrupt()
        await idle()
        [letter] = await dlq.list(reason="interrupted")
        await slow.tell(Pay(4))
        with pytest.raises(MailboxFull):
            await dlq.replay(letter.id)
        report = await dlq.replay_all(reason="interrupted")
        assert (report.replayed, report.failed) == (0, 1)
        assert report.errors[letter.id].startswith("MailboxFull")
        gate.set()
        await idle()
        await dlq.replay(letter.id)
        assert await dlq.count(reason="interrupted") == 0
