"""A channel for plain threads: exact on a time-out, and never stuck when the loop ends."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from cuelight._fork import forks
from cuelight.errors import ChannelClosed, MailboxFull
from cuelight.mailbox import Channel, ThreadEnd, _thread_channel, fail
from helpers import Backend, run_on

T = TypeVar("T")


async def _in_thread(function: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(function)


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does, which no event of this loop tells."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


@pytest.mark.parametrize("capacity", [0, 3])
async def test_threads_and_tasks_exchange_every_item_once(capacity: int) -> None:
    channel = Channel[int](capacity)
    end = channel.from_thread()
    got: list[int] = []
    each = 100

    def send(start: int) -> None:
        for item in range(start, start + each):
            end.send(item)

    def receive() -> None:
        for item in end:
            got.append(item)  # noqa: PERF402 - item by item

    async def send_from_task(start: int) -> None:
        for item in range(start, start + each):
            await channel.send(item)

    async def receive_in_task() -> None:
        async for item in channel:
            got.append(item)  # noqa: PERF401

    async with anyio.create_task_group() as receivers:
        for _ in range(2):
            receivers.start_soon(_in_thread, receive)
            receivers.start_soon(receive_in_task)
        async with anyio.create_task_group() as senders:
            for number in range(2):
                senders.start_soon(_in_thread, lambda number=number: send(number * 2 * each))
                senders.start_soon(send_from_task, (number * 2 + 1) * each)
        channel.close()
    assert Counter(got) == dict.fromkeys(range(4 * each), 1)


async def test_items_of_one_thread_stay_in_order() -> None:
    channel = Channel[int](4)
    end = channel.from_thread()

    def send() -> None:
        for item in range(200):
            end.send(item, timeout=30)
        anyio.from_thread.run_sync(channel.close)

    async with anyio.create_task_group() as group:
        group.start_soon(_in_thread, send)
        assert [item async for item in channel] == list(range(200))


async def test_a_thread_that_times_out_has_sent_nothing() -> None:
    channel = Channel[int](1)
    end = channel.from_thread()
    channel.send_nowait(1)

    def send() -> None:
        with pytest.raises(TimeoutError):
            end.send(2, timeout=0.01)
        with pytest.raises(TimeoutError):
            end.send(3, timeout=0)

    await _in_thread(send)
    statistics = channel.statistics()
    assert (statistics.sent, statistics.waiting_senders) == (1, 0)
    assert channel.receive_nowait() == 1
    assert len(channel) == 0


async def test_a_thread_that_times_out_has_taken_nothing() -> None:
    channel = Channel[int]()
    end = channel.from_thread()

    def receive() -> None:
        with pytest.raises(TimeoutError):
            end.receive(timeout=0.01)

    await _in_thread(receive)
    assert channel.statistics().waiting_receivers == 0
    with pytest.raises(anyio.WouldBlock):
        channel.send_nowait(1)


async def test_time_outs_that_race_with_items_lose_none() -> None:
    channel = Channel[int]()
    end = channel.from_thread()
    got: list[int] = []
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            try:
                got.append(end.receive(timeout=0.0005))
            except TimeoutError:
                pass

    sent = 0
    async with anyio.create_task_group() as group:
        group.start_soon(_in_thread, receive)
        for item in range(200):
            with anyio.move_on_after(0.001):
                await channel.send(item)
                sent += 1
        stop.set()
    assert len(got) == sent
    assert got == sorted(set(got))


async def test_a_thread_sees_that_the_channel_closes() -> None:
    channel = Channel[int]()
    end = channel.from_thread()
    closed = 0

    def wait(operation: Callable[[], object]) -> None:
        nonlocal closed
        with pytest.raises(ChannelClosed):
            operation()
        closed += 1

    async with anyio.create_task_group() as group:
        group.start_soon(_in_thread, lambda: wait(end.receive))
        await _until(lambda: channel.statistics().waiting_receivers == 1)
        channel.close()
    await _in_thread(lambda: wait(lambda: end.send(1)))
    await _in_thread(lambda: wait(end.receive))
    assert closed == 3


async def test_a_thread_gets_the_error_of_the_policy() -> None:
    channel = Channel[int](1, overflow=fail)
    end = channel.from_thread()

    def send() -> None:
        end.send(1)
        with pytest.raises(MailboxFull):
            end.send(2)

    await _in_thread(send)
    assert channel.receive_nowait() == 1


async def test_an_error_while_receiving_belongs_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel[int]()
    end = channel.from_thread()

    def refuse(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(Channel, "case_poll", refuse)

    def receive() -> None:
        with pytest.raises(LookupError):
            end.receive()

    await _in_thread(receive)


async def test_the_loop_must_not_block_itself() -> None:
    end = Channel[int](1).from_thread()
    with pytest.raises(RuntimeError, match="own thread must not block"):
        end.send(1)


def test_a_thread_end_is_made_in_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no asyncio or trio event loop"):
        Channel[int]().from_thread()


def _outlive(backend: Backend, operation: Callable[[ThreadEnd[int]], object]) -> list[BaseException]:
    """Run `operation` in a thread that blocks while its loop ends; what it raised."""
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    ends: list[ThreadEnd[int]] = []

    def block() -> None:
        try:
            operation(ends[0])
        except ChannelClosed as error:
            errors.append(error)

    async def main() -> None:
        channel = Channel[int]()
        ends.append(channel.from_thread())
        threads.append(threading.Thread(target=block))
        threads[0].start()
        await _until(lambda: channel.statistics().waiting_receivers + channel.statistics().waiting_senders == 1)

    run_on(backend, main)
    threads[0].join(10)
    assert not threads[0].is_alive()
    block()
    return errors


def _receive(end: ThreadEnd[int]) -> None:
    end.receive()


def _send(end: ThreadEnd[int]) -> None:
    end.send(1, timeout=30)


@pytest.mark.parametrize("operation", [_receive, _send])
def test_a_thread_does_not_outwait_its_loop(backend: Backend, operation: Callable[[ThreadEnd[int]], None]) -> None:
    errors = _outlive(backend, operation)
    assert len(errors) == 2
    assert all("event loop" in str(error) and "has ended" in str(error) for error in errors)


@pytest.mark.parametrize("delivered", [False, True])
async def test_an_interrupted_thread_takes_nothing(delivered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when KeyboardInterrupt hits a blocked main thread, before or after the item came."""
    channel = Channel[int](math.inf)
    end = channel.from_thread()
    reached = threading.Event()
    proceed = threading.Event()

    def interrupted(_call: object, _seconds: float) -> bool:
        reached.set()
        proceed.wait(10)
        raise KeyboardInterrupt

    def receive() -> None:
        with pytest.raises(KeyboardInterrupt):
            end.receive()

    monkeypatch.setattr(_thread_channel._ThreadOperation, "wait", interrupted)
    async with anyio.create_task_group() as group:
        group.start_soon(_in_thread, receive)
        await _until(lambda: reached.is_set() and channel.statistics().waiting_receivers == 1)
        if delivered:
            channel.send_nowait(1)
        proceed.set()
    await _until(lambda: channel.statistics().waiting_receivers == 0)
    if not delivered:
        channel.send_nowait(1)
    await _until(lambda: len(channel) == 1)
    assert channel.receive_nowait() == 1


async def test_an_interrupted_thread_that_has_sent_stays_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel[int](1)
    end = channel.from_thread()

    def interrupted(call: Any, seconds: float) -> bool:
        deadline = time.monotonic() + 10
        while not call.done() and time.monotonic() < deadline:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(_thread_channel._ThreadOperation, "wait", interrupted)

    def send() -> None:
        with pytest.raises(KeyboardInterrupt):
            end.send(1)

    await _in_thread(send)
    assert channel.receive_nowait() == 1


async def test_a_result_that_comes_as_the_loop_ends_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel[int](1)
    end = channel.from_thread()
    channel.send_nowait(1)

    def last_step(step: Callable[[], object]) -> None:
        step()
        raise RuntimeError("the loop is closed")

    monkeypatch.setattr(end._backend, "call_threadsafe", last_step)
    assert await _in_thread(end.receive) == 1


async def test_a_time_out_that_comes_too_late_returns_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel[int]()
    end = channel.from_thread()
    call_threadsafe = end._backend.call_threadsafe
    steps = 0

    def late(step: Callable[[], object]) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:  # the first was to receive, the second is to give up
            call_threadsafe(channel.send_nowait, 1)
        call_threadsafe(step)

    monkeypatch.setattr(end._backend, "call_threadsafe", late)
    assert await _in_thread(lambda: end.receive(timeout=0)) == 1


async def test_a_time_limit_of_a_thread_must_be_a_number() -> None:
    end = Channel[int](1).from_thread()
    wrong: Any = "1"
    for timeout, error in ((math.nan, ValueError), (wrong, TypeError)):
        with pytest.raises(error, match="timeout"):
            await _in_thread(partial(end.receive, timeout))
        with pytest.raises(error, match="timeout"):
            await _in_thread(partial(end.send, 1, timeout))


async def test_a_thread_of_a_forked_process_is_told_that_the_loop_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Channel[int](1).from_thread()
    with monkeypatch.context() as patched:
        patched.setattr(forks, "generation", forks.generation + 1)
        patched.setattr(forks, "_thread", 0)
        for call in (partial(end.receive, 5), partial(end.send, 1)):
            error = await anyio.to_thread.run_sync(_outcome, call)
            assert isinstance(error, ChannelClosed)
            assert "this process is a fork" in str(error)
    await _in_thread(partial(end.send, 1))
    assert await _in_thread(end.receive) == 1


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return error
