"""Go's conformance tests for select, ported: what they assert, in our words."""

import contextlib
import gc
import itertools
import math
import random
import sys
from collections import Counter
from typing import Any

import anyio
import pytest

from cuelight.errors import ChannelClosed
from cuelight.mailbox import Case, Channel, seed_select, select, select_nowait
from helpers import BACKENDS


@pytest.mark.parametrize("closing", [False, True])
async def test_go_nonblock_recv_race(closing: bool) -> None:
    """The non-blocking form never says "not now" while an item or a close is there."""
    for _ in range(300):
        channel = Channel[int](1)
        await channel.send(1)
        if closing:
            channel.close()

        async def receive(channel: Channel[int] = channel) -> None:
            assert select_nowait(channel) == (0, 1)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
        if closing:
            with pytest.raises(ChannelClosed):
                select_nowait(channel)


@pytest.mark.parametrize("closing", [False, True])
async def test_go_nonblock_select_race(closing: bool) -> None:
    """With one of two channels always ready, the non-blocking form always takes one."""
    done: list[bool] = []

    async def look(one: Channel[int], other: Channel[int]) -> None:
        try:
            select_nowait(one, other)
            done.append(True)
        except anyio.WouldBlock:
            done.append(False)

    for _ in range(300):
        first, second = Channel[int](1), Channel[int](1)
        first.send_nowait(1)
        async with anyio.create_task_group() as group:
            group.start_soon(look, first, second)
            if closing:
                second.close()  # with us it drops out, where Go's would stay ready
            else:
                second.send_nowait(1)
                with contextlib.suppress(anyio.WouldBlock):
                    first.receive_nowait()
    assert done == [True] * 300


@pytest.mark.parametrize("capacity", [0, 10])
async def test_go_self_select(capacity: int) -> None:
    """Selects that both send to and receive from one channel meet each other, never themselves."""
    channel = Channel[int](capacity)

    async def play(player: int) -> None:
        for turn in range(500):
            if player == 0 or turn % 2 == 0:
                index, item = await select(channel.sending(player), channel)
                received = index == 1
            else:
                index, item = await select(channel, channel.sending(player))
                received = index == 0
            if received and capacity == 0:
                assert item != player

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(play, 0)
            group.start_soon(play, 1)


async def test_go_select_stress() -> None:
    """Four plain senders and receivers, one select that sends to all and one that receives from all."""
    each = 1000
    channels = [Channel[int](capacity) for capacity in (0, 0, 2, 3)]

    async def send(channel: Channel[int]) -> None:
        for item in range(each):
            await channel.send(item)

    async def receive(channel: Channel[int]) -> None:
        for _ in range(each):
            await channel.receive()

    async def select_send() -> None:
        counts = [0] * 4
        while any(count < each for count in counts):
            cases = [
                channel.sending(count) if count < each else None
                for channel, count in zip(channels, counts, strict=True)
            ]
            index, _ = await select(*cases)
            counts[index] += 1
        assert counts == [each] * 4

    async def select_receive() -> None:
        counts = [0] * 4
        while any(count < each for count in counts):
            cases = [channel if count < each else None for channel, count in zip(channels, counts, strict=True)]
            index, _ = await select(*cases)
            counts[index] += 1
        assert counts == [each] * 4

    with anyio.fail_after(50):
        async with anyio.create_task_group() as group:
            for channel in channels:
                group.start_soon(send, channel)
                group.start_soon(receive, channel)
            group.start_soon(select_send)
            group.start_soon(select_receive)
    for channel in channels:
        statistics = channel.statistics()
        assert (statistics.sent, statistics.received) == (2 * each, 2 * each)


async def test_go_select_fairness() -> None:
    """Of two cases that are always ready, each is taken half of the time, within ten standard deviations."""
    trials = 10_000
    first, second = Channel[int](trials + 1), Channel[int](trials + 1)
    silent = Channel[int](), Channel[int]()
    for _ in range(trials + 1):
        first.send_nowait(1)
        second.send_nowait(2)
    taken = Counter([(await select(*silent, first, second))[1] for _ in range(trials)])
    assert abs(taken[1] - trials / 2) < 10 * math.sqrt(trials / 4)


async def test_go_pseudo_random_send() -> None:
    """A select that can send a 0 or a 1 to one channel sends both, each more than one time in ten."""
    count = 1000
    for capacity in (0, count):
        channel = Channel[int](capacity)
        got: list[int] = []

        async def receive(channel: Channel[int] = channel, got: list[int] = got) -> None:
            got.extend([await channel.receive() for _ in range(count)])

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            for _ in range(count):
                await select(channel.sending(1), channel.sending(0))
        assert count // 10 < sum(got) < count - count // 10


async def test_go_select_duplicate_channel() -> None:
    """A select that waits twice on one channel leaves it whole, so that later receivers are woken."""
    first, second, done = Channel[int](), Channel[int](), Channel[int]()
    got: list[int] = []

    async def twice() -> None:
        index, _ = await select(first, first, second)
        got.append(index)
        await done.send(9)

    async def receive() -> None:
        got.append(await first.receive())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(twice)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await second.send(7)
            assert await done.receive() == 9
            await first.send(8)
    assert got == [2, 8]


async def test_go_double_select() -> None:
    """No item is sent by two cases of one select."""
    count = 2000
    channels = [Channel[int]() for _ in range(4)]
    joined = Channel[int]()
    got: list[int] = []
    open_channels = len(channels)

    async def send() -> None:
        for item in range(count):
            await select(*(channel.sending(item) for channel in channels))
        for channel in channels:
            channel.close()

    async def pass_on(channel: Channel[int]) -> None:
        nonlocal open_channels
        async for item in channel:
            await joined.send(item)
        open_channels -= 1
        if not open_channels:
            joined.close()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        for channel in channels:
            group.start_soon(pass_on, channel)
        got += [item async for item in joined]
    assert sorted(got) == list(range(count))


async def _blocks(*cases: Case[object] | None) -> bool:
    finished = False

    async def run() -> None:
        nonlocal finished
        await select(*cases)
        finished = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    return not finished


async def test_go_select3() -> None:
    """Which selects block, which never do and which raise."""

    def closed() -> Channel[int]:
        channel = Channel[int](1)
        channel.close()
        return channel

    def full() -> Channel[int]:
        channel = Channel[int](1)
        channel.send_nowait(1)
        return channel

    empty = Channel[int]
    assert await _blocks(empty())
    assert await _blocks(empty().sending(1))
    assert await _blocks(empty(), empty().sending(1), None)
    assert await _blocks(full().sending(1))
    itself = empty()
    assert await _blocks(itself, itself.sending(1))
    assert not await _blocks(full())
    assert not await _blocks(empty(1).sending(1))
    assert not await _blocks(None, full(), empty())
    assert await _blocks(closed(), empty())
    with pytest.raises(ChannelClosed):
        await select(closed())
    with pytest.raises(ChannelClosed):
        await select(closed().sending(1), empty())
    for nothing in ((), (None,), (None, None)):
        with pytest.raises(ValueError, match="for ever"):
            await select(*nothing)
        with pytest.raises(ValueError, match="for ever"):
            select_nowait(*nothing)


@pytest.mark.parametrize("ready", [None, 0, 1, 2])
async def test_go_select4_5_arms_that_are_not_taken_have_no_effect(ready: int | None) -> None:
    """All arms of every order, with one that is ready or none: only the one that is taken does anything."""
    for order in itertools.permutations(range(3)):
        receiving, sending = Channel[str](1), Channel[str](1)
        blocked = Channel[str]()
        if ready == 0:
            receiving.send_nowait("item")
        if ready != 1:
            sending.send_nowait("full")
        nothing = Channel[str](1)
        if ready == 2:
            nothing.send_nowait("other")
        arms: list[Case[str | None]] = [receiving, sending.sending("sent"), nothing]
        cases: list[Case[str | None]] = [*(arms[arm] for arm in order), blocked, blocked.sending("never")]
        if ready is None:
            with pytest.raises(anyio.WouldBlock):
                select_nowait(*cases)
        else:
            index, item = await select(*cases)
            assert order[index] == ready
            assert item == ["item", None, "other"][ready]
        assert len(receiving) == 0
        assert len(nothing) == 0
        assert sending.receive_nowait() == ("sent" if ready == 1 else "full")
        assert blocked.statistics().waiting_receivers == blocked.statistics().waiting_senders == 0


async def test_go_select_arguments_are_checked_before_anything_happens() -> None:
    ready = Channel[int](1)
    ready.send_nowait(1)
    wrong: Any
    for wrong in (1, "channel", Channel, ready.receive):
        with pytest.raises(TypeError, match="argument 1 of select"):
            await select(ready, wrong)
        with pytest.raises(TypeError, match="argument 1 of select"):
            select_nowait(ready, wrong)
    assert len(ready) == 1


async def _selects_on_a_silent_channel(count: int) -> int:
    silent, ticks = Channel[int](), Channel[int]()

    async def tick() -> None:
        for item in range(count):
            await ticks.send(item)

    async def receive() -> None:
        for _ in range(count):
            await select(silent, ticks, silent.sending(1), priority=True)

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        group.start_soon(tick)
    statistics = silent.statistics()
    assert (statistics.waiting_receivers, statistics.waiting_senders) == (0, 0)
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("anyio_backend", [BACKENDS[name] for name in ("asyncio", "uvloop", "trio")])
async def test_go_select2_memory(stress: bool) -> None:
    """Selects that lose on a silent channel leave nothing there."""
    before = await _selects_on_a_silent_channel(1000)
    after = await _selects_on_a_silent_channel(1_000_000 if stress else 100_000)
    assert after - before < 1000


async def test_go_select6() -> None:
    """A receiver that queued behind a select which went another way still gets its item."""
    first, second = Channel[bool](), Channel[bool]()
    got: list[str] = []

    async def select_once(name: str) -> None:
        index, _ = await select(first, second)
        got.append(f"{name} {index}")

    async def receive() -> None:
        await first.receive()
        got.append("plain")

    async with anyio.create_task_group() as group:
        group.start_soon(select_once, "a")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(select_once, "b")
        await anyio.wait_all_tasks_blocked()
        second.send_nowait(True)
        first.send_nowait(True)
        first.send_nowait(True)
    assert sorted(got) == ["a 1", "b 0", "plain"]


async def test_go_select7() -> None:
    """Each way to send meets each way to receive."""

    async def send_plain(channel: Channel[int]) -> None:
        await channel.send(1)

    async def send_select(channel: Channel[int]) -> None:
        await select(channel.sending(1))

    async def send_big_select(channel: Channel[int]) -> None:
        other = Channel[int]()
        await select(other, channel.sending(1), other.sending(2), None)

    async def receive_plain(channel: Channel[int]) -> None:
        assert await channel.receive() == 1

    async def receive_select(channel: Channel[int]) -> None:
        await select(channel)

    async def receive_big_select(channel: Channel[int]) -> None:
        other = Channel[int]()
        assert await select(other, other.sending(2), channel) == (2, 1)

    senders = (send_plain, send_select, send_big_select)
    receivers = (receive_plain, receive_select, receive_big_select)
    for send, receive, first in itertools.product(senders, receivers, (0, 1)):
        channel = Channel[int]()
        async with anyio.create_task_group() as group:
            for operation in (send, receive) if first else (receive, send):
                group.start_soon(operation, channel)
                await anyio.wait_all_tasks_blocked()


async def test_select_takes_all_that_are_ready_equally_often_from_a_seed() -> None:
    def draws(count: int, cases: int, rng: random.Random | None) -> list[int]:
        channels = [Channel[int](math.inf) for _ in range(cases)]
        for channel in channels:
            for _ in range(count):
                channel.send_nowait(0)
        return [select_nowait(*channels, None, rng=rng)[0] for _ in range(count)]

    for cases in (2, 3, 4, 5, 7):
        taken = Counter(draws(2000, cases, random.Random(1)))
        assert all(abs(taken[case] - 2000 / cases) < 10 * math.sqrt(2000 / cases) for case in range(cases))
        assert draws(50, cases, random.Random(5)) == draws(50, cases, random.Random(5))
    seed_select(3)
    first = draws(50, 3, None)
    seed_select(3)
    assert draws(50, 3, None) == first
    seed_select(None)


async def test_select_with_priority_takes_the_first_that_is_ready() -> None:
    channels = [Channel[int](100) for _ in range(3)]
    for channel in channels[1:]:
        for _ in range(100):
            channel.send_nowait(0)
    assert [(await select(*channels, priority=True))[0] for _ in range(200)] == [1] * 100 + [2] * 100
