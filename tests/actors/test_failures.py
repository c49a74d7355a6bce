"""What counts as the failure of a handler: cancellations that nobody meant for it, groups, the cleanup of streams."""

# Replies and refs are Any here: no annotation could say more.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorSystem, Backoff, Message, Ref, ReplyError, Request, StreamRequest, child, on
from cuelight.errors import ActorCrashed, Interrupted, UnexpectedCancellation
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend
from helpers.players import outcome, settle

SOON = Backoff(minimum=0.01)


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Do(Request[Any]):
    what: Any = None


class Told(Message):
    what: Any = None


class Ok(Request[str]):
    pass


class Chunks(StreamRequest[int]):
    how: str = ""


class Async(Actor[Do | Told | Ok]):
    @on(Do)
    async def do(self, message: Do) -> Any:
        return await message.what()

    @on(Told)
    async def told(self, message: Told) -> None:
        await message.what()

    @on(Ok)
    async def ok(self, message: Ok) -> str:
        return "ok"


class Plain(Actor[Do | Told | Ok]):
    @on(Do)
    def do(self, message: Do) -> Any:
        return message.what()

    @on(Told)
    def told(self, message: Told) -> None:
        message.what()

    @on(Ok)
    def ok(self, message: Ok) -> str:
        return "ok"


class Looping(Actor[Do | Told | Ok]):
    async def run(self) -> None:
        async for message in self.inbox:
            self.inbox.reply("ok" if isinstance(message, Ok) else await message.what())


async def _stray() -> BaseException:
    """A cancellation of the running loop that is meant for nobody who will see it."""
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException as error:
            caught.append(error)
            raise
    return caught[0]


# Cancellations of others.


@pytest.mark.parametrize("restart", ["transient", "permanent"])
@pytest.mark.parametrize("kind", [Async, Plain, Looping])
async def test_a_cancellation_of_somebody_else_is_an_ordinary_failure(
    kind: Any, restart: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await _stray()

    def fail() -> Any:
        raise error

    async def fail_async() -> Any:
        await anyio.lowlevel.checkpoint()
        raise error

    what = fail if kind is Plain else fail_async
    async with ActorSystem() as system:
        bystander = await system.spawn(Async)
        ref = await system.spawn(child(kind).with_options(restart=restart, backoff=SOON))
        answer = await outcome(ref.ask(Do(what), timeout=5))
        assert isinstance(answer, ActorCrashed)
        assert isinstance(answer.__cause__, UnexpectedCancellation)
        assert answer.__cause__.__cause__ is error
        await anyio.sleep(1)
        assert await ref.ask(Ok()) == "ok"
        await ref.tell(Told(what))
        await anyio.sleep(1)
        assert await ref.ask(Ok()) == "ok"
        assert ref.statistics().restarts == 2
        assert await bystander.ask(Ok()) == "ok"
    assert caplog.text.count("decided (it is") == 2


async def test_a_shared_future_that_is_cancelled_fails_those_that_await_it(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return  # trio has nothing of that kind
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with ActorSystem() as system:
        refs = [await system.spawn(child(Async).with_options(backoff=SOON)) for _ in range(3)]
        replies = [ref.ask(Do(lambda: future)) for ref in refs]
        await settle()
        future.cancel()
        assert [type(await outcome(reply)) for reply in replies] == [ActorCrashed] * 3
        plain = await system.spawn(child(Plain).with_options(backoff=SOON))
        assert isinstance(await outcome(plain.ask(Do(future.result))), ActorCrashed)
        await anyio.sleep(1)
        assert [await ref.ask(Ok()) for ref in (*refs, plain)] == ["ok"] * 4


@pytest.mark.parametrize("where", ["init", "started", "stopped", "restarting"])
async def test_in_a_hook_it_is_a_failure_of_the_hook(where: str, caplog: pytest.LogCaptureFixture) -> None:
    error = await _stray()

    class Hooked(Async):
        def __init__(self) -> None:
            self._act("init")

        def _act(self, here: str) -> None:
            if here == where:
                raise error

        async def started(self, why: Any) -> None:
            self._act("started")

        async def restarting(self, why: Any) -> None:
            self._act("restarting")

        async def stopped(self, why: Any) -> None:
            self._act("stopped")

    def crash() -> Any:
        raise ValueError("crash")

    async with ActorSystem() as system:
        bystander = await system.spawn(Async)
        spec = child(Hooked).with_options(backoff=SOON)
        if where in {"init", "started"}:
            with pytest.raises(Exception, match="did not start: UnexpectedCancellation"):
                await system.spawn(spec)
        else:
            ref = await system.spawn(spec)
            await ref.tell(Told(crash))
            await anyio.sleep(1)
            assert await ref.ask(Ok()) == "ok"
            await ref.stop()
            assert f"the {where} hook of" in caplog.text
            assert "UnexpectedCancellation" in caplog.text
        assert await bystander.ask(Ok()) == "ok"


@pytest.mark.parametrize("handled", [False, True])
async def test_in_background_work_it_is_an_error_of_the_work(handled: bool) -> None:
    error = await _stray()

    class Piping(Actor[Do | Told | Ok]):
        def __init__(self) -> None:
            self.got: list[Any] = []

        @on(Do)
        def do(self, message: Do) -> Any:
            self.pipe_to_self(self._work(), Told, Told if handled else None)

        async def _work(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise error

        @on(Told)
        def told(self, message: Told) -> None:
            self.got.append(message.what)

        @on(Ok)
        def ok(self, message: Ok) -> str:
            return "ok"

    async with ActorSystem() as system:
        ref = await system.spawn(child(Piping).with_options(backoff=SOON))
        await ref.ask(Do())
        await anyio.sleep(1)
        assert await ref.ask(Ok()) == "ok"
        actor: Any = ref._cell.actor
        assert [type(one) for one in actor.got] == ([UnexpectedCancellation] if handled else [])
        assert ref.statistics().restarts == (0 if handled else 1)


async def test_a_cancellation_from_outside_still_kills(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return

    async def suicide() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(1)

    async with ActorSystem() as system:
        ref = await system.spawn(Async)
        assert isinstance(await outcome(ref.ask(Do(suicide))), Interrupted)
        assert (await ref.ended()).describe() == "killed (its task was cancelled from outside)"


# Groups.


class Refusal(ReplyError):
    pass


def _group(*errors: BaseException) -> BaseExceptionGroup[Any]:
    return BaseExceptionGroup("outer", [BaseExceptionGroup("inner", errors)])


@pytest.mark.parametrize("kind", [Async, Plain, Looping])
async def test_a_group_of_refusals_is_a_refusal(kind: Any) -> None:
    refusals = [Refusal("no"), ReplyError("neither")]

    def refuse(error: BaseException) -> Any:
        async def fail_async() -> Any:
            await anyio.lowlevel.checkpoint()
            raise error

        def fail() -> Any:
            raise error

        return fail if kind is Plain else fail_async

    class Handling(Looping):
        async def run(self) -> None:
            async for message in self.inbox:
                await self.handle(message)

        @on(Do)
        async def do(self, message: Do) -> Any:
            return await message.what()

        @on(Told)
        async def told(self, message: Told) -> None:
            await message.what()

        @on(Ok)
        async def ok(self, message: Ok) -> str:
            return "ok"

    async with ActorSystem() as system:
        spec: Any = Handling if kind is Looping else kind
        ref = await system.spawn(child(spec).with_options(restart="temporary"))
        assert await outcome(ref.ask(Do(refuse(_group(*refusals))))) is refusals[0]
        assert await outcome(ref.ask(Do(refuse(_group(refusals[1]))))) is refusals[1]
        await ref.tell(Told(refuse(_group(*refusals))))
        assert await ref.ask(Ok()) == "ok"
        assert system.dead_letters.counts["refused"] == 1
        mixed = _group(Refusal("no"), ValueError("a real one"))
        crash = await outcome(ref.ask(Do(refuse(mixed))))
        assert isinstance(crash, ActorCrashed)
        assert crash.__cause__ is mixed
        await ref.ended()


async def test_a_refusal_in_a_task_group_of_a_handler_is_a_refusal() -> None:
    async def work() -> None:
        async def refuse() -> None:
            raise Refusal("no")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse)
            tasks.start_soon(anyio.sleep_forever)

    async with ActorSystem() as system:
        ref = await system.spawn(Async)
        assert isinstance(await outcome(ref.ask(Do(work))), Refusal)
        assert await ref.ask(Ok()) == "ok"


# Streams.


class Streaming(Actor[Chunks | Ok]):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    @on(Ok)
    async def ok(self, message: Ok) -> str:
        return "ok"

    @on(Chunks)
    async def chunks(self, message: Chunks) -> AsyncIterator[int]:
        generator: Any = getattr(self, f"_{message.how}")()
        try:
            async for chunk in generator:
                yield chunk
        finally:
            self.log.append("left")
            await generator.aclose()

    async def _group(self) -> AsyncGenerator[int]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            for number in range(1_000):
                yield number
            tasks.cancel_scope.cancel()

    async def _scope(self) -> AsyncGenerator[int]:
        with anyio.move_on_after(600):
            for number in range(1_000):
                yield number

    async def _cleanup(self) -> AsyncGenerator[int]:
        try:
            for number in range(1_000):
                yield number
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            self.log.append("cleaned")

    async def _more(self) -> AsyncGenerator[int]:
        try:
            for number in range(1_000):
                yield number
        finally:
            yield -1

    async def _fails(self) -> AsyncGenerator[int]:
        try:
            for number in range(1_000):
                yield number
        finally:
            raise ValueError("the cleanup fails")


async def _leave(ref: Ref[Any], how: str, leave: str) -> None:
    with anyio.move_on_after(1):
        async with ref.stream(Chunks(how)) as stream:
            async for chunk in stream:
                if chunk < 3:
                    continue
                if leave == "break":
                    break
                if leave == "raise":
                    raise KeyError("mine")
                if leave == "kill":
                    await ref.kill()
                await anyio.sleep_forever()


@pytest.mark.parametrize("leave", ["break", "raise", "cancel", "kill"])
@pytest.mark.parametrize("how", ["group", "scope", "cleanup", "more", "fails"])
async def test_a_reader_may_leave_a_stream_however_its_handler_cleans_up(
    how: str, leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ActorSystem() as system:
        bystander = await system.spawn(Streaming, [])
        log: list[str] = []
        ref = await system.spawn(child(Streaming, log).with_options(restart="temporary"))
        try:
            await _leave(ref, how, leave)
        except KeyError:
            assert leave == "raise"
        except Interrupted as error:
            assert leave == "kill"
            assert "it was killed (killed)" in str(error)  # noqa: PT017
        await anyio.sleep(1)
        assert "left" in log
        assert ("cleaned" in log) is (how == "cleanup")
        if leave == "kill":
            assert not ref.alive
        else:
            assert await ref.ask(Ok()) == "ok"
            assert not ref.statistics().restarts
        assert await bystander.ask(Ok()) == "ok"
    # What the cleanup raises is reported, and nothing else is.
    assert ("failed in its cleanup" in caplog.text) is (how in {"more", "fails"})


async def test_a_stream_of_what_is_no_stream_and_the_reverse_say_what_to_call() -> None:
    async with ActorSystem() as system:
        ref: Ref[Any] = await system.spawn(Streaming, [])
        plain: Ref[Any] = await system.spawn(Plain)
        for target in (ref, plain):
            wrong: Any = Ok()
            with pytest.raises(Exception, match=r"it has one answer, not a stream: use ask\(\)"):
                async for _ in target.stream(wrong):
                    pass
        wrong = Chunks("group")
        with pytest.raises(Exception, match=r"it is answered with a stream: use stream\(\)"):
            await ref.ask(wrong)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("error", [GeneratorExit, Interruption, StopIteration, StopAsyncIteration])
async def test_what_is_no_exception_is_a_failure_of_the_handler(error: type[BaseException]) -> None:
    class Go(Request[int]):
        fail: bool

    class Fails(Actor[Go]):
        @on(Go)
        async def go(self, message: Go) -> int:
            if message.fail:
                raise error
            return 1

    async with ActorSystem(backoff=Backoff(0, 0)) as system:
        ref = await system.spawn(Fails)
        with pytest.raises(ActorCrashed):
            await ref.ask(Go(fail=True))
        assert await ref.ask(Go(fail=False)) == 1
        assert ref.statistics().restarts == 1
