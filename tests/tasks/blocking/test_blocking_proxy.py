"""The base of blocking proxies: any thread, interrupts, the end of the block, and loops that must not block."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cuelight import ActorSystem
from cuelight._blocking_proxy import BlockingProxy, _BlockingCall
from cuelight.errors import PoolClosed, SystemClosed


class Counter:
    """An async handle."""

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.total = 0
        self.begun = threading.Event()
        self.ended = threading.Event()

    async def add(self, amount: int, *, twice: bool = False) -> int:
        await anyio.lowlevel.checkpoint()
        self.total += amount * (2 if twice else 1)
        return self.total

    async def fail(self) -> int:
        raise LookupError("nothing here")

    async def broken(self) -> None:
        raise RuntimeError("the method itself")

    def look(self) -> int:
        return self.total

    async def wait(self) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()

    async def count(self, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
        finally:
            self.ended.set()


class BlockingCounter(BlockingProxy[Counter]):
    def add(self, amount: int, *, twice: bool = False) -> int:
        return self._call(self._handle.add, amount, twice=twice)

    def fail(self) -> int:
        return self._call(self._handle.fail)

    def broken(self) -> None:
        self._call(self._handle.broken)

    def look(self) -> int:
        return self._call_sync(self._handle.look)

    def wait(self) -> None:
        self._call(self._handle.wait)

    def count(self, to: int) -> list[int]:
        return list(self._iterate(self._handle.count, to))

    def first(self, to: int) -> int:
        items = self._iterate(self._handle.count, to)
        try:
            return next(items)
        finally:
            items.close()

    @property
    def counter(self) -> Counter:
        return self._handle


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_a_blocking_interface_gives_the_same_methods_to_any_thread(backend_name: str) -> None:
    with BlockingCounter(Counter, backend=backend_name) as counter:
        threads = [threading.Thread(target=lambda: [counter.add(1) for _ in range(20)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counter.look() == 160
        assert counter.add(5, twice=True) == 170
        with pytest.raises(LookupError, match="nothing here"):
            counter.fail()
        with pytest.raises(RuntimeError, match="the method itself"):
            counter.broken()
        assert counter.count(3) == [0, 1, 2]


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_a_blocking_iteration_that_is_left_early_ends_the_async_one(backend_name: str) -> None:
    with BlockingCounter(Counter, backend=backend_name) as counter:
        assert counter.first(10) == 0
        assert counter.counter.ended.is_set()


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_an_interrupt_while_a_blocking_call_waits_cancels_it(backend_name: str) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with BlockingCounter(Counter, backend=backend_name) as counter:
        handle = counter.counter

        def interrupt() -> None:
            handle.begun.wait(10)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            counter.wait()
        assert handle.ended.is_set()
        thread.join()
        assert counter.add(1) == 1


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_leaving_the_block_cuts_off_the_calls_of_other_threads(backend_name: str) -> None:
    errors: list[BaseException] = []
    proxy = BlockingCounter(Counter, backend=backend_name)

    def wait() -> None:
        try:
            proxy.wait()
        except PoolClosed as error:
            errors.append(error)

    with proxy as counter:
        handle = counter.counter
        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert handle.begun.wait(10)
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
    assert "with" in str(errors[0])


def test_a_blocking_interface_outside_of_its_block_says_so() -> None:
    proxy = BlockingCounter(Counter)
    with pytest.raises(PoolClosed, match="use it inside its `with` block"):
        proxy.add(1)
    with proxy:
        assert proxy.add(1) == 1
        with pytest.raises(PoolClosed, match="in use by another `with` block"):
            proxy.__enter__()
    with pytest.raises(PoolClosed, match="use it inside its `with` block"):
        proxy.look()
    with proxy:
        assert proxy.add(2) == 2  # a new block makes a new handle


async def test_a_blocking_interface_in_an_event_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="use `async with` and `await` here"):
        BlockingCounter(Counter).__enter__()

    def work() -> int:
        with BlockingCounter(Counter) as counter:
            return counter.add(3)

    assert await anyio.to_thread.run_sync(work) == 3


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_a_blocking_call_from_the_loop_of_the_interface_is_refused(backend_name: str) -> None:
    with (
        BlockingCounter(Counter, backend=backend_name) as counter,
        pytest.raises(RuntimeError, match="would block the event loop"),
    ):
        counter._call_sync(counter.look)


def test_a_call_that_is_given_up_before_it_began_never_begins() -> None:
    """As when the interrupt comes while the call is on its way to the loop."""
    call = _BlockingCall()
    assert not call.withdraw()
    with BlockingCounter(Counter) as counter:
        handle = counter.counter
        assert counter._system is not None
        assert counter._system.call(counter._run, call, lambda: handle.add(1)) == []
        assert call.ended.is_set()
        assert counter.look() == 0


def test_a_handle_that_cannot_be_made_leaves_no_thread() -> None:
    def make(system: ActorSystem) -> Counter:
        raise LookupError("no desk")

    before = set(threading.enumerate())
    with pytest.raises(LookupError, match="no desk"):
        BlockingCounter(make).__enter__()
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile


def test_an_iteration_that_is_left_after_the_block_ends_quietly() -> None:
    with BlockingCounter(Counter) as counter:
        items = counter._iterate(counter.counter.count, 3)
        assert next(items) == 0
    items.close()


def test_an_interface_that_another_process_entered_is_closed_here_and_left_alone() -> None:
    with BlockingCounter(Counter) as counter:
        generation, system, stack = counter._generation, counter._system, counter._stack
        counter._generation -= 1  # as it is in the child of a fork
        for use in (partial(counter.add, 1), partial(counter._call_sync, int)):
            with pytest.raises(
                PoolClosed, match="this process is a fork of the one that entered the block of Blocking"
            ):
                use()
        assert counter.__exit__(None, None, None) is None
        assert counter._stack is stack
        counter._generation, counter._system = generation, system
        assert counter.add(1) == 1


def test_a_call_when_the_system_of_others_has_ended_says_that_the_proxy_is_closed() -> None:
    with ActorSystem.blocking("shared") as system:
        counter = BlockingCounter(Counter, system=system).__enter__()
        assert counter.add(1) == 1
    with pytest.raises(PoolClosed, match="BlockingCounter is closed") as caught:
        counter.add(1)
    assert isinstance(caught.value.__cause__, SystemClosed)


class EndedSystem:
    """In the place of a system whose loop ends while a call is on its way to it."""

    def __init__(self, proxy: BlockingCounter, error: Exception) -> None:
        self.proxy, self.error = proxy, error

    def call(self, *_: object) -> None:
        self.proxy._system = None
        raise self.error


def use_ended_system(error: Exception) -> tuple[BlockingCounter, Any]:
    proxy = BlockingCounter(Counter)
    ended: Any = EndedSystem(proxy, error)
    proxy._system = ended
    return proxy, ended


def test_a_call_that_never_began_because_the_block_was_left_says_that_the_proxy_is_closed() -> None:
    error = RuntimeError("the portal is not running")
    proxy, _ = use_ended_system(error)
    with pytest.raises(PoolClosed, match="BlockingCounter is closed") as caught:
        proxy._call_sync(int)
    assert caught.value.__cause__ is error


def test_a_call_that_is_given_up_does_not_wait_for_a_system_that_has_ended() -> None:
    proxy, ended = use_ended_system(SystemClosed("it has ended"))
    call = _BlockingCall()
    proxy._abandon(ended, call)
    assert not call.ended.is_set()


def test_a_call_that_is_given_up_before_it_began_is_not_waited_for() -> None:
    call = _BlockingCall()
    with BlockingCounter(Counter) as counter:
        assert counter._system is not None
        counter._abandon(counter._system, call)
    assert call.withdrawn
    assert not call.ended.is_set()
