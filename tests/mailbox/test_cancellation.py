"""An operation completes or raises, never both, when its scope is cancelled: on every back end."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from cuelight.mailbox import Channel, select

CAPACITIES = [0, 1, 3]


async def _cancelled(operation: Callable[[], Awaitable[object]]) -> None:
    """Run `operation` until it waits, cancel it, and see that it raised."""
    outcome: list[object] = []
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            outcome.append(await operation())

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert outcome == []
    assert scope.cancelled_caught


def _full(capacity: int) -> Channel[int]:
    channel = Channel[int](capacity)
    for item in range(capacity):
        channel.send_nowait(item)
    return channel


@pytest.mark.parametrize("capacity", CAPACITIES)
async def test_a_cancelled_send_sends_nothing(capacity: int) -> None:
    channel = _full(capacity)
    await _cancelled(lambda: channel.send(99))
    await _cancelled(lambda: select(channel.sending(99), Channel[int]()))
    assert channel.statistics().waiting_senders == 0
    channel.close()
    assert [item async for item in channel] == list(range(capacity))


@pytest.mark.parametrize("capacity", CAPACITIES)
async def test_a_cancelled_receive_takes_nothing(capacity: int) -> None:
    channel = Channel[int](capacity)
    await _cancelled(channel.receive)
    await _cancelled(lambda: select(channel, Channel[int]()))
    assert channel.statistics().waiting_receivers == 0
    async with anyio.create_task_group() as group:
        group.start_soon(channel.send, 7)
        assert await channel.receive() == 7


@pytest.mark.parametrize("capacity", [0, 1])
async def test_a_cancelled_reserve_keeps_no_place(capacity: int) -> None:
    channel = _full(capacity)
    await _cancelled(channel.reserve)
    if capacity:
        assert await channel.receive() == 0
        channel.send_nowait(1)
    assert channel.statistics().waiting_senders == 0


async def _both_in_one_step(send_first: bool) -> None:
    """A receiver is cancelled in the very step in which an item is sent to it."""
    channel = Channel[str]()
    got: list[str] = []
    scope = anyio.CancelScope()

    async def receive() -> None:
        with scope:
            got.append(await channel.receive())

    sent = False
    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        if not send_first:
            scope.cancel()
        try:
            channel.send_nowait("item")
            sent = True
        except anyio.WouldBlock:
            pass
        scope.cancel()
    assert got == (["item"] if sent else [])
    assert sent or not send_first


async def test_a_commit_wins_over_a_later_cancellation_of_the_scope() -> None:
    await _both_in_one_step(send_first=True)


async def test_a_cancellation_wins_over_a_later_send() -> None:
    await _both_in_one_step(send_first=False)


async def test_a_thousand_cancelled_waiters_leave_nothing() -> None:
    channel = Channel[int]()
    async with anyio.create_task_group() as group:
        for _ in range(500):
            group.start_soon(channel.receive)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        assert channel.statistics().waiting_receivers <= 500
    async with anyio.create_task_group() as group:
        for item in range(500):
            group.start_soon(channel.send, item)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    statistics = channel.statistics()
    assert (statistics.waiting_receivers, statistics.waiting_senders, statistics.sent) == (0, 0, 0)
