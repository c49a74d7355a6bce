"""Cancelled, interrupted or late, wherever: nothing is left taken, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import BaseLock, LocalLock, LocalSemaphore, ReadWriteLock
from helpers import BACKENDS, run_on
from helpers.lockable import KINDS, Kind, until, worker
from helpers.players import settle

MAKERS: dict[str, Callable[[], BaseLock]] = {name: lambda kind=kind: kind.make("it") for name, kind in KINDS.items()}  # type: ignore[misc]


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def lock(request: pytest.FixtureRequest) -> BaseLock:
    kind: Kind = request.param
    return kind.make("it")


async def _contended(lock: BaseLock, stop_at: int, cancel: Callable[[Any], None]) -> int:
    """Three tasks take it in turns; the second is cancelled at its `stop_at`-th step. Returns how many steps it had."""
    steps = 0
    inside = 0
    victim = anyio.CancelScope()

    async def work(count: bool) -> None:
        nonlocal inside, steps
        for _ in range(2):
            async with lock:
                inside += 1
                assert inside == 1
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    inside -= 1
            if count:
                await anyio.lowlevel.checkpoint()

    async def guarded() -> None:
        with victim:
            await work(True)

    async def clock() -> None:
        nonlocal steps
        for step in range(40):
            steps = step
            if step == stop_at:
                cancel(victim)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, False)
        tasks.start_soon(guarded)
        tasks.start_soon(work, False)
        tasks.start_soon(clock)
    assert not lock.locked
    assert lock.statistics().waiting == 0
    return steps


async def test_cancellation_at_every_await_leaves_nothing_taken(lock: BaseLock) -> None:
    for step in range(16):
        with anyio.fail_after(5):
            await _contended(lock, step, lambda scope: scope.cancel())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "asyncio-debug"])
def test_native_cancellation_at_every_await_leaves_nothing_taken(name: str, loop: str) -> None:
    async def scenario(step: int) -> None:
        lock = KINDS[name].make("it")
        served: list[int] = []

        async def work(number: int) -> None:
            async with lock:
                await asyncio.sleep(0)
                served.append(number)

        tasks = [asyncio.ensure_future(work(number)) for number in range(4)]
        for _ in range(step):
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert set(served) >= {0, 2, 3}
        assert not lock.locked
        assert lock.statistics().waiting == 0

    for step in range(12):
        run_on(BACKENDS[loop], scenario, step)


@pytest.mark.parametrize("name", KINDS)
def test_native_cancel_of_a_waiter_that_was_granted_passes_it_on(name: str) -> None:
    async def scenario() -> None:
        lock = KINDS[name].make("it")
        await lock.acquire()
        first = asyncio.ensure_future(lock.acquire())
        await asyncio.sleep(0)
        second = asyncio.ensure_future(lock.acquire())
        await asyncio.sleep(0)
        lock.release()  # the first has it now, and does not know yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(second, 5)
        assert lock.statistics().acquisitions == 3

    run_on(BACKENDS["asyncio"], scenario)


async def test_a_task_cancelled_while_a_thread_grants_it_passes_it_on(lock: BaseLock) -> None:
    """The grant is on its way from another thread when the cancellation comes."""
    with worker() as thread:
        for _ in range(20):
            thread.do(lock.acquire_blocking)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def enter() -> None:
                        async with lock:
                            pass

                    tasks.start_soon(enter)
                    await settle()
                    thread.do(lock.release)
                    scope.cancel()
            assert not lock.locked
            assert lock.statistics().waiting == 0


async def test_time_outs_that_race_with_grants_lose_nothing(lock: BaseLock) -> None:
    got = late = 0
    with worker() as thread:
        for number in range(20):
            thread.do(lock.acquire_blocking)
            threading.Timer(0.003, lambda: thread.start(lock.release)).start()
            try:
                await lock.acquire(0.003 + number % 3 * 0.001)
            except TimeoutError:
                late += 1
            else:
                got += 1
                lock.release()
            assert thread.result() is None
            assert not lock.locked
    assert got + late == 20


async def test_readers_move_up_when_a_waiting_writer_leaves() -> None:
    for preference in (False, True):
        rwlock = ReadWriteLock(writer_preference=preference)
        entered = anyio.Event()
        async with anyio.create_task_group() as tasks, rwlock.read():
            writer = anyio.CancelScope()

            async def write(writer: anyio.CancelScope = writer, rwlock: ReadWriteLock = rwlock) -> None:
                with writer:
                    await rwlock.write().acquire()

            async def read(entered: anyio.Event = entered, rwlock: ReadWriteLock = rwlock) -> None:
                async with rwlock.read():
                    entered.set()

            tasks.start_soon(write)
            await settle()
            tasks.start_soon(read)
            await settle()
            assert not entered.is_set()
            writer.cancel()
            with anyio.fail_after(5):
                await entered.wait()
        assert rwlock.statistics().held == 0


async def test_small_requests_move_up_when_a_large_one_leaves() -> None:
    semaphore = LocalSemaphore(3)
    async with anyio.create_task_group() as tasks, semaphore.hold(2):
        large = anyio.CancelScope()

        async def wait_for_all() -> None:
            with large:
                await semaphore.acquire(3)

        tasks.start_soon(wait_for_all)
        await settle()

        async def enter() -> None:
            async with semaphore:
                pass

        tasks.start_soon(enter)
        await settle()
        assert semaphore.statistics().waiting == 2
        large.cancel()
        await until(lambda: semaphore.statistics().waiting == 0)
    assert semaphore.available == 3


FORKED = """
import os, threading, warnings
from cuelight.coordination import LocalLock

lock, other, stop = LocalLock("it"), LocalLock("other"), threading.Event()

def compete():
    while not stop.is_set():
        with other:
            pass

threads = [threading.Thread(target=compete) for _ in range(3)]
for thread in threads:
    thread.start()
warnings.simplefilter("ignore")
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        lock.acquire_blocking(5)
        lock.release()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_use_locks() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # what is left of the threads of the parent ends without an error


INTERRUPTED = """
import os, signal, threading, time
from cuelight.coordination import LocalLock, LocalSemaphore, ReadWriteLock

for lock in (LocalLock("it"), LocalSemaphore(1), ReadWriteLock().write()):
    held, go = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def interrupt():
        while not lock.statistics().waiting:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        with lock:
            print("never")
    except KeyboardInterrupt:
        print("interrupted", lock.statistics().waiting)
    go.set()
    thread.join()
    with lock:
        print("taken")
"""


def test_an_interrupt_ends_the_wait_of_a_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=20, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted", "0", "taken"] * 3


def test_interrupts_anywhere_neither_lose_a_lock_nor_forget_a_waiter() -> None:
    """SIGINT in the midst of taking, giving back and handing over, in the main thread: a lock is taken or not."""
    lock = LocalLock("it")
    stop = threading.Event()
    turns = 0

    def compete() -> None:
        nonlocal turns
        while not stop.is_set():
            with lock:
                turns += 1

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = [threading.Thread(target=compete) for _ in range(2)]
    for thread in threads:
        thread.start()
    hits = 0
    try:
        for _ in range(150):
            pid = os.getpid()
            timer = threading.Timer(0.0005, os.kill, (pid, signal.SIGINT))
            try:
                timer.start()
                while True:
                    with lock:
                        pass
            except KeyboardInterrupt:
                hits += 1
            timer.join()
            if any("MainThread" in holder.who for holder in lock.statistics().holders):
                lock.release()  # hit between the end of the block and the release, as with any lock written in Python
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        signal.signal(signal.SIGINT, before)
    assert hits == 150
    assert not any(thread.is_alive() for thread in threads)
    lock.acquire_blocking(5)
    lock.release()
    assert turns > 0
