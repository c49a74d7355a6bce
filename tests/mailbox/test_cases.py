"""A case of one's own: what `select` asks of it and promises to it."""

import asyncio

import anyio
import pytest

from cuelight.errors import ChannelClosed
from cuelight.mailbox import CLOSED, NOT_READY, CaseWaiter, Channel, NotNow, select, select_nowait
from helpers import BACKENDS


class Latch:
    """Ready once it was opened, with a word; closed when it was dropped."""

    def __init__(self, *, undoable: bool = True) -> None:
        self.word: str | None = None
        self.dropped = False
        self.waiters: list[CaseWaiter] = []
        self.put_back: list[str] = []
        self._undoable = undoable

    def case_poll(self) -> str | NotNow:
        if self.word is None:
            return CLOSED if self.dropped else NOT_READY
        word, self.word = self.word, None
        return word

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        self.waiters.append(waiter)

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        self.waiters.remove(waiter)

    def case_put_back(self, item: str, /) -> bool:
        self.put_back.append(item)
        return self._undoable

    def open(self, word: str) -> bool:
        """Give the word to one that waits; whether there was one."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(word)
                return True
        self.word = word
        return False

    def drop(self) -> None:
        self.dropped = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(CLOSED)


async def test_a_case_is_polled_before_anybody_waits() -> None:
    latch, silent = Latch(), Channel[int]()
    latch.open("now")
    assert await select(silent, latch) == (1, "now")
    with pytest.raises(anyio.WouldBlock):
        select_nowait(latch, silent)
    assert latch.waiters == []


async def test_a_case_claims_the_select_that_waits() -> None:
    latch, silent = Latch(), Channel[int]()
    results: list[object] = []

    async def wait() -> None:
        results.append(await select(latch, silent, None))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert latch.open("later")
        assert not latch.open("the select is over")
    assert results == [(0, "later")]
    assert latch.waiters == []
    assert silent.statistics().waiting_receivers == 0


async def test_a_case_that_closes_drops_out_and_the_others_go_on() -> None:
    latch, channel = Latch(), Channel[int]()
    results: list[object] = []

    async def wait() -> None:
        results.append(await select(latch, channel))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        latch.drop()
        await anyio.wait_all_tasks_blocked()
        assert results == []
        channel.send_nowait(1)
    assert results == [(1, 1)]
    with pytest.raises(ChannelClosed):
        await select(latch, None)


async def test_a_case_that_refuses_to_enroll_leaves_the_others_clean() -> None:
    class Broken(Latch):
        def case_enroll(self, waiter: CaseWaiter, /) -> None:
            super().case_enroll(waiter)
            raise LookupError

    channel, broken = Channel[int](), Broken()
    with pytest.raises(LookupError):
        await select(channel, broken, priority=True)
    assert channel.statistics().waiting_receivers == 0
    assert broken.waiters == []


async def test_a_closed_channel_wakes_a_select_and_the_rest_goes_on() -> None:
    first, second = Channel[int](), Channel[int]()

    async def close() -> None:
        await anyio.wait_all_tasks_blocked()
        first.close()
        await anyio.wait_all_tasks_blocked()
        second.close()

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        with pytest.raises(ChannelClosed):
            await select(first, second)


async def test_a_send_case_raises_when_its_channel_closes() -> None:
    channel, silent = Channel[int](), Channel[int]()

    async def wait() -> None:
        with pytest.raises(ChannelClosed):
            await select(channel.sending(1), silent)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        channel.close()
    assert silent.statistics().waiting_receivers == 0


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"], BACKENDS["uvloop"]])
@pytest.mark.parametrize("undoable", [True, False])
async def test_native_cancel_puts_the_item_of_a_case_back(undoable: bool) -> None:
    latch = Latch(undoable=undoable)
    task = asyncio.ensure_future(select(latch, Channel[int]()))
    for _ in range(4):
        await asyncio.sleep(0)
    latch.open("word")
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert latch.put_back == ["word"]
    assert latch.waiters == []
    if undoable:
        assert isinstance(outcome, asyncio.CancelledError)
    else:
        assert outcome == (0, "word") or isinstance(outcome, asyncio.CancelledError)
