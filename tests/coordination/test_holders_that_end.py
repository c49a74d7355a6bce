"""A task, a thread or an actor that ends while it holds something has it released, and is reported."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorCrashed, ActorSystem, Exit, Message, Request, on
from cuelight.actors import ShutDown, Start, held_by
from cuelight.coordination import BaseLock, LocalLock, LocalSemaphore, ReadWriteLock
from cuelight.coordination._lock_waiting import watched_owners
from cuelight.errors import LockHeld, LockNotHeld, LockTimeout
from helpers.lockable import KINDS, until, worker
from helpers.players import outcome, settle


@pytest.fixture(params=["lock", "lock in debug mode", "semaphore of 1", "write"])
def lock(request: pytest.FixtureRequest) -> BaseLock:
    return KINDS[request.param].make("it")


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.ERROR, "cuelight"):
        yield lambda: [record.getMessage() for record in caplog.records]


Reports = Callable[[], list[str]]


async def test_a_task_that_ends_while_others_wait(lock: BaseLock, reports: Reports) -> None:
    go = anyio.Event()

    async def take_and_go() -> None:
        await lock.acquire()
        await go.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_and_go)
        await settle()
        tasks.start_soon(_set, go)
        with anyio.fail_after(5):
            await lock.acquire()
        lock.release()
    assert len(reports()) == 1
    assert "ended while it held" in reports()[0]
    assert "'it'" in reports()[0]


async def _set(event: anyio.Event) -> None:
    await settle()
    event.set()


async def test_a_task_that_ended_before_anybody_waits(lock: BaseLock, reports: Reports) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lock.acquire)
    assert lock.locked
    lock.acquire_nowait()
    lock.release()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lock.acquire)
    await lock.acquire(5)
    lock.release()
    assert len(reports()) == 2


async def test_a_task_that_waited_and_ends_with_what_it_got(lock: BaseLock, reports: Reports) -> None:
    async with anyio.create_task_group() as tasks:
        await lock.acquire()
        for _ in range(3):
            tasks.start_soon(lock.acquire)
        await settle()
        lock.release()
        with anyio.fail_after(5):
            await until(lambda: lock.statistics().waiting == 0)
    await lock.acquire(5)
    lock.release()
    assert len(reports()) == 3
    assert "taken at" in reports()[0]


def test_a_thread_that_ends_while_others_wait(lock: BaseLock, reports: Reports) -> None:
    with worker("brief") as brief:
        brief.do(lock.acquire_blocking)
        with worker("patient") as patient:
            patient.start(lock.acquire_blocking)
            anyio.run(until, lambda: lock.statistics().waiting)
            brief.end()
            assert patient.result() is None
            patient.do(lock.release)
        brief.end = lambda: None  # type: ignore[method-assign]
    assert len(reports()) == 1
    assert "'brief'" in reports()[0] or "thread" in reports()[0]


async def test_a_thread_that_ends_while_a_task_waits(lock: BaseLock, reports: Reports) -> None:
    thread = threading.Thread(target=lock.acquire_blocking, name="gone")
    thread.start()
    thread.join()
    await lock.acquire(5)
    lock.release()
    assert len(reports()) == 1


def test_the_next_thread_with_the_same_identifier_is_another(lock: BaseLock, reports: Reports) -> None:
    results: list[Any] = []

    def take() -> None:
        try:
            lock.acquire_blocking(5)
            results.append(threading.get_ident())
        except Exception as error:
            results.append(error)

    for _ in range(3):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(reports()) == 2
    assert all(isinstance(result, int) for result in results)


def test_a_task_whose_loop_was_closed_under_it(lock: BaseLock, reports: Reports) -> None:
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        await lock.acquire()
        await asyncio.Event().wait()

    task = loop.create_task(hold())
    loop.run_until_complete(asyncio.sleep(0))
    with worker() as thread:
        thread.start(lock.acquire_blocking)
        anyio.run(until, lambda: lock.statistics().waiting)
        loop.close()
        assert thread.result() is None
        thread.do(lock.release)
    assert len(reports()) == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()
    del task, hold


def test_a_waiter_whose_loop_was_closed_is_passed_over(lock: BaseLock) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(lock.acquire())
    with worker() as thread:
        thread.do(lock.acquire_blocking)
        loop.run_until_complete(asyncio.sleep(0))
        assert lock.statistics().waiting == 1
        with worker() as patient:
            patient.start(lock.acquire_blocking)
            anyio.run(until, lambda: lock.statistics().waiting == 2)
            loop.close()
            thread.do(lock.release)
            assert patient.result() is None
            patient.do(lock.release)
    assert not lock.locked
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()


async def test_releasing_after_it_was_taken_away_is_refused(lock: BaseLock) -> None:
    with worker() as thread:
        thread.do(lock.acquire_blocking)
        assert isinstance(await outcome(lock.acquire(0.01)), LockTimeout)
        thread.end()
        thread.end = lambda: None  # type: ignore[method-assign]
    lock.acquire_nowait()
    lock.release()
    with pytest.raises(LockNotHeld):
        lock.release()


async def test_those_who_end_one_by_one_leave_nothing_behind() -> None:
    """Nothing is kept of tasks and threads that have held a lock, contended or not."""
    lock = LocalLock()
    before = len(watched_owners)
    seen: list[weakref.ref[Any]] = []

    async def enter() -> None:
        async with lock:
            await anyio.lowlevel.checkpoint()

    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(enter)
        thread = threading.Thread(target=_enter_blocking, args=(lock,))
        seen.append(weakref.ref(thread))
        thread.start()
        thread.join()
        del thread
    await anyio.lowlevel.checkpoint()
    await settle()
    gc.collect()
    assert [ref for ref in seen if ref() is not None] == []
    assert len(watched_owners) <= before + 1  # this very task, which lives


def _enter_blocking(lock: LocalLock) -> None:
    with lock:
        pass


async def test_permits_and_readers_that_end() -> None:
    semaphore, rwlock = LocalSemaphore(5), ReadWriteLock()

    async def take() -> None:
        await semaphore.acquire(3)
        await semaphore.acquire()
        await rwlock.read().acquire()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
    assert semaphore.available == 1
    await semaphore.acquire(5)
    await rwlock.write().acquire()
    semaphore.release(5)
    rwlock.write().release()


# Actors.


class Do(Request[Any]):
    work: Callable[[Any], Awaitable[Any]]


class Now(Request[Any]):
    work: Callable[[], Any]


class Crash(Message):
    pass


class Doer(Actor[Do | Now | Crash]):
    @on(Do)
    async def do(self, message: Do) -> Any:
        return await outcome(message.work(self))

    @on(Now)
    def now(self, message: Now) -> Any:
        return message.work()

    @on(Crash)
    def crash(self, message: Crash) -> None:
        raise RuntimeError("crash")


class Plain(Actor[Now | Crash]):
    @on(Now)
    def now(self, message: Now) -> Any:
        return message.work()

    @on(Crash)
    def crash(self, message: Crash) -> None:
        raise RuntimeError("crash")


@pytest.mark.parametrize("kind", [Doer, Plain])
async def test_an_actor_takes_it_in_one_handler_and_releases_it_in_another(lock: BaseLock, kind: Any) -> None:
    async with ActorSystem("s") as system:
        ref: Any = await system.spawn(kind)
        await ref.ask(Now(lock.acquire_nowait))
        assert ref.path in lock.statistics().holders[0].who
        with pytest.raises(LockHeld, match=ref.path):
            lock.acquire_nowait()
        other: Any = await system.spawn(kind)
        with pytest.raises(ActorCrashed) as caught:
            await other.ask(Now(lock.release))
        assert isinstance(caught.value.__cause__, LockNotHeld)
        await ref.ask(Now(lock.release))
        assert not lock.locked
    assert not held_by


@pytest.mark.parametrize("kind", [Doer, Plain])
@pytest.mark.parametrize("end", ["stop", "kill", "crash"])
async def test_an_actor_that_ends_has_it_released_at_once(
    lock: BaseLock, kind: Any, end: str, reports: Reports
) -> None:
    async with ActorSystem("s") as system:
        ref: Any = await system.spawn(kind)
        await ref.ask(Now(lock.acquire_nowait))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lock.acquire)
            await settle()
            if end == "crash":
                await ref.tell(Crash())
            else:
                await getattr(ref, end)()
            with anyio.fail_after(5):
                await until(lambda: lock.statistics().waiting == 0)
    text = next(text for text in reports() if "ended while it held" in text)
    assert f"actor {ref.path}" in text
    assert not held_by


@pytest.mark.parametrize("end", ["stop", "restart"])
async def test_an_actor_may_hold_it_from_its_first_hook_to_its_last(end: str, reports: Reports) -> None:
    lock = LocalLock("it")

    class Sync(Actor[Crash]):
        def started(self, why: Start) -> None:
            lock.acquire_nowait()

        def stopped(self, why: Exit) -> None:
            if isinstance(why, ShutDown):
                lock.release()

        @on(Crash)
        def crash(self, message: Crash) -> None:
            raise RuntimeError("crash")

    class Suspending(Actor[Crash]):
        async def started(self, why: Start) -> None:
            await lock.acquire()

        async def stopped(self, why: Exit) -> None:
            if isinstance(why, ShutDown):
                lock.release()

        @on(Crash)
        async def crash(self, message: Crash) -> None:
            raise RuntimeError("crash")

    for kind in (Sync, Suspending):
        async with ActorSystem("s") as system:
            ref = await system.spawn(kind)
            assert ref.path in lock.statistics().holders[0].who
            if end == "restart":
                await ref.tell(Crash())
                await until(lambda: lock.statistics().acquisitions % 2 == 0)
                assert lock.locked
        assert not lock.locked
    assert len([text for text in reports() if "ended while it held" in text]) == (2 if end == "restart" else 0)
    assert not held_by


async def test_an_interrupted_handler_keeps_nothing_that_a_block_took(lock: BaseLock) -> None:
    async with ActorSystem("s") as system:
        ref = await system.spawn(Doer)

        async def enter(_: Any) -> None:
            async with lock:
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, ref.ask(Do(enter), timeout=10))
            await settle()
            assert ref.path in lock.statistics().holders[0].who
            ref.interrupt()
            await settle()
            assert not lock.locked


async def test_an_actor_that_waits_when_it_is_killed_leaves_the_line(lock: BaseLock) -> None:
    async with ActorSystem("s") as system:
        ref = await system.spawn(Doer)
        async with lock, anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, ref.ask(Do(lambda _: lock.acquire()), timeout=10))
            await settle()
            assert lock.statistics().waiting == 1
            await ref.kill()
            assert lock.statistics().waiting == 0
    assert not lock.locked


async def test_a_thread_of_a_handler_is_a_thread(lock: BaseLock) -> None:
    async with ActorSystem("s") as system:
        ref = await system.spawn(Doer)

        def enter() -> str:
            with lock:
                return lock.statistics().holders[0].who

        who = await ref.ask(Do(lambda _: anyio.to_thread.run_sync(enter)))
        assert "thread" in who
