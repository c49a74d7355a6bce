"""One message at a time, in order; and what happens when the mailbox is full."""

import asyncio
import functools
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    ActorSystem,
    ChildSpec,
    MailboxFull,
    NotStarted,
    Ref,
    child,
    coalesce,
    drop_newest,
    drop_oldest,
    fail,
)
from cuelight.mailbox import WaitingSender
from cuelight.testing import wait_until_idle
from helpers.players import Busy, Get, Hold, Loop, Plain, Put, Wait, WatchAll, Watcher, outcome, settle

KINDS = [Plain, Busy, Loop]


@pytest.mark.parametrize("kind", KINDS)
async def test_fifo_per_sender(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(kind).with_options(capacity=5))

        async def send(name: str) -> None:
            for number in range(200):
                await ref.tell(Put((name, number)))

        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(send, name)
        items = await ref.ask(Get())
        assert len(items) == 600
        for name in "abc":
            assert [number for one, number in items if one == name] == list(range(200))


@pytest.mark.parametrize("kind", KINDS)
async def test_tells_and_asks_of_one_sender_keep_their_order(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(kind).with_options(capacity=3))
        for number in range(20):
            await ref.tell(Put(number))
            assert (await ref.ask(Get()))[-1] == number
        replies = [ref.ask(Get()) for _ in range(10)]
        await ref.tell(Put("last"))
        assert [len(await reply) for reply in replies] == [20] * 10
        assert (await ref.ask(Get()))[-1] == "last"


async def test_one_message_at_a_time() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(Busy, items)
        await ref.tell(Hold())
        await ref.tell(Put(1))
        await settle()
        assert items == []
        assert ref.statistics().queued == 1
        assert ref.interrupt()
        await wait_until_idle(system)
        assert items == ["cut", 1]


async def _full(system: ActorSystem, items: list[Any], **options: Any) -> Ref[Any]:
    """A busy actor with a full mailbox: 0, 1, ..."""
    every: dict[str, Any] = {"capacity": 2, **options}
    spec: ChildSpec[Any] = child(Busy, items).with_options(**every)
    ref = await system.spawn(spec)
    await ref.tell(Hold())
    await settle()
    for number in range(int(spec.options.capacity)):
        ref.tell_nowait(Put(number))
    return ref


def _open(ref: Ref[Any]) -> None:
    assert ref.interrupt()


async def test_a_full_mailbox_makes_tell_wait_and_tell_nowait_raise() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        items: list[Any] = []
        ref = await _full(system, items)
        with pytest.raises(MailboxFull, match=r"is full \(2 messages\): await tell\(\)"):
            ref.tell_nowait(Put("x"))
        tasks.start_soon(ref.tell, Put(2))
        await settle()
        tasks.start_soon(ref.tell, Put(3))
        await settle()
        assert ref.statistics().waiting_senders == 2
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Put("x"))
        _open(ref)
        await settle()
        assert (items[:3], sorted(items[3:])) == (["cut", 0, 1], [2, 3])  # trio wakes both in one go
        ref.tell_nowait(Put(4))


async def test_a_cancelled_tell_has_not_sent_anything() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.tell, Put("gone"))
            await settle()
            tasks.cancel_scope.cancel()
        assert ref.statistics().waiting_senders == 0
        _open(ref)
        await wait_until_idle(system)
        assert items == ["cut", 0, 1]
        assert not system.dead_letters.counts["stopped"]


async def _cancel_promised(turns: int, natively: bool) -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items)
        sent: list[Any] = []
        scopes = {2: anyio.CancelScope(), 3: anyio.CancelScope()}
        native: list[asyncio.Task[Any] | None] = []

        async def send(item: int) -> None:
            if natively:
                native.append(asyncio.current_task())
            with scopes[item]:
                try:
                    await ref.tell(Put(item))
                    sent.append(item)
                except BaseException:
                    if not natively:
                        raise

        async with anyio.create_task_group() as tasks:
            for item in scopes:
                tasks.start_soon(send, item)
                await settle()
            assert ref.interrupt()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            if native and native[0] is not None:
                native[0].cancel()
            else:
                scopes[2].cancel()
        await wait_until_idle(system)
        assert (items[:3], sorted(items[3:])) == (["cut", 0, 1], sorted(sent))
        assert 3 in sent
        assert (ref.statistics().queued, ref.statistics().waiting_senders) == (0, 0)
        for number in range(2):  # both places are there again
            ref.tell_nowait(Put(number))


async def test_a_tell_cancelled_when_it_was_granted_a_place_is_sent_or_raises_never_both(
    anyio_backend_name: str,
) -> None:
    for natively in (False, True) if anyio_backend_name == "asyncio" else (False,):
        for turns in range(6):
            await _cancel_promised(turns, natively)


async def test_senders_that_wait_are_let_in_when_a_place_is_given_up() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items, capacity=1)
        cell: Any = ref._cell
        first = anyio.CancelScope()
        second: list[int] = []

        async def send(item: int, scope: anyio.CancelScope) -> None:
            with scope:
                await ref.tell(Put(item))
                second.append(item)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, 1, first)
            await settle()
            tasks.start_soon(send, 2, anyio.CancelScope())
            await settle()
            sender = cell.senders[0]
            cell.items.clear()
            cell.admit()  # the first is promised the place; it gives it up before it wakes
            assert sender.granted
            cell.cancel_sender(sender)
            sender.granted = False
            first.cancel()
        assert 2 in second
        _open(ref)
        await wait_until_idle(system)


async def test_drop_oldest_and_drop_newest_make_dead_letters_with_their_names() -> None:
    for policy, kept, lost in ((drop_oldest, [1, 2], 0), (drop_newest, [0, 1], 2)):
        async with ActorSystem() as system:
            items: list[Any] = []
            ref = await _full(system, items, overflow=policy)
            await ref.tell(Put(2))
            _open(ref)
            await wait_until_idle(system)
            assert items == ["cut", *kept]
            letter = next(iter(system.dead_letters))
            assert (letter.message, letter.reason, letter.actor) == (Put(lost), policy.__name__, ref.path)


async def test_overflow_fail_refuses_tell_and_ask_and_makes_a_dead_letter_of_what_cannot_be_refused() -> None:
    async with ActorSystem() as system:
        ref = await _full(system, [], overflow=fail)
        with pytest.raises(MailboxFull):
            await ref.tell(Put(2))
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Put(2))
        with pytest.raises(MailboxFull):
            await ref.ask(Get())
        group = system.group("g")
        group.join(ref)
        assert group.broadcast(Put(2)) == 0
        assert system.dead_letters.counts == {"mailbox_full": 1}
        _open(ref)


def _item(message: Any) -> Any:
    return message.item if isinstance(message, Put) else None


async def test_coalesce_replaces_the_message_with_the_same_key_and_else_waits() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items, overflow=coalesce(_item))
        ref.tell_nowait(Put(0))
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Put(5))
        assert system.dead_letters.counts == {"coalesce_by_key": 1}
        _open(ref)
        await wait_until_idle(system)
        assert items == ["cut", 1, 0]


async def test_an_overflow_policy_without_a_name_works() -> None:
    async with ActorSystem() as system:
        ref = await _full(system, [], overflow=functools.partial(drop_oldest))
        ref.tell_nowait(Put(2))
        assert system.dead_letters.counts == {"overflow": 1}
        _open(ref)


async def test_an_ask_that_overflow_drops_fails_as_not_started() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Busy).with_options(capacity=1, overflow=drop_oldest))
        await ref.tell(Hold())
        await settle()
        reply = ref.ask(Get())
        await ref.tell(Put(1))
        with pytest.raises(NotStarted, match=r"its mailbox is full \(drop_oldest\)"):
            await reply
        assert not system.dead_letters.total
        _open(ref)


async def test_an_ask_on_a_full_mailbox_waits_in_line_and_is_dropped_when_cancelled() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items)
        first, second = ref.ask(Wait("first")), ref.ask(Get())
        assert ref.statistics().waiting_senders == 2
        first.cancel()
        first.cancel()
        assert isinstance(await outcome(first), NotStarted)
        _open(ref)
        assert await second == ["cut", 0, 1]


async def test_places_of_cancelled_asks_are_free_for_others() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Busy).with_options(capacity=100))
        await ref.tell(Hold())
        await settle()
        replies = [ref.ask(Get()) for _ in range(100)]
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Put(0))
        for reply in replies:
            reply.cancel()
        for number in range(100):
            ref.tell_nowait(Put(number))
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Put(0))
        _open(ref)
        assert len(await ref.ask(Get())) == 101


async def test_places_of_cancelled_asks_are_given_to_senders_that_wait() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await system.spawn(child(Busy).with_options(capacity=80))
        await ref.tell(Hold())
        await settle()
        replies = [ref.ask(Get()) for _ in range(80)]
        sent: list[int] = []

        async def send() -> None:
            await ref.tell(Put(1))
            sent.append(1)

        tasks.start_soon(send)
        last = ref.ask(Get())
        await settle()
        assert not sent
        for reply in replies:
            reply.cancel()
        await settle()
        assert sent
        _open(ref)
        assert (await last)[0] == "cut"


async def test_senders_that_wait_at_an_actor_that_ends_make_dead_letters() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await _full(system, [])
        tasks.start_soon(ref.tell, Put(2))
        await settle()
        reply = ref.ask(Get())
        await ref.kill()
        with pytest.raises(NotStarted):
            await reply
        await settle()
        lost = [letter.message.item for letter in system.dead_letters if letter.reason == "stopped"]
        assert sorted(lost) == [0, 1, 2]


async def test_terminated_is_never_dropped_by_an_overflow_policy() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []

        ref = await system.spawn(child(Watcher, seen).with_options(capacity=1, overflow=drop_oldest))
        ends = [await system.spawn(Plain) for _ in range(3)]
        await ref.ask(WatchAll(ends))
        await ref.tell(Hold())
        await settle()
        for end in ends:
            await end.stop()
        for number in range(3):
            ref.tell_nowait(Put(number))
        _open(ref)
        await wait_until_idle(system)
        assert [one for one in seen if one in ends] == ends
        assert system.dead_letters.counts["drop_oldest"] == 2


async def test_a_tell_that_was_granted_a_place_at_an_actor_that_then_ends_makes_a_dead_letter() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        items: list[Any] = []
        ref = await _full(system, items, capacity=1)
        tasks.start_soon(ref.tell, Put("promised"))
        await settle()
        cell: Any = ref._cell
        cell.items.clear()
        cell.admit()
        cell.close()
        cell.close()
        await settle()
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Put("promised"), "stopped")]
        _open(ref)


async def test_an_ask_never_overtakes_those_that_wait_in_line() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Plain).with_options(capacity=1))
        cell = ref._cell
        ref.tell_nowait(Put(0))
        sender = WaitingSender(system.backend.waiter())
        cell.enqueue_sender(sender)
        first = ref.ask(Get())
        await settle()
        assert sender.granted  # it has not filled its place yet, and the actor is idle meanwhile
        second = ref.ask(Get())
        assert not first.done
        assert not second.done
        cell.fill_place(sender, Put(1))
        assert await second == [0, 1]
        assert first.done
        assert await first == [0, 1]


async def test_a_policy_may_drop_any_message_that_waits() -> None:
    def drop_second(buffer: Any, item: Any) -> int:
        return 1

    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await _full(system, items, overflow=drop_second)
        ref.tell_nowait(Put(2))
        cell: Any = ref._cell
        assert cell.content(cell.items[-1]) == Put(2)
        _open(ref)
        await wait_until_idle(system)
        assert items == ["cut", 0, 2]
        assert system.dead_letters.counts["drop_second"] == 1


async def test_a_place_that_is_given_back_at_an_idle_actor_goes_to_the_next_in_line() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Plain).with_options(capacity=1))
        cell = ref._cell
        ref.tell_nowait(Put(0))
        sender = WaitingSender(system.backend.waiter())
        cell.enqueue_sender(sender)
        reply = ref.ask(Get())
        await settle()
        assert not reply.done
        cell.cancel_sender(sender)
        assert await reply == [0]


async def test_a_sender_that_is_cancelled_when_the_mailbox_has_just_closed_leaves_nothing() -> None:
    async with ActorSystem() as system:
        ref = await _full(system, [])
        sender = WaitingSender(system.backend.waiter())
        ref._cell.enqueue_sender(sender)
        ref._cell.stop()
        ref._cell.cancel_sender(sender)
        assert ref.statistics().waiting_senders == 0
        _open(ref)
        await ref.ended()
