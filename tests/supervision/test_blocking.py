"""Actors from blocking code and from many threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorSystem, Message, NotStarted, Request, Stopped, StreamRequest, SystemClosed, child, on
from cuelight._fork import forks
from cuelight.errors import ShutdownTimeout, UnexpectedCancellation
from cuelight.supervision import _blocking_system


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Count(StreamRequest[int]):
    to: int


class Counter(Actor[Add | Total | Count]):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @on(Add)
    async def add(self, message: Add) -> None:
        self.total += message.amount

    @on(Total)
    def get(self, message: Total) -> int:
        return self.total

    @on(Count)
    async def count(self, message: Count) -> AsyncIterator[int]:
        for number in range(message.to):
            yield number
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_blocking_code_uses_the_same_actors_from_any_thread(backend: str) -> None:
    with ActorSystem.blocking("demo", backend=backend) as system:
        counter = system.spawn(child(Counter, start=10).with_options(name="counter", capacity=5))

        def work() -> None:
            for _ in range(100):
                counter.tell(Add(1))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counter.ask(Total()) == 810
        assert system.find("counter").ask(Total(), timeout=5) == 810
        assert list(counter.stream(Count(50))) == list(range(50))
        stream = counter.stream(Count(1000))
        assert next(iter(stream)) == 0
        del stream
        counter.stop()
        assert counter.ended() == Stopped()
        with pytest.raises(NotStarted):
            counter.ask(Total())
        other = system.spawn(Counter)
        other.kill("enough")
        assert not other.ref.alive
        threading.Thread(target=system.system.call_threadsafe, args=(list,)).start()
    with pytest.raises(SystemClosed):
        system.spawn(Counter)


def test_a_blocking_system_must_be_entered() -> None:
    system = ActorSystem.blocking()
    with pytest.raises(SystemClosed):
        _ = system.system
    with pytest.raises(SystemClosed):
        system.find("x")


def test_an_exception_leaves_a_blocking_block() -> None:
    with pytest.raises(ZeroDivisionError), ActorSystem.blocking() as system:
        system.spawn(Counter)
        raise ZeroDivisionError


class Block(Message):
    until: threading.Event


class Blocker(Actor[Block]):
    @on(Block)
    def block(self, message: Block) -> None:
        message.until.wait()


def test_calls_that_wait_are_told_that_a_blocking_block_is_left() -> None:
    outcomes: list[BaseException] = []
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            system.call(wait)
        except BaseException as error:
            outcomes.append(error)

    with ActorSystem.blocking() as system:
        caller = threading.Thread(target=work)
        caller.start()
        assert waiting.wait(10)
    caller.join(10)
    assert [type(error) for error in outcomes] == [SystemClosed]
    assert "while this call waited" in str(outcomes[0])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_blocking_system_whose_actor_ends_it_says_so(backend: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, ActorSystem.blocking(backend=backend) as system:
        system.call(system.system.abort, ZeroDivisionError())
        with pytest.raises(SystemClosed):
            system.call(anyio.sleep_forever)
        with pytest.raises(SystemClosed, match="has ended"):
            while True:
                system.call(anyio.lowlevel.checkpoint)
    assert caught.group_contains(ZeroDivisionError)


def test_a_blocking_system_refuses_a_call_from_its_own_loop_and_a_second_block() -> None:
    with ActorSystem.blocking() as system:
        with pytest.raises(RuntimeError, match="use `await`"):
            system.call(lambda: system.call(list))
        with pytest.raises(RuntimeError, match="another `with` block"), system:
            pytest.fail("entered twice")
    with system:
        assert system.call(list) == []


def test_what_a_blocking_call_raises_comes_out_as_it_is() -> None:
    def fail(error: BaseException) -> None:
        raise error

    errors = [ValueError("bad"), concurrent.futures.CancelledError("of a future of its own"), RuntimeError("no loop")]
    with ActorSystem.blocking() as system:
        for error in errors:
            with pytest.raises(type(error)) as caught:
                system.call(fail, error)
            assert caught.value is error


def test_a_stray_cancellation_of_a_blocking_call_is_an_error_of_that_call() -> None:
    async def awaits_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with ActorSystem.blocking() as system:
        with pytest.raises(UnexpectedCancellation):
            system.call(awaits_cancelled)
        assert system.call(list) == []


def test_a_blocking_block_is_left_although_a_handler_blocks_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocking_system, "UNRESPONSIVE_SECONDS", 0.2)
    until = threading.Event()
    try:
        with (
            pytest.raises(ShutdownTimeout, match=r"until\.wait"),
            ActorSystem.blocking(shutdown_timeout=0.1, slow_after=None) as system,
        ):
            system.spawn(Blocker).ref.tell_threadsafe(Block(until))
        with pytest.raises(KeyError), ActorSystem.blocking(shutdown_timeout=0.1, slow_after=None) as system:
            system.spawn(Blocker).ref.tell_threadsafe(Block(until))
            raise KeyError
    finally:
        until.set()


class Failing(ActorSystem):
    async def __aenter__(self) -> Self:
        raise ZeroDivisionError


def test_a_blocking_system_that_cannot_start_says_why_and_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError), Failing.blocking():
        pytest.fail("entered")
    with pytest.raises(ValueError, match="ask_timeout"), ActorSystem.blocking(ask_timeout=0):
        pytest.fail("entered")
    with pytest.raises(LookupError), ActorSystem.blocking(backend="nothing"):
        pytest.fail("entered")
    assert not [thread for thread in threading.enumerate() if thread.name == "cuelight actor system"]


class Lasting(Actor[Add]):
    """Handles a message until it is cancelled, and says so."""

    def __init__(self, ends: list[str]) -> None:
        self.ends = ends

    @on(Add)
    async def add(self, message: Add) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.ends.append("cancelled")

    async def stopped(self, why: object) -> None:
        self.ends.append("stopped")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_while_a_blocking_block_is_left_kills_what_was_to_end_in_good_order(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = threading.Thread.join
    interrupts = [KeyboardInterrupt()]

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if interrupts and thread.name == "cuelight actor system":
            raise interrupts.pop()
        join(thread, timeout)

    ends: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        ActorSystem.blocking(backend=backend, shutdown_timeout=1000, slow_after=None) as system,
    ):
        system.spawn(Lasting, ends).tell(Add(1))
        system.call(anyio.wait_all_tasks_blocked)
        monkeypatch.setattr(threading.Thread, "join", interrupted)
    assert ends == ["cancelled", "stopped"]
    assert not _blocking_system._SystemThread.running


@pytest.mark.parametrize("started", [False, True])
def test_an_interrupt_while_a_blocking_block_is_entered_ends_its_thread(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = threading.Event()

    class Slow(ActorSystem):
        async def __aenter__(self) -> Self:
            inside.set()
            if not started:
                await anyio.sleep_forever()
            return await super().__aenter__()

    system = Slow.blocking()

    def start(thread: Any) -> ActorSystem:
        thread.running.add(thread)
        thread.thread.start()
        inside.wait(10)
        if started:
            thread.ready.result()
        raise KeyboardInterrupt

    monkeypatch.setattr(_blocking_system._SystemThread, "start", start)
    with pytest.raises(KeyboardInterrupt), system:
        pytest.fail("entered")
    assert not _blocking_system._SystemThread.running
    assert not [thread for thread in threading.enumerate() if thread.name == "cuelight actor system"]


def test_an_interrupt_before_the_thread_of_a_blocking_system_has_started_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: Any) -> ActorSystem:
        thread.running.add(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(_blocking_system._SystemThread, "start", start)
    with pytest.raises(KeyboardInterrupt), ActorSystem.blocking():
        pytest.fail("entered")
    assert not _blocking_system._SystemThread.running


def test_a_thread_that_is_told_to_end_before_its_loop_runs_starts_no_system() -> None:
    thread = _blocking_system._SystemThread(ActorSystem, "asyncio", None)
    thread._request_end((None, None, None))
    with pytest.raises(SystemClosed, match="interrupted"):
        thread.start()
    thread.abort()


@pytest.mark.parametrize("waits", [1, 2])
def test_an_interrupted_blocking_call_is_cancelled(waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    cancelled = threading.Event()
    result: Any = concurrent.futures.Future.result  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    left = [waits]

    async def wait() -> None:
        begun.append(True)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    def interrupted(future: Any, timeout: float | None = None) -> Any:
        left[0] -= 1
        if not left[0]:  # the first time the caller waits for the start of the call, the second time for its result
            monkeypatch.undo()
            raise KeyboardInterrupt
        return result(future, timeout)

    with ActorSystem.blocking() as system:
        monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            system.call(wait)
        assert system.call(list) == []
        system.call(anyio.wait_all_tasks_blocked)
        assert cancelled.is_set() == bool(begun)


def test_what_a_blocking_system_in_a_fork_does_is_decided_by_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with ActorSystem.blocking() as system:
        with monkeypatch.context() as patched:
            patched.setattr(forks, "generation", forks.generation + 1)
            with pytest.raises(SystemClosed, match="is a fork of the one"):
                system.call(list)
            assert system.__exit__(None, None, None) is None
            thread = next(iter(_blocking_system._SystemThread.running))
            _blocking_system._end_all()  # leaves those of the parent alone
            assert thread.thread.is_alive()
        thread.end()
    assert not thread.thread.is_alive()


def test_a_system_that_fails_when_the_program_ends_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    system = ActorSystem.blocking()
    system.__enter__()
    system.call(system.system.abort, ZeroDivisionError("at the end"))
    _blocking_system._end_all()
    assert "an actor system failed when the program ended" in caplog.text
    assert not _blocking_system._SystemThread.running
    with pytest.raises(BaseExceptionGroup):
        system.__exit__(None, None, None)
