"""What becomes of an item that finds no room."""

from collections.abc import Sequence

import anyio
import pytest

from cuelight.errors import MailboxFull
from cuelight.mailbox import Channel, Overflow, coalesce, drop_newest, drop_oldest, fail, wait

Dropped = list[tuple[int, str]]


def _channel(overflow: Overflow[int], capacity: int = 2) -> tuple[Channel[int], Dropped]:
    dropped: Dropped = []
    return Channel(capacity, overflow=overflow, on_dropped=lambda item, why: dropped.append((item, why))), dropped


def _drained(channel: Channel[int]) -> list[int]:
    return [channel.receive_nowait() for _ in range(len(channel))]


def test_policies_are_pure_functions() -> None:
    buffer = ["a", "b"]
    by_first = coalesce(str.lower)
    assert wait(buffer, "c") is None  # type: ignore[func-returns-value]
    assert drop_oldest(buffer, "c") == 0
    assert drop_newest(buffer, "c") == 2
    assert by_first(buffer, "B") == 1
    assert by_first(buffer, "c") is None
    with pytest.raises(MailboxFull, match="2 items wait"):
        fail(buffer, "c")
    assert buffer == ["a", "b"]


async def test_drop_oldest_keeps_the_latest() -> None:
    channel, dropped = _channel(drop_oldest)
    for item in range(5):
        await channel.send(item)
    assert _drained(channel) == [3, 4]
    assert dropped == [(0, "drop_oldest"), (1, "drop_oldest"), (2, "drop_oldest")]
    statistics = channel.statistics()
    assert (statistics.sent, statistics.received, statistics.dropped) == (5, 2, 3)


async def test_drop_newest_keeps_the_first() -> None:
    channel, dropped = _channel(drop_newest)
    for item in range(4):
        channel.send_nowait(item)
    assert _drained(channel) == [0, 1]
    assert dropped == [(2, "drop_newest"), (3, "drop_newest")]


async def test_fail_refuses_the_item() -> None:
    channel, dropped = _channel(fail)
    await channel.send(0)
    await channel.send(1)
    with pytest.raises(MailboxFull):
        await channel.send(2)
    with pytest.raises(MailboxFull):
        channel.send_nowait(2)
    assert _drained(channel) == [0, 1]
    assert dropped == []


async def test_coalesce_replaces_the_item_with_the_same_key() -> None:
    channel, dropped = _channel(coalesce(lambda item: item % 10))
    for item in (11, 22, 31):
        await channel.send(item)
    assert dropped == [(11, "coalesce_by_key")]
    with pytest.raises(anyio.WouldBlock):
        channel.send_nowait(43)
    assert _drained(channel) == [22, 31]


async def test_a_policy_that_drops_makes_a_rendezvous_without_waiting() -> None:
    for policy in (drop_oldest, drop_newest):
        channel, dropped = _channel(policy, capacity=0)
        await channel.send(1)
        assert [item for item, _ in dropped] == [1]
        assert len(channel) == 0


async def test_policies_drop_without_a_hook() -> None:
    channel = Channel[int](1, overflow=drop_oldest)
    channel.send_nowait(1)
    channel.send_nowait(2)
    assert _drained(channel) == [2]


async def test_a_hook_that_raises_refuses_the_item() -> None:
    def refuse(item: int, why: str) -> None:
        raise LookupError(item, why)

    channel = Channel[int](1, overflow=drop_oldest, on_dropped=refuse)
    channel.send_nowait(1)
    with pytest.raises(LookupError):
        await channel.send(2)
    statistics = channel.statistics()
    assert (statistics.sent, statistics.dropped) == (1, 0)
    assert _drained(channel) == [1]


async def test_a_policy_of_ones_own() -> None:
    def drop_largest(buffer: Sequence[int], item: int) -> int:
        everything = [*buffer, item]
        return everything.index(max(everything))

    channel, dropped = _channel(drop_largest)
    for item in (5, 1, 3, 9):
        await channel.send(item)
    assert _drained(channel) == [1, 3]
    assert [item for item, _ in dropped] == [5, 9]


@pytest.mark.parametrize("position", [-1, 2])
async def test_a_policy_that_names_no_position_is_refused(position: int) -> None:
    channel = Channel[int](1, overflow=lambda _buffer, _item: position)
    channel.send_nowait(1)
    with pytest.raises(ValueError, match=rf"said {position}: no position in 0\.\.1"):
        channel.send_nowait(2)
    assert _drained(channel) == [1]
