"""Actors from blocking code and from many threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorSystem, Message, NotStarted, Request, Stopped, StreamRequest, SystemClosed, child, on


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
