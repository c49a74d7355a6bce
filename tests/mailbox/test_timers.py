"""Time as a case of select, on a virtual clock."""

import asyncio
import math
from typing import Any

import anyio
import pytest

from cuelight.errors import ChannelClosed
from cuelight.mailbox import Channel, after, every, select, select_nowait
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import BACKENDS, Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


async def test_after_is_ready_once() -> None:
    timer = after(5)
    silent = Channel[int]()
    assert await select(silent, timer) == (1, None)
    assert anyio.current_time() == 5
    with pytest.raises(anyio.WouldBlock):
        select_nowait(timer, silent)
    with pytest.raises(ChannelClosed):
        await select(timer)
    assert timer.deadline == math.inf


async def test_after_counts_from_where_it_was_made() -> None:
    timer = after(10)
    channel = Channel[int](1)
    for _ in range(4):
        assert await select(timer, after(2)) == (1, None)
    channel.send_nowait(1)
    assert await select(timer, channel) == (1, 1)
    assert await select(timer, channel) == (0, None)
    assert anyio.current_time() == 10


async def test_an_item_in_time_is_received() -> None:
    channel = Channel[int]()

    async def send() -> None:
        await anyio.sleep(3)
        await channel.send(1)

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        assert await select(channel, after(5)) == (0, 1)
    assert anyio.current_time() == 3
    await anyio.sleep(10)


async def test_every_keeps_its_period_without_drift() -> None:
    ticker = every(0.1)
    for tick in range(1, 1001):
        assert await select(ticker) == (0, 1)
        assert math.isclose(anyio.current_time(), tick * 0.1, rel_tol=1e-6)
        await anyio.sleep(0.03)


async def test_every_gives_one_tick_for_those_missed() -> None:
    ticker = every(2)
    await anyio.sleep(7)
    assert await select(ticker) == (0, 3)
    assert await select(ticker) == (0, 1)
    assert anyio.current_time() == 8


async def test_a_cancelled_timer_drops_out() -> None:
    silent = Channel[int]()
    timer, ticker = after(5), every(5)

    async def cancel() -> None:
        await anyio.sleep(1)
        timer.cancel()
        await anyio.sleep(1)
        ticker.cancel()
        ticker.cancel()
        await anyio.sleep(60)
        silent.send_nowait(1)

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        assert await select(timer, ticker, silent) == (2, 1)
    assert anyio.current_time() == 62
    with pytest.raises(ChannelClosed):
        await select(timer, ticker)


async def test_one_timer_fires_in_one_of_two_selects() -> None:
    timer = after(5)
    silent = Channel[int]()
    results: list[tuple[int, Any]] = []

    async def wait() -> None:
        results.append(await select(timer, silent))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.sleep(10)
        assert results == [(0, None)]
        silent.send_nowait(1)
    assert results == [(0, None), (1, 1)]


async def test_a_select_that_is_over_leaves_no_timer_behind() -> None:
    channel = Channel[int](math.inf)
    ticker = every(1)
    for item in range(10):
        channel.send_nowait(item)
    for _ in range(10):
        await select(channel, ticker, after(30))
    with anyio.move_on_after(0.5) as scope:
        await select(channel, ticker, after(30))
    assert scope.cancelled_caught
    assert anyio.current_time() == 0.5
    assert not ticker._waiters


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"]])
async def test_an_item_that_comes_in_the_very_step_of_the_time_is_received() -> None:
    channel = Channel[int]()
    timer = after(0.01)
    asyncio.get_running_loop().call_at(timer.deadline, channel.send_nowait, 1)
    assert await select(channel, timer) == (0, 1)
    assert timer.case_put_back(None)  # nothing to undo: it takes effect only when it is polled


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
async def test_a_time_that_never_comes_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="give a number of seconds"):
        after(seconds)
    with pytest.raises(ValueError, match="above 0"):
        every(seconds)
    with pytest.raises(ValueError, match="above 0"):
        every(0)
    assert await select(after(0)) == (0, None)


def test_timers_are_made_in_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no asyncio or trio event loop"):
        after(1)
