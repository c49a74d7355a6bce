"""Locks between processes: killed, frozen, ended, forked; and histories of three of them, checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.errors import LeaseLost, StoreRefused
from cuelight.redis import RedisClient, RedisLock, RedisSemaphore, fenced_set
from helpers.linearizability import Operation, is_linearizable, room_step
from helpers.lockable import over_redis
from helpers.redis_servers import RedisServer, shared_server

TESTS = str(Path(__file__).parents[2])

HEAD = """
import os, random, sys, threading, time
import anyio
from cuelight.errors import LeaseLost, LockTimeout
from cuelight.redis import RedisClient, RedisLock, RedisSemaphore, fenced_set
url, prefix = sys.argv[1:3]
where = {"redis_url": url, "prefix": prefix}
def say(*words):
    print(*words, flush=True)
"""


class Child:
    """Another process that runs a program, and talks in lines."""

    def __init__(self, program: str, where: dict[str, Any], *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + program, where["redis_url"], where["prefix"], *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "go") -> None:
        """Have its `input()` return."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for its end."""
        code = self.process.wait(10)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return code


@contextmanager
def child(program: str, where: dict[str, Any], *args: str) -> Generator[Child]:
    one = Child(program, where, *args)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.end()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


HOLD = """
lock = RedisLock("it", **where, lease=1.0)
lock.acquire_blocking()
say("has it", lock.lease.fence)
input()
lock.release()
say("gave it")
input()
"""


def test_a_lock_excludes_processes_and_names_who_holds_it() -> None:
    where = over_redis()
    with child(HOLD, where) as other:
        fence = int(other.hear().split()[-1])
        lock = RedisLock("it", **where)
        with pytest.raises(TimeoutError, match=f"process {other.process.pid} on .* holds it"):
            lock.acquire_blocking(0.05)
        with pytest.raises(anyio.WouldBlock, match=f"process {other.process.pid} on .* holds it"):
            lock.acquire_nowait()
        other.tell()
        began = time.monotonic()
        with lock.hold(5) as lease:
            assert lease.fence > fence
            assert time.monotonic() - began < 0.5  # by a message, far before the lease is over
        other.tell()


def test_a_holder_and_the_first_in_line_that_are_killed_free_it_after_the_lease() -> None:
    where = over_redis()
    lock = RedisLock("it", **where, lease=1.0)
    with child(HOLD, where) as holder:
        holder.hear()
        with child(HOLD, where) as first:
            until(lambda: lock.state_blocking().waiting)
            holder.signal(signal.SIGKILL)
            first.signal(signal.SIGKILL)
            began = time.monotonic()
            with lock.hold(8) as lease:
                lease.check()
                took = time.monotonic() - began
            assert took < 1.0 + 1.0 + 1.5  # the lease of one, the time that the other had to claim it, and some more
    assert lock.state_blocking().held == 0


FROZEN = """
async def main():
    async with RedisClient(url) as server:
        lock = RedisLock("it", server=server, prefix=prefix, lease=0.5)
        try:
            async with lock.hold() as lease:
                await fenced_set(server, prefix + "value", "first", lease)
                say("wrote", lease.fence)
                await anyio.to_thread.run_sync(input)
                try:
                    await fenced_set(server, prefix + "value", "stale", lease.fence)
                    say("stale write")
                except LeaseLost:
                    say("refused")
                lease.check()
        except LeaseLost:
            say("lost")
anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_holder_that_was_frozen_past_its_lease_is_refused_by_the_fence(loop: str) -> None:
    where = over_redis()
    lock = RedisLock("it", **where, lease=0.5)
    key = f"{where['prefix']}value"

    async def write() -> int:
        async with RedisClient(where["redis_url"]) as server, lock.hold(5) as lease:
            await fenced_set(server, key, "second", lease)
            assert await server.execute("GET", key) == b"second"
            return lease.fence

    with child(FROZEN, where, loop) as other:
        fence = int(other.hear().split()[-1])
        other.signal(signal.SIGSTOP)
        assert anyio.run(write) > fence
        other.tell()
        other.signal(signal.SIGCONT)
        told = {other.hear()}
        if told == {"refused"}:  # cancelled where it next waits, or told by `check`
            told.add(other.hear())
        assert told in ({"refused", "lost"}, {"lost"})
        assert other.end() == 0
    assert shared_server().command("GET", key).split()[1] == b"second"


ENDS = """
lock = RedisLock("it", **where, lease=60)
if sys.argv[3] == "main":
    lock.acquire_blocking()
elif sys.argv[3] == "daemon":
    def hold():
        lock.acquire_blocking()
        taken.set()
        time.sleep(60)
    taken = threading.Event()
    threading.Thread(target=hold, daemon=True).start()
    taken.wait()
elif sys.argv[3] == "thread":
    def hold():
        with lock.hold() as lease:
            taken.set()
            time.sleep(0.5)
            lease.check()
            say("still")
    taken = threading.Event()
    threading.Thread(target=hold).start()
    taken.wait()
elif sys.argv[3] == "task":
    anyio.run(lock.acquire)
elif sys.argv[3] == "exit":
    async def main():
        async with lock:
            sys.exit(0)
    anyio.run(main, backend="asyncio")
elif sys.argv[3] == "trio":
    async def main():
        async with lock:
            sys.exit(0)
    anyio.run(main, backend="trio")
say("ends")
"""


@pytest.mark.parametrize("how", ["main", "daemon", "thread", "exit", "trio"])
def test_a_process_that_ends_gives_back_what_it_holds(how: str) -> None:
    where = over_redis()
    lock = RedisLock("it", **where)
    began = time.monotonic()
    with child(ENDS, where, how) as other:
        until(lambda: other.process.poll() is not None)
        assert other.end() == 0
    assert lock.state_blocking().held == 0
    assert time.monotonic() - began < 8


FORKED = """
import warnings
warnings.simplefilter("ignore")
lock = RedisLock("it", **where, lease=0.6)
with lock.hold() as lease:
    pid = os.fork()
    if pid == 0:
        try:
            lease.check()
            say("child has it")
        except LeaseLost as error:
            say("child has not")
        other = RedisLock("other", **where)
        with other:
            say("child has another")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    time.sleep(1.0)
    lease.check()
    assert lock.state_blocking().held == 1
say("parent had it")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_have_what_its_parent_holds() -> None:
    where = over_redis()
    with child(FORKED, where) as other:
        assert [other.hear() for _ in range(3)] == ["child has not", "child has another", "parent had it"]
        assert other.end() == 0


PLAY = """
import json
capacity, seed, backend = int(sys.argv[3]), sys.argv[4], sys.argv[5]
history = []
def note(began, who, what, result=None):
    history.append((began, time.monotonic(), who, what, result))
def program(who):
    rng = random.Random(f"{seed} {who}")
    return [(rng.randint(1, capacity), rng.choice(["acquire", "acquire", "late"])) for _ in range(8)]
def lock_of(weight):
    return semaphore.hold(weight) if capacity > 1 else lock
semaphore = RedisSemaphore("it", capacity, **where, lease=5) if capacity > 1 else None
lock = RedisLock("it", **where, lease=5)
async def task(who):
    for weight, how in program(who):
        one = lock_of(weight)
        began = time.monotonic()
        try:
            await one.acquire(0.004 if how == "late" else None)
        except LockTimeout:
            continue
        fence = one.lease.fence
        note(began, who, f"acquire {weight}", fence)
        await anyio.sleep(0)
        began = time.monotonic()
        async with released(one):
            pass
        note(began, who, f"release {weight}", fence)
class released:
    def __init__(self, one): self.one = one
    async def __aenter__(self): pass
    async def __aexit__(self, *_): await self.one._release_lease(self.one.lease)
def thread(who):
    for weight, how in program(who):
        one = lock_of(weight)
        began = time.monotonic()
        try:
            one.acquire_blocking(0.004 if how == "late" else None)
        except LockTimeout:
            continue
        fence = one.lease.fence
        note(began, who, f"acquire {weight}", fence)
        began = time.monotonic()
        one.release()
        note(began, who, f"release {weight}", fence)
async def main():
    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(task, f"{os.getpid()} task {number}")
say("ready")
input()
one = threading.Thread(target=thread, args=(f"{os.getpid()} thread",))
one.start()
anyio.run(main, backend=backend)
one.join()
say(json.dumps(history))
"""


@pytest.mark.parametrize("capacity", [1, 3])
def test_histories_of_three_processes_are_linearizable(capacity: int) -> None:
    where = over_redis()
    history: list[Operation] = []
    with (
        child(PLAY, where, str(capacity), "1", "asyncio") as one,
        child(PLAY, where, str(capacity), "2", "trio") as two,
        child(PLAY, where, str(capacity), "3", "asyncio") as three,
    ):
        players = (one, two, three)
        for player in players:
            assert player.hear() == "ready"
        for player in players:
            player.tell()
        for player in players:
            history += [Operation(*entry) for entry in json.loads(player.hear())]
            assert player.end() == 0
    taken = [move for move in history if move.what.startswith("acquire")]
    assert len(taken) > 40
    assert len({move.result for move in taken}) == len(taken), "two holders of one fence"
    nobody: frozenset[tuple[str, int]] = frozenset()
    plain = [Operation(move.began, move.ended, move.who, move.what) for move in history]
    assert is_linearizable(plain, nobody, room_step(capacity))
    if capacity == 1:  # and who has the greater fence has it later
        had = {move.result: move.ended for move in taken}
        let_go = {move.result: move.began for move in history if move.what.startswith("release")}
        fences = sorted(had)
        assert all(had[before] <= let_go[before] <= had[later] for before, later in pairwise(fences))


def test_a_promoted_replica_gives_a_greater_fence_and_the_stale_holder_is_refused() -> None:
    """What the replica has not heard of is lost: two believe that they hold it. The fence tells them apart."""

    async def main() -> None:
        async with RedisClient(primary.url) as old, RedisClient(replica.url) as new:
            lock, after = RedisLock("it", server=old, lease=5), RedisLock("it", server=new, lease=5)
            async with lock.hold() as lease:
                first = lease.fence
            replica.command("REPLICAOF", "NO", "ONE")
            async with after.hold() as there, lock.hold() as here:  # both
                assert first < here.fence
                assert first < there.fence
                older, newer = sorted([here, there], key=lambda lease: lease.fence)
                await fenced_set(new, "value", "newer", newer)
                with pytest.raises(LeaseLost, match="greater"):
                    await fenced_set(new, "value", "older", older)

    with RedisServer("--repl-diskless-sync-delay", "0") as primary, RedisServer() as replica:
        replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        anyio.run(main)


def test_a_grant_that_too_few_replicas_know_of_is_given_back() -> None:
    async def main() -> None:
        lock = RedisLock("it", primary.url, lease=1, wait_replicas=1)
        with pytest.raises(StoreRefused, match=r"0 replicas .* wait_replicas=1"):
            await lock.acquire()
        assert not lock.locked
        assert (await lock.state()).held == 0
        replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        await anyio.to_thread.run_sync(
            until, lambda: b"master_link_status:up" in replica.command("INFO", "replication")
        )
        async with lock:
            pass
        with anyio.fail_after(5):
            await anyio.to_thread.run_sync(lock.acquire_blocking)

    with RedisServer("--repl-diskless-sync-delay", "0") as primary, RedisServer() as replica:
        anyio.run(main)


def test_semaphores_share_their_places_among_processes() -> None:
    where = over_redis()
    semaphore = RedisSemaphore("it", 2, **where)
    program = HOLD.replace('RedisLock("it"', 'RedisSemaphore("it", 2')
    with child(program, where) as one:
        one.hear()
        with semaphore, pytest.raises(TimeoutError):
            semaphore.acquire_blocking(timeout=0.05)
        one.signal(signal.SIGKILL)
        with semaphore.hold(2):
            assert semaphore.state_blocking().held == 2
