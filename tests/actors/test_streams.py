"""Replies that come in chunks."""

import gc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Interrupted,
    MailboxFull,
    Message,
    NotStarted,
    Ref,
    ReplyError,
    StreamRequest,
    child,
    fail,
    on,
    wait,
)
from cuelight.actors._reply import WINDOW
from cuelight.errors import InterruptedTimeout, NotStartedTimeout
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Busy, Get, Put, Wait, outcome, settle


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Count(StreamRequest[int]):
    to: int
    pause: float = 0.0
    error: Any = None


class Nested(StreamRequest[Any]):
    pass


class Hang(Message):
    pass


class Counter(Actor[Count | Nested | Get | Put | Hang]):
    def __init__(self, log: list[Any], other: Ref[Wait] | None = None) -> None:
        self.log, self.other = log, other

    @on(Count)
    async def count(self, message: Count) -> AsyncIterator[int]:
        try:
            for number in range(message.to):
                if message.pause:
                    await anyio.sleep(message.pause)
                self.log.append(number)
                yield number
            if message.error is not None:
                raise message.error
        finally:
            self.log.append("closed")

    @on(Nested)
    async def nested(self, message: Nested) -> AsyncIterator[Any]:
        yield self.remaining
        assert self.other is not None
        yield await outcome(self.other.ask(Wait()))

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        return list(self.log)

    @on(Put)
    async def put(self, message: Put) -> None:
        self.log.append(message.item)

    @on(Hang)
    async def hang(self, message: Hang) -> None:
        await anyio.sleep_forever()


async def test_a_stream_brings_all_chunks_in_order_and_ends() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        assert [number async for number in ref.stream(Count(100))] == list(range(100))
        assert [number async for number in ref.stream(Count(3, pause=20))] == [0, 1, 2]
        assert [number async for number in ref.stream(Count(0))] == []
        stream = ref.stream(Count(1))
        assert [number async for number in stream] == [0]
        assert [number async for number in stream] == []
        await stream.aclose()


async def test_a_stream_handler_runs_no_more_than_a_window_ahead() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        async with ref.stream(Count(100)) as stream:
            assert await anext(stream) == 0
            await settle()
            assert len(log) <= WINDOW + 1
            ahead = len(log)
            for _ in range(WINDOW):
                await anext(stream)
            await settle()
            assert ahead < len(log) <= 2 * WINDOW + 1


@pytest.mark.parametrize("how", ["with", "aclose", "cancelled", "dropped"])
async def test_leaving_a_stream_early_cancels_its_handler(how: str) -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        stream = ref.stream(Count(1000, pause=0.5))
        if how == "with":
            async with stream:
                assert await anext(stream) == 0
        elif how == "aclose":
            assert await anext(stream) == 0
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(Interrupted, match="was closed by its reader"):
                await anext(stream)
        elif how == "cancelled":
            with anyio.move_on_after(0.7):
                async for _ in stream:
                    pass
        else:
            assert await anext(stream) == 0
            del stream
            gc.collect()
        await wait_until_idle(system)
        assert log[0] == 0
        assert log[-1] == "closed"
        assert await ref.ask(Get()) == log


async def test_a_stream_that_is_never_read_is_cancelled_when_it_is_dropped() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        await ref.tell(Hang())
        queued = ref.stream(Count(5))
        await settle()
        del queued
        gc.collect()
        await settle()
        ref.interrupt()
        await wait_until_idle(system)
        assert log == []
        stream = ref.stream(Count(1000))
        await settle()
        assert len(log) == WINDOW
        del stream
        gc.collect()
        await wait_until_idle(system)
        assert log[-1] == "closed"


async def test_a_stream_whose_handler_fails_midway_gives_the_chunks_then_the_error() -> None:
    async with ActorSystem() as system:
        for error, expected in ((ReplyError("no"), ReplyError), (OSError("x"), ActorCrashed)):
            ref = await system.spawn(child(Counter, []).with_options(restart="temporary"))
            got: list[Any] = []
            with pytest.raises(expected):
                async for number in ref.stream(Count(3, error=error)):
                    got.append(number)  # noqa: PERF401 - what came before the error counts
            assert got == [0, 1, 2]
            await settle()
            assert ref.alive is (expected is ReplyError)


async def test_a_stream_times_out_between_chunks_and_not_over_all_of_it() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        assert len([number async for number in ref.stream(Count(10, pause=2), timeout=3)]) == 10
        with pytest.raises(InterruptedTimeout):
            [number async for number in ref.stream(Count(10, pause=4), timeout=3)]
        await ref.tell(Hang())
        with pytest.raises(NotStartedTimeout):
            [number async for number in ref.stream(Count(10), timeout=3)]
        assert ref.interrupt()
        assert await ref.ask(Get()) == log
        assert log.count("closed") == 2


async def test_the_reader_may_take_its_time() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        busy = await system.spawn(Busy)
        ref = await system.spawn(Counter, log, busy)
        got: list[Any] = []
        async for number in ref.stream(Count(40), timeout=1):
            await anyio.sleep(5)
            got.append(number)
        assert got == list(range(40))
        stream = ref.stream(Nested(), timeout=2)
        assert 0 < await anext(stream) <= 2.1  # somebody waits
        await anyio.sleep(10)  # nobody does, so what the handler asks is not in a hurry
        await busy.tell(Put("open"))
        busy.interrupt()
        assert isinstance(await anext(stream), Interrupted)
        await stream.aclose()


async def test_messages_wait_while_a_stream_is_handled() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await system.spawn(Counter, log)
        stream = ref.stream(Count(30))
        await ref.tell(Put("after"))
        assert [number async for number in stream] == list(range(30))
        assert (await ref.ask(Get()))[-2:] == ["closed", "after"]


async def test_a_stream_of_an_actor_that_has_no_room_waits_in_line_or_is_refused() -> None:
    async with ActorSystem() as system:
        for policy in (wait, fail):
            spec = child(Counter, []).with_options(capacity=1, overflow=policy)
            ref = await system.spawn(spec)
            await ref.tell(Hang())
            await settle()
            await ref.tell(Put(1))
            if policy is wait:
                stream = ref.stream(Count(3))
                assert ref.interrupt()
                assert [number async for number in stream] == [0, 1, 2]
            else:
                with pytest.raises(MailboxFull):
                    ref.stream(Count(3))
                assert ref.interrupt()


async def test_a_stream_of_an_actor_that_ends_fails() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Counter, [])
        stream = ref.stream(Count(3, pause=1))
        assert await anext(stream) == 0
        await ref.kill()
        with pytest.raises(Interrupted):
            await anext(stream)
        with pytest.raises(NotStarted):
            await anext(ref.stream(Count(1)))
