"""An ask that would wait for its own asker raises, and nothing else does."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorCrashed, ActorSystem, DeadlockError, Message, Ref, Request, on
from cuelight.actors import Inbox, Start
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import outcome, settle


@pytest.fixture(params=[*VIRTUAL_BACKENDS])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Call(Request[Any]):
    """Do something in a handler; the answer is what comes of it."""

    work: Callable[["Caller"], Awaitable[Any]]


class Ping(Request[str]):
    pass


class Later(Message):
    work: Callable[["Caller"], Awaitable[Any]]


class Result(Message):
    value: Any


class Caller(Actor[Call | Ping | Later | Result]):
    def __init__(self) -> None:
        self.results: list[Any] = []

    @on(Call)
    async def call(self, message: Call) -> Any:
        return await outcome(message.work(self))

    @on(Ping)
    async def ping(self, message: Ping) -> str:
        return "pong"

    @on(Later)
    def later(self, message: Later) -> None:
        self.pipe_to_self(message.work(self), Result, Result)

    @on(Result)
    def result(self, message: Result) -> None:
        self.results.append(message.value)


async def looping(inbox: Inbox[Call | Ping]) -> None:
    """The same as a run loop: it asks while it has a request in hand."""
    async for message in inbox:
        if isinstance(message, Call):
            inbox.reply(await outcome(message.work(None)))  # type: ignore[arg-type]
        else:
            inbox.reply("pong")


def asks(ref: Ref[Any], inner: Callable[[Any], Awaitable[Any]] | None = None) -> Callable[[Any], Awaitable[Any]]:
    """Work that asks an actor, which in turn does `inner`."""

    async def work(_: Any) -> Any:
        return await ref.ask(Ping() if inner is None else Call(inner))

    return work


async def test_ask_cycles_raise_deadlock_error_with_their_path() -> None:
    async with ActorSystem("s") as system:
        a, b, c = [await system.spawn(Caller) for _ in range(3)]
        alone = await a.ask(Call(asks(a)))
        assert isinstance(alone, DeadlockError)
        assert f"{a.path} → {a.path}" in str(alone)
        two = await a.ask(Call(asks(b, asks(a))))
        assert isinstance(two, DeadlockError)
        assert f"{b.path} → {a.path} → {b.path}" in str(two)
        three = await a.ask(Call(asks(b, asks(c, asks(a)))))
        assert isinstance(three, DeadlockError)
        assert f"{c.path} → {a.path} → {b.path} → {c.path}" in str(three)
        assert "pipe_to_self" in str(three)
        for ref in (a, b, c):
            assert await ref.ask(Ping()) == "pong"


async def test_ask_cycles_through_run_loops_are_found() -> None:
    async with ActorSystem() as system:
        a, loop = await system.spawn(Caller), await system.spawn(looping)
        assert isinstance(await a.ask(Call(asks(loop, asks(a)))), DeadlockError)
        assert isinstance(await loop.ask(Call(asks(a, asks(loop)))), DeadlockError)
        assert isinstance(await loop.ask(Call(asks(loop))), DeadlockError)
        assert await loop.ask(Ping()) == "pong"


async def test_ask_cycles_through_task_groups_are_found() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Caller), await system.spawn(Caller)

        def both(me: Ref[Any]) -> Callable[[Any], Awaitable[Any]]:
            async def work(_: Any) -> Any:
                results: list[Any] = []

                async def one(ref: Ref[Any], inner: Any) -> None:
                    results.append(await outcome(ref.ask(Call(inner) if inner else Ping())))

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(one, b, asks(me))
                    tasks.start_soon(one, b, None)
                return results

            return work

        results = await a.ask(Call(both(a)))
        assert max(map(str, results)) == "pong"
        assert len([one for one in results if isinstance(one, DeadlockError)]) == 1


async def test_an_ask_of_itself_while_it_starts_is_a_deadlock() -> None:
    class Eager(Actor[Ping]):
        async def started(self, why: Start) -> None:
            await self.ref.ask(Ping())

        @on(Ping)
        async def ping(self, message: Ping) -> str:
            return "pong"

    async with ActorSystem() as system:
        with pytest.raises(Exception, match="did not start: DeadlockError"):
            await system.spawn(Eager)


async def test_pipe_to_self_and_stray_tasks_raise_no_false_alarm() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        a, b = await system.spawn(Caller), await system.spawn(Caller)
        await a.tell(Later(asks(a)))
        await a.tell(Later(asks(b, asks(a))))
        await wait_until_idle(system)
        actor: Any = a._cell.actor
        assert actor.results == ["pong", "pong"]

        stray: list[Any] = []
        go = anyio.Event()

        async def ask_later() -> None:
            await go.wait()
            stray.append(await outcome(a.ask(Ping())))

        async def start_stray(_: Any) -> None:
            tasks.start_soon(ask_later)

        await a.ask(Call(start_stray))
        await settle()
        go.set()
        await wait_until_idle(system)
        await settle()
        assert stray == ["pong"]


async def test_two_that_ask_the_same_are_no_cycle() -> None:
    async with ActorSystem() as system:
        a, b, c = [await system.spawn(Caller) for _ in range(3)]
        first, second = a.ask(Call(asks(b, asks(c)))), c.ask(Call(asks(b)))
        assert "pong" in {str(await first), str(await second)}  # if b and c ask each other, one of them is told
        assert await b.ask(Ping()) == "pong"


async def test_a_deadlock_ends_the_asker_unless_it_handles_the_error() -> None:
    class Stubborn(Actor[Call | Ping]):
        @on(Call)
        async def call(self, message: Call) -> Any:
            return await self.ref.ask(Ping())

        @on(Ping)
        async def ping(self, message: Ping) -> str:
            return "pong"

    async with ActorSystem() as system:
        ref = await system.spawn(Stubborn)
        result = await outcome(ref.ask(Call(asks(ref))))
        assert isinstance(result, ActorCrashed)
        assert isinstance(result.__cause__, DeadlockError)
        await anyio.lowlevel.checkpoint()
        assert await ref.ask(Ping()) == "pong"
