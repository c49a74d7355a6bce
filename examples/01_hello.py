"""An actor that counts: an introduction to messages, requests, actors and refs.

Run it with `python examples/01_hello.py`, or with `--backend trio`.
"""

import sys

import anyio

from cuelight import Actor, ActorSystem, Message, Request, on


class Add(Message):
    """A message: a value that is told to an actor. The sender gets no answer."""

    amount: int


class Total(Request[int]):
    """A request: a message with an answer, here an int."""


class Counter(Actor[Add | Total]):
    """State, and one handler for each message. The actor handles one message at a time, so it needs no lock."""

    def __init__(self, start: int = 0) -> None:
        self.total = start

    @on(Add)
    def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    async def get(self, message: Total) -> int:  # a handler may be `def` or `async def`
        return self.total


async def main() -> None:
    async with ActorSystem("hello") as system:  # the block ends only after every actor has ended
        counter = await system.spawn(Counter, start=10)  # a ref: the address of the actor
        await counter.tell(Add(5))  # waits only if the mailbox is full
        counter.tell_nowait(Add(1))  # never waits
        total = await counter.ask(Total())  # type checkers know that this is an int
        print(f"the counter stands at {total}")


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
