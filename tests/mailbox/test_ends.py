"""Sending and receiving ends: one channel, closed by those that use it."""

from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

from cuelight.errors import ChannelClosed
from cuelight.mailbox import Channel, Permit, select


async def test_when_the_last_sender_closes_receivers_drain() -> None:
    channel = Channel[int](10)
    first = channel.sender()
    second = first.clone()
    await first.send(1)
    first.close()
    first.close()
    assert not channel.closed
    second.send_nowait(2)
    assert await select(second.sending(3)) == (0, None)
    (await second.reserve()).send(4)
    second.close()
    assert channel.closed
    async with channel.receiver() as receiver:
        assert [item async for item in receiver] == [1, 2, 3, 4]
        with pytest.raises(ChannelClosed):
            await receiver.receive()


async def test_when_the_last_receiver_closes_senders_get_closed() -> None:
    dropped: list[tuple[int, str]] = []
    channel = Channel[int](1, on_dropped=lambda item, why: dropped.append((item, why)))
    first = channel.receiver()
    second = first.clone()
    raised = 0

    async def send() -> None:
        nonlocal raised
        with pytest.raises(ChannelClosed):
            await channel.send(2)
        raised += 1

    channel.send_nowait(1)
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        first.close()
        await anyio.wait_all_tasks_blocked()
        assert raised == 0
        second.close()
        second.close()
    assert raised == 1
    assert dropped == [(1, "no receivers")]
    statistics = channel.statistics()
    assert (statistics.sent, statistics.dropped, statistics.buffered) == (1, 1, 0)


async def test_items_left_without_receivers_are_dropped_without_a_hook_too() -> None:
    channel = Channel[int](2)
    channel.send_nowait(1)
    channel.receiver().close()
    assert channel.statistics().dropped == 1


async def test_a_closed_sender_refuses_everything() -> None:
    channel = Channel[int](1)
    other = channel.sender()
    async with channel.sender() as sender:
        await sender.send(1)
    with pytest.raises(ChannelClosed, match="this sending end"):
        await sender.send(1)
    with pytest.raises(ChannelClosed):
        sender.send_nowait(1)
    with pytest.raises(ChannelClosed):
        await sender.reserve()
    with pytest.raises(ChannelClosed):
        sender.sending(1)
    with pytest.raises(ChannelClosed):
        sender.clone()
    assert not channel.closed
    other.close()


async def test_a_closed_receiver_refuses_everything_and_drops_out_of_select() -> None:
    channel = Channel[int](2)
    other = channel.receiver()
    receiver = channel.receiver()
    receiver.close()
    channel.send_nowait(1)
    with pytest.raises(ChannelClosed, match="this receiving end"):
        await receiver.receive()
    with pytest.raises(ChannelClosed):
        receiver.receive_nowait()
    with pytest.raises(ChannelClosed):
        receiver.clone()
    with pytest.raises(ChannelClosed):
        await anext(receiver)
    assert await select(receiver, other) == (1, 1)
    with pytest.raises(ChannelClosed):
        await select(receiver)


async def test_a_receiver_is_a_case_of_select() -> None:
    channel, silent = Channel[int](), Channel[int]()
    receiver = channel.receiver()
    async with anyio.create_task_group() as group:
        group.start_soon(channel.send, 1)
        assert await select(silent, receiver) == (1, 1)
        group.start_soon(channel.send, 2)
        await anyio.wait_all_tasks_blocked()
        assert receiver.receive_nowait() == 2
        group.start_soon(channel.send, 3)
        assert await receiver.receive() == 3
    assert channel.statistics().waiting_receivers == silent.statistics().waiting_receivers == 0


# Permits


async def test_a_permit_keeps_its_place_from_others() -> None:
    channel = Channel[int](2)
    permit = await channel.reserve()
    channel.send_nowait(1)
    with pytest.raises(anyio.WouldBlock):
        channel.send_nowait(2)
    permit.send(3)
    assert [channel.receive_nowait(), channel.receive_nowait()] == [1, 3]
    with pytest.raises(RuntimeError, match="used or released"):
        permit.send(4)
    permit.release()
    channel.send_nowait(5)
    channel.send_nowait(6)


async def test_a_permit_that_is_released_lets_a_sender_in() -> None:
    channel = Channel[int](1)
    async with anyio.create_task_group() as group:
        with await channel.reserve():
            group.start_soon(channel.send, 1)
            await anyio.wait_all_tasks_blocked()
            assert len(channel) == 0
        await anyio.wait_all_tasks_blocked()
        assert len(channel) == 1
    assert channel.statistics().waiting_senders == 0


async def test_reserve_queues_with_the_senders() -> None:
    channel = Channel[int](1)
    steps: list[str] = []

    async def send(item: int) -> None:
        await channel.send(item)
        steps.append(f"sent {item}")

    async def reserve() -> None:
        permit = await channel.reserve()
        steps.append("reserved")
        permit.send(2)

    channel.send_nowait(0)
    async with anyio.create_task_group() as group:
        group.start_soon(send, 1)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(reserve)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(send, 3)
        await anyio.wait_all_tasks_blocked()
        for item in range(4):
            assert await channel.receive() == item
            await anyio.wait_all_tasks_blocked()
    assert steps == ["sent 1", "reserved", "sent 3"]


async def test_an_item_passes_by_a_place_that_is_kept() -> None:
    """With all places kept, a sender and a receiver still meet, whichever comes first."""
    channel = Channel[int](1)
    permit = await channel.reserve()
    waiting: list[Permit[int]] = []

    async def reserve() -> None:
        waiting.append(await channel.reserve())

    async with anyio.create_task_group() as group:
        group.start_soon(reserve)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.WouldBlock):
            channel.receive_nowait()
        group.start_soon(channel.send, 1)
        await anyio.wait_all_tasks_blocked()
        assert channel.receive_nowait() == 1
        group.start_soon(channel.receive)
        await anyio.wait_all_tasks_blocked()
        channel.send_nowait(2)
        permit.send(3)
        assert channel.receive_nowait() == 3
    waiting[0].send(4)
    assert channel.receive_nowait() == 4


async def test_a_permit_hands_over_to_a_waiting_receiver() -> None:
    channel = Channel[int](1)
    got: list[int] = []

    async def receive() -> None:
        got.append(await channel.receive())

    async with anyio.create_task_group() as group:
        permit = await channel.reserve()
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        permit.send(1)
    assert got == [1]


async def test_a_permit_of_a_closed_channel_sends_nothing() -> None:
    channel = Channel[int](1)
    permit = await channel.reserve()
    channel.close()
    with pytest.raises(ChannelClosed):
        permit.send(1)
    permit.release()
    with pytest.raises(ChannelClosed):
        await channel.reserve()
    assert channel.statistics().sent == 0


async def test_reserve_that_waits_raises_when_the_channel_closes() -> None:
    channel = Channel[int]()

    async def reserve() -> None:
        with pytest.raises(ChannelClosed):
            await channel.reserve()

    async with anyio.create_task_group() as group:
        group.start_soon(reserve)
        await anyio.wait_all_tasks_blocked()
        channel.close()


@pytest.mark.parametrize("receiver_first", [True, False])
async def test_a_rendezvous_permit_keeps_a_receiver(receiver_first: bool) -> None:
    channel = Channel[int]()
    got: list[int] = []
    permits: list[Permit[int]] = []

    async def receive() -> None:
        got.append(await channel.receive())

    async def reserve() -> None:
        permits.append(await channel.reserve())

    async with anyio.create_task_group() as group:
        for operation in (receive, reserve) if receiver_first else (reserve, receive):
            group.start_soon(operation)
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.WouldBlock):
            channel.send_nowait(9)
        group.start_soon(channel.send, 2)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        permits[0].send(1)
        await anyio.wait_all_tasks_blocked()
        assert got == [1]
        assert await channel.receive() == 2


async def test_a_rendezvous_permit_that_is_released_lets_a_sender_meet_the_receiver() -> None:
    channel = Channel[int]()
    got: list[int] = []

    async def receive() -> None:
        got.append(await channel.receive())

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        permit = await channel.reserve()
        group.start_soon(channel.send, 1)
        await anyio.wait_all_tasks_blocked()
        permit.release()
    assert got == [1]
    assert channel.statistics().received == 1


async def test_a_rendezvous_permit_that_is_released_goes_to_the_next_that_reserves() -> None:
    channel = Channel[int]()
    got: list[int] = []

    async def receive() -> None:
        got.append(await channel.receive())

    async def reserve() -> None:
        (await channel.reserve()).send(2)

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        permit = await channel.reserve()
        group.start_soon(reserve)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        permit.release()
    assert got == [2]


async def test_a_rendezvous_permit_whose_receiver_went_away_sends_to_the_next_one() -> None:
    channel = Channel[int]()
    permits: list[Permit[int]] = []
    async with anyio.create_task_group() as group:
        group.start_soon(channel.receive)
        await anyio.wait_all_tasks_blocked()
        permits.append(await channel.reserve())
        group.cancel_scope.cancel()
    permits[0].send(1)
    assert len(channel) == 1
    assert await channel.receive() == 1


async def test_a_released_permit_does_not_let_a_select_meet_itself() -> None:
    channel = Channel[int]()
    result: list[tuple[int, int | None]] = []

    async def both() -> None:
        result.append(await select(channel, channel.sending(1)))

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def receive() -> None:
            with scope:
                await channel.receive()

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        permit = await channel.reserve()
        group.start_soon(both)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        permit.release()
        await anyio.wait_all_tasks_blocked()
        assert result == []
        await channel.send(7)
    assert result == [(0, 7)]


async def test_a_permit_used_in_another_thread_is_refused_and_stays_good() -> None:
    channel = Channel[int](1)
    got: list[int] = []

    async def receive() -> None:
        got.append(await channel.receive())

    def elsewhere(operation: Callable[[], None]) -> None:
        with pytest.raises(RuntimeError, match="from_thread"):
            operation()

    async with anyio.create_task_group() as group:
        permit = await channel.reserve()
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(elsewhere, lambda: permit.send(1))
        await anyio.to_thread.run_sync(elsewhere, permit.release)
        permit.send(2)
    assert got == [2]


async def test_a_place_that_is_not_needed_goes_to_the_next_that_reserves() -> None:
    """The item goes straight to a receiver that waits, so the place is free again."""
    channel = Channel[int](1)
    permits: list[Permit[int]] = []

    async def reserve() -> None:
        permits.append(await channel.reserve())

    async with anyio.create_task_group() as group:
        permit = await channel.reserve()
        group.start_soon(channel.receive)
        group.start_soon(reserve)
        await anyio.wait_all_tasks_blocked()
        assert permits == []
        permit.send(1)
    permits[0].release()
