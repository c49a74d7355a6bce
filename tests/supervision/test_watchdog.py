"""Reports of slow handlers: real time, a real thread, and where the handler stands."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight import Actor, ActorSystem, Message, Request, StreamRequest, on
from cuelight.supervision._watchdog import Watchdog
from helpers import BACKENDS, Backend


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Real time: a blocked loop blocks a virtual clock too."""
    backend: Backend = request.param
    return backend


class Block(Message):
    until: Any


class Wait(Request[int]):
    until: Any


class Sync(Actor[Block]):
    @on(Block)
    def block_the_loop_here(self, message: Block) -> None:
        assert message.until.wait(30)


class Async(Actor[Wait]):
    @on(Wait)
    async def wait_here(self, message: Wait) -> int:
        await self.deeper(message.until)
        return 1

    async def deeper(self, until: anyio.Event) -> None:
        await until.wait()


class Reports(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.came.set()


@pytest.fixture
def reports() -> Any:
    handler = Reports()
    logger = logging.getLogger("cuelight.slow")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


async def test_a_handler_that_blocks_the_loop_is_reported_with_where_it_stands(reports: Reports) -> None:
    async with ActorSystem("demo", slow_after=0.05) as system:
        ref = await system.spawn(Sync)
        await ref.tell(Block(reports.came))  # it blocks until it is reported
        await system.wait_until_idle()
    (text,) = reports.texts
    assert "/demo/Sync-2 has been handling Block" in text
    assert "block_the_loop_here" in text


async def test_a_handler_that_awaits_too_long_is_reported_once_with_where_it_stands(reports: Reports) -> None:
    async with ActorSystem("demo", slow_after=0.05) as system:
        ref = await system.spawn(Async)
        until = anyio.Event()
        reply = ref.ask(Wait(until))
        await anyio.to_thread.run_sync(reports.came.wait, 30)
        until.set()
        assert await reply == 1
    (text,) = reports.texts
    assert "in wait_here" in text
    assert "in deeper" in text


def test_only_what_runs_for_long_is_reported(reports: Reports) -> None:
    class FakeCell:
        handled, running, path, coroutine = 0, "m", "/a", None

        def content(self, item: object) -> object:
            return item

        def __len__(self) -> int:
            return 0

    class FakeRuntime:
        turning = None

        def __init__(self) -> None:
            self.cells: list[Any] = [FakeCell()]

        def busy_cells(self) -> list[Any]:
            return self.cells

    runtime: Any = FakeRuntime()
    dog = Watchdog(runtime, 1.0)
    for now in (0.0, 0.5):
        dog.check(now)
    runtime.cells[0].handled = 1  # another message
    for now in (1.0, 1.9):
        dog.check(now)
    assert not reports.texts
    for now in (2.0, 2.5, 9.0):
        dog.check(now)
    assert len(reports.texts) == 1
    assert "cannot be shown" in reports.texts[0] or "not awaiting" in reports.texts[0]
    runtime.cells.clear()
    dog.check(10.0)
    dog.stop()


class Steps(StreamRequest[int]):
    until: Any


class Blocking(Actor[Block | Steps]):
    """Has `async def` handlers: they can block the loop, too."""

    @on(Block)
    async def block_in_a_coroutine(self, message: Block) -> None:
        self.right_here(message.until)

    def right_here(self, until: Any) -> None:
        assert until.wait(30)

    @on(Steps)
    async def steps(self, message: Steps) -> AsyncIterator[int]:
        yield 1
        await self.between_two_chunks(message.until)
        yield 2

    async def between_two_chunks(self, until: anyio.Event) -> None:
        await until.wait()


async def test_a_coroutine_that_blocks_the_loop_is_reported_with_the_line_of_the_user(reports: Reports) -> None:
    async with ActorSystem("demo", slow_after=0.05) as system:
        ref = await system.spawn(Blocking)
        await ref.tell(Block(reports.came))
        await system.wait_until_idle()
    (text,) = reports.texts
    assert "in block_in_a_coroutine" in text
    assert "in right_here" in text


async def test_a_stream_handler_that_takes_too_long_is_reported_with_the_line_of_the_user(reports: Reports) -> None:
    async with ActorSystem("demo", slow_after=0.05) as system:
        ref = await system.spawn(Blocking)
        until = anyio.Event()
        async with ref.stream(Steps(until)) as stream:
            async for chunk in stream:
                if chunk == 1:
                    await anyio.to_thread.run_sync(reports.came.wait, 30)
                    until.set()
    (text,) = reports.texts
    assert "in steps" in text
    assert "in between_two_chunks" in text


def test_the_watchdog_goes_on_after_a_look_that_failed(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Semaphore(0)

    def fail(self: Watchdog, now: float) -> None:
        looks.release()
        raise ValueError("cannot look")

    monkeypatch.setattr(Watchdog, "check", fail)
    runtime: Any = None
    watchdog = Watchdog(runtime, 0.01)
    watchdog.start()
    for _ in range(3):
        assert looks.acquire(timeout=30)
    watchdog.stop()
    assert "an internal error of Cuelight in looking for slow handlers" in reports.texts[0]
