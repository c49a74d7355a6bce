"""Reports of slow handlers: real time, a real thread, and where the handler stands."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight import Actor, ActorSystem, Message, Request, on
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
        dog.look(now)
    runtime.cells[0].handled = 1  # another message
    for now in (1.0, 1.9):
        dog.look(now)
    assert not reports.texts
    for now in (2.0, 2.5, 9.0):
        dog.look(now)
    assert len(reports.texts) == 1
    assert "cannot be shown" in reports.texts[0] or "not awaiting" in reports.texts[0]
    runtime.cells.clear()
    dog.look(10.0)
    dog.stop()
