"""Run loops: receive by hand, iterate and select."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    Channel,
    ChannelClosed,
    Interrupted,
    NotStarted,
    Ref,
    Stopped,
    Terminated,
    after,
    child,
    on,
    select,
)
from cuelight.actors import Inbox, ShutDown
from cuelight.mailbox import select_nowait
from cuelight.testing import wait_until_idle
from helpers.players import Get, Plain, Put, Wait, outcome, settle

Body = Callable[[Inbox[Any]], Awaitable[None]]


async def _start(system: ActorSystem, body: Body, **options: Any) -> Ref[Any]:
    return await system.spawn(child(body).with_options(restart="temporary", **options))


async def test_receive_takes_waits_and_says_when_it_is_over() -> None:
    seen: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        with pytest.raises(anyio.WouldBlock):
            inbox.receive_nowait()
        seen.append(await inbox.receive())
        seen.extend((len(inbox), inbox.receive_nowait()))
        with pytest.raises(ChannelClosed, match="is stopping, and its mailbox is empty"):
            await inbox.receive()
        with pytest.raises(ChannelClosed):
            inbox.receive_nowait()
        seen.append([item async for item in inbox])

    async with ActorSystem() as system:
        ref = await _start(system, body)
        await settle()
        ref.tell_nowait(Put(1))
        ref.tell_nowait(Put(2))
        await settle()
        await ref.stop()
        assert seen == [Put(1), 1, Put(2), []]
        assert await ref.ended() == Stopped()


async def test_a_receive_that_is_cancelled_takes_nothing(anyio_backend_name: str) -> None:
    seen: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await inbox.receive()
        if anyio_backend_name == "asyncio":
            task = asyncio.ensure_future(inbox.receive())
            await asyncio.sleep(0)
            inbox._cell.put(Put(0))
            task.cancel()  # after it was woken
            assert [type(one) for one in await asyncio.gather(task, return_exceptions=True)] == [asyncio.CancelledError]
        seen.extend([item async for item in inbox])

    async with ActorSystem() as system:
        scopes: list[anyio.CancelScope] = []
        ref = await _start(system, body)
        await settle()
        scopes[0].cancel()
        await settle()
        await ref.tell(Put(1))
        await ref.stop()
        assert seen[-1] == Put(1)
        assert len(seen) == 1 + (anyio_backend_name == "asyncio")
        assert not system.dead_letters.total


async def test_one_task_receives_at_a_time() -> None:
    errors: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, inbox.receive())
            await anyio.wait_all_tasks_blocked()
            errors.append(await outcome(inbox.receive()))
            inbox._cell.put(Put(1))

    async with ActorSystem() as system:
        ref = await _start(system, body)
        await ref.ended()
        assert isinstance(errors[0], anyio.BusyResourceError)


async def test_an_inbox_is_a_case_of_select() -> None:
    seen: list[Any] = []
    channel = Channel[str](10)

    async def body(inbox: Inbox[Any]) -> None:
        with pytest.raises(anyio.WouldBlock):
            select_nowait(inbox, channel)
        for _ in range(3):
            seen.append(await select(inbox, channel))  # noqa: PERF401
        _, request = await select(inbox, channel)
        assert isinstance(request, Get)
        inbox.reply([1])
        inbox.reply([2])
        seen.append(await select(inbox, after(0.001)))
        with pytest.raises(ChannelClosed):
            await select(inbox)

    async with ActorSystem() as system:
        ref = await _start(system, body)
        await settle()
        await ref.tell(Put(1))
        await settle()
        channel.send_nowait("a")
        await settle()
        ref.tell_nowait(Put(2))
        assert await ref.ask(Get()) == [1]
        await anyio.sleep(0.01)
        await ref.stop()
        assert seen == [(0, Put(1)), (1, "a"), (0, Put(2)), (1, None)]


async def test_a_select_that_is_cancelled_puts_the_message_back(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    seen: list[Any] = []
    other = Channel[int]()

    async def body(inbox: Inbox[Any]) -> None:
        task = asyncio.ensure_future(select(inbox, other))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        inbox._cell.put(Put(1))
        with pytest.raises(anyio.WouldBlock):
            inbox.receive_nowait()  # the select has it already
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        seen.append(await inbox.receive())

    async with ActorSystem() as system:
        ref = await _start(system, body)
        await ref.ended()
        assert seen == [Put(1)]
        assert not system.dead_letters.total


async def test_a_request_put_back_by_a_select_is_still_answered(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    replies: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        task = asyncio.ensure_future(select(inbox, Channel[int]()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        me: Ref[Any] = Ref(inbox._cell)
        replies.append(me.ask(Get()))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async for _ in inbox:
            inbox.reply([1])

    async with ActorSystem() as system:
        await _start(system, body)
        await settle()
        assert await replies[0] == [1]


async def test_mail_that_comes_when_a_select_has_just_got_something_else_waits() -> None:
    seen: list[Any] = []
    channel = Channel[str](10)

    async def body(inbox: Inbox[Any]) -> None:
        while len(seen) < 2:
            seen.append((await select(inbox, channel))[1])

    async with ActorSystem() as system:
        ref = await _start(system, body)
        await settle()
        channel.send_nowait("a")
        ref.tell_nowait(Put(1))
        await ref.ended()
        assert seen == ["a", Put(1)]


async def test_several_selects_at_one_inbox_each_get_messages_and_the_end() -> None:
    seen: list[Any] = []

    async def one(inbox: Inbox[Any]) -> None:
        try:
            while True:
                seen.append((await select(inbox))[1])
        except ChannelClosed:
            seen.append("closed")

    async def body(inbox: Inbox[Any]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, inbox)
            tasks.start_soon(one, inbox)

    async with ActorSystem() as system:
        ref = await _start(system, body)
        for number in range(4):
            await ref.tell(Put(number))
            await settle()
        await ref.stop()
        assert seen == [Put(0), Put(1), Put(2), Put(3), "closed", "closed"]


async def test_requests_that_nobody_waits_for_are_not_received() -> None:
    seen: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        await go.wait()
        async for message in inbox:
            seen.append(message)  # noqa: PERF401

    async with ActorSystem() as system:
        go = anyio.Event()
        ref = await _start(system, body)
        gone = ref.ask(Get())
        gone.cancel()
        await ref.tell(Put(1))
        go.set()
        await wait_until_idle(system)
        gone = ref.ask(Get())
        gone.cancel()
        await settle()
        await ref.tell(Put(2))
        await ref.stop()
        assert seen == [Put(1), Put(2)]


async def test_a_run_loop_that_its_supervisor_stops_drains_its_queue() -> None:
    seen: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        async for message in inbox:
            await anyio.lowlevel.checkpoint()
            seen.append(message.item)

    async with ActorSystem() as system:
        ref = await _start(system, body)
        for number in range(5):
            ref.tell_nowait(Put(number))
        ref._cell.shut_down()
        assert await ref.ended() == ShutDown()
        assert seen == list(range(5))


async def test_a_run_loop_takes_senders_that_wait_in() -> None:
    seen: list[Any] = []

    async def body(inbox: Inbox[Any]) -> None:
        await go.wait()
        async for message in inbox:
            seen.append(message.item)  # noqa: PERF401

    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        go = anyio.Event()
        ref = await _start(system, body, capacity=1)
        for number in range(4):
            tasks.start_soon(ref.tell, Put(number))
            await settle()
        go.set()
        await settle()
        assert seen == [0, 1, 2, 3]
        await ref.stop()


async def test_watching_from_a_run_loop() -> None:
    seen: list[Any] = []

    class Watching(Actor[Any]):
        def __init__(self, other: Ref[Any]) -> None:
            self.other = other

        async def run(self) -> None:
            self.watch(self.other)
            seen.extend([message async for message in self.inbox])

    async with ActorSystem() as system:
        other = await system.spawn(Plain)
        ref = await system.spawn(Watching, other)
        await settle()
        await other.stop()
        await ref.tell(Put(1))
        await ref.stop()
        assert seen == [Terminated(other, Stopped()), Put(1)]


async def test_inbox_and_handle_belong_to_run_loops() -> None:
    async with ActorSystem() as system:
        actor: Any = (await system.spawn(Plain))._cell.actor
        with pytest.raises(RuntimeError, match=r"only an actor that overrides run\(\) receives by hand"):
            _ = actor.inbox
        with pytest.raises(RuntimeError, match=r"does not override run\(\)"):
            await actor.handle(Put(1))
        with pytest.raises(RuntimeError, match=r"only an actor that overrides run\(\)"):
            await actor.run()
        assert actor.path == actor.ref.path
        assert actor.name == actor.ref.name
        assert actor.system is system


async def test_a_loop_that_answers_late_is_counted() -> None:
    async def body(inbox: Inbox[Any]) -> None:
        async for _ in inbox:
            await go.wait()
            inbox.reply("late")

    async with ActorSystem() as system:
        go = anyio.Event()
        ref = await _start(system, body)
        reply = ref.ask(Wait())
        await settle()
        reply.cancel()
        assert isinstance(await outcome(reply), Interrupted)
        go.set()
        await settle()
        assert system.late_replies == 1
        await ref.stop()
        assert isinstance(await outcome(ref.ask(Get())), NotStarted)


async def test_a_request_in_hand_when_its_loop_is_killed_is_interrupted() -> None:
    async def body(inbox: Inbox[Any]) -> None:
        await inbox.receive()
        await anyio.sleep_forever()

    async with ActorSystem() as system:
        ref = await _start(system, body)
        reply = ref.ask(Get())
        await settle()
        await ref.kill()
        assert isinstance(await outcome(reply), Interrupted)


async def test_a_run_loop_may_go_on_with_the_usual_one() -> None:
    seen: list[Any] = []

    class Prefaced(Actor[Put]):
        async def run(self) -> None:
            seen.append((await self.inbox.receive()).item)
            await super().run()

        @on(Put)
        def put(self, message: Put) -> None:
            seen.append(("handled", message.item))

    async with ActorSystem() as system:
        ref = await system.spawn(Prefaced)
        for number in range(3):
            await ref.tell(Put(number))
        await ref.stop()
        assert seen == [0, ("handled", 1), ("handled", 2)]
