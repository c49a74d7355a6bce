"""Whoever closes a circle of waits hears of it: over locks, semaphores, read-write locks and asks, in one graph."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import Actor, ActorSystem, Ref, Request, on
from cuelight.actors import waits_by_node
from cuelight.coordination import BaseLock, LocalLock, LocalSemaphore, LockManager, ReadWriteLock, _lock_order
from cuelight.coordination._lock_waiting import monitor
from cuelight.errors import DeadlockError
from helpers import BACKENDS, run_on
from helpers.lockable import until, worker
from helpers.players import outcome, settle


@pytest.fixture(autouse=True)
def _nobody_is_left_in_the_graph() -> Any:
    yield
    assert not waits_by_node


class Do(Request[Any]):
    work: Callable[[Doer], Awaitable[Any]]


class Ping(Request[str]):
    pass


class Doer(Actor[Do | Ping]):
    @on(Do)
    async def do(self, message: Do) -> Any:
        return await outcome(message.work(self))

    @on(Ping)
    async def ping(self, message: Ping) -> str:
        return "pong"


PAIRS: dict[str, Callable[[], tuple[BaseLock, BaseLock]]] = {
    "locks": lambda: (LocalLock("a"), LocalLock("b")),
    "semaphores": lambda: (LocalSemaphore(1, name="a").hold(1), LocalSemaphore(4, name="b").hold(4)),
    "write locks": lambda: (ReadWriteLock("a").write(), ReadWriteLock("b").write()),
    "mixed": lambda: (LocalLock("a", debug=True), ReadWriteLock("b", writer_preference=True).write()),
}


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[BaseLock, BaseLock]:
    make: Callable[[], tuple[BaseLock, BaseLock]] = request.param
    return make()


async def test_two_tasks_that_wait_for_each_other(pair: tuple[BaseLock, BaseLock]) -> None:
    a, b = pair
    results: list[Any] = []
    taken = anyio.Event()

    async def first() -> None:
        async with a:
            await taken.wait()
            results.append(await outcome(b.acquire()))
            b.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        async with b:
            await settle()
            taken.set()
            await settle()
            with pytest.raises(DeadlockError) as caught:
                await a.acquire()
            text = str(caught.value)
            assert text.count("'a'") >= 1
            assert text.count("'b'") >= 1
            assert "→" in text
    assert results == [None]
    assert not a.locked
    assert not b.locked


async def test_a_thread_and_a_task_that_wait_for_each_other(pair: tuple[BaseLock, BaseLock]) -> None:
    a, b = pair
    with worker("rival") as thread:
        thread.do(a.acquire_blocking)
        async with b:
            thread.start(b.acquire_blocking)
            await until(lambda: b.statistics().waiting)
            with pytest.raises(DeadlockError, match="thread 'rival'"):
                await a.acquire()
        assert thread.result() is None
        thread.do(b.release)
        thread.do(a.release)


def test_three_threads_in_a_circle() -> None:
    locks = [LocalLock(name) for name in "abc"]
    with worker("one") as one, worker("two") as two, worker("three") as three:
        threads = (one, two, three)
        for thread, lock in zip(threads, locks, strict=True):
            thread.do(lock.acquire_blocking)
        one.start(locks[1].acquire_blocking)
        anyio.run(until, lambda: locks[1].statistics().waiting)
        two.start(locks[2].acquire_blocking)
        anyio.run(until, lambda: locks[2].statistics().waiting)
        error = three.do(locks[0].acquire_blocking)
        assert isinstance(error, DeadlockError)
        shown = "thread 'three' → lock 'a' → thread 'one' → lock 'b' → thread 'two' → lock 'c' → thread 'three'"
        assert shown in str(error)
        three.do(locks[2].release)
        assert two.result() is None
        two.do(locks[2].release)
        two.do(locks[1].release)
        assert one.result() is None
        one.do(locks[1].release)
        one.do(locks[0].release)


async def test_a_writer_waits_for_every_reader() -> None:
    rwlock, lock = ReadWriteLock("data"), LocalLock("l")
    with worker("reader") as reader, worker("writer") as writer:
        reader.do(rwlock.read().acquire_blocking)
        async with rwlock.read():
            writer.do(lock.acquire_blocking)
            writer.start(rwlock.write().acquire_blocking)
            await until(lambda: rwlock.statistics().waiting)
            with pytest.raises(DeadlockError, match="'writer'"):
                await lock.acquire()
            error = reader.do(lock.acquire_blocking)
            assert isinstance(error, DeadlockError)
        reader.do(rwlock.read().release)
        assert writer.result() is None
        writer.do(rwlock.write().release)
        writer.do(lock.release)


async def test_a_semaphore_with_several_holders_raises_no_false_alarm() -> None:
    semaphore, lock = LocalSemaphore(2, name="s"), LocalLock("l")
    with worker("one") as one, worker("two") as two:
        one.do(semaphore.acquire_blocking)
        two.do(semaphore.acquire_blocking)
        async with lock:
            one.start(lock.acquire_blocking)
            await until(lambda: lock.statistics().waiting)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(semaphore.acquire)  # waits for whoever of both comes first
                await until(lambda: semaphore.statistics().waiting)
                two.do(semaphore.release)
        assert one.result() is None
        one.do(lock.release)
        one.do(semaphore.release)


async def test_a_semaphore_whose_places_are_all_held_by_one() -> None:
    semaphore = LocalSemaphore(2, name="s")
    await semaphore.acquire()
    await semaphore.acquire()
    with pytest.raises(DeadlockError, match="semaphore 's'"):
        await semaphore.acquire()
    semaphore.release(2)
    await semaphore.acquire()
    with pytest.raises(DeadlockError, match="semaphore 's'"):
        await semaphore.acquire(2)
    semaphore.release()


async def test_a_with_in_the_loop_whose_other_task_holds_it_raises() -> None:
    lock = LocalLock("it")
    held, release = anyio.Event(), anyio.Event()

    async def hold() -> None:
        async with lock:
            held.set()
            await release.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await held.wait()
        with pytest.raises(DeadlockError, match="use `async with`"):
            lock.acquire_blocking()
        with pytest.raises(DeadlockError, match=r"the event loop, which task .* blocks"), lock:
            raise AssertionError
        release.set()


async def test_a_with_in_the_loop_behind_a_task_of_it_raises() -> None:
    """A thread holds it, and will hand it to a task which the blocked loop could not run."""
    lock = LocalLock("it")
    with worker() as thread:
        thread.do(lock.acquire_blocking)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_enter, lock)
            await settle()
            with pytest.raises(DeadlockError, match="the event loop"):
                lock.acquire_blocking()
            thread.do(lock.release)
    assert not lock.locked


async def _enter(lock: BaseLock) -> None:
    async with lock:
        pass


async def test_a_thread_that_waits_for_a_blocked_loop() -> None:
    """The loop is blocked by a `with` on what the thread holds, and the thread wants what a task of that loop holds."""
    a, b = LocalLock("a"), LocalLock("b")
    with worker("outside") as thread:
        thread.do(b.acquire_blocking)
        errors: list[Any] = []

        def close_the_circle() -> None:
            while not b.statistics().waiting:
                pass
            try:
                a.acquire_blocking()
            except DeadlockError as error:
                errors.append(error)
            b.release()

        async with anyio.create_task_group() as tasks:
            release = anyio.Event()

            async def hold() -> None:
                async with a:
                    await release.wait()

            tasks.start_soon(hold)
            await settle()
            thread.start(close_the_circle)
            with b:
                pass
            assert thread.result() is None
            assert len(errors) == 1
            assert "lock 'b'" in str(errors[0])
            release.set()


def test_a_thread_that_holds_it_around_its_own_loop() -> None:
    lock = LocalLock("outer")

    async def main() -> None:
        with pytest.raises(DeadlockError, match="'outer'"):
            lock.acquire_blocking()

    for name in BACKENDS:
        with lock:
            run_on(BACKENDS[name], main)


# With actors.


async def test_an_ask_of_an_actor_that_waits_for_my_lock() -> None:
    """The task holds the lock, the actor waits for it, and the task closes the circle by asking."""
    lock = LocalLock("db")

    async def take(_: Doer) -> None:
        async with lock:
            pass

    async with ActorSystem("s") as system:
        ref = await system.spawn(Doer)
        async with lock:
            asked = ref.ask(Do(take))
            await settle()
            with pytest.raises(DeadlockError) as caught:
                await ref.ask(Ping())
            assert f"{ref.path} → lock 'db' → task" in str(caught.value)
        assert await asked is None


async def test_an_actor_that_wants_the_lock_of_its_asker() -> None:
    """The other way round: the asker holds the lock. The one that begins to wait last is told."""
    lock = LocalLock("db")

    async def take(_: Doer) -> None:
        async with lock:
            pass

    async with ActorSystem("s") as system:
        middle, ref = await system.spawn(Doer), await system.spawn(Doer)
        async with lock, anyio.create_task_group() as tasks:
            blocker = anyio.CancelScope()

            async def wait() -> None:  # somebody waits for a lock anyway: the graph is looked at
                with blocker:
                    await lock.acquire()

            tasks.start_soon(wait)
            await settle()
            error = await outcome(ref.ask(Do(take)))  # of the asker, if the handler began inside the ask
            assert isinstance(error, DeadlockError)
            assert f"{ref.path} → lock 'db' → task" in str(error)
            assert str(error).count(ref.path) >= 2

            async def transfer_permit(_: Doer) -> Any:
                return await ref.ask(Do(take))

            error = await outcome(middle.ask(Do(transfer_permit)))
            assert isinstance(error, DeadlockError)
            assert f"{middle.path} → {ref.path}" in str(error)
            blocker.cancel()


async def test_actors_that_wait_for_each_other_over_a_lock_and_an_ask() -> None:
    lock = LocalLock("db")

    async def take(_: Doer) -> None:
        async with lock:
            pass

    async with ActorSystem("s") as system:
        a, b = await system.spawn(Doer), await system.spawn(Doer)

        async def hold_and_ask(_: Doer) -> Any:
            async with lock:
                asked = b.ask(Do(take))
                await anyio.lowlevel.checkpoint()
                return await asked

        error = await a.ask(Do(hold_and_ask))
        assert isinstance(error, DeadlockError)
        assert "lock 'db'" in str(error)

        async def hold_and_ask_late(_: Doer) -> Any:
            async with lock:
                waiting = b.ask(Do(take))
                await settle()
                result = await outcome(b.ask(Ping()))
            return result, await waiting

        error, after = await a.ask(Do(hold_and_ask_late))
        assert isinstance(error, DeadlockError)
        assert f"{a.path} asks {b.path}" in str(error)
        assert after is None
        assert not lock.locked


async def test_a_task_group_in_a_handler_belongs_to_its_actor() -> None:
    """A child of the handler waits for the lock that its own actor holds."""
    lock = LocalLock("db")

    async def hold_and_fan_out(_: Doer) -> Any:
        results: list[Any] = []

        async def child() -> None:
            results.append(await outcome(lock.acquire()))

        async def nested() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)

        async with lock, anyio.create_task_group() as tasks:
            tasks.start_soon(nested)
        return results

    async with ActorSystem("s") as system:
        ref: Ref[Any] = await system.spawn(Doer)
        results = await ref.ask(Do(hold_and_fan_out))
        assert [type(result) for result in results] == [DeadlockError]


async def test_children_of_a_handler_take_turns() -> None:
    lock = LocalLock("db")

    async def fan_out(_: Doer) -> int:
        turns = 0

        async def child() -> None:
            nonlocal turns
            async with lock:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as tasks:
            for _number in range(3):
                tasks.start_soon(child)
        return turns

    async with ActorSystem("s") as system:
        ref: Ref[Any] = await system.spawn(Doer)
        assert await ref.ask(Do(fan_out)) == 3


# Debug mode.


async def test_debug_mode_warns_when_two_locks_are_taken_in_two_orders(caplog: pytest.LogCaptureFixture) -> None:
    manager = LockManager(debug=True)
    names = [f"order-{uuid.uuid4()}-{index}" for index in range(3)]
    a, b, c = (manager.get_lock(name) for name in names)
    with caplog.at_level(logging.WARNING):
        async with a, b:
            pass
        async with b, c:
            pass
        assert not caplog.records
        async with c, a:
            pass
        assert len(caplog.records) == 1
        text = caplog.records[0].getMessage()
        assert "two orders" in text
        assert "test_deadlocks.py:" in text
        assert all(name in text for name in names)
        async with c, a:
            pass
        assert len(caplog.records) == 1
    statistics = a.statistics()
    assert statistics.hold_seconds > 0
    async with a:
        taken_at = a.statistics().holders[0].taken_at
        assert taken_at is not None
        assert "test_deadlocks.py:" in taken_at


def test_debug_mode_can_be_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("CUELIGHT_DEBUG_LOCKS", value)
        lock = LocalLock()
        with lock:
            assert (lock.statistics().holders[0].taken_at is not None) is expected


def test_those_who_close_a_circle_together_do_not_both_hang() -> None:
    """Whoever of them is second sees the first: repeated, since that is a race."""
    for _ in range(50):
        a, b = LocalLock("a"), LocalLock("b")
        barrier = threading.Barrier(2)
        errors: list[Exception] = []

        def take(
            first: BaseLock,
            second: BaseLock,
            barrier: threading.Barrier = barrier,
            errors: list[Exception] = errors,
        ) -> None:
            with first:
                barrier.wait()
                try:
                    with second:
                        pass
                except DeadlockError as error:
                    errors.append(error)

        threads = [threading.Thread(target=take, args=args) for args in ((a, b), (b, a))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert len(errors) == 1


def test_a_finaliser_that_would_wait_inside_a_step_is_refused() -> None:
    """What the garbage collector runs in the midst of a step may take and release, but not wait."""
    lock, free = LocalLock("held"), LocalLock("free")
    with worker() as thread:
        thread.do(lock.acquire_blocking)
        with monitor:
            with pytest.raises(DeadlockError, match="finaliser"):
                lock.acquire_blocking()
            with free:
                assert free.locked
        thread.do(lock.release)
    assert not lock.locked


def test_debug_mode_forgets_orders_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock_order, "MAX_NAMES", 3)
    locks = [LocalLock(f"many-{number}", debug=True) for number in range(10)]
    for first, second in pairwise(locks):
        with first, second:
            pass
    assert len(_lock_order._after) <= 3


def test_asyncio_task_groups_take_turns() -> None:
    lock = LocalLock()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(_enter(lock))

    asyncio.run(main())
    assert lock.statistics().acquisitions == 5
