"""Work beside the messages, whose result comes back as a message."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorSystem, Crashed, Message, Ref, Request, child, on
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.players import Bang, Get, Put, settle


class Pipe(Request[None]):
    do: Callable[["Piper"], Any]


class Piper(Actor[Pipe | Put | Get | Bang]):
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    @on(Pipe)
    def pipe(self, message: Pipe) -> None:
        message.do(self)

    @on(Put)
    def put(self, message: Put) -> None:
        self.log.append(message.item)

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return self.log

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError


async def give(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    if isinstance(value, Exception):
        raise value
    return value


async def wait_in(log: list[Any]) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        log.append("cut")


async def _piper(system: ActorSystem, log: list[Any]) -> Ref[Any]:
    return await system.spawn(child(Piper, log).with_options(restart="temporary"))


async def test_pipe_to_self_brings_a_result_or_an_error_back() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await _piper(system, log)
        await ref.ask(Pipe(lambda me: me.pipe_to_self(give(1), Put)))
        await wait_until_idle(system)
        await ref.ask(Pipe(lambda me: me.pipe_to_self(give(OSError("x")), Put, lambda error: Put(str(error)))))
        await wait_until_idle(system)
        assert await ref.ask(Get()) == [1, "x"]


async def test_an_error_of_background_work_that_nobody_handles_crashes_the_incarnation() -> None:
    def broken(_: Any) -> Put:
        raise KeyError("broken")

    cases: tuple[tuple[Callable[[Piper], Any], type[Exception]], ...] = (
        (lambda me: me.pipe_to_self(give(OSError("x")), Put), OSError),
        (lambda me: me.pipe_to_self(give(1), broken), KeyError),
    )
    for do, kind in cases:
        async with ActorSystem() as system:
            ref = await _piper(system, [])
            await ref.ask(Pipe(do))
            exit_ = await ref.ended()
            assert isinstance(exit_, Crashed)
            assert isinstance(exit_.error, kind)
            assert exit_.message is None


async def test_background_work_is_cancelled_by_hand_and_sends_nothing() -> None:
    async with ActorSystem() as system:
        log: list[Any] = []
        works: list[Any] = []
        ref = await _piper(system, log)
        await ref.ask(Pipe(lambda me: works.append(me.pipe_to_self(wait_in(log), Put))))
        await ref.ask(Pipe(lambda me: works.append(me.pipe_to_self(give(1), Put))))
        works[1].cancel()  # before it has begun
        await settle()
        works[0].cancel()
        works[0].cancel()
        await wait_until_idle(system)
        assert log == ["cut"]
        assert ref.alive


@pytest.mark.parametrize("end", ["stop", "kill", "crash"])
async def test_background_work_ends_with_its_incarnation(end: str) -> None:
    async with ActorSystem("s") as system:
        log: list[Any] = []
        ref = await _piper(system, log)
        await ref.ask(Pipe(lambda me: me.pipe_to_self(wait_in(log), Put)))
        await settle()
        if end == "crash":
            await ref.tell(Bang())
            await ref.ended()
        else:
            await (ref.stop() if end == "stop" else ref.kill())
        assert log == ["cut"]
    assert_no_orphans(system)


async def test_an_actor_waits_for_background_work_that_takes_long_to_end() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        go = anyio.Event()

        async def slow() -> None:
            with anyio.CancelScope(shield=True):
                await go.wait()

        ref = await _piper(system, [])
        await ref.ask(Pipe(lambda me: me.pipe_to_self(slow(), Put)))
        await settle()
        tasks.start_soon(ref.stop)
        await settle()
        assert ref.statistics().state == "ending"
        tasks.start_soon(ref.kill)
        await settle()
        assert ref.alive
        go.set()
        await ref.ended()


async def test_background_work_natively_cancelled_sends_nothing(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    import asyncio

    async with ActorSystem() as system:
        log: list[Any] = []
        ref = await _piper(system, log)
        await ref.ask(Pipe(lambda me: me.pipe_to_self(wait_in(log), Put)))
        await settle()
        (task,) = [task for task in asyncio.all_tasks() if task.get_name().endswith("background")]
        task.cancel()
        await wait_until_idle(system)
        assert log == ["cut"]
        assert ref.alive


async def test_background_work_that_raises_what_ends_a_process_ends_the_system() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with ActorSystem() as system:
            ref = await _piper(system, [])
            await ref.ask(Pipe(lambda me: me.pipe_to_self(leave(), Put)))
            await anyio.sleep_forever()


async def test_a_stop_while_children_end_is_not_forgotten() -> None:
    class Slow(Actor[Message]):
        async def run(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await go.wait()

    go = anyio.Event()
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await system.spawn(Piper, [])
        await ref.ask(Pipe(lambda me: me.spawn_nowait(child(Slow).with_options(shutdown=0.001))))
        await settle()
        await ref.tell(Bang())
        await settle()
        assert ref.statistics().state == "ending"
        tasks.start_soon(ref.stop)
        await settle()
        go.set()
        assert isinstance(await ref.ended(), Crashed)  # and not restarted
