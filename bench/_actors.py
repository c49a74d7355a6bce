"""The measured actors, ours and those of the peers, as similar as the libraries allow."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from cuelight import Actor, ActorSystem, ChildSpec, Message, Request, child, on


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Plain(Actor[Add | Total]):
    """The actor with `def` handlers."""

    def __init__(self) -> None:
        self.total = 0

    @on(Add)
    def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    def get(self, message: Total) -> int:
        return self.total


class Async(Actor[Add | Total]):
    """The actor with `async def` handlers."""

    def __init__(self) -> None:
        self.total = 0

    @on(Add)
    async def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    async def get(self, message: Total) -> int:
        return self.total


ADD = Add(1)
TOTAL = Total()


def unbounded(kind: type[Actor[Any]]) -> ChildSpec[Any]:
    """An actor with an unbounded mailbox, as the peers have."""
    return child(kind).with_options(capacity=math.inf)


def in_system(measure: Callable[[ActorSystem, int], Awaitable[float]]) -> Callable[[int], Awaitable[float]]:
    """A workload that uses a system. Its start and end are not measured."""

    async def run(n: int) -> float:
        async with ActorSystem("bench") as system:
            return await measure(system, n)

    return run


# Pykka: threads, `def` handlers, blocking callers.


@cache
def _pykka_class() -> Any:
    import pykka

    class Counter(pykka.ThreadingActor):
        use_daemon_thread = True

        def __init__(self) -> None:
            super().__init__()
            self.total = 0

        def on_receive(self, message: Any) -> Any:
            if type(message) is Add:
                self.total += message.amount
                return None
            return self.total

    return Counter


def pykka_counter() -> Any:
    return _pykka_class().start()


# actio: asyncio, `async def` handlers. It has no ask, so a future is sent with the message.


@cache
def _actio_class() -> Any:
    from actio import Actor as ActioActor

    class Counter(ActioActor):
        def __init__(self) -> None:
            self.total = 0

        async def receive(self, sender: Any, message: Any) -> None:
            if type(message) is Add:
                self.total += message.amount
            else:
                message.set_result(self.total)

    return Counter


def actio_counter() -> Any:
    """An actio actor, for `create`. It takes an `Add`, or a future to answer."""
    return _actio_class()()


def in_actio(measure: Callable[[Any, int], Awaitable[float]]) -> Callable[[int], Awaitable[float]]:
    """A workload that uses an actio system. Its start and end are not measured."""

    async def run(n: int) -> float:
        from actio import ActorSystem as ActioSystem

        system = ActioSystem()
        took = await measure(system, n)
        await system.shutdown(timeout=10)
        return took

    return run
