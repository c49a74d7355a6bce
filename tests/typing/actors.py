"""What the types of actors promise. Not run: both type checkers must reject just the marked lines."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from cuelight import Actor, ActorSystem, ChildSpec, Exit, Message, Ref, Reply, Request, StreamRequest, Terminated, child, on, select
from cuelight.actors import Group, Inbox, Start, Stream


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Name(Request[str]):
    pass


class Words(StreamRequest[str]):
    prompt: str = ""


class Counter(Actor[Add | Total | Words]):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @on(Add)
    def add(self, msg: Add) -> None:
        self.total += msg.amount

    @on(Total)
    async def get(self, msg: Total) -> int:
        return self.total

    @on(Total)
    def get_now(self, msg: Total) -> int:
        return self.total

    @on(Words)
    async def words(self, msg: Words) -> AsyncIterator[str]:
        yield "word"

    @on(Terminated)
    def gone(self, msg: Terminated) -> None:
        assert_type(msg.ref, Ref[Any])

    def started(self, why: Start) -> None:
        self.after(1, Add(1))
        self.after(1, Name())  # rejected
        self.every(1, "tick")  # rejected
        assert_type(self.ref, Ref[Add | Total | Words])
        self.pipe_to_self(work(), Add)
        self.pipe_to_self(work(), lambda number: Add(number), lambda error: Add(0))
        self.pipe_to_self(work(), lambda number: Name())  # rejected
        self.spend(tokens=1, usd=0.5)
        self.spend(tokens="many")  # rejected


@on(Total)  # rejected
async def wrong(self: Counter, msg: Total) -> str:
    return "x"


@on(Total)  # rejected
def wrong_now(self: Counter, msg: Total) -> str:
    return "x"


@on(Add)  # rejected
def other(self: Counter, msg: Total) -> None: ...


@on(Words)  # rejected
async def wrong_words(self: Counter, msg: Words) -> AsyncIterator[int]:
    yield 1


async def work() -> int:
    return 1


async def adder(inbox: Inbox[Add | Total], start: int, *, step: int = 1) -> None:
    async for message in inbox:
        assert_type(message, Add | Total)
    assert_type(await inbox.receive(), Add | Total)


async def spawning(system: ActorSystem) -> None:
    ref = await system.spawn(Counter, start=10)
    assert_type(ref, Ref[Add | Total | Words])
    assert_type(await system.spawn(child(Counter)), Ref[Add | Total | Words])
    assert_type(child(Counter, 5), ChildSpec[Add | Total | Words])
    assert_type(await system.spawn(adder, 1, step=2), Ref[Add | Total])
    assert_type(child(adder, 1), ChildSpec[Add | Total])
    await system.spawn(Counter, start="x")  # rejected
    await system.spawn(Counter, strat=1)  # rejected
    await system.spawn(adder, "x")  # rejected
    child(Counter, "x")  # rejected
    await system.spawn(5)  # rejected
    child(Counter).with_options(name=5)  # rejected


async def talking(ref: Ref[Add | Total | Words]) -> None:
    await ref.tell(Add(5))
    ref.tell_nowait(Add(5))
    ref.tell_threadsafe(Add(5))
    assert_type(ref.ask(Total()), Reply[int])
    assert_type(await ref.ask(Total()), int)
    assert_type(await ref.ask(Total(), timeout=1), int)
    assert_type(ref.stream(Words()), Stream[str])
    async for word in ref.stream(Words("hello")):
        assert_type(word, str)
    narrow: Ref[Total] = ref
    assert_type(await narrow.ask(Total()), int)
    await ref.ask(Name())  # rejected
    await ref.ask(Add(1))  # rejected
    await ref.tell(Name())  # rejected
    ref.tell_nowait("add")  # rejected
    ref.stream(Total())  # rejected
    await ref.ask(Words())  # rejected
    ref.tell(Add(1))  # rejected
    wide: Ref[Add | Total | Words | Name] = ref  # rejected


async def narrowed(ref: Ref[Total], exits: Ref[Add]) -> None:
    await ref.tell(Add(1))  # rejected
    assert_type(await select(exits.exits), tuple[int, Exit])


async def grouping(group: Group[Add], ref: Ref[Add | Total], other: Ref[Name]) -> None:
    group.join(ref)
    group.join(other)  # rejected
    group.broadcast(Add(1))
    group.broadcast(Name())  # rejected
    assert_type(group.pick(), Ref[Add])


def values() -> None:
    Add("1")  # rejected
    Add()  # rejected
