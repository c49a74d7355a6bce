"""Go's conformance tests for channels, ported: what they assert, in our words."""

import math
from collections import Counter

import anyio
import pytest

from cuelight.errors import ChannelClosed
from cuelight.mailbox import Channel, select, select_nowait

CAPACITIES = [0, 1, 2, 10, 100]
every_capacity = pytest.mark.parametrize("capacity", CAPACITIES)


@every_capacity
async def test_go_chan_receive_from_an_empty_one_blocks(capacity: int) -> None:
    channel = Channel[int](capacity)
    received = False

    async def receive() -> None:
        nonlocal received
        await channel.receive()
        received = True

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        group.start_soon(select, channel)
        await anyio.wait_all_tasks_blocked()
        assert not received
        with pytest.raises(anyio.WouldBlock):
            select_nowait(channel)
        channel.send_nowait(0)
        channel.send_nowait(0)


@every_capacity
async def test_go_chan_send_to_a_full_one_blocks(capacity: int) -> None:
    channel = Channel[int](capacity)
    for item in range(capacity):
        await channel.send(item)
    sent = False

    async def send() -> None:
        nonlocal sent
        await channel.send(0)
        sent = True

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert not sent
        with pytest.raises(anyio.WouldBlock):
            select_nowait(channel.sending(0))
        await channel.receive()


@every_capacity
async def test_go_chan_a_closed_one_drains_and_then_is_closed_for_ever(capacity: int) -> None:
    channel = Channel[int](capacity)
    for item in range(capacity):
        await channel.send(item)
    channel.close()
    for item in range(capacity):
        assert await channel.receive() == item
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            await channel.receive()
        with pytest.raises(ChannelClosed):
            select_nowait(channel)


@every_capacity
async def test_go_chan_close_unblocks_receivers(capacity: int) -> None:
    channel = Channel[int](capacity)
    unblocked = 0

    async def receive() -> None:
        nonlocal unblocked
        with pytest.raises(ChannelClosed):
            await channel.receive()
        unblocked += 1

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        channel.close()
    assert unblocked == 4


@every_capacity
async def test_go_chan_a_hundred_arrive_in_order(capacity: int) -> None:
    channel = Channel[int](capacity)

    async def send() -> None:
        for item in range(100):
            await channel.send(item)

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        assert [await channel.receive() for _ in range(100)] == list(range(100))


@every_capacity
async def test_go_chan_many_to_many(capacity: int) -> None:
    workers, each = 4, 1000
    channel = Channel[int](capacity)
    results: list[Counter[int]] = []

    async def send() -> None:
        for item in range(each):
            await channel.send(item)

    async def receive() -> None:
        results.append(Counter([await channel.receive() for _ in range(each)]))

    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(send)
            group.start_soon(receive)
    total = sum(results, Counter[int]())
    assert total == dict.fromkeys(range(each), workers)


@every_capacity
async def test_go_chan_len_and_capacity(capacity: int) -> None:
    channel = Channel[int](capacity)
    assert (len(channel), channel.capacity) == (0, capacity)
    for item in range(capacity):
        await channel.send(item)
        assert len(channel) == item + 1


async def test_go_nonblock() -> None:
    """A try to send succeeds only with a waiting receiver or with room, one to receive with an item or a sender."""
    for capacity in (0, 1):
        channel = Channel[str](capacity)
        with pytest.raises(anyio.WouldBlock):
            channel.receive_nowait()
        if capacity:
            channel.send_nowait("buffered")
        with pytest.raises(anyio.WouldBlock):
            channel.send_nowait("too much")
        if capacity:
            assert channel.receive_nowait() == "buffered"
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive)
            await anyio.wait_all_tasks_blocked()
            channel.send_nowait("received")
        async with anyio.create_task_group() as group:
            for _ in range(capacity + 1):
                group.start_soon(channel.send, "sent")
            await anyio.wait_all_tasks_blocked()
            for _ in range(capacity + 1):
                assert channel.receive_nowait() == "sent"


async def test_go_closedchan() -> None:
    """A send to a closed channel raises and its item is gone; what was buffered is received: in every way to do it."""
    for capacity in (0, 1, 2):
        for ways in range(4):
            channel = Channel[int](capacity)
            for item in range(capacity):
                channel.send_nowait(item)
            channel.close()
            never = Channel[int]()
            with pytest.raises(ChannelClosed):
                await channel.send(9)
            with pytest.raises(ChannelClosed):
                await select(channel.sending(9))
            with pytest.raises(ChannelClosed):
                await select(channel.sending(9), never, never.sending(1))
            for item in range(capacity):
                match ways:
                    case 0:
                        assert await channel.receive() == item
                    case 1:
                        assert channel.receive_nowait() == item
                    case 2:
                        assert await select(channel) == (0, item)
                    case _:
                        assert await select(never, never.sending(1), channel, None) == (2, item)
            with pytest.raises(ChannelClosed):
                await select(channel, None)


async def test_go_fifo_buffered() -> None:
    channel = Channel[int](10)
    for item in range(10):
        await channel.send(item)
    assert [await channel.receive() for _ in range(10)] == list(range(10))


async def test_go_fifo_daisy_chain() -> None:
    """Each link waits for the one before it, so the values can only come in order."""
    channel = Channel[int]()
    got: list[int] = []

    async def link(value: int, before: Channel[int], behind: Channel[int]) -> None:
        await before.receive()
        got.append(await channel.receive())
        assert got[-1] == value
        await behind.send(1)

    async with anyio.create_task_group() as group:
        before = first = Channel[int]()
        for value in range(10):
            behind = Channel[int]()
            group.start_soon(link, value, before, behind)
            before = behind
        await first.send(1)
        for value in range(10):
            await channel.send(value)
        await before.receive()
    assert got == list(range(10))


async def test_go_multi_consumer() -> None:
    workers, count = 23, 1000
    jobs = Channel[int](workers)
    results = Channel[int](workers * 3)
    left = workers

    async def work() -> None:
        nonlocal left
        async for job in jobs:
            if job % 5 == 0:
                await anyio.lowlevel.checkpoint()
            await results.send(job)
        left -= 1
        if not left:
            results.close()

    async def feed() -> None:
        for job in range(count):
            await jobs.send(job * 7)
        jobs.close()

    got: list[int] = []
    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(work)
        group.start_soon(feed)
        got += [result async for result in results]
    assert (len(got), sum(got)) == (count, 7 * count * (count - 1) // 2)


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@pytest.mark.parametrize("capacity", [0, 4])
async def test_go_sieve(capacity: int) -> None:
    """The prime sieve: a chain of filters that grows by one task with each prime."""

    async def generate(out: Channel[int]) -> None:
        number = 2
        while True:
            await out.send(number)
            number += 1

    async def sift(prime: int, source: Channel[int], out: Channel[int]) -> None:
        async for number in source:
            if number % prime:
                await out.send(number)

    primes: list[int] = []
    async with anyio.create_task_group() as group:
        source = Channel[int](capacity)
        group.start_soon(generate, source)
        while len(primes) < 40:
            prime = await source.receive()
            primes.append(prime)
            out = Channel[int](capacity)
            group.start_soon(sift, prime, source, out)
            source = out
        group.cancel_scope.cancel()
    assert primes == [number for number in range(2, 174) if _is_prime(number)]


async def test_go_long_chain() -> None:
    """A value goes through a thousand tasks."""
    leftmost = left = Channel[int]()

    async def pass_on(left: Channel[int], right: Channel[int]) -> None:
        await left.send(await right.receive())

    async with anyio.create_task_group() as group:
        for _ in range(1000):
            right = Channel[int]()
            group.start_soon(pass_on, left, right)
            left = right
        group.start_soon(left.send, 1)
        assert await leftmost.receive() == 1


class Series:
    """A power series as a pair of channels: each coefficient is computed when it is asked for."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self.group = group
        self.demand = Channel[None]()
        self.data = Channel[float]()

    async def get(self) -> float:
        await self.demand.send(None)
        return await self.data.receive()

    async def put(self, coefficient: float) -> None:
        await self.demand.receive()
        await self.data.send(coefficient)


def _ones(group: anyio.abc.TaskGroup) -> Series:
    series = Series(group)

    async def run() -> None:
        while True:
            await series.put(1)

    group.start_soon(run)
    return series


def _split(source: Series) -> tuple[Series, Series]:
    """Two copies; whichever is asked first computes, the other finds it in its queue."""
    copies = Series(source.group), Series(source.group)
    queues = [list[float](), list[float]()]
    asked = [False, False]

    async def run() -> None:
        computing = False
        while True:
            index, coefficient = await select(
                None if asked[0] else copies[0].demand,
                None if asked[1] else copies[1].demand,
                source.data if computing else None,
            )
            if coefficient is None:
                asked[index] = True
                if not queues[index] and not computing:
                    computing = True
                    await source.demand.send(None)
            else:
                computing = False
                for queue in queues:
                    queue.append(coefficient)
            for copy, queue in enumerate(queues):
                if asked[copy] and queue:
                    asked[copy] = False
                    await copies[copy].data.send(queue.pop(0))

    source.group.start_soon(run)
    return copies


def _add(one: Series, other: Series) -> Series:
    total = Series(one.group)

    async def run() -> None:
        while True:
            await total.demand.receive()
            await total.data.send(await one.get() + await other.get())

    one.group.start_soon(run)
    return total


def _integral(source: Series) -> Series:
    result = Series(source.group)

    async def run() -> None:
        await result.put(1)
        power = 1
        while True:
            await result.demand.receive()
            await result.data.send(await source.get() / power)
            power += 1

    source.group.start_soon(run)
    return result


async def test_go_power_series() -> None:
    """Demand-driven streams that split and join: 1 / (1 - x) twice, and exp as its own integral."""
    async with anyio.create_task_group() as group:
        left, right = _split(_ones(group))
        total = _add(left, right)
        assert [await total.get() for _ in range(10)] == [2] * 10

        feedback = Series(group)
        exponential, again = _split(_integral(feedback))

        async def feed() -> None:
            while True:
                await feedback.demand.receive()
                await feedback.data.send(await again.get())

        group.start_soon(feed)
        for power in range(10):
            assert math.isclose(await exponential.get(), 1 / math.factorial(power))
        group.cancel_scope.cancel()
