"""Actors from blocking code and from many threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Self

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    Message,
    NotStarted,
    Request,
    ShutdownTimeout,
    Stopped,
    StreamRequest,
    SystemClosed,
    UnexpectedCancellation,
    child,
    on,
)
from cuelight.supervision import _blocking


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Count(StreamRequest[int]):
    to: int


class Counter(Actor[Add | Total | Count]):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @on(Add)
    async def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    def get(self, message: Total) -> int:
        return self.total

    @on(Count)
    async def count(self, message: Count) -> AsyncIterator[int]:
        for number in range(message.to):
            yield number
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_blocking_code_uses_the_same_actors_from_any_thread(backend: str) -> None:
    with ActorSystem.blocking("demo", backend=backend) as system:
        counter = system.spawn(child(Counter, start=10).with_options(name="counter", capacity=5))

        def work() -> None:
            for _ in range(100):
                counter.tell(Add(1))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counter.ask(Total()) == 810
        assert system.find("counter").ask(Total(), timeout=5) == 810
        assert list(counter.stream(Count(50))) == list(range(50))
        stream = counter.stream(Count(1000))
        assert next(iter(stream)) == 0
        del stream
        counter.stop()
        assert counter.ended() == Stopped()
        with pytest.raises(NotStarted):
            counter.ask(Total())
        other = system.spawn(Counter)
        other.kill("enough")
        assert not other.ref.alive
        threading.Thread(target=system.system.call_threadsafe, args=(list,)).start()
    with pytest.raises(SystemClosed):
        system.spawn(Counter)


def test_a_blocking_system_must_be_entered() -> None:
    system = ActorSystem.blocking()
    with pytest.raises(SystemClosed):
        _ = system.system
    with pytest.raises(SystemClosed):
        system.find("x")


def test_an_exception_leaves_a_blocking_block() -> None:
    with pytest.raises(ZeroDivisionError), ActorSystem.blocking() as system:
        system.spawn(Counter)
        raise ZeroDivisionError


class Block(Message):
    until: threading.Event


class Blocker(Actor[Block]):
    @on(Block)
    def block(self, message: Block) -> None:
        message.until.wait()


def test_calls_that_wait_are_told_that_a_blocking_block_is_left() -> None:
    outcomes: list[BaseException] = []
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            system.call(wait)
        except BaseException as error:
            outcomes.append(error)

    with ActorSystem.blocking() as system:
        caller = threading.Thread(target=work)
        caller.start()
        assert waiting.wait(10)
    caller.join(10)
    assert [type(error) for error in outcomes] == [SystemClosed]
    assert "while this call waited" in str(outcomes[0])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_blocking_system_whose_actor_ends_it_says_so(backend: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, ActorSystem.blocking(backend=backend) as system:
        system.call(system.system.abort, ZeroDivisionError())
        with pytest.raises(SystemClosed):
            system.call(anyio.sleep_forever)
        with pytest.raises(SystemClosed, match="has ended"):
            while True:
                system.call(anyio.lowlevel.checkpoint)
    assert caught.group_contains(ZeroDivisionError)


def test_a_blocking_system_refuses_a_call_from_its_own_loop_and_a_second_block() -> None:
    with ActorSystem.blocking() as system:
        with pytest.raises(RuntimeError, match="use `await`"):
            system.call(lambda: system.call(list))
        with pytest.raises(RuntimeError, match="another `with` block"), system:
            pytest.fail("entered twice")
    with system:
        assert system.call(list) == []


def test_a_stray_cancellation_of_a_blocking_call_is_an_error_of_that_call() -> None:
    async def awaits_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with ActorSystem.blocking() as system:
        with pytest.raises(UnexpectedCancellation):
            system.call(awaits_cancelled)
        assert system.call(list) == []


def test_a_blocking_block_is_left_although_a_handler_blocks_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocking, "UNRESPONSIVE", 0.2)
    until = threading.Event()
    try:
        with (
            pytest.raises(ShutdownTimeout, match=r"until\.wait"),
            ActorSystem.blocking(shutdown_timeout=0.1, slow_after=None) as system,
        ):
            system.spawn(Blocker).ref.tell_threadsafe(Block(until))
        with pytest.raises(KeyError), ActorSystem.blocking(shutdown_timeout=0.1, slow_after=None) as system:
            system.spawn(Blocker).ref.tell_threadsafe(Block(until))
            raise KeyError
    finally:
        until.set()


class Failing(ActorSystem):
    async def __aenter__(self) -> Self:
        raise ZeroDivisionError


def test_a_blocking_system_that_cannot_start_says_why_and_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError), Failing.blocking():
        pytest.fail("entered")
    with pytest.raises(ValueError, match="ask_timeout"), ActorSystem.blocking(ask_timeout=0):
        pytest.fail("entered")
    with pytest.raises(LookupError), ActorSystem.blocking(backend="nothing"):
        pytest.fail("entered")
    assert not [thread for thread in threading.enumerate() if thread.name == "cuelight actor system"]
