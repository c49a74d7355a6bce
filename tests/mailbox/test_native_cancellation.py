"""The same under asyncio's own `Task.cancel()`, which can also hit an operation that has just taken effect."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cuelight.mailbox import Channel, select
from helpers import BACKENDS, Backend

CAN_POSTPONE = sys.version_info >= (3, 13)


@pytest.fixture(params=["asyncio", "uvloop", "asyncio-debug"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _waiting(operation: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(operation)
    await _settle()
    assert not task.done()
    return task


async def _raises_cancelled(task: asyncio.Task[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("capacity", [0, 1])
async def test_a_waiting_receive_takes_nothing(capacity: int) -> None:
    channel = Channel[int](capacity)
    task = await _waiting(channel.receive())
    task.cancel()
    if capacity:
        channel.send_nowait(1)
    else:
        with pytest.raises(Exception, match="no receiver waits"):
            channel.send_nowait(1)
    await _raises_cancelled(task)
    assert len(channel) == capacity


@pytest.mark.parametrize("how", ["receive", "select", "select by its end"])
async def test_native_cancel_puts_a_received_item_back(how: str) -> None:
    channel = Channel[int]()
    operations: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "receive": channel.receive,
        "select": lambda: select(channel, Channel[int]()),
        "select by its end": lambda: select(Channel[int](), channel.receiver()),
    }
    task = await _waiting(operations[how]())
    channel.send_nowait(1)
    task.cancel()
    await _raises_cancelled(task)
    assert channel.statistics().received == 0
    assert channel.receive_nowait() == 1
    statistics = channel.statistics()
    assert (statistics.sent, statistics.received) == (1, 1)


async def test_an_item_put_back_goes_to_the_next_receiver() -> None:
    channel = Channel[int]()
    first = await _waiting(channel.receive())
    gone = await _waiting(channel.receive())
    second = await _waiting(channel.receive())
    channel.send_nowait(1)
    first.cancel()
    gone.cancel()
    await _raises_cancelled(first)
    await _raises_cancelled(gone)
    assert await second == 1


async def test_items_put_back_keep_their_order() -> None:
    channel = Channel[int](10)
    tasks = [await _waiting(channel.receive()) for _ in range(4)]
    for item in range(6):
        channel.send_nowait(item)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [channel.receive_nowait() for _ in range(6)] == list(range(6))


async def test_an_item_put_back_after_another_was_received_goes_first() -> None:
    channel = Channel[int](10)
    first = await _waiting(channel.receive())
    second = await _waiting(channel.receive())
    for item in range(4):
        channel.send_nowait(item)
    first.cancel()
    second.cancel()
    await _raises_cancelled(first)
    await _raises_cancelled(second)
    assert channel.receive_nowait() == 0
    third = asyncio.ensure_future(channel.receive())
    await _settle()
    assert await third == 1
    assert [channel.receive_nowait() for _ in range(2)] == [2, 3]


async def test_an_item_put_back_after_the_last_receiver_closed_is_dropped() -> None:
    dropped: list[tuple[int, str]] = []
    channel = Channel[int](on_dropped=lambda item, why: dropped.append((item, why)))
    end = channel.receiver()
    task = await _waiting(end.receive())
    channel.send_nowait(1)
    task.cancel()
    end.close()
    await _raises_cancelled(task)
    assert dropped == [(1, "no receivers")]
    assert channel.statistics().dropped == 1


async def _sent_then_cancelled(channel: Channel[int], operation: Coroutine[Any, Any, Any]) -> str:
    """Cancel a sender after its item was taken; what it saw."""

    async def send() -> str:
        try:
            await operation
        except asyncio.CancelledError:
            return "raised"
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "returned, cancelled at the next await"
        return "not cancelled"

    task = await _waiting(send())
    assert channel.receive_nowait() == 1
    task.cancel()
    seen: str = await task
    return seen


EXPECTED = "returned, cancelled at the next await" if CAN_POSTPONE else "raised"


async def test_native_cancel_of_a_send_that_took_effect() -> None:
    channel = Channel[int]()
    assert await _sent_then_cancelled(channel, channel.send(1)) == EXPECTED


async def test_native_cancel_of_a_select_that_sent() -> None:
    channel = Channel[int]()
    other = Channel[int]()
    assert await _sent_then_cancelled(channel, select(channel.sending(1), other)) == EXPECTED


async def test_a_timeout_that_ends_with_the_send_leaves_no_cancellation() -> None:
    channel = Channel[int]()

    async def send() -> str:
        try:
            async with asyncio.timeout(60) as timeout:
                loop = asyncio.get_running_loop()
                loop.call_soon(channel.receive_nowait)
                loop.call_soon(timeout.reschedule, 0)
                await channel.send(1)
        except TimeoutError:
            return "timeout"
        await asyncio.sleep(0)
        return "sent"

    task = asyncio.ensure_future(send())
    assert await task in {"sent", "timeout"}
    assert task.cancelling() == 0


async def test_native_cancel_of_a_reserve_that_was_granted_gives_the_place_back() -> None:
    channel = Channel[int](1)
    channel.send_nowait(0)
    task = await _waiting(channel.reserve())
    assert channel.receive_nowait() == 0
    task.cancel()
    await _raises_cancelled(task)
    channel.send_nowait(5)
    assert channel.receive_nowait() == 5


async def test_native_cancel_of_a_reserve_that_was_matched_gives_the_receiver_back() -> None:
    channel = Channel[int]()
    sending = await _waiting(channel.reserve())
    receiving = asyncio.ensure_future(channel.receive())
    await asyncio.sleep(0)
    sending.cancel()
    await _raises_cancelled(sending)
    channel.send_nowait(5)
    assert await receiving == 5


async def test_reserve_sends_exactly_once_under_native_cancel() -> None:
    channel = Channel[int](2)
    sent: list[int] = []
    got: list[int] = []

    async def send(item: int) -> None:
        with await channel.reserve() as permit:
            permit.send(item)
            sent.append(item)

    async def receive() -> None:
        got.extend([item async for item in channel])

    receiver = asyncio.ensure_future(receive())
    for start in range(0, 600, 6):
        tasks = [asyncio.ensure_future(send(item)) for item in range(start, start + 6)]
        for turn in range(start % 5):
            await asyncio.sleep(0)
            tasks[turn].cancel()
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    channel.close()
    await receiver
    assert sorted(got) == sorted(sent)
    assert len(sent) > 100


OPERATIONS: dict[str, Callable[[Channel[int]], Coroutine[Any, Any, Any]]] = {
    "send": lambda channel: channel.send(1),
    "receive": lambda channel: channel.receive(),
    "reserve": lambda channel: channel.reserve(),
    "select": lambda channel: select(channel.sending(1), channel),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_cancellation_after_the_close_raises_the_cancellation(operation: str) -> None:
    channel = Channel[int]()
    task = await _waiting(OPERATIONS[operation](channel))
    channel.close()
    task.cancel()
    await _raises_cancelled(task)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_coroutine_that_is_closed_leaves_its_queue(operation: str) -> None:
    channel = Channel[int]()
    coroutine = OPERATIONS[operation](channel)
    for _ in range(3):  # reserve and now and then select yield first
        statistics = channel.statistics()
        if not statistics.waiting_senders and not statistics.waiting_receivers:
            coroutine.send(None)
    coroutine.close()
    statistics = channel.statistics()
    assert (statistics.waiting_senders, statistics.waiting_receivers) == (0, 0)
