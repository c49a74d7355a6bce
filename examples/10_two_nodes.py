"""Two nodes: a counter, an agent and a worker pool run in another process, which is then killed.

The example needs a Redis or Valkey server, at `redis://localhost:6379` or at the address in `REDIS_URL`. The program
starts itself a second time; a program on another machine would work the same way.

Run it with `python examples/10_two_nodes.py`, or with `--backend trio`.
"""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio

from cuelight import (
    Actor,
    ActorSystem,
    AskError,
    AsyncWorkerPool,
    Message,
    NotStarted,
    Ref,
    Request,
    StreamRequest,
    Terminated,
    on,
)
from cuelight.redis import NodeLost, RedisNode

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
BACKEND = "trio" if "trio" in sys.argv else "asyncio"

# Messages. Both sides register them; data from the network is never decoded as any other type.


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Say(StreamRequest[str]):
    text: str


class Squares(Request[list[int]]):
    of: list[int]


MESSAGES = [Add, Total, Say, Squares]


# Actors. Their code does not depend on the node where they run, or on the nodes of the senders.


class Counter(Actor[Add | Total]):
    def __init__(self) -> None:
        self.total = 0

    @on(Add)
    def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    def get(self, message: Total) -> int:
        return self.total


class Agent(Actor[Say]):
    @on(Say)
    async def say(self, message: Say) -> AsyncIterator[str]:
        for word in message.text.split():
            await anyio.sleep(0.001)
            yield word


async def square(number: int) -> int:
    await anyio.sleep(0.01)
    return number * number


class Mill(Actor[Squares]):
    """Computes squares with its own pool."""

    @on(Squares)
    async def squares(self, message: Squares) -> list[int]:
        async with AsyncWorkerPool(8) as pool:
            return (await pool.map(square, message.of)).values


class Lookout(Actor[Terminated]):
    """Is notified when an actor of the other node ends, for any reason."""

    def __init__(self, *others: Ref[Add | Total]) -> None:
        for other in others:
            self.watch(other)

    @on(Terminated)
    def ended(self, message: Terminated) -> None:
        how = "was lost with its node" if isinstance(message.exit, NodeLost) else message.exit.describe()
        print(f"lookout: the {message.ref.name} {how}")
        self.stop()


# The other process.


async def far(cluster: str) -> None:
    async with ActorSystem("far", node=RedisNode(URL, cluster=cluster, lease=1.0, messages=MESSAGES)) as system:
        await system.expose(await system.spawn(Counter), "counter")
        await system.expose(await system.spawn(Agent), "agent")
        await system.expose(await system.spawn(Mill), "mill")
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)  # until the first process has ended


@asynccontextmanager
async def far_process(cluster: str) -> AsyncGenerator["subprocess.Popen[bytes]", None]:
    command = [sys.executable, __file__, "--far", cluster, "--backend", BACKEND]
    process = await anyio.to_thread.run_sync(lambda: subprocess.Popen(command, stdin=subprocess.PIPE))
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.communicate)  # closes its input and waits for its end


# This process.


async def grind(mills: list[Ref[Squares]], parts: list[list[int]]) -> list[int]:
    """Distribute the work over the mills. If a mill is lost, its part is computed locally: repeating it does no
    harm.
    """
    results: dict[int, list[int]] = {}

    async def one(number: int, part: list[int]) -> None:
        try:
            results[number] = await mills[number % len(mills)].ask(Squares(part))
        except AskError:  # NotStarted, Interrupted or Unknown: the class tells how far it was
            results[number] = await mills[0].ask(Squares(part))

    async with anyio.create_task_group() as group:
        for number, part in enumerate(parts):
            group.start_soon(one, number, part)
    return [value for number in sorted(results) for value in results[number]]


async def talk(system: ActorSystem) -> Ref[Add | Total]:
    counter: Ref[Add | Total] = await system.resolve("counter", timeout=20)
    for amount in range(1, 1001):
        await counter.tell(Add(amount))
    print(f"counter: {await counter.ask(Total())}")

    agent: Ref[Say] = await system.resolve("agent", timeout=20)
    print("agent:", end="")
    async for word in agent.stream(Say("stand by ... go")):
        print(f" {word}", end="")
    print()
    return counter


async def near(cluster: str) -> None:
    async with ActorSystem("near", node=RedisNode(URL, cluster=cluster, lease=1.0, messages=MESSAGES)) as system:
        parts = [list(range(start, start + 10)) for start in range(0, 200, 10)]
        expected = [number * number for number in range(200)]

        async with far_process(cluster) as process:
            counter = await talk(system)
            mills = [await system.spawn(Mill), await system.resolve("mill", timeout=20)]
            print(f"two mills: {await grind(mills, parts) == expected}")

            print("-- the other process is killed while it works")
            lookout = await system.spawn(Lookout, counter)
            async with anyio.create_task_group() as group:
                group.start_soon(kill_soon, process)
                done = await grind(mills, parts)
                await lookout.ended()
                print(f"one mill does the work of two: {done == expected}")
        try:
            await counter.ask(Total())
        except NotStarted:
            print("the old ref: not started, so it is safe to ask somebody else")

        print("-- another process takes its place, and its names")
        async with far_process(cluster):
            await talk(system)


async def kill_soon(process: "subprocess.Popen[bytes]") -> None:
    await anyio.sleep(0.05)
    process.kill()


if __name__ == "__main__":
    if "--far" in sys.argv:
        anyio.run(far, sys.argv[2], backend=BACKEND)
    else:
        anyio.run(near, uuid4().hex, backend=BACKEND)
