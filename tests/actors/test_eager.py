"""On asyncio, an `async def` handler of an idle actor begins inside the ask: what is true of handlers stays true."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio

from cuelight import Actor, ActorCrashed, ActorSystem, DeadlockError, LocalLock, Message, Ref, Request, on
from cuelight.errors import Interrupted, InterruptedTimeout, UnexpectedCancellation
from cuelight.testing import assert_no_orphans, wait_until_idle
from helpers.players import outcome, settle

Work = Callable[["Doer"], Awaitable[Any]]


class Do(Request[Any]):
    work: Work


class Tell(Message):
    work: Work


class Get(Request[list[Any]]):
    pass


class Doer(Actor[Do | Tell | Get]):
    """Does in its handler what the message says."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @on(Do)
    async def do(self, message: Do) -> Any:
        return await message.work(self)

    @on(Tell)
    async def told(self, message: Tell) -> None:
        await message.work(self)

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        return self.seen


class Number(Request[int]):
    pass


class Plain(Actor[Number]):
    """With a `def` handler."""

    @on(Number)
    def number(self, message: Number) -> int:
        return 1


async def started(system: ActorSystem) -> Ref[Any]:
    """A doer, in a system whose dispatcher has had its first turn."""
    ref = await system.spawn(Doer)
    await ref.ask(Get())
    await settle()
    return ref


async def returns(_: Doer) -> str:
    return "done"


async def sleeps(_: Doer) -> None:
    await anyio.sleep_forever()


# Where a handler begins.


async def test_an_async_handler_may_begin_inside_the_ask(anyio_backend_name: str) -> None:
    inside = anyio_backend_name == "asyncio"
    async with ActorSystem() as system:
        ref = await started(system)
        begun: list[int] = []

        async def begins(_: Doer) -> int:
            begun.append(1)
            await anyio.lowlevel.checkpoint()
            begun.append(2)
            return 3

        reply = ref.ask(Do(begins))
        assert begun == ([1] if inside else [])
        assert not reply.done
        assert await reply == 3
        assert begun == [1, 2]
        reply = ref.ask(Do(returns))
        assert reply.done == inside
        assert await reply == "done"


async def test_a_handler_never_begins_inside_a_tell() -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        begun: list[int] = []

        async def begins(_: Doer) -> None:
            begun.append(1)

        await ref.tell(Tell(begins))
        ref.tell_nowait(Tell(begins))
        assert not begun
        await ref.ask(Get())
        assert begun == [1, 1]


async def test_a_handler_that_was_begun_inside_an_ask_keeps_the_others_waiting() -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        gate = anyio.Event()

        async def waits(doer: Doer) -> None:
            await gate.wait()
            doer.seen.append("first")

        def notes(what: str) -> Work:
            async def note(doer: Doer) -> None:
                doer.seen.append(what)

            return note

        first = ref.ask(Do(waits))
        await ref.tell(Tell(notes("second")))
        third = ref.ask(Do(notes("third")))
        await settle()
        assert not first.done
        gate.set()
        await third
        await first
        assert await ref.ask(Get()) == ["first", "second", "third"]


async def test_nested_asks_are_begun_inside_each_other_up_to_a_bound(anyio_backend_name: str) -> None:
    async with ActorSystem() as system:
        refs = [await started(system) for _ in range(40)]
        depth = deepest = 0

        def asks(at: int) -> Work:
            async def ask(_: Doer) -> int:
                nonlocal depth, deepest
                depth += 1
                deepest = max(deepest, depth)
                reply = refs[at + 1].ask(Do(asks(at + 1))) if at + 1 < len(refs) else None
                depth -= 1
                return 1 if reply is None else 1 + await reply

            return ask

        assert await refs[0].ask(Do(asks(0))) == len(refs)
        assert deepest == (8 if anyio_backend_name == "asyncio" else 1)


@pytest.mark.parametrize("nested", [False, True])
async def test_asks_of_async_handlers_let_other_tasks_run(nested: bool) -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref, other = await started(system), await started(system)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async def asks(_: Doer) -> None:
            for _number in range(10_000):
                await other.ask(Get())

        tasks.start_soon(count)
        await anyio.lowlevel.checkpoint()
        await (ref.ask(Do(asks)) if nested else asks(None))  # type: ignore[arg-type]
        assert turns > 15
        tasks.cancel_scope.cancel()


async def test_an_actor_that_tells_itself_for_ever_lets_other_tasks_run() -> None:
    async with ActorSystem() as system:
        ref = await started(system)

        async def again(doer: Doer) -> None:
            doer.seen.append(1)
            await doer.ref.tell(Tell(again))

        await ref.tell(Tell(again))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        await ref.kill()


# What a handler sees of its task.


async def test_a_handler_has_one_task_from_its_beginning_to_its_end() -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        mine = anyio.get_current_task().id

        async def looks(doer: Doer) -> None:
            first = anyio.get_current_task().id
            doer.seen.append((sniffio.current_async_library(), first == mine))
            await anyio.lowlevel.checkpoint()
            doer.seen.append((sniffio.current_async_library(), anyio.get_current_task().id == first))

        await ref.ask(Do(looks))
        await ref.tell(Tell(looks))
        library = sniffio.current_async_library()
        assert await ref.ask(Get()) == [(library, False), (library, True)] * 2
        assert anyio.get_current_task().id == mine


@pytest.mark.parametrize("way", ["fail_after", "move_on_after", "asyncio.timeout", "scope", "timeout 0"])
@pytest.mark.parametrize("told", [False, True])
async def test_time_outs_and_scopes_of_a_handler_cut_off_what_they_should(
    anyio_backend_name: str, way: str, told: bool
) -> None:
    if anyio_backend_name != "asyncio" and way in {"asyncio.timeout", "timeout 0"}:
        return

    async def limited() -> None:
        if way == "fail_after":
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        elif way == "move_on_after":
            with anyio.move_on_after(0.01):
                await anyio.sleep_forever()
        elif way == "scope":
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.lowlevel.checkpoint()
                raise AssertionError
        else:
            async with asyncio.timeout(0 if way == "timeout 0" else 0.01):
                await asyncio.get_running_loop().create_future()

    async def works(doer: Doer) -> None:
        result = await outcome(limited())
        doer.seen.append(type(result) if result is not None else None)
        await anyio.lowlevel.checkpoint()  # nothing is left of the cancellation
        doer.seen.append("on")

    async with ActorSystem() as system:
        ref = await started(system)
        for _ in range(2):
            if told:
                await ref.tell(Tell(works))
            else:
                await ref.ask(Do(works))
        seen = await ref.ask(Get())
        assert seen == [None if way in {"move_on_after", "scope"} else TimeoutError, "on"] * 2


async def test_a_time_out_reaches_what_a_handler_awaits(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return

    async def works(doer: Doer) -> bool:
        inner = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await inner
        return inner.cancelled()

    async with ActorSystem() as system:
        ref = await started(system)
        assert await ref.ask(Do(works))
        assert await ref.ask(Do(works))


async def test_task_groups_of_a_handler_end_with_the_first_error() -> None:
    async def fails() -> None:
        raise ValueError("of a child")

    async def works(doer: Doer) -> str:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(fails)
                group.start_soon(anyio.sleep_forever)
        except BaseExceptionGroup as raised:
            return str(raised.exceptions[0])
        return "nothing"

    async with ActorSystem() as system:
        ref = await started(system)
        assert await ref.ask(Do(works)) == "of a child"
        assert await ref.ask(Do(works)) == "of a child"


current: ContextVar[str] = ContextVar("current", default="unset")


async def test_context_variables_stay_with_the_actor_before_and_after_a_wait() -> None:
    async def works(doer: Doer) -> None:
        doer.seen.append(current.get())
        current.set("before")
        await anyio.lowlevel.checkpoint()
        doer.seen.append(current.get())
        current.set("after")

    async with ActorSystem() as system:
        ref, other = await started(system), await started(system)
        current.set("asker's")
        await ref.ask(Do(works))
        assert current.get() == "asker's"
        await ref.ask(Do(works))
        assert await ref.ask(Get()) == ["unset", "before", "after", "before"]
        await other.ask(Do(works))
        assert await other.ask(Get()) == ["unset", "before"]


async def test_a_scope_that_a_handler_leaves_open_is_nobody_elses() -> None:
    scopes: list[anyio.CancelScope] = []

    async def leaves_open(_: Doer) -> None:
        scope = anyio.CancelScope()
        scope.__enter__()
        scopes.append(scope)

    async with ActorSystem() as system:
        ref, other = await started(system), await started(system)
        await ref.ask(Do(leaves_open))
        scopes[0].cancel()

        async def waits(_: Doer) -> str:
            await anyio.lowlevel.checkpoint()
            return "not cut off"

        assert await other.ask(Do(waits)) == "not cut off"


# Who is cancelled.


async def test_an_asker_cancelled_by_the_handler_that_it_began_hears_of_it_where_it_awaits(
    anyio_backend_name: str,
) -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        with anyio.CancelScope() as scope:

            async def cancels(_: Doer) -> None:
                scope.cancel()

            await ref.ask(Do(cancels))
            await anyio.lowlevel.checkpoint()
            raise AssertionError
        assert scope.cancelled_caught
        for _ in range(3):
            await anyio.lowlevel.checkpoint()  # nothing of it is left
        assert await ref.ask(Do(returns)) == "done"


async def test_a_native_cancel_of_the_asker_by_the_handler_does_not_hit_the_handler(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with ActorSystem() as system:
        ref = await started(system)
        ended: list[str] = []

        async def asks() -> None:
            task = asyncio.current_task()
            assert task is not None

            async def cancels(_: Doer) -> None:
                task.cancel()
                ended.append("handler")

            await ref.ask(Do(cancels))
            ended.append("asker")

        with pytest.raises(asyncio.CancelledError):
            await asyncio.get_running_loop().create_task(asks())
        assert ended == ["handler"]
        assert await ref.ask(Do(returns)) == "done"


@pytest.mark.parametrize("awaits", [False, True])
async def test_an_actor_that_cancels_its_own_task_is_killed_and_nobody_else(
    anyio_backend_name: str, awaits: bool
) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with ActorSystem() as system:
        ref, other = await started(system), await started(system)

        async def cancels(_: Doer) -> str:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if awaits:
                await asyncio.sleep(3600)
            return "returned"

        for told in (False, True):
            ref = await started(system)
            if told:
                await ref.tell(Tell(cancels))
            else:
                result = await outcome(ref.ask(Do(cancels)))
                assert isinstance(result, Interrupted) if awaits else result == "returned"
            assert (await ref.ended()).describe() == "killed (its task was cancelled from outside)"
            assert await other.ask(Do(returns)) == "done"


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("how", ["stop", "kill", "interrupt"])
async def test_an_actor_may_end_itself_before_its_first_wait(how: str, awaits: bool) -> None:
    async def ends(doer: Doer) -> str:
        if how == "stop":
            doer.stop()
        elif how == "kill":
            await doer.ref.kill()
        else:
            assert doer.ref.interrupt("by itself")
        if awaits:
            await anyio.lowlevel.checkpoint()
        return "answer"

    async with ActorSystem() as system:
        for told in (False, True):
            ref = await started(system)
            if told:
                await ref.tell(Tell(ends))
            else:
                result = await outcome(ref.ask(Do(ends)))
                cut = awaits and how != "stop"
                assert isinstance(result, Interrupted) if cut else result == "answer"
            if how == "interrupt":
                assert await ref.ask(Do(returns)) == "done"
            else:
                assert (await ref.ended()).describe().startswith("stopped" if how == "stop" else "killed")
        await wait_until_idle(system)
    assert_no_orphans(system)


# What comes out of a step.


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("x"), StopAsyncIteration(), GeneratorExit(), BaseException("x"), asyncio.CancelledError()]
)
async def test_whatever_a_handler_raises_before_its_first_wait_is_its_failure(
    error: BaseException, told: bool, anyio_backend_name: str
) -> None:
    async def fails(_: Doer) -> None:
        raise error

    async with ActorSystem() as system:
        ref = await started(system)
        if told:
            await ref.tell(Tell(fails))
            await wait_until_idle(system)
            (letter,) = system.dead_letters
            crashed: BaseException | None = letter.error
        else:
            with pytest.raises(ActorCrashed) as info:
                await ref.ask(Do(fails))
            crashed = info.value.__cause__
        ours = isinstance(error, asyncio.CancelledError) and anyio_backend_name == "asyncio"
        assert isinstance(crashed, UnexpectedCancellation) if ours else crashed is error
        assert await ref.ask(Do(returns)) == "done"


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_ends_a_program_ends_the_system_from_before_the_first_wait(
    kind: type[BaseException], told: bool
) -> None:
    async def ends(_: Doer) -> None:
        raise kind

    system = ActorSystem()
    with pytest.raises(kind):
        async with system:
            ref = await started(system)
            if told:
                await ref.tell(Tell(ends))
            else:
                with pytest.raises(ActorCrashed):
                    await ref.ask(Do(ends))
            await anyio.sleep_forever()
    assert_no_orphans(system)


async def test_the_time_out_of_an_ask_fires_although_the_handler_began_inside_it() -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        with pytest.raises(InterruptedTimeout):
            await ref.ask(Do(sleeps), timeout=0.02)
        reply = ref.ask(Do(sleeps), timeout=0.02)  # its clock runs although nobody awaits it
        await wait_until_idle(system)
        with pytest.raises(InterruptedTimeout):
            await reply
        assert await ref.ask(Do(returns)) == "done"


async def test_what_a_handler_asks_before_its_first_wait_inherits_the_remaining_time() -> None:
    async with ActorSystem() as system:
        ref, other = await started(system), await started(system)
        left: list[float] = []

        async def looks(doer: Doer) -> None:
            left.append(doer.remaining)

        async def asks(doer: Doer) -> None:
            left.append(doer.remaining)
            await other.ask(Do(looks))
            await other.ask(Do(sleeps), timeout=100)

        began = time.monotonic()
        with pytest.raises(InterruptedTimeout):
            await ref.ask(Do(asks), timeout=0.2)
        assert max(left) <= 0.3
        assert time.monotonic() - began < 50
        assert await other.ask(Do(returns)) == "done"


# Deadlocks.


async def test_the_handler_that_asks_back_gets_the_deadlock_error() -> None:
    async with ActorSystem() as system:
        a, b, c = [await started(system) for _ in range(3)]

        def asks(*path: Ref[Any]) -> Work:
            async def ask(doer: Doer) -> Any:
                if not path:
                    return "end"
                try:
                    return await path[0].ask(Do(asks(*path[1:])))
                except DeadlockError as error:
                    return doer.ref, str(error)

            return ask

        who, why = await a.ask(Do(asks(b, a)))
        assert who == b
        assert f"{a.path} → {b.path} → {a.path}" in why or f"{b.path} → {a.path} → {b.path}" in why
        who, why = await a.ask(Do(asks(b, c, a)))
        assert who == c
        assert await a.ask(Do(asks(b, c))) == "end"


async def test_a_request_that_is_never_awaited_is_no_deadlock() -> None:
    async with ActorSystem() as system:
        a, b = await started(system), await started(system)

        async def asks_back(_: Doer) -> Any:
            return await a.ask(Do(returns))

        async def sends(_: Doer) -> None:
            _reply = b.ask(Do(asks_back)).detach()

        await a.ask(Do(sends))
        await wait_until_idle(system)
        assert await b.ask(Do(returns)) == "done"
        assert await a.ask(Do(asks_back_of(b))) == "done"


def asks_back_of(ref: Ref[Any]) -> Work:
    async def ask(_: Doer) -> Any:
        return await ref.ask(Do(returns))

    return ask


async def test_a_lock_taken_before_the_first_wait_is_the_actors() -> None:
    lock = LocalLock("one")

    async def holds(doer: Doer) -> None:
        async with lock:
            await anyio.lowlevel.checkpoint()
            doer.seen.append("held")

    async with ActorSystem() as system:
        refs = [await started(system) for _ in range(3)]
        for reply in [ref.ask(Do(holds)) for ref in refs for _ in range(2)]:
            await reply
        assert [await ref.ask(Get()) for ref in refs] == [["held"] * 2] * 3


# What others see.


async def test_a_slow_handler_that_began_inside_an_ask_is_named(caplog: pytest.LogCaptureFixture) -> None:
    came = threading.Event()

    class Reports(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())
            if "in blocks" in texts[-1]:
                came.set()

    texts: list[str] = []
    logger, handler = logging.getLogger("cuelight.slow"), Reports()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        async with ActorSystem("demo", slow_after=0.05) as system:
            asker, ref = await started(system), await started(system)

            async def blocks(_: Doer) -> None:
                came.wait(30)

            async def asks(_: Doer) -> None:
                await ref.ask(Do(blocks))

            await asker.ask(Do(asks))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    (text,) = [text for text in texts if "in blocks" in text]
    assert text.startswith(f"{ref.path} has been handling Do(")


async def test_no_task_is_left_behind(anyio_backend_name: str) -> None:
    async with ActorSystem() as system:
        refs = [await started(system) for _ in range(5)]
        replies = [ref.ask(Do(sleeps)) for ref in refs[:3]]
        await settle()
        replies[0].cancel()
        refs[1].interrupt()
        await refs[2].kill()
        for reply in replies:
            assert isinstance(await outcome(reply), Interrupted)
        if anyio_backend_name == "asyncio":
            assert [await ref.ask(Do(returns)) for ref in (*refs[:2], *refs[3:])] == ["done"] * 4
    assert_no_orphans(system)
    if anyio_backend_name == "asyncio":
        await settle()
        assert not [task for task in asyncio.all_tasks() if "cuelight" in task.get_name()]


async def test_an_async_generator_left_in_a_scope_hurts_only_its_actor() -> None:
    async def numbers() -> AsyncIterator[int]:
        with anyio.CancelScope():
            yield 1
            yield 2

    async def breaks(doer: Doer) -> int:
        doer.seen.append(generator := numbers())
        async for number in generator:
            return number
        return 0

    async with ActorSystem() as system:
        ref, other = await started(system), await started(system)
        assert await ref.ask(Do(breaks)) == 1
        assert await other.ask(Do(returns)) == "done"
        with contextlib.suppress(RuntimeError):
            await (await ref.ask(Get()))[0].aclose()


async def test_an_answer_that_was_there_at_once_and_that_nobody_awaits_is_a_warning() -> None:
    async with ActorSystem() as system:
        ref = await started(system)
        with pytest.warns(RuntimeWarning, match=r"the answer to Get.* was never awaited"):
            await _forget(system, ref)
        for known in (ref.ask(Get()).detach(), ref.ask(Get())):
            await wait_until_idle(system)
            assert known.done
        del known
        gc.collect()


async def _forget(system: ActorSystem, ref: Ref[Any]) -> None:
    ref.ask(Get())  # type: ignore[unused-awaitable]
    await wait_until_idle(system)
    gc.collect()


async def test_eager_task_factories_of_the_loop_change_nothing(anyio_backend_name: str) -> None:
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    if anyio_backend_name != "asyncio" or factory is None:
        return
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):  # uvloop has no such factories on 3.13
        return
    loop.set_task_factory(factory)
    try:
        async with ActorSystem() as system:
            ref = await started(system)

            async def works(doer: Doer) -> Any:
                mine = asyncio.current_task()

                async def child() -> Any:
                    return asyncio.current_task()

                async with asyncio.TaskGroup() as group:
                    first, second = group.create_task(child()), group.create_task(child())
                assert asyncio.current_task() is mine
                return len({mine, first.result(), second.result()})

            assert await ref.ask(Do(works)) == 3
            assert await asyncio.create_task(_asks(ref, works)) == 3
    finally:
        loop.set_task_factory(None)


async def _asks(ref: Ref[Any], work: Work) -> Any:
    return await ref.ask(Do(work))


async def test_an_ask_from_a_callback_of_the_loop_is_answered(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    loop = asyncio.get_running_loop()
    async with ActorSystem() as system:
        ref = await started(system)
        for work in (returns, _checkpoint):
            reply: asyncio.Future[Any] = loop.create_future()
            loop.call_soon(_ask_for, reply, ref, work)
            assert await (await reply) == "done"


def _ask_for(reply: asyncio.Future[Any], ref: Ref[Any], work: Work) -> None:
    reply.set_result(ref.ask(Do(work)))


async def _checkpoint(_: Doer) -> str:
    await anyio.lowlevel.checkpoint()
    return "done"


async def test_a_function_marked_as_async_is_an_async_handler() -> None:
    mark: Any = getattr(inspect, "markcoroutinefunction", None)
    if mark is None:
        return

    class Marked(Actor[Get]):
        @on(Get)
        @mark  # type: ignore[untyped-decorator]
        def get(self, message: Get) -> Awaitable[list[Any]]:
            return _Answer()

    async with ActorSystem() as system:
        ref = await system.spawn(Marked)
        for _ in range(3):
            assert await ref.ask(Get()) == ["marked"]
            await settle()


class _Answer:
    def __await__(self) -> Generator[Any, Any, list[Any]]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return ["marked"]
