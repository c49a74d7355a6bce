"""Everybody at once: threads, two asyncio loops and a trio run on one lock; and histories of it, checked."""

from __future__ import annotations

import asyncio
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight.coordination import BaseLock, LocalLock, LocalSemaphore, ReadWriteLock, _lock_waiting
from cuelight.errors import LockHeld, LockTimeout
from helpers import BACKENDS, Backend, run_on
from helpers.linearizability import Operation, is_linearizable, room_step

LOOPS = {"asyncio 1": BACKENDS["asyncio"], "asyncio 2": BACKENDS["uvloop"], "trio": BACKENDS["trio"]}


@pytest.fixture(autouse=True)
def _switch_threads_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def everybody(
    in_thread: Callable[[str], None], in_task: Callable[[str], Coroutine[Any, Any, None]], threads: int, tasks: int
) -> None:
    """Run something in some threads, and in some tasks of each of three loops, all at once; waits for all."""
    errors: list[BaseException] = []
    together = threading.Barrier(threads + len(LOOPS))

    def guarded(function: Callable[..., Any], *args: Any) -> None:
        try:
            if function is in_thread:
                together.wait(20)
            function(*args)
        except BaseException as error:
            errors.append(error)

    async def loop(name: str) -> None:
        together.wait(20)
        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(in_task, f"{name}/{number}")

    def run_loop(name: str, backend: Backend) -> None:
        run_on(backend, loop, name)

    runners = [threading.Thread(target=guarded, args=(in_thread, f"thread/{number}")) for number in range(threads)]
    runners += [threading.Thread(target=guarded, args=(run_loop, name, kind)) for name, kind in LOOPS.items()]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(60)
        assert not runner.is_alive(), "somebody starves"
    if errors:
        raise errors[0]


def _report(what: str, waits: dict[str, list[float]], seconds: float) -> None:
    longest = max(max(of_one) for of_one in waits.values())
    mean = sum(map(sum, waits.values())) / sum(map(len, waits.values()))
    per_user = [sum(of_one) / len(of_one) for of_one in waits.values()]
    total = sum(map(len, waits.values()))
    print(
        f"{what}: {total} turns of {len(waits)} users in {seconds:.2f} s ({total / seconds:,.0f}/s); waits: mean "
        f"{mean * 1e3:.2f} ms, longest {longest * 1e3:.2f} ms; means of users "
        f"{min(per_user) * 1e3:.2f} to {max(per_user) * 1e3:.2f} ms"
    )


@pytest.mark.parametrize("debug", [False, True])
def test_mixed_users_exclude_each_other_and_nobody_starves(debug: bool, stress: bool) -> None:
    lock = LocalLock("storm", debug=debug)
    turns = 3000 if stress else 100
    inside: list[str] = []
    counts: Counter[str] = Counter()
    waits: dict[str, list[float]] = {}

    def enter(who: str, asked: float) -> None:
        waits.setdefault(who, []).append(time.monotonic() - asked)
        inside.append(who)
        assert inside == [who]
        counts[who] += 1

    def in_thread(who: str) -> None:
        for _ in range(turns):
            asked = time.monotonic()
            with lock:
                enter(who, asked)
                inside.remove(who)

    async def in_task(who: str) -> None:
        for _ in range(turns):
            asked = time.monotonic()
            async with lock:
                enter(who, asked)
                if counts[who] % 7 == 0:
                    await anyio.lowlevel.checkpoint()
                inside.remove(who)
            await anyio.lowlevel.checkpoint()

    began = time.monotonic()
    everybody(in_thread, in_task, threads=3, tasks=3)
    assert set(counts.values()) == {turns}
    assert len(counts) == 12
    assert not lock.locked
    statistics = lock.statistics()
    assert (statistics.acquisitions, statistics.waiting) == (turns * 12, 0)
    _report("lock", waits, time.monotonic() - began)


@pytest.mark.parametrize("preference", [False, True])
def test_mixed_readers_and_writers(preference: bool, stress: bool) -> None:
    rwlock = ReadWriteLock("storm", writer_preference=preference)
    turns = 2000 if stress else 60
    guard = threading.Lock()
    readers = writers = 0
    waits: dict[str, list[float]] = {}

    def enter(who: str, asked: float, reading: bool) -> None:
        nonlocal readers, writers
        with guard:
            waits.setdefault(who, []).append(time.monotonic() - asked)
            readers, writers = readers + reading, writers + (not reading)
            assert writers == 0 or (writers, readers) == (1, 0)

    def leave(reading: bool) -> None:
        nonlocal readers, writers
        with guard:
            readers, writers = readers - reading, writers - (not reading)

    def side(turn: int) -> tuple[BaseLock, bool]:
        return (rwlock.write(), False) if turn % 4 == 0 else (rwlock.read(), True)

    def in_thread(who: str) -> None:
        for turn in range(turns):
            lock, reading = side(turn)
            asked = time.monotonic()
            with lock:
                enter(who, asked, reading)
                leave(reading)

    async def in_task(who: str) -> None:
        for turn in range(turns):
            lock, reading = side(turn)
            asked = time.monotonic()
            async with lock:
                enter(who, asked, reading)
                if turn % 5 == 0:
                    await anyio.lowlevel.checkpoint()
                if turn % 8 == 0:
                    with guard:
                        readers_and_one(who)
                    rwlock.downgrade()
                    reading = True
                leave(reading)
            await anyio.lowlevel.checkpoint()

    def readers_and_one(who: str) -> None:
        nonlocal readers, writers
        readers, writers = readers + 1, writers - 1

    began = time.monotonic()
    everybody(in_thread, in_task, threads=3, tasks=3)
    assert (rwlock.readers, rwlock.writing, readers, writers) == (0, False, 0, 0)
    _report(f"read-write lock, {'writers first' if preference else 'fair'}", waits, time.monotonic() - began)


def test_mixed_users_of_a_semaphore(stress: bool) -> None:
    semaphore = LocalSemaphore(3, name="storm")
    turns = 2000 if stress else 60
    guard = threading.Lock()
    used = most = 0
    waits: dict[str, list[float]] = {}

    def change(amount: int) -> None:
        nonlocal used, most
        with guard:
            used += amount
            most = max(most, used)
            assert 0 <= used <= 3

    def in_thread(who: str) -> None:
        for turn in range(turns):
            asked = time.monotonic()
            with semaphore.hold(turn % 3 + 1):
                waits.setdefault(who, []).append(time.monotonic() - asked)
                change(turn % 3 + 1)
                change(-(turn % 3 + 1))

    async def in_task(who: str) -> None:
        for turn in range(turns):
            asked = time.monotonic()
            async with semaphore.hold(turn % 3 + 1):
                waits.setdefault(who, []).append(time.monotonic() - asked)
                change(turn % 3 + 1)
                if turn % 5 == 0:
                    await anyio.lowlevel.checkpoint()
                change(-(turn % 3 + 1))
            await anyio.lowlevel.checkpoint()

    began = time.monotonic()
    everybody(in_thread, in_task, threads=3, tasks=3)
    assert semaphore.available == 3
    assert most == 3
    _report("semaphore", waits, time.monotonic() - began)


def test_a_storm_of_cancellations_and_time_outs(stress: bool) -> None:
    """Natively, by scopes and by time: at the end it is free, and nobody waits."""
    lock = LocalLock("storm")
    rng = random.Random(3)
    turns = 1000 if stress else 50
    inside = got = 0

    def in_thread(who: str) -> None:
        nonlocal inside, got
        for _ in range(turns):
            try:
                lock.acquire_blocking(rng.random() * 0.002)
            except LockTimeout:
                continue
            inside, got = inside + 1, got + 1
            assert inside == 1
            inside -= 1
            lock.release()

    async def enter() -> None:
        nonlocal inside, got
        async with lock:
            inside, got = inside + 1, got + 1
            assert inside == 1
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                inside -= 1

    async def in_task(who: str) -> None:
        for _ in range(turns):
            with anyio.move_on_after(rng.random() * 0.002):
                await enter()
            if not who.startswith("trio"):
                task = asyncio.ensure_future(enter())
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await anyio.lowlevel.checkpoint()

    everybody(in_thread, in_task, threads=2, tasks=3)
    assert not lock.locked
    assert lock.statistics().waiting == 0
    assert got > 0


def test_waiters_that_poll_for_closed_loops_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a task of another loop holds it, a waiter wakes now and then by itself: no turn and no grant is lost."""
    monkeypatch.setattr(_lock_waiting, "DEAD_LOOP_POLL", 0.0005)
    lock = LocalLock("look")
    turns = 0

    def in_thread(who: str) -> None:
        nonlocal turns
        for _ in range(20):
            with lock:
                turns += 1

    async def in_task(who: str) -> None:
        nonlocal turns
        for turn in range(20):
            if turn % 2:
                await lock.acquire(20)
            else:
                await lock.acquire()
            turns += 1
            await anyio.sleep(0.001)
            lock.release()

    everybody(in_thread, in_task, threads=2, tasks=2)
    assert turns == 2 * 20 + 6 * 20
    assert not lock.locked


# Histories.

NOBODY: frozenset[tuple[str, int]] = frozenset()


class Players:
    """Threads and tasks that play a program each, and write down what they did."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self.seed = capacity, seed
        self.history: list[Operation] = []
        self._semaphore = LocalSemaphore(capacity)
        self._lock = LocalLock() if capacity == 1 else None

    def _program(self, who: str) -> list[tuple[int, str, BaseLock]]:
        rng = random.Random(f"{self.seed} {who}")
        weights = [rng.randint(1, self.capacity) for _ in range(12)]
        return [
            (weight, rng.choice(["acquire", "acquire", "try", "late"]), self._lock or self._semaphore.hold(weight))
            for weight in weights
        ]

    def _note(self, began: float, who: str, what: str, result: Any = None) -> None:
        self.history.append(Operation(began, time.perf_counter(), who, what, result))

    def _try(self, who: str, weight: int, lock: BaseLock) -> bool:
        began = time.perf_counter()
        try:
            lock.acquire_nowait()
        except LockHeld:
            self._note(began, who, f"try {weight}", False)
            return False
        self._note(began, who, f"try {weight}", True)
        return True

    def _release(self, who: str, weight: int, lock: BaseLock) -> None:
        began = time.perf_counter()
        lock.release()
        self._note(began, who, f"release {weight}")

    def in_thread(self, who: str) -> None:
        for weight, how, lock in self._program(who):
            began = time.perf_counter()
            if how == "try":
                got = self._try(who, weight, lock)
            else:
                try:
                    lock.acquire_blocking(0.0005 if how == "late" else None)
                except LockTimeout:
                    continue
                got = True
                self._note(began, who, f"acquire {weight}")
            if got:
                self._release(who, weight, lock)

    async def in_task(self, who: str) -> None:
        for weight, how, lock in self._program(who):
            await anyio.lowlevel.checkpoint()
            began = time.perf_counter()
            if how == "try":
                got = self._try(who, weight, lock)
            else:
                try:
                    await lock.acquire(0.0005 if how == "late" else None)
                except LockTimeout:
                    continue
                got = True
                self._note(began, who, f"acquire {weight}")
            if got:
                await anyio.lowlevel.checkpoint()
                self._release(who, weight, lock)


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_concurrent_histories_are_linearizable(capacity: int, seed: int) -> None:
    """Threads, two asyncio loops and a trio run; acquire, acquire without waiting, with a time-out, release."""
    players = Players(capacity, seed)
    everybody(players.in_thread, players.in_task, threads=2, tasks=2)
    assert len(players.history) > 60
    assert is_linearizable(players.history, NOBODY, room_step(capacity))


def test_the_checker_rejects_what_cannot_be() -> None:
    step, free = room_step(1), NOBODY
    good = [
        Operation(0, 1, "a", "acquire 1"),
        Operation(0.5, 3, "b", "acquire 1"),
        Operation(2, 2.5, "a", "release 1"),
        Operation(2.6, math.inf, "c", "acquire 1"),
    ]
    assert is_linearizable(good, free, step)
    assert not is_linearizable([Operation(0, 1, "a", "acquire 1"), Operation(2, 3, "b", "acquire 1")], free, step)
    assert not is_linearizable([Operation(0, 1, "a", "release 1")], free, step)
    overlapping = [*good, Operation(0.6, 0.7, "d", "acquire 1")]
    assert not is_linearizable(overlapping, free, step)
    assert is_linearizable([Operation(0, 1, "a", "try 1", False)], free, step)
    with pytest.raises(RuntimeError, match="no end"):
        is_linearizable(good, free, step, most=1)


def test_the_order_of_arrival_is_kept_over_threads_and_loops() -> None:
    """Each arrives when the one before stands in line; so is the order in which they are served."""
    lock = LocalLock("line")
    order: list[str] = []
    arrive = [threading.Event() for _ in range(8)]

    def in_thread(who: str) -> None:
        index = int(who.split("/")[1])
        assert arrive[index].wait(20)
        with lock:
            order.append(who)

    async def in_task(who: str) -> None:
        index = {"asyncio 1": 2, "asyncio 2": 4, "trio": 6}[who.split("/", maxsplit=1)[0]] + int(who.split("/")[1])
        while not arrive[index].is_set():  # noqa: ASYNC110 - set by a thread
            await anyio.sleep(0.0005)
        async with lock:
            order.append(who)

    lock.acquire_blocking()
    expected = ["thread/0", "thread/1"] + [f"{name}/{number}" for name in LOOPS for number in range(2)]

    def director() -> None:
        for index, event in enumerate(arrive):
            event.set()
            while lock.statistics().waiting <= index:
                time.sleep(0.0005)
        go.set()

    go = threading.Event()
    thread = threading.Thread(target=director)
    everyone = threading.Thread(target=everybody, args=(in_thread, in_task, 2, 2))
    everyone.start()
    thread.start()
    assert go.wait(20)
    lock.release()
    everyone.join(20)
    thread.join(20)
    assert order == expected


IMPORTING = """
import asyncio, sys, threading, types
from cuelight import AsyncTokenBucket, LocalLock, RateLimitConfig

sys.modules["trio"] = types.ModuleType("trio")  # as it looks while another thread is importing it
sys.modules["trio.lowlevel"] = types.ModuleType("trio.lowlevel")
lock = LocalLock("it")
bucket = AsyncTokenBucket(RateLimitConfig(1000, 1, 1))

async def user():
    async with lock:
        await bucket.acquire()
        await asyncio.sleep(0.001)

def thread():
    for _ in range(20):
        with lock:
            pass

async def main():
    other = threading.Thread(target=thread)
    other.start()
    await asyncio.gather(*(user() for _ in range(20)))
    other.join()

asyncio.run(main())
slow = AsyncTokenBucket(RateLimitConfig(1, 3600, 1))
assert slow.try_acquire().allowed
try:
    slow.acquire().send(None)
except RuntimeError as error:
    print(error)
"""


def test_a_thread_that_imports_trio_at_that_moment_disturbs_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no asyncio or trio event loop runs here")
