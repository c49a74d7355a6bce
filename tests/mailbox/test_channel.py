"""What one channel promises while nobody is cancelled."""

import math
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from cuelight.errors import ChannelClosed, MailboxFull
from cuelight.mailbox import Channel, select


@pytest.mark.parametrize("capacity", [0, 1, 2, 10, math.inf])
async def test_items_arrive_in_the_order_sent(capacity: float) -> None:
    channel = Channel[int](capacity)

    async def send() -> None:
        for item in range(300):
            await channel.send(item)
        channel.close()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        assert [item async for item in channel] == list(range(300))


@pytest.mark.parametrize("capacity", [0, 1, 5])
async def test_waiting_senders_and_receivers_are_served_in_order(capacity: int) -> None:
    channel = Channel[int](capacity)
    got: list[tuple[int, int]] = []

    async def receive(who: int) -> None:
        got.append((who, await channel.receive()))

    async with anyio.create_task_group() as group:
        for item in range(20):
            group.start_soon(channel.send, item)
            await anyio.wait_all_tasks_blocked()
        assert [channel.receive_nowait() for _ in range(20)] == list(range(20))
        for who in range(20):
            group.start_soon(receive, who)
            await anyio.wait_all_tasks_blocked()
        for item in range(20):
            channel.send_nowait(item)
    # Sorted: trio runs the tasks that woke at once in any order. Who got which item is what counts.
    assert sorted(got) == [(number, number) for number in range(20)]


async def test_a_rendezvous_waits_for_its_receiver() -> None:
    channel = Channel[str]()
    steps: list[str] = []

    async def send() -> None:
        await channel.send("item")
        steps.append("sent")

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert steps == []
        assert len(channel) == 0
        steps.append(await channel.receive())
    assert steps == ["item", "sent"]


async def test_nowait_raises_where_the_other_form_would_wait() -> None:
    channel = Channel[int](1)
    with pytest.raises(anyio.WouldBlock):
        channel.receive_nowait()
    channel.send_nowait(1)
    with pytest.raises(MailboxFull, match="has no room"):
        channel.send_nowait(2)
    assert channel.receive_nowait() == 1
    with pytest.raises(anyio.WouldBlock, match="no receiver waits"):
        Channel[int]().send_nowait(1)


async def test_close_drains_then_raises_for_ever() -> None:
    channel = Channel[int](3)
    channel.send_nowait(1)
    channel.send_nowait(2)
    channel.close()
    channel.close()
    assert channel.closed
    with pytest.raises(ChannelClosed):
        await channel.send(3)
    with pytest.raises(ChannelClosed):
        channel.send_nowait(3)
    assert await channel.receive() == 1
    assert channel.receive_nowait() == 2
    for _ in range(3):
        with pytest.raises(ChannelClosed):
            await channel.receive()
        with pytest.raises(ChannelClosed):
            channel.receive_nowait()
    assert [item async for item in channel] == []


@pytest.mark.parametrize("capacity", [0, 2])
async def test_close_raises_in_those_that_wait_and_their_items_are_not_sent(capacity: int) -> None:
    channel = Channel[int](capacity)
    raised: list[str] = []

    async def expect_closed(operation: str) -> None:
        with pytest.raises(ChannelClosed):
            await (channel.receive() if operation == "receive" else channel.send(99))
        raised.append(operation)

    for operation in ("receive", "send"):
        if operation == "send":
            channel = Channel[int](capacity)
            for item in range(capacity):
                channel.send_nowait(item)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(expect_closed, operation)
            await anyio.wait_all_tasks_blocked()
            channel.close()
    assert raised == ["receive"] * 3 + ["send"] * 3
    assert [item async for item in channel] == list(range(capacity))


async def test_closed_is_each_error_that_anyio_streams_raise() -> None:
    channel = Channel[int]()
    channel.close()
    for error in (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
        with pytest.raises(error):
            await channel.receive()


async def test_leaving_its_block_closes_it() -> None:
    async with Channel[int](1) as channel:
        await channel.send(1)
    assert channel.closed
    assert await channel.receive() == 1


async def test_statistics_count_what_went_through() -> None:
    channel = Channel[int](2, name="jobs")
    async with anyio.create_task_group() as group:
        for item in range(4):
            group.start_soon(channel.send, item)
        await anyio.wait_all_tasks_blocked()
        assert await channel.receive() in range(4)
        full = channel.statistics()
        assert (full.buffered, full.waiting_senders, full.waiting_receivers) == (2, 1, 0)
        assert (full.sent, full.received, full.dropped, full.capacity) == (3, 1, 0, 2)
        assert len(channel) == 2
        assert channel.capacity == 2
        for _ in range(3):
            await channel.receive()
        group.start_soon(channel.receive)
        await anyio.wait_all_tasks_blocked()
        assert channel.statistics().waiting_receivers == 1
        assert "'jobs' open, 0 of 2" in repr(channel)
        channel.send_nowait(1)
    channel.close()
    assert channel.statistics().closed
    assert "closed" in repr(channel)
    assert repr(Channel[int]()) == "<Channel open, 0 of 0 buffered>"


def test_an_empty_channel_is_true() -> None:
    assert Channel[int]()


@pytest.mark.parametrize("capacity", [-1, 1.5, -math.inf, math.nan, -2.0])
def test_a_capacity_out_of_range_is_refused(capacity: float) -> None:
    with pytest.raises(ValueError, match=r"capacity is .*math\.inf"):
        Channel[int](capacity)


@pytest.mark.parametrize("capacity", [True, "10", None])
def test_a_capacity_that_is_no_number_is_refused(capacity: Any) -> None:
    with pytest.raises(TypeError, match=r"capacity is .*math\.inf"):
        Channel[int](capacity)


async def _passes(limit: int, operation: Any) -> int:
    """How many times another task runs while `operation` is called `limit` times."""
    passes = during = 0

    async def watch() -> None:
        nonlocal passes
        while True:
            passes += 1
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await checkpoint()
        before = passes
        for _ in range(limit):
            await operation()
        during = passes - before
        group.cancel_scope.cancel()
    return during


async def test_fast_paths_yield_once_in_64() -> None:
    channel = Channel[int](math.inf)
    assert 8 <= await _passes(640, lambda: channel.send(1)) <= 32
    assert 8 <= await _passes(640, channel.receive) <= 32


async def test_an_item_that_needs_no_waiting_is_sent_in_a_cancelled_scope() -> None:
    channel = Channel[int](1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await channel.send(1)
        await channel.send(2)
    assert scope.cancelled_caught
    assert (await channel.receive(), len(channel)) == (1, 0)


async def test_use_in_the_loop_of_another_thread_is_refused() -> None:
    channel = Channel[int]()

    async def elsewhere() -> None:
        for operation in (channel.send(1), channel.receive(), select(channel.sending(1)), select(channel)):
            with pytest.raises(RuntimeError, match="from_thread"):
                await operation
        with pytest.raises(RuntimeError, match="from_thread"):
            channel.close()

    async with anyio.create_task_group() as group:
        group.start_soon(channel.receive)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(anyio.run, elsewhere)
        channel.send_nowait(1)


async def test_use_by_senders_in_two_threads_is_refused() -> None:
    channel = Channel[int](1)

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="from_thread"):
            channel.receive_nowait()

    async with anyio.create_task_group() as group:
        channel.send_nowait(1)
        group.start_soon(channel.send, 2)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(elsewhere)
        assert [await channel.receive(), await channel.receive()] == [1, 2]


def test_a_channel_may_be_used_in_one_loop_after_another() -> None:
    channel = Channel[int](name="long-lived")

    async def once() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(channel.send, 1)
            assert await channel.receive() == 1

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(once, backend=backend)


def test_waiting_outside_of_a_loop_is_refused() -> None:
    for coroutine in (Channel[int]().receive(), select(Channel[int](), None)):
        with pytest.raises(RuntimeError, match="no asyncio or trio event loop"):
            coroutine.send(None)
