"""Servers that go away, processes that are killed: the queue goes on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, RedisStore
from cuelight.tasks import Claim, Finish, Limit, Query, Record, Task, TaskQueue, TaskWorker
from helpers import Backend
from helpers.redis_servers import RedisServer, redis_binary, shared_server, valkey_binary
from helpers.stores import Driver

WORKER = """
import sys, time
import anyio
from cuelight import run
from cuelight.redis import RedisStore
from cuelight.tasks import TaskQueue, TaskWorker

url, prefix, log, name, seconds, backend = sys.argv[1:]

def note(what, task_id):
    with open(log, "a") as out:
        out.write(f"{name} {what} {task_id}\\n")

async def work(task):
    note("began", task.task_id)
    await anyio.sleep(float(seconds))
    note("ended", task.task_id)

async def main(system):
    queue = TaskQueue(RedisStore(url, prefix=prefix), system=system)
    await TaskWorker(queue, handler=work, worker_id=name, concurrency=5, lease=1.0).run()

run(main, backend=backend)
"""


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.timeout(60)
async def test_a_worker_goes_on_when_the_server_was_away_for_seconds(durable: RedisServer, how: str) -> None:
    ran: Counter[str] = Counter()
    begun = anyio.Event()

    async def work(task: Task) -> None:
        ran[task.task_id] += 1
        if len(ran) == 20:
            begun.set()
        await anyio.sleep(0.05)

    async with TaskQueue(RedisStore(durable.url)) as queue:
        tasks = [Task(task_type="t") for _ in range(100)]
        assert all(await queue.enqueue_many(tasks))
        async with TaskWorker(queue, handler=work, concurrency=4, lease=10.0):
            await begun.wait()
            durable.kill() if how == "killed" else durable.freeze()
            await anyio.sleep(3.0)
            durable.start() if how == "killed" else durable.thaw()
            assert await queue.drain(25.0)
        assert (await queue.size()).completed == 100
    assert sorted(ran) == sorted(task.task_id for task in tasks)
    # The leases outlive three seconds: nothing had to run twice.
    assert set(ran.values()) == {1}


async def test_what_was_acknowledged_is_there_after_the_server_was_killed(durable: RedisServer) -> None:
    async with RedisClient(durable.url) as client:
        store = RedisStore(client)
        await store.open()
        await store.add([Record(id=f"{number}", type="t") for number in range(50)])
        leases = (await store.exchange([], Claim("w", "1", 20, 60.0))).leases
        finishes = [Finish(lease.record.id, lease.epoch) for lease in leases[:10]]
        assert (await store.exchange(finishes)).accepted == ["completed"] * 10
        durable.kill()
        with pytest.raises(StoreUnavailable):
            await store._server.execute("PING")
        durable.start()
        size = await store.size()
        assert (size.pending, size.in_flight, size.completed) == (30, 10, 10)
        assert (await store.exchange(finishes)).accepted == ["completed"] * 10
        again = (await store.exchange([], Claim("w", "1", 20, 60.0))).leases
        assert [(lease.record.id, lease.epoch) for lease in again] == [
            (lease.record.id, lease.epoch) for lease in leases[10:]
        ]
        await store.close()


@pytest.mark.timeout(60)
def test_the_tasks_of_a_process_that_was_killed_run_in_another(tmp_path: Path, prefix: str, backend: Backend) -> None:
    url, log = shared_server().url, tmp_path / "log"

    def start(name: str, seconds: float) -> subprocess.Popen[bytes]:
        words = [url, prefix, str(log), name, str(seconds), backend[0]]
        return subprocess.Popen([sys.executable, "-W", "error", "-c", WORKER, *words])

    def lines() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    async def fill() -> list[str]:
        async with TaskQueue(RedisStore(url, prefix=prefix)) as queue:
            tasks = [Task(task_type="t") for _ in range(10)]
            assert all(await queue.enqueue_many(tasks))
            return [task.task_id for task in tasks]

    async def ends(ids: list[str]) -> Counter[int]:
        store = RedisStore(url, prefix=prefix)
        await store.open()
        with anyio.fail_after(20):
            while (await store.size()).completed < len(ids):
                since = store.version()
                await store.changed(since, 1.0)
        found = await store.find(Query(limit=100))
        await store.close()
        return Counter(there.counts.crashes for there in found)

    ids = anyio.run(fill)
    slow = start("slow", 60)
    try:
        end = time.monotonic() + 20
        while sum(what == "began" for _, what, _ in lines()) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        quick = start("quick", 0.01)
        try:
            slow.kill()
            slow.wait()
            crashes = anyio.run(ends, ids, backend=backend[0])
        finally:
            quick.terminate()
            assert quick.wait(20) == 0
    finally:
        slow.kill()
        slow.wait()
    assert crashes == {0: 5, 1: 5}
    assert sorted(task_id for _, what, task_id in lines() if what == "ended") == sorted(ids)


async def test_the_clock_of_the_store_is_that_of_the_server(
    client: RedisClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.0)
    store = RedisStore(client, prefix=prefix)
    await store.open()
    seconds, microseconds = await client.execute("TIME")
    assert abs(store.now() - (int(seconds) + int(microseconds) / 1e6)) < 1.0
    await store.add([Record(id="a", type="t", delay=60.0)])
    (there,) = await store.get(["a"])
    assert there is not None
    assert abs(there.due - 60.0 - store.now()) < 1.0
    await store.close()


async def test_a_replica_and_a_full_server_refuse_and_nothing_was_done(prefix: str) -> None:
    with RedisServer() as server:
        async with RedisClient(server.url) as client:
            store = RedisStore(client, prefix=prefix)
            await store.open()
            await store.add([Record(id="a", type="t")])
            await client.execute("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreRefused, match="OOM"):
                await store.add([Record(id="b", type="t", limits=(Limit("k", max_concurrent=1),))])
            await client.execute("CONFIG", "SET", "maxmemory", "0")
            await client.execute("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreRefused, match="READONLY"):
                await store.add([Record(id="c", type="t")])
            await client.execute("REPLICAOF", "NO", "ONE")
            assert [there.record.id for there in await store.find(Query())] == ["a"]
            await store.close()


async def test_redis_where_it_is_installed_and_valkey_make_the_same_steps(prefix: str) -> None:
    seen: list[object] = []
    for binary in {valkey_binary(), redis_binary() or valkey_binary()}:
        with RedisServer(binary=binary) as server:
            clock = 1_000_000.0
            store = RedisStore(server.url, prefix=prefix, clock=lambda at=clock: at)  # type: ignore[misc]
            await store.open()
            limits = (Limit("k", max_concurrent=1, rate=3.5, per=7.25),)
            await store.add([Record(id=f"{n}", type="t", nonce="n", limits=limits[: n % 2]) for n in range(9)])
            exchange = await store.exchange([], Claim("w", "n", 9, 15.5))
            finishes = [Finish(lease.record.id, lease.epoch, "error", delay=0.1) for lease in exchange.leases]
            seen.append((exchange, await store.exchange(finishes), await store.find(Query())))
            await store.close()
    assert seen[0] == seen[-1]


async def test_a_job_costs_a_fraction_of_a_command_and_an_exchange_one_round_trip(
    desk: Driver, client: RedisClient
) -> None:
    """Counted by the server: 1000 tasks, a hundred at a time."""
    for start in range(0, 1000, 100):
        await desk.add(*(f"{number}" for number in range(start, start + 100)))
    before = await _commands(client)
    finishes: list[Finish] = []
    trips = 0
    while True:
        trips += 1
        exchange = await desk.exchange(finishes, most=100)
        finishes = [Finish(lease.record.id, lease.epoch) for lease in exchange.leases]
        if not finishes:
            break
    made = await _commands(client) - before
    made.pop("info", None)
    assert trips == 11
    assert made["evalsha"] + made["eval"] <= 12
    assert made.total() <= 0.35 * 1000, made


async def _commands(client: RedisClient) -> Counter[str]:
    lines = (await client.execute("INFO", "commandstats")).decode().splitlines()
    return Counter(
        {
            line.partition(":")[0].removeprefix("cmdstat_"): int(line.partition("calls=")[2].partition(",")[0])
            for line in lines
            if line.startswith("cmdstat_")
        }
    )
