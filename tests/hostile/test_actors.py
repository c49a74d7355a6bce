"""Whatever handlers, hooks, callbacks and policies of actors do, other actors, timers and time-outs go on.

Each place where the library calls code of users runs with each case; afterwards bystanders have gone on, time-outs
have fired, the asker was told, and the system has ended in time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    AskError,
    Channel,
    ChildSpec,
    Message,
    Ref,
    ReplyError,
    Request,
    StreamRequest,
    Supervisor,
    child,
    coalesce,
    on,
    select,
    supervisor,
)
from cuelight._text import format_traceback
from cuelight.errors import InterruptedTimeout, StartError, ends_the_program
from cuelight.mailbox import NOT_READY
from cuelight.supervision import RestartLimit, WhichChildren
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import Backend
from hostile.cases import AWAITED, CALLED, CASES, RAISING, Case, catch_a_stray_cancellation, covers

Place = Callable[[ActorSystem, Case], Awaitable[None]]

PLACES: list[Any] = []


def place(*names: str, cases: list[Case], contained: bool = False) -> Callable[[Place], Place]:
    """Enter a place, to be tried with these cases.

    Args:
        *names: for the register.
        cases: what may happen there.
        contained: what ends programs does not end the system here, because it came out of a mere report.
    """

    def enter(function: Place) -> Place:
        covers(*names)(function)
        PLACES.extend(
            pytest.param(function, case, contained, id=f"{function.__name__}-{case.name.replace(' ', '_')}")
            for case in cases
        )
        return function

    return enter


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Do(Request[Any]):
    case: Any = None


class Tell(Message):
    case: Any = None


class Chunks(StreamRequest[int]):
    case: Any = None


class Ping(Request[str]):
    pass


class Forever(Request[None]):
    pass


class Tick(Message):
    pass


class Bystander(Actor[Ping | Forever | Tick]):
    """Has nothing to do with any of it: answers, runs into time-outs, and counts the ticks of a timer."""

    def __init__(self) -> None:
        self.ticks = 0
        self.every(0.1, Tick())

    @on(Ping)
    async def ping(self, message: Ping) -> str:
        return "pong"

    @on(Forever)
    async def forever(self, message: Forever) -> None:
        await anyio.sleep_forever()

    @on(Tick)
    def tick(self, message: Tick) -> None:
        self.ticks += 1


class Calm(Actor[Ping]):
    @on(Ping)
    def ping(self, message: Ping) -> str:
        return "pong"


async def goes_on(bystander: Ref[Any], calm: Ref[Any]) -> None:
    assert await bystander.ask(Ping()) == await calm.ask(Ping()) == "pong"
    actor: Any = bystander._cell.actor
    before = actor.ticks
    await anyio.sleep(1)
    assert actor.ticks > before
    with pytest.raises(InterruptedTimeout):
        await bystander.ask(Forever(), timeout=0.5)


@pytest.mark.parametrize(("function", "case", "contained"), PLACES)
async def test_bystanders_go_on_whatever_code_of_users_does(function: Place, case: Case, contained: bool) -> None:
    await _try(function, case, contained)


def _fail(text: str) -> None:
    pytest.fail(text, pytrace=False)


async def _try(function: Place, case: Case, contained: bool) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    system = ActorSystem(ask_timeout=5, shutdown_timeout=2, slow_after=None)
    try:
        with anyio.fail_after(1000):
            async with system:
                bystander, calm = await system.spawn(Bystander), await system.spawn(Calm)
                await function(system, case)
                await goes_on(bystander, calm)
    except BaseException as error:
        raised = error
    if case.ends_the_program and not contained:
        assert raised is not None
        assert ends_the_program(raised)
    elif raised is not None:  # as text, because the runner of the tests is no match for some of these errors
        _fail(format_traceback(raised))
    assert_no_orphans(system)


async def told(reply: Awaitable[Any]) -> Any:
    """The answer, or the error of which the asker is told; it is told in any case."""
    try:
        return await reply
    except (AskError, ReplyError) as error:
        return error


async def spawn(system: ActorSystem, factory: Any, *args: Any, **options: Any) -> Ref[Any]:
    """An actor that is not restarted, so that its crashes are nobody else's."""
    return await system.spawn(child(factory, *args).with_options(**({"restart": "temporary"} | options)))


# Handlers.


class Plainly(Actor[Do | Tell]):
    @on(Do)
    def do(self, message: Do) -> Any:
        message.case.act()

    @on(Tell)
    def tell(self, message: Tell) -> None:
        message.case.act()


class Awaiting(Actor[Do | Tell]):
    @on(Do)
    async def do(self, message: Do) -> Any:
        await message.case.act_async()

    @on(Tell)
    async def tell(self, message: Tell) -> None:
        await message.case.act_async()


@place("on(def, asked)", cases=CALLED)
async def a_plain_handler_that_is_asked(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Plainly)
    answer = await told(ref.ask(Do(case)))
    assert isinstance(answer, AskError) is case.raises


@place("on(def, told)", cases=CALLED)
async def a_plain_handler_that_is_told(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Plainly)
    await ref.tell(Tell(case))
    await told(ref.ask(Do(CASES["blocks"])))
    assert ref.alive is not case.raises
    assert system.dead_letters.counts["crashed"] == case.raises


@place("on(async def, asked)", cases=AWAITED)
async def an_async_handler_that_is_asked(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Awaiting)
    answer = await told(ref.ask(Do(case), timeout=1))
    assert isinstance(answer, AskError) is (case.raises or case.suspends)


@place("on(async def, told)", cases=AWAITED)
async def an_async_handler_that_is_told(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Awaiting)
    await ref.tell(Tell(case))
    await anyio.sleep(1)
    if case.suspends:
        ref.interrupt()
        await ref.kill()
    assert ref.alive is not (case.raises or case.suspends)


@place("on(async def, cancelled)", cases=AWAITED)
async def an_async_handler_while_it_is_cancelled(system: ActorSystem, case: Case) -> None:
    class Cleaning(Actor[Do]):
        @on(Do)
        async def do(self, message: Do) -> Any:
            try:
                await anyio.sleep_forever()
            finally:
                if case.suspends:
                    with anyio.move_on_after(3, shield=True):
                        await case.act_async()
                else:
                    case.act()

    ref = await spawn(system, Cleaning)
    assert isinstance(await told(ref.ask(Do(), timeout=0.5)), InterruptedTimeout)
    await ref.kill()
    assert not ref.alive


# Trio's own task groups look at the exceptions in them.
IN_GROUPS = [case for case in AWAITED if case.name not in {"unprintable", "deep groups"}]


@place("on(async def, in a task group)", cases=IN_GROUPS)
async def an_async_handler_in_a_task_group(system: ActorSystem, case: Case) -> None:
    class Grouped(Actor[Do]):
        @on(Do)
        async def do(self, message: Do) -> Any:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(case.act_async)

    if case.ends_the_program:  # asyncio ends the program itself when a task raises that
        case = CASES["BaseException"]
        system.abort(SystemExit(3))
    ref = await spawn(system, Grouped)
    answer = await told(ref.ask(Do(), timeout=1))
    # A task group takes a cancellation of a task in it for its own.
    assert isinstance(answer, AskError) is (case.name not in ("blocks", "CancelledError"))


@place("on(async generator)", cases=AWAITED)
async def a_stream_handler(system: ActorSystem, case: Case) -> None:
    class Streaming(Actor[Chunks]):
        @on(Chunks)
        async def stream(self, message: Chunks) -> AsyncIterator[int]:
            yield 1
            await message.case.act_async()
            yield 2

    ref = await spawn(system, Streaming)
    got: list[int] = []
    error = None
    try:
        async for chunk in ref.stream(Chunks(case), timeout=1):
            got += [chunk]
    except AskError as raised:
        error = raised
    assert got == ([1] if case.raises or case.suspends else [1, 2])
    assert (error is not None) is (case.raises or case.suspends)


@place("on(async generator, closed)", cases=AWAITED)
async def the_cleanup_of_a_stream_handler(system: ActorSystem, case: Case) -> None:
    class Streaming(Actor[Chunks]):
        @on(Chunks)
        async def stream(self, message: Chunks) -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
            finally:
                with anyio.move_on_after(3, shield=True):
                    await case.act_async()

    ref = await spawn(system, Streaming)
    async with ref.stream(Chunks(case)) as stream:
        async for chunk in stream:
            if chunk == 3:
                break
    await anyio.sleep(4)
    if not case.ends_the_program:
        assert ref.alive


@place("Actor.run", cases=AWAITED)
async def a_loop_of_its_own(system: ActorSystem, case: Case) -> None:
    class Looping(Actor[Do]):
        async def run(self) -> None:
            async for message in self.inbox:
                await message.case.act_async()
                self.inbox.reply(None)

    ref = await spawn(system, Looping)
    answer = await told(ref.ask(Do(case), timeout=1))
    assert isinstance(answer, AskError) is (case.raises or case.suspends)
    await ref.kill()


@place("ActorSystem.spawn(factory)", "Actor.spawn(factory)", "child(factory)", cases=AWAITED)
async def a_function_that_is_an_actor(system: ActorSystem, case: Case) -> None:
    async def loop(inbox: Any) -> None:
        async for message in inbox:
            await message.case.act_async()
            inbox.reply(None)

    ref = await spawn(system, loop)
    answer = await told(ref.ask(Do(case), timeout=1))
    assert isinstance(answer, AskError) is (case.raises or case.suspends)
    await ref.kill()


@place("Actor.handle", cases=AWAITED)
async def a_handler_under_a_loop_of_its_own(system: ActorSystem, case: Case) -> None:
    class Handling(Actor[Do | Ping]):
        async def run(self) -> None:
            async for message in self.inbox:
                await self.handle(message)

        @on(Do)
        async def do(self, message: Do) -> Any:
            await message.case.act_async()

        @on(Ping)
        def ping(self, message: Ping) -> str:
            return "pong"

    ref = await spawn(system, Handling)
    answer = await told(ref.ask(Do(case), timeout=1))
    assert isinstance(answer, AskError) is (case.raises or case.suspends)
    if ref.alive:
        await told(ref.ask(Ping()))


# Lives.


@place("Actor.__init__", cases=CALLED)
async def a_constructor(system: ActorSystem, case: Case) -> None:
    class Made(Actor[Ping]):
        def __init__(self) -> None:
            case.act()

        @on(Ping)
        def ping(self, message: Ping) -> str:
            return "pong"

    for factory in (Made, lambda: Made()):
        with _start_error(case):
            await spawn(system, factory)


def _start_error(case: Case) -> Any:
    return pytest.raises(StartError) if case.raises else anyio.CancelScope()


@place("Actor.started(def)", cases=CALLED)
async def a_plain_started_hook(system: ActorSystem, case: Case) -> None:
    class Started(Calm):
        def started(self, why: Any) -> None:
            case.act()

    with _start_error(case):
        await spawn(system, Started)


@place("Actor.started(async def)", "Actor.started", cases=AWAITED)
async def an_async_started_hook(system: ActorSystem, case: Case) -> None:
    class Started(Calm):
        async def started(self, why: Any) -> None:
            await case.act_async()

    with anyio.move_on_after(1), _start_error(case):
        await spawn(system, Started)


@place("Actor.restarting", cases=AWAITED)
async def a_restarting_hook(system: ActorSystem, case: Case) -> None:
    class Plain(Plainly):
        def restarting(self, why: Any) -> None:
            case.act()

    class Async(Awaiting):
        async def restarting(self, why: Any) -> None:
            await case.act_async()

    for kind in [Async] if case.suspends else [Plain, Async]:
        ref = await spawn(system, kind, restart="transient", shutdown=0.5)
        await ref.tell(Tell(CASES["Exception"]))
        await anyio.sleep(5)
        assert ref.statistics().state == "running"


@place("Actor.stopped", cases=AWAITED)
async def a_stopped_hook(system: ActorSystem, case: Case) -> None:
    class Plain(Plainly):
        def stopped(self, why: Any) -> None:
            case.act()

    class Async(Awaiting):
        async def stopped(self, why: Any) -> None:
            await case.act_async()

    for kind in [Async] if case.suspends else [Plain, Async]:
        ref = await spawn(system, kind, shutdown=0.5)
        with anyio.fail_after(10):
            await ref.stop()
            assert not ref.alive


@place("Actor.__del__", cases=RAISING, contained=True)
async def a_finalizer(system: ActorSystem, case: Case) -> None:
    class Finalized(Calm):
        def __del__(self) -> None:
            case.act()

    ref = await spawn(system, Finalized)
    await ref.stop()


# Callbacks.


class Piping(Actor[Do | Tell]):
    def __init__(self, pipe: Callable[[Piping], Any]) -> None:
        self.pipe = pipe

    @on(Do)
    def do(self, message: Do) -> Any:
        self.pipe(self)

    @on(Tell)
    def tell(self, message: Tell) -> None:
        """Something came of it."""


async def _value(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def _piped(system: ActorSystem, pipe: Callable[[Piping], Any]) -> Ref[Any]:
    ref = await spawn(system, Piping, pipe)
    await told(ref.ask(Do()))
    await anyio.sleep(1)
    return ref


@place("Actor.pipe_to_self(work)", cases=AWAITED)
async def background_work(system: ActorSystem, case: Case) -> None:
    ref = await _piped(system, lambda me: me.pipe_to_self(case.act_async(), lambda _: Tell()))
    assert ref.alive is not case.raises
    await ref.kill()


@place("Actor.pipe_to_self(to_message)", cases=CALLED)
async def a_function_that_makes_a_message(system: ActorSystem, case: Case) -> None:
    ref = await _piped(system, lambda me: me.pipe_to_self(_value(1), lambda _: case.act()))  # type: ignore[arg-type, return-value]
    assert ref.alive is not case.raises


@place("Actor.pipe_to_self(on_error)", cases=CALLED)
async def a_function_that_makes_a_message_of_an_error(system: ActorSystem, case: Case) -> None:
    work = CASES["Exception"].act_async
    ref = await _piped(system, lambda me: me.pipe_to_self(work(), lambda _: Tell(), lambda _: case.act()))  # type: ignore[arg-type, return-value]
    assert ref.alive is not case.raises


class Policy:
    """An overflow policy that cannot even say its name."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, buffer: Any, item: Any) -> int | None:
        self.case.act()
        return 0

    @property
    def __name__(self) -> str:
        raise ValueError("no name")


class Waiting(Actor[Tell | Forever]):
    @on(Forever)
    async def forever(self, message: Forever) -> None:
        await anyio.sleep_forever()

    @on(Tell)
    def tell(self, message: Tell) -> None:
        pass


@place("ChildSpec.with_options(overflow)", cases=CALLED)
async def an_overflow_policy(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Waiting, overflow=Policy(case), capacity=1)
    busy = ref.ask(Forever(), timeout=2)
    await anyio.sleep(0.1)
    await ref.tell(Tell(1))
    for send in (ref.tell_nowait, ref.tell):
        try:
            sent = send(Tell(2))
            if sent is not None:
                await sent
        except BaseException as error:  # its sender is told, and nobody else
            # A coroutine cannot raise StopIteration.
            assert type(error) in (type(case.error()), RuntimeError)  # noqa: PT017
    before = system.dead_letters.total
    ref.tell_threadsafe(Tell(3))  # nobody can be told
    await anyio.sleep(0.1)
    assert system.dead_letters.total == before + 1
    assert isinstance(await told(busy), InterruptedTimeout)


@place("coalesce(key)", cases=CALLED)
async def a_key_function(system: ActorSystem, case: Case) -> None:
    ref = await spawn(system, Waiting, overflow=coalesce(lambda _: case.act()), capacity=1)
    busy = ref.ask(Forever(), timeout=2)
    await anyio.sleep(0.1)
    await ref.tell(Tell(1))
    ref.tell_threadsafe(Tell(3))
    await anyio.sleep(0.1)
    assert system.dead_letters.total == 1
    assert isinstance(await told(busy), InterruptedTimeout)


class BadBackoff:
    def __init__(self, case: Case, where: str) -> None:
        self.case, self.where = case, where

    @property
    def healthy_after(self) -> float:
        if self.where == "healthy_after":
            self.case.act()
        return 1.0

    def delay(self, restarts: int, jitter: float) -> float:
        if self.where == "delay":
            self.case.act()
        return float("nan") if self.where == "nan" else 0.0


async def _supervised(system: ActorSystem, crashes: int = 2, **options: Any) -> Ref[Any]:
    """A supervisor whose child crashes; it must not be the end of more than that supervisor."""
    strategy = options.pop("strategy", None)
    spec = child(Plainly).with_options(**options)
    top = supervisor(spec, **({} if strategy is None else {"strategy": strategy}))
    ref = await system.spawn(top.with_options(restart="temporary"))
    (one,) = await ref.ask(WhichChildren())
    for _ in range(crashes):
        await one.ref.tell(Tell(CASES["Exception"]))
        await anyio.sleep(2)
    return ref


@place("ChildSpec.with_options(backoff)", "supervisor(backoff)", "ActorSystem(backoff)", cases=CALLED)
async def a_back_off(system: ActorSystem, case: Case) -> None:
    for where in ("healthy_after", "delay", "nan"):
        backoff: Any = BadBackoff(case, where)
        ref = await _supervised(system, backoff=backoff)
        if case.raises or where == "nan":
            assert not ref.alive


@place("supervisor(strategy)", "ActorSystem(strategy)", cases=CALLED)
async def a_strategy(system: ActorSystem, case: Case) -> None:
    def strategy(children: Any, crashed: Any) -> Any:
        case.act()
        return []

    ref = await _supervised(system, strategy=strategy)
    assert ref.alive is not case.raises


@place("ChildSpec.with_options(restart_limit)", cases=CALLED)
async def a_restart_limit(system: ActorSystem, case: Case) -> None:
    class Limit(RestartLimit, frozen=True):
        def count(self, history: Any, now: float) -> Any:
            case.act()
            return super().count(history, now)

    ref = await _supervised(system, restart_limit=Limit())
    assert ref.alive is not case.raises


@place("Supervisor.specs", cases=CALLED)
async def the_specs_of_a_supervisor(system: ActorSystem, case: Case) -> None:
    class Listing(Supervisor):
        def specs(self) -> Iterator[ChildSpec[Any]]:
            yield child(Calm)
            case.act()

    with _start_error(case):
        await spawn(system, Listing)


# Values.


class Hostile:
    """A field of a message that does something wherever it is looked at."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __repr__(self) -> str:
        self.case.act()
        return "hostile"

    def __bool__(self) -> bool:
        self.case.act()
        return True

    def __eq__(self, other: object) -> bool:
        self.case.act()
        return True

    def __hash__(self) -> int:
        self.case.act()
        return 0


@place("Message.__repr__", "Message.__eq__", "Message.__hash__", "Message.__bool__", cases=RAISING, contained=True)
async def a_message_that_cannot_be_looked_at(system: ActorSystem, case: Case) -> None:
    class Odd(Actor[Do | Tell | Forever | Ping]):
        @on(Do)
        def do(self, message: Do) -> Any:
            raise ValueError("crash")

        @on(Tell)
        def tell(self, message: Tell) -> None:
            raise ValueError("crash")

        @on(Forever)
        async def forever(self, message: Forever) -> None:
            await anyio.sleep_forever()

        @on(Ping)
        def ping(self, message: Ping) -> Any:
            return Hostile(case)

    for asked in (True, False):
        ref = await spawn(system, Odd)
        if asked:
            assert isinstance(await told(ref.ask(Do(Hostile(case)))), AskError)
        else:
            await ref.tell(Tell(Hostile(case)))
            await anyio.sleep(0.1)
        assert not ref.alive
        assert isinstance(await told(ref.ask(Do(Hostile(case)))), AskError)
        await ref.tell(Tell(Hostile(case)))

    ref = await spawn(system, Odd, capacity=2)
    busy = ref.ask(Forever(), timeout=3)
    await anyio.sleep(0.1)
    assert isinstance(await told(ref.ask(Do(Hostile(case)), timeout=0.2)), AskError)
    queued = ref.ask(Do(Hostile(case)))
    queued.cancel()
    assert isinstance(await told(queued), AskError)
    ref.tell_nowait(Tell(Hostile(case)))
    await ref.kill()
    assert isinstance(await told(busy), AskError)
    ref = await spawn(system, Odd)
    assert type(await ref.ask(Ping())) is Hostile
    ref = await spawn(system, Calm)
    wrong: Any = Do(Hostile(case))
    assert isinstance(await told(ref.ask(wrong)), AskError)
    await ref.tell(wrong)
    assert await ref.ask(Ping()) == "pong"


@place("Actor.after(key)", "Actor.every(key)", cases=RAISING, contained=True)
async def the_key_of_a_timer(system: ActorSystem, case: Case) -> None:
    class Key:
        armed = False

        def __hash__(self) -> int:
            if Key.armed:
                case.act()
            return 1

        def __eq__(self, other: object) -> bool:
            if Key.armed:
                case.act()
            return self is other

    class Timed(Actor[Tell | Ping]):
        def __init__(self) -> None:
            self.got: list[Any] = []
            self.every(0.5, Tell("every"), key=Key())
            self.after(0.5, Tell("after"), key=Key())

        @on(Tell)
        def tell(self, message: Tell) -> None:
            self.got.append(message.case)

        @on(Ping)
        def ping(self, message: Ping) -> Any:
            return self.got

    ref = await spawn(system, Timed)
    Key.armed = True
    await anyio.sleep(1.2)
    assert sorted(await ref.ask(Ping())) == ["after", "every", "every"]
    await ref.stop()


@place("logging.Handler", "logging.Filter", "logging.Formatter", cases=RAISING, contained=True)
async def a_log_handler(system: ActorSystem, case: Case) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            case.act()

    handler = Raising()
    logging.getLogger("cuelight").addHandler(handler)
    try:
        ref = await spawn(system, Plainly, restart="transient")
        await ref.tell(Tell(CASES["Exception"]))
        await anyio.sleep(2)
        assert await told(ref.ask(Do(CASES["blocks"]))) is None
        await ref.stop()
        ref = await spawn(system, Plainly)
        await ref.tell(Tell(CASES["Exception"]))
        await anyio.sleep(0.1)
        assert not ref.alive
    finally:
        logging.getLogger("cuelight").removeHandler(handler)


# Channels and select.


@place("Channel(overflow)", "Channel(on_dropped)", cases=CALLED)
async def the_callbacks_of_a_channel(system: ActorSystem, case: Case) -> None:
    def dropped(item: Any, why: str) -> None:
        case.act()

    for channel in (
        Channel[int](1, overflow=Policy(case)),
        Channel[int](1, overflow=lambda _buffer, _item: 0, on_dropped=dropped),
    ):
        channel.send_nowait(1)
        try:
            channel.send_nowait(2)
        except BaseException as error:  # its sender is told; nothing has changed
            assert case.raises or isinstance(error, ValueError)  # noqa: PT017
            assert channel.receive_nowait() == 1
        else:
            assert channel.receive_nowait() == 2
        assert not len(channel)
    if case.ends_the_program:
        raise SystemExit


@place("Case.case_poll", "Case.case_enroll", "Case.case_withdraw", cases=CALLED)
async def a_case_of_select(system: ActorSystem, case: Case) -> None:
    class Mine:
        def __init__(self, where: str) -> None:
            self.where = where

        def case_poll(self) -> Any:
            if self.where == "poll":
                case.act()
            return NOT_READY

        def case_enroll(self, waiter: Any, /) -> None:
            if self.where == "enroll":
                case.act()

        def case_withdraw(self, waiter: Any, /) -> None:
            pass

        def case_put_back(self, item: Any, /) -> bool:
            return True

    for where in ("poll", "enroll"):
        channel = Channel[int](1)
        error: BaseException | None = None
        with anyio.move_on_after(1):
            try:
                await select(channel, Mine(where), priority=True)
            except BaseException as raised:
                if not case.raises:
                    raise
                error = raised
        assert (error is not None) is case.raises
        channel.send_nowait(1)
        assert await select(channel) == (0, 1)  # the select that failed has left nothing there
    if case.ends_the_program:
        raise SystemExit


# Threads.


@place("ActorSystem.call_threadsafe(function)", cases=CALLED)
async def a_function_that_a_thread_has_called(system: ActorSystem, case: Case) -> None:
    called = anyio.Event()

    def act() -> None:
        called.set()
        case.act()

    await anyio.to_thread.run_sync(system.call_threadsafe, act)
    await called.wait()
