"""Actors belong to the thread of their event loop: others are told so, or are given what they ask for at once."""

# Replies and refs are Any here: no annotation could say more.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight import Actor, ActorSystem, Channel, Message, Ref, Request, on
from helpers.players import Busy, Get, Loop, Plain, Put, outcome, settle

ANSWER = 10.0
"""Seconds after which something has gone wrong: nothing here waits for other things to happen."""


def _in_thread(function: Callable[[], Any]) -> Any:
    """What a function returns or raises in a thread that has no loop."""
    result: list[Any] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(ANSWER)
    return result[0]


def _in_foreign_loop(function: Callable[[], Any]) -> Any:
    """The same in an event loop of another thread."""

    async def main() -> Any:
        value = function()
        return await value if hasattr(value, "__await__") else value

    return _in_thread(lambda: asyncio.run(main()))


USES: dict[str, Callable[[Any, Any], Any]] = {
    "tell_nowait": lambda _, ref: ref.tell_nowait(Put(1)),
    "tell": lambda _, ref: ref.tell(Put(1)),
    "ask": lambda _, ref: ref.ask(Get()),
    "stream": lambda _, ref: ref.stream(Get()),
    "stop": lambda _, ref: ref.stop(),
    "kill": lambda _, ref: ref.kill(),
    "interrupt": lambda _, ref: ref.interrupt(),
    "ended": lambda _, ref: ref.ended(),
    "spawn": lambda system, _: system.spawn(Plain),
    "wait_until_idle": lambda system, _: system.wait_until_idle(),
    "broadcast": lambda system, _: system.group("all").broadcast(Put(1)),
    "after": lambda _, ref: ref._cell.actor.after(1, Put(1)),
    "pipe_to_self": lambda _, ref: ref._cell.actor.pipe_to_self(asyncio.sleep(0), Put),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", [Plain, Busy, Loop])
async def test_a_use_from_a_foreign_thread_is_refused_with_the_way_out(use: str, kind: Any) -> None:
    async with ActorSystem() as system:
        ref: Ref[Any] = await system.spawn(kind)
        system.group("all").join(ref)
        for state in ("idle", "busy"):
            error = await anyio.to_thread.run_sync(_in_foreign_loop, lambda: USES[use](system, ref))
            assert isinstance(error, RuntimeError), (state, error)
            assert "lives in the event loop of another thread: use tell_threadsafe()" in str(error)
            ref.tell_nowait(Put(state))
        # Nothing was changed by it, and the system goes on.
        assert await ref.ask(Get()) == ["idle", "busy"]
        assert await (await system.spawn(Plain)).ask(Get()) == []


async def test_what_a_thread_tells_arrives_at_once() -> None:
    class Waiter(Actor[Put]):
        @on(Put)
        async def put(self, message: Put) -> None:
            arrived.set()

    arrived = anyio.Event()
    async with ActorSystem() as system:
        ref = await system.spawn(Waiter)
        await settle()
        with anyio.fail_after(ANSWER):  # there is no timer that could wake the loop before
            await anyio.to_thread.run_sync(ref.tell_threadsafe, Put(1))
            await arrived.wait()


async def test_a_channel_of_another_loop_is_refused_while_somebody_waits() -> None:
    channel = Channel[int](5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.receive)
        await settle()
        error = await anyio.to_thread.run_sync(_in_foreign_loop, lambda: channel.send(1))
        assert isinstance(error, RuntimeError)
        assert "channel.from_thread()" in str(error)
        channel.send_nowait(1)


# Contexts.

user: ContextVar[str] = ContextVar("user", default="nobody")


class Who(Request[str]):
    pass


class Start(Message):
    pass


class Asking(Actor[Who | Start]):
    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    @on(Who)
    async def who(self, message: Who) -> str:
        return user.get()

    @on(Start)
    async def start(self, message: Start) -> None:
        user.set("an actor")
        child = await self.spawn(Asking, self.seen)
        self.seen.append(await child.ask(Who()))


class PlainWho(Actor[Who]):
    @on(Who)
    def who(self, message: Who) -> str:
        return user.get()


async def test_actors_run_in_a_clean_context_of_their_system() -> None:
    """Not in that of their spawner or asker: what identifies one request must not be seen by another."""
    user.set("the program")
    async with ActorSystem() as system:
        refs: list[Any] = []

        async def request(name: str) -> None:
            user.set(name)
            refs.append(await system.spawn(Asking, seen))
            refs.append(await system.spawn(PlainWho))
            for ref in refs:
                assert await ref.ask(Who()) == "the program"

        seen: list[str] = []
        for name in ("A", "B"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(request, name)
        await refs[0].tell(Start())
        await outcome(refs[0].ask(Who()))
        assert seen == ["the program"]
