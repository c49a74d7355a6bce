"""Actors for tests of systems that talk with each other, their messages, and pairs of systems."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio

from cuelight import Actor, ActorSystem, Exit, Message, Ref, ReplyError, Request, StreamRequest, Terminated, on
from cuelight.redis import RedisNode
from helpers.redis_servers import shared_server, until

__all__ = [
    "Add",
    "Blob",
    "Boom",
    "Count",
    "Echo",
    "Forward",
    "Log",
    "Names",
    "NoCoins",
    "Odd",
    "Plain",
    "Player",
    "Refuse",
    "Ring",
    "Send",
    "Seen",
    "Slow",
    "Total",
    "Twice",
    "Watcher",
    "cluster_name",
    "defaults",
    "directly",
    "inside",
    "node",
    "node_of",
    "pair",
    "until",
]


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Echo(Request[dict[str, list[int]]]):
    value: dict[str, list[int]]


class Slow(Request[str]):
    """Answered after some seconds."""

    seconds: float
    label: str = ""


class Count(StreamRequest[int]):
    upto: int
    fail_at: int = -1


class Boom(Request[None]):
    pass


class Refuse(Request[None]):
    text: str


class NoCoins(ReplyError):
    """A refusal with more to it than its text."""

    def __init__(self, text: str, wanted: int) -> None:
        super().__init__(text)
        self.wanted = wanted


class Blob(Message):
    data: bytes


class Odd(Request[Any]):
    """Answered with what cannot travel."""


class Send(Message):
    """Tell an amount to somebody."""

    to: Ref[Add]
    amount: int


class Forward(Request[int]):
    """Ask somebody else, or itself after some time, and pass the answer on."""

    to: Ref[Any]
    slow: float = 0.0


class Ring(Request[int]):
    """Have another ask this one."""

    through: Ref[Forward]


class Names(Request[list[Ref[Any]]]):
    """Whom it knows."""


class Seen(Request[list[str]]):
    """What it has seen."""


class Twice(Message):
    """Also known elsewhere, with another field."""

    amount: int


class Log:
    """What happened on the side of the actors, for tests in one process."""

    def __init__(self) -> None:
        self.lines: list[str] = []


class Plain(Actor[Add | Total | Refuse | Boom | Blob]):
    """With `def` handlers only."""

    def __init__(self) -> None:
        self.total = 0
        self.amounts: list[int] = []

    @on(Add)
    def add(self, message: Add) -> None:
        self.total += message.amount
        self.amounts.append(message.amount)

    @on(Blob)
    def blob(self, message: Blob) -> None:
        self.total += len(message.data)

    @on(Total)
    def get(self, message: Total) -> int:
        return self.total

    @on(Refuse)
    def refuse(self, message: Refuse) -> None:
        raise ReplyError(message.text)

    @on(Boom)
    def boom(self, message: Boom) -> None:
        raise RuntimeError("bang")


class Player(
    Actor[Add | Total | Echo | Slow | Count | Boom | Refuse | Odd | Send | Forward | Ring | Names | Blob | Twice]
):
    """With handlers of all kinds."""

    def __init__(self, log: Log | None = None, friends: list[Ref[Any]] | None = None) -> None:
        self.total = 0
        self.log = log or Log()
        self.friends = friends or []

    @on(Add)
    async def add(self, message: Add) -> None:
        self.total += message.amount
        self.log.lines.append(f"add {message.amount}")

    @on(Twice)
    def twice(self, message: Twice) -> None:
        self.total += 2 * message.amount

    @on(Blob)
    def blob(self, message: Blob) -> None:
        self.total += len(message.data)

    @on(Total)
    async def get(self, message: Total) -> int:
        return self.total

    @on(Echo)
    def echo(self, message: Echo) -> dict[str, list[int]]:
        return message.value

    @on(Slow)
    async def slow(self, message: Slow) -> str:
        self.log.lines.append(f"begin {message.label}")
        try:
            await anyio.sleep(message.seconds)
        except BaseException:
            self.log.lines.append(f"cancelled {message.label}, {self.remaining:.0f} s left")
            raise
        self.log.lines.append(f"end {message.label}")
        return message.label

    @on(Count)
    async def count(self, message: Count) -> AsyncIterator[int]:
        try:
            for number in range(message.upto):
                if number == message.fail_at:
                    raise NoCoins("out of numbers", 1)
                yield number
                self.log.lines.append(f"sent {number}")
        finally:
            self.log.lines.append("closed")

    @on(Boom)
    async def boom(self, message: Boom) -> None:
        raise RuntimeError("bang")

    @on(Refuse)
    async def refuse(self, message: Refuse) -> None:
        raise NoCoins(message.text, 7)

    @on(Odd)
    def odd(self, message: Odd) -> Any:
        return object()

    @on(Send)
    async def send(self, message: Send) -> None:
        await message.to.tell(Add(message.amount))

    @on(Forward)
    async def forward(self, message: Forward) -> int:
        if message.slow:
            return len(await message.to.ask(Slow(message.slow, "nested")))
        return await message.to.ask(Total())

    @on(Ring)
    async def ring(self, message: Ring) -> int:
        return await message.through.ask(Forward(self.ref))

    @on(Names)
    def names(self, message: Names) -> list[Ref[Any]]:
        return [self.ref, *self.friends]


class Watcher(Actor[Seen | Terminated | Add]):
    """Keeps the exits of those whom it watches."""

    def __init__(self, *others: Ref[Any], link: bool = False) -> None:
        self.exits: list[Exit] = []
        for other in others:
            if link:
                self.link(other)
            else:
                self.watch(other)

    @on(Terminated)
    def terminated(self, message: Terminated) -> None:
        self.exits.append(message.exit)

    @on(Add)
    def add(self, message: Add) -> None:
        """Nothing."""

    @on(Seen)
    def seen(self, message: Seen) -> list[str]:
        return [exit_.describe() for exit_ in self.exits]


def inside(ref: Ref[Any]) -> Any:
    """The actor itself, to look at."""
    return ref._cell.actor


def node_of(system: ActorSystem) -> Any:
    """The node of a system, to look at."""
    return system._node


def cluster_name() -> str:
    """One that no other test has."""
    return uuid4().hex


defaults: dict[str, Any] = {"lease": 5.0}
"""Options of nodes that say nothing else."""


async def directly(one: ActorSystem, other: ActorSystem) -> None:
    """Wait until both send to each other over direct connections and nothing is on its way."""

    def connected(system: ActorSystem, to: ActorSystem) -> bool:
        peer = node_of(system)._membership.peer(node_of(to).identity)
        if not peer.delivery.is_direct:
            peer.credit(NOBODY)  # a node connects when it has something to say
        return bool(peer.delivery.is_direct and peer.is_drained)

    await until(lambda: connected(one, other) and connected(other, one))


NOBODY = 1_000_000_000
"""The serial of no actor."""


def node(cluster: str, *, url: str = "", redis: Any = None, **options: Any) -> RedisNode:
    """A node that knows all messages of this module."""
    options = {"messages": [sys.modules[__name__]], **defaults, **options}
    return RedisNode(redis or url or shared_server().url, cluster=cluster, **options)


@asynccontextmanager
async def pair(
    *, url: str = "", here: RedisNode | None = None, there: RedisNode | None = None, **options: Any
) -> AsyncGenerator[tuple[ActorSystem, ActorSystem], None]:
    """Two systems of one cluster in this process. The second ends first."""
    cluster = cluster_name()
    here = here or node(cluster, url=url, **options)
    there = there or node(cluster, url=url, **options)
    async with ActorSystem("here", node=here) as one, ActorSystem("there", node=there) as other:
        yield one, other
