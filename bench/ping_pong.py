"""One message that is passed around: between two actors, and through a ring of 100. An operation is a hop."""

from __future__ import annotations

import asyncio
import threading
from time import perf_counter
from typing import Any

import anyio

from bench._actors import in_actio, in_system
from bench._harness import Aim, Rivals, Workload
from cuelight import Actor, ActorSystem, Message, Ref, on


class Hop(Message):
    left: int


class Meet(Message):
    """Introduces the next player."""

    ref: Ref[Any]


class PlainPlayer(Actor[Hop | Meet]):
    def __init__(self, over: anyio.Event) -> None:
        self.over = over
        self.next: Ref[Hop] | None = None

    @on(Meet)
    def meet(self, message: Meet) -> None:
        self.next = message.ref

    @on(Hop)
    def hop(self, message: Hop) -> None:
        if message.left and self.next is not None:
            self.next.tell_nowait(Hop(message.left - 1))
        else:
            self.over.set()


class AsyncPlayer(Actor[Hop | Meet]):
    def __init__(self, over: anyio.Event) -> None:
        self.over = over
        self.next: Ref[Hop] | None = None

    @on(Meet)
    async def meet(self, message: Meet) -> None:
        self.next = message.ref

    @on(Hop)
    async def hop(self, message: Hop) -> None:
        if message.left and self.next is not None:
            self.next.tell_nowait(Hop(message.left - 1))
        else:
            self.over.set()


class PoliteAsyncPlayer(AsyncPlayer):
    """Awaits its tell, as the guide recommends."""

    @on(Hop)
    async def hop(self, message: Hop) -> None:
        if message.left and self.next is not None:
            await self.next.tell(Hop(message.left - 1))
        else:
            self.over.set()


def around(kind: type[Actor[Any]], size: int) -> Workload:
    async def measure(system: ActorSystem, n: int) -> float:
        over = anyio.Event()
        refs = [await system.spawn(kind, over) for _ in range(size)]
        for index, ref in enumerate(refs):
            ref.tell_nowait(Meet(refs[(index + 1) % size]))
        await system.wait_until_idle()
        started = perf_counter()
        refs[0].tell_nowait(Hop(n))
        await over.wait()
        return perf_counter() - started

    return in_system(measure)


def pykka(size: int) -> Workload:
    def run(n: int) -> float:
        import pykka

        over = threading.Event()

        class Player(pykka.ThreadingActor):
            use_daemon_thread = True
            next: Any = None

            def on_receive(self, message: Any) -> None:
                if type(message) is Meet:
                    self.next = message.ref
                elif message.left:
                    self.next.tell(Hop(message.left - 1))
                else:
                    over.set()

        refs = [Player.start() for _ in range(size)]
        for index, ref in enumerate(refs):
            ref.ask(Meet(refs[(index + 1) % size]))
        started = perf_counter()
        refs[0].tell(Hop(n))
        over.wait()
        took = perf_counter() - started
        for ref in refs:
            ref.stop()
        return took

    return run


def actio(size: int) -> Workload:
    async def measure(system: Any, n: int) -> float:
        from actio import Actor as ActioActor

        over = asyncio.Event()

        class Player(ActioActor):
            next: Any = None

            async def receive(self, sender: Any, message: Any) -> None:
                if type(message) is Meet:
                    self.next = message.ref
                elif message.left:
                    self.tell(self.next, Hop(message.left - 1))
                else:
                    over.set()

        refs = [system.create(Player()) for _ in range(size)]
        for index, ref in enumerate(refs):
            system.tell(ref, Meet(refs[(index + 1) % size]))
        await asyncio.sleep(0.01)
        started = perf_counter()
        system.tell(refs[0], Hop(n))
        await over.wait()
        return perf_counter() - started

    return in_actio(measure)


def _rivals(kind: type[Actor[Any]], size: int) -> Rivals:
    return {"cuelight": around(kind, size), "pykka": pykka(size), "actio": actio(size)}


WORKLOADS: dict[str, Rivals] = {
    "ping-pong, def": _rivals(PlainPlayer, 2),
    "ping-pong, async": _rivals(AsyncPlayer, 2),
    "ping-pong, async, await tell": _rivals(PoliteAsyncPlayer, 2),
    "ring of 100, def": _rivals(PlainPlayer, 100),
    "ring of 100, async": _rivals(AsyncPlayer, 100),
}

_DEF = Aim("actio", 8, absent=True, why="3.7 x Thespian")
_ASYNC = Aim("actio", 3, trio=1.1)

AIMS = {
    "ping-pong, def": _DEF,
    "ping-pong, async": _ASYNC,
    "ping-pong, async, await tell": _ASYNC,
    "ring of 100, def": _DEF,
    "ring of 100, async": _ASYNC,
}
