"""Random storms that count every item, and what Kotlin's stress tests look for."""

import asyncio
import random
import sys
from collections import Counter
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from cuelight.mailbox import Channel, drop_oldest, merge, select
from helpers import BACKENDS, Backend, run_on

SEEDS, STRESS_SEEDS = 4, 1000
EXACT_SENDS = sys.version_info >= (3, 13)


class Storm:
    """Tasks that send and receive, plainly and by select, over three channels, and are cancelled at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.channels = [Channel[int](capacity) for capacity in (0, 1, 3)]
        self.started: set[int] = set()
        self.sent: set[int] = set()
        self.received: list[int] = []

    async def send(self, item: int) -> None:
        self.started.add(item)
        match self.random.randrange(3):
            case 0:
                await self.channels[item % 3].send(item)
            case 1:
                with await self.channels[item % 3].reserve() as permit:
                    permit.send(item)
            case _:
                await select(*(channel.sending(item) for channel in self.channels))
        self.sent.add(item)

    async def receive(self, _number: int) -> None:
        channel = self.random.choice(self.channels)
        if self.random.random() < 0.5:
            self.received.append(await channel.receive())
        else:
            self.received.append((await select(*self.channels))[1])

    async def by_scope(self, rounds: int) -> None:
        async def one(operation: Any, number: int, scope: anyio.CancelScope) -> None:
            with scope:
                await operation(number)

        for turn in range(rounds):
            scopes = [anyio.CancelScope() for _ in range(20)]
            async with anyio.create_task_group() as group:
                for number, scope in enumerate(scopes):
                    operation = self.random.choice((self.send, self.receive))
                    group.start_soon(one, operation, turn * 20 + number, scope)
                for _ in range(self.random.randrange(5)):
                    await checkpoint()
                    self.random.choice(scopes).cancel()
                for scope in scopes:
                    scope.cancel()

    async def by_task(self, rounds: int) -> None:
        for turn in range(rounds):
            tasks = [
                asyncio.ensure_future(self.random.choice((self.send, self.receive))(turn * 20 + number))
                for number in range(20)
            ]
            for _ in range(self.random.randrange(5)):
                await asyncio.sleep(0)
                self.random.choice(tasks).cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def check(self, *, exact_sends: bool = True) -> None:
        left: list[int] = []
        for channel in self.channels:
            statistics = channel.statistics()
            assert (statistics.waiting_senders, statistics.waiting_receivers) == (0, 0)
            left += [channel.receive_nowait() for _ in range(len(channel))]
        arrived = self.received + left
        assert max(Counter(arrived).values(), default=1) == 1, "an item arrived twice"
        assert self.sent <= set(arrived), "an item was lost"
        assert set(arrived) <= (self.sent if exact_sends else self.started), "a send raised and delivered"
        assert len(self.sent) > 10


def _seeds(stress: bool) -> range:
    return range(STRESS_SEEDS if stress else SEEDS)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_scope_cancellation_loses_and_duplicates_nothing(backend: Backend, stress: bool) -> None:
    for seed in _seeds(stress):
        storm = Storm(seed)
        run_on(backend, storm.by_scope, 40)
        storm.check()


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_native_cancellation_loses_and_duplicates_nothing(name: str, stress: bool) -> None:
    for seed in _seeds(stress):
        storm = Storm(seed)
        run_on(BACKENDS[name], storm.by_task, 40)
        storm.check(exact_sends=EXACT_SENDS)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_kotlin_undelivered_element(backend: Backend, stress: bool) -> None:
    """Both sides are stopped and started again and again: what was sent was received, was dropped or is there."""

    async def storm(seed: int) -> None:
        rng = random.Random(seed)
        received: list[int] = []
        dropped: list[int] = []
        numbers = iter(range(10**9))
        channel = Channel[int](2, overflow=drop_oldest, on_dropped=lambda item, _why: dropped.append(item))
        end = channel.receiver()

        async def send() -> None:
            while True:
                await channel.send(next(numbers))
                if rng.random() < 0.3:
                    await checkpoint()

        async def receive() -> None:
            while True:
                received.append(await end.receive())

        for _ in range(40):
            async with anyio.create_task_group() as group:
                for side in rng.sample([send, send, receive, receive], 3):
                    group.start_soon(side)
                for _ in range(rng.randrange(6)):
                    await checkpoint()
                group.cancel_scope.cancel()
        end.close()
        statistics = channel.statistics()
        assert (statistics.sent, statistics.buffered) == (len(received) + len(dropped), 0)
        assert (statistics.received, statistics.dropped) == (len(received), len(dropped))
        assert max(Counter(received + dropped).values()) == 1

    for seed in _seeds(stress):
        run_on(backend, storm, seed)


async def test_kotlin_select_philosophers() -> None:
    """Five philosophers take two forks each by select; everybody eats, nobody starves."""
    count, meals = 5, 60
    forks = [Channel[int](1) for _ in range(count)]
    eaten = Counter[int]()
    for number, fork in enumerate(forks):
        fork.send_nowait(number)

    async def dine(who: int) -> None:
        left, right = forks[who], forks[(who + 1) % count]
        while eaten[who] < meals:
            index, first = await select(left, right)
            other, taken = (right, left) if index == 0 else (left, right)
            try:
                second = other.receive_nowait()
            except anyio.WouldBlock:
                taken.send_nowait(first)
                await checkpoint()
                continue
            await checkpoint()
            eaten[who] += 1
            taken.send_nowait(first)
            other.send_nowait(second)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for who in range(count):
                group.start_soon(dine, who)
    assert eaten == dict.fromkeys(range(count), meals)
    assert [len(fork) for fork in forks] == [1] * count


async def test_kotlin_select_deadlock() -> None:
    """Two tasks that each select to send to and receive from the other never stand still."""
    one, other = Channel[int](), Channel[int]()
    swaps = 500

    async def swap(mine: Channel[int], theirs: Channel[int]) -> None:
        sent = received = 0
        while sent < swaps or received < swaps:
            index, _ = await select(theirs.sending(sent) if sent < swaps else None, mine if received < swaps else None)
            if index == 0:
                sent += 1
            else:
                received += 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(swap, one, other)
            group.start_soon(swap, other, one)
    assert one.statistics().received == other.statistics().received == swaps


async def test_merge_gives_every_item_until_all_are_closed() -> None:
    channels = [Channel[int](capacity) for capacity in (0, 1, 5)]
    got: list[int] = []

    async def send(number: int, channel: Channel[int]) -> None:
        async with channel:
            for item in range(100):
                await channel.send(number * 100 + item)

    async with anyio.create_task_group() as group:
        for number, channel in enumerate(channels):
            group.start_soon(send, number, channel)
        got += [item async for item in merge(*channels)]
    assert sorted(got) == list(range(300))
    for number in range(3):
        own = [item for item in got if item // 100 == number]
        assert own == sorted(own)
