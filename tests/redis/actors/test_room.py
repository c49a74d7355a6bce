"""Back-pressure reaches those who tell from afar, one by one, and holds up nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from cuelight import Actor, MailboxFull, Message, NotStarted, child, coalesce, drop_newest, fail, on
from cuelight.mailbox import Overflow
from cuelight.redis._actors._remote_cell import WINDOW
from helpers.nodes import Add, Blob, Log, Plain, Player, Slow, Total, inside, pair, until

CAPACITY = 10


async def test_a_full_remote_mailbox_makes_tell_wait_and_tell_nowait_raise() -> None:
    log = Log()
    async with pair() as (here, there):
        own = await there.spawn(child(Player, log).with_options(capacity=CAPACITY))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        await ref.tell(Add(0))
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        told = 0

        async def tell() -> None:
            nonlocal told
            while told < 2 * WINDOW:
                await ref.tell(Add(told + 1))
                told += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            # What its mailbox holds, what waits in line before that, and no more.
            await until(lambda: told == WINDOW + CAPACITY)
            with pytest.raises(MailboxFull, match="await tell"):
                ref.tell_nowait(Add(-1))
            await anyio.sleep(0.1)
            assert told == WINDOW + CAPACITY
            assert own.statistics().waiting_senders == WINDOW
            blocker.cancel()
        assert await ref.ask(Total()) == sum(range(2 * WINDOW + 1))
        assert [line for line in log.lines if line.startswith("add")] == [f"add {n}" for n in range(2 * WINDOW + 1)]


async def test_a_full_remote_mailbox_holds_up_no_other_actor_of_its_node() -> None:
    log = Log()
    async with pair() as (here, there):
        busy = await there.spawn(child(Player, log).with_options(capacity=CAPACITY))
        idle = await there.spawn(Plain)
        await there.expose(busy, "busy")
        await there.expose(idle, "idle")
        ref, other = await here.resolve("busy"), await here.resolve("idle")
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        with pytest.raises(MailboxFull):
            while True:
                ref.tell_nowait(Add(1))
        await other.tell(Add(3))
        assert await other.ask(Total()) == 3
        blocker.cancel()


async def test_a_remote_tell_that_is_cancelled_while_it_waits_has_not_sent_anything() -> None:
    log = Log()
    async with pair() as (here, there):
        own = await there.spawn(child(Player, log).with_options(capacity=1))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        sent = 0
        with anyio.move_on_after(0.2):
            while True:
                await ref.tell(Add(1))
                sent += 1
        asked = ref.ask(Total())  # and an ask waits in the same line
        blocker.cancel()
        assert await asked == sent


async def test_an_ask_never_overtakes_those_that_wait_in_line_for_a_remote_actor() -> None:
    log = Log()
    async with pair() as (here, there):
        own = await there.spawn(child(Player, log).with_options(capacity=1))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        sent = 0
        with pytest.raises(MailboxFull):
            while True:
                ref.tell_nowait(Add(1))
                sent += 1
        async with anyio.create_task_group() as group:
            group.start_soon(ref.tell, Add(1))
            await until(lambda: ref.statistics().waiting_senders == 1)
            asked, dropped = ref.ask(Total()), ref.ask(Total())
            dropped.cancel()
            blocker.cancel()
            assert await asked == sent + 1


@pytest.mark.parametrize(("overflow", "reason"), [(drop_newest, "drop_newest"), (fail, "mailbox_full")])
async def test_overflow_policies_of_a_remote_actor_hold_and_make_dead_letters_there(
    overflow: Overflow[Any], reason: str
) -> None:
    log = Log()
    async with pair() as (here, there):
        own = await there.spawn(child(Player, log).with_options(capacity=2, overflow=overflow))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        for _ in range(5):
            await ref.tell(Add(1))
        if overflow is fail:
            with pytest.raises(NotStarted, match="the overflow policy is to fail"):
                await ref.ask(Total())
        await until(lambda: there.dead_letters.counts[reason] == 3)
        blocker.cancel()
        await until(lambda: own.statistics().queued == 0)
        assert await ref.ask(Total()) == 2


class Picky(LookupError):
    pass


def picky(buffer: Sequence[object], item: object) -> int | None:
    raise Picky(f"not with {len(buffer)} before it")


async def test_an_overflow_policy_that_raises_refuses_messages_and_requests_from_afar() -> None:
    log = Log()
    async with pair() as (here, there):
        own = await there.spawn(child(Player, log).with_options(capacity=1, overflow=picky))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        blocker = ref.ask(Slow(60, "block"))
        await until(lambda: "begin block" in log.lines)
        for _ in range(WINDOW + 10):  # none of those that are refused keeps its place in the window
            await ref.tell(Add(1))
        with pytest.raises(NotStarted, match="not with 1 before it"):
            await ref.ask(Total(), timeout=5)
        assert there.dead_letters.counts["mailbox_full"] == WINDOW + 9
        assert isinstance(next(iter(there.dead_letters)).error, Picky)
        blocker.cancel()
        await until(lambda: own.statistics().queued == 0)
        assert await ref.ask(Total()) == 1


async def test_a_large_message_goes_through_and_fills_an_inbox_at_most_once() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        for _ in range(40):  # more than the inbox holds at once
            await ref.tell(Blob(bytes(900_000)))
        assert await ref.ask(Total()) == 40 * 900_000


class Price(Message):
    of: str
    value: int


def name_of(price: Price) -> str:
    return price.of


class Ticker(Actor[Price]):
    def __init__(self) -> None:
        self.seen: list[Price] = []

    @on(Price)
    async def price(self, message: Price) -> None:
        self.seen.append(message)
        await anyio.sleep(0.05)


async def test_messages_that_replace_each_other_do_so_in_a_remote_mailbox() -> None:
    async with pair(messages=[Price]) as (here, there):
        spec = child(Ticker).with_options(capacity=1, overflow=coalesce(name_of))
        own = await there.spawn(spec)
        await there.expose(own, "ticker")
        ref = await here.resolve("ticker")
        for value in range(20):
            await ref.tell(Price("tea", value))
        await until(lambda: inside(own).seen[-1:] == [Price("tea", 19)])
        assert len(inside(own).seen) < 20
