"""Leases that are lost, tasks that are cancelled, and stores that are away: who is cut off, and what counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import anyio
import pytest

from cuelight.errors import WorkerDied
from cuelight.tasks import Beat, Claim, Finish, Store, Task, TaskWorker
from cuelight.tasks._functions._values import encode
from helpers.workers import Faulty, Wrapped, loop_store, new_worker, open_queue, snapshot, until

LEASE = 6.0


class Log:
    """A handler that runs for some seconds and writes down how each run ended."""

    def __init__(self, seconds: float = 20.0, *, shielded: bool = False) -> None:
        self.seconds, self.shielded = seconds, shielded
        self.ends: list[tuple[str, float]] = []

    async def run(self, payload: Any) -> str:
        end = "cut"
        try:
            with anyio.CancelScope(shield=self.shielded):
                await anyio.sleep(self.seconds)
            end = "done"
        finally:
            self.ends.append((end, round(anyio.current_time(), 1)))
        return "result"


async def test_a_lease_is_renewed_as_long_as_the_task_runs() -> None:
    log = Log(100.0)
    async with (
        open_queue() as queue,
        new_worker(queue, {"run": log.run}, lease=LEASE),
        new_worker(queue, {"run": log.run}, lease=LEASE),
    ):
        mine = Task(task_type="run")
        await queue.enqueue(mine)
        kept = await until(queue, mine, "completed")
    assert [end for end, _ in log.ends] == ["done"]
    assert kept.counts.crashes == 0


async def test_a_cancelled_task_is_cut_off_within_a_second() -> None:
    log = Log()
    async with open_queue() as queue, new_worker(queue, {"run": log.run}) as worker:
        mine = Task(task_type="run")
        await queue.enqueue(mine)
        await anyio.sleep(5)
        assert await queue.cancel(mine.task_id) == "cancelling"
        kept = await until(queue, mine, "cancelled")
        assert anyio.current_time() < 6.1
        assert (worker.stats().cancelled, kept.counts.errors) == (1, 0)
    assert [end for end, _ in log.ends] == ["cut"]


async def test_a_task_that_is_cancelled_and_completes_is_done() -> None:
    log = Log(8.0, shielded=True)
    async with open_queue() as queue, new_worker(queue, {"run": log.run}):
        mine = Task(task_type="run")
        await queue.enqueue(mine)
        await anyio.sleep(5)
        await queue.cancel(mine.task_id)
        assert await queue.handle(mine.task_id).result() == "result"


async def steal(store: Store, task_id: str) -> tuple[str, int]:
    """Have another worker claim a task whose lease has run out."""
    while True:
        answer = await store.exchange([], Claim("thief", f"thief {anyio.current_time()}", 1, 1000.0))
        if answer.leases:
            [lease] = answer.leases
            assert lease.record.id == task_id
            return lease.record.id, lease.epoch
        await anyio.sleep(0.05)


@pytest.mark.parametrize("shielded", [False, True])
async def test_a_worker_that_cannot_renew_is_cut_off_before_others_begin(shielded: bool) -> None:
    log = Log(shielded=shielded)
    store = loop_store()
    faulty = Faulty(store)
    async with (
        open_queue(faulty.store) as queue,
        new_worker(queue, {"run": log.run}, lease=LEASE, concurrency=1) as worker,
    ):
        mine = Task(task_type="run", max_crashes=5)
        await queue.enqueue(mine)
        await until(queue, mine, "in_flight")
        faulty.away = True
        thief = await steal(store, mine.task_id)
        stolen = anyio.current_time()
        faulty.away = False
        if not shielded:
            assert log.ends[0][0] == "cut"
            assert log.ends[0][1] <= stolen
        await anyio.sleep(60)
        assert worker.stats().lease_lost == 1
        assert worker.stats().succeeded == 0
        kept = await snapshot(queue, mine)
        assert (kept.state, kept.counts.crashes, kept.worker) == ("in_flight", 1, "thief")
        answer = await store.exchange([Finish(*thief, "done", encode("of the thief"))])
        assert answer.accepted == ["completed"]
        assert await queue.handle(mine.task_id).result() == "of the thief"


async def test_a_finish_that_comes_too_late_is_refused_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(20.0)
    store = loop_store()
    faulty = Faulty(store)
    async with (
        open_queue(faulty.store) as queue,
        new_worker(queue, {"run": log.run}, lease=LEASE, concurrency=1) as worker,
    ):
        mine = Task(task_type="run")
        await queue.enqueue(mine)
        await until(queue, mine, "in_flight")
        await anyio.sleep(19)
        faulty.away = True  # it ends while the store is away, and the lease runs out before that is back
        await steal(store, mine.task_id)
        await anyio.sleep(1)
        faulty.away = False
        await anyio.sleep(10)
        assert worker.stats().lease_lost == 1
        assert (await snapshot(queue, mine)).worker == "thief"
    assert any("was rejected" in record.message for record in caplog.records)


async def test_a_worker_goes_on_after_its_store_was_away_for_long() -> None:
    ran = Counter[int]()

    async def note(payload: int) -> None:
        ran[payload] += 1

    faulty = Faulty(loop_store())
    async with open_queue(faulty.store) as queue, new_worker(queue, {"note": note}, lease=LEASE) as worker:
        first, second = Task(task_type="note", payload=1), Task(task_type="note", payload=2)
        await queue.enqueue(first)
        await until(queue, first, "completed")
        faulty.away = True
        await anyio.sleep(1000)
        assert worker.stats().away
        faulty.away = False
        await queue.enqueue(second)
        await until(queue, second, "completed")
        assert not worker.stats().away
    assert ran == {1: 1, 2: 1}


async def test_finishes_are_kept_while_the_store_is_away_and_sent_later() -> None:
    faulty = Faulty(loop_store())
    ran = Counter[int]()

    async def note(payload: int) -> int:
        await anyio.sleep(1)
        ran[payload] += 1
        return payload

    async with open_queue(faulty.store) as queue, new_worker(queue, {"note": note}, lease=30.0) as worker:
        tasks = [Task(task_type="note", payload=number) for number in range(5)]
        await queue.enqueue_many(tasks)
        await until(queue, tasks[-1], "in_flight")
        faulty.away = True
        await anyio.sleep(15)
        assert worker.stats().unsent == 5
        faulty.away = False
        for each in tasks:
            assert await queue.handle(each.task_id).result() == each.payload
    assert set(ran.values()) == {1}


# By chance, because every third call might always be the same one.
EVERY: dict[str, Callable[[int, float], bool]] = {
    "a third": lambda _, chance: chance < 1 / 3,
    "two thirds": lambda _, chance: chance < 2 / 3,
    "the first ten": lambda number, _: number <= 10,
}


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("which", EVERY)
async def test_calls_of_the_store_that_fail_lose_nothing_and_run_nothing_twice(which: str, how: str) -> None:
    ran = Counter[int]()

    async def note(payload: int) -> int:
        ran[payload] += 1
        await anyio.sleep(0.5 * (payload % 3))
        if payload % 7 == 3 and ran[payload] == 1:
            raise ValueError("once")
        return payload

    chance = random.Random(7)
    faulty = Faulty(loop_store(), lambda _, number: how if EVERY[which](number, chance.random()) else None)
    async with open_queue(faulty.store, retry_timeout=1000.0) as queue:
        tasks = [Task(task_type="note", payload=number) for number in range(30)]
        await queue.enqueue_many(tasks)
        # A claim whose answer is lost twenty times in turn is not answered for two minutes: leases last longer.
        async with new_worker(queue, {"note": note}, lease=1000.0, concurrency=7):
            for each in tasks:
                assert await queue.handle(each.task_id).result() == each.payload
        size = await queue.size()
    assert (size.completed, size.in_flight) == (30, 0)
    assert ran == {number: 2 if number % 7 == 3 else 1 for number in range(30)}


class Interrupt:
    """At call number `at` of the store, once armed, it ends the worker: before the call takes effect, or after."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.calls = at, how, 0
        self.end: Callable[[], object] | None = None

    async def around(self, name: str, call: Callable[[], Any]) -> Any:
        if self.end is None:
            return await call()
        self.calls += 1
        if self.calls != self.at:
            return await call()
        if self.how == "before":
            self.end()
            return await call()
        answer = await call()
        self.end()
        await anyio.lowlevel.checkpoint()  # the answer is lost here
        return answer

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        return call() if name == "beat" else self.around(name, call)


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("end", ["cancel", "kill"])
async def test_a_worker_that_is_ended_at_any_call_of_the_store_leaves_nothing_in_flight(end: str, how: str) -> None:
    ran: list[int] = []

    async def note(payload: int) -> int:
        await anyio.sleep(0.1 * payload)
        ran.append(payload)
        return payload

    for k in range(1, 31):
        ran.clear()
        interrupt = Interrupt(k, how)
        async with open_queue(cast("Store", Wrapped(loop_store(), interrupt))) as queue:
            tasks = [Task(task_type="note", payload=number, max_retries=1, max_crashes=1) for number in range(6)]
            await queue.enqueue_many(tasks)
            worker = new_worker(queue, {"note": note}, concurrency=2)
            with anyio.move_on_after(30) as scope:
                interrupt.end = scope.cancel if end == "cancel" else partial(kill, worker)
                with suppress(WorkerDied):
                    await worker.run()
            interrupt.end = None
            size = await queue.size()
            assert (size.in_flight, size.dead_letter) == (0, 0), k
            if end == "cancel":
                assert size.completed == len(ran), k
            async with new_worker(queue, {"note": note}):
                for each in tasks:
                    await until(queue, each, "completed")
            assert sorted(set(ran)) == list(range(6)), k
            assert len(ran) == 6 or end == "kill"


def kill(worker: TaskWorker) -> None:
    ref = worker._ref
    assert ref is not None
    ref._cell.kill("by the test")


async def test_a_finish_that_the_store_chokes_on_does_not_keep_the_others_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = loop_store()

    exchange = store.exchange
    poison: list[str] = []

    async def choke(finishes: Any, claim: Claim | None = None) -> Any:
        if any(finish.id in poison and finish.epoch == 1 for finish in finishes):
            raise OverflowError("too large for this store")
        return await exchange(finishes, claim)

    store.exchange = choke  # type: ignore[method-assign]

    async def note(payload: int) -> int:
        await anyio.sleep(1)
        return payload

    async with open_queue(store) as queue, new_worker(queue, {"note": note}, lease=LEASE):
        tasks = [Task(task_type="note", payload=number, max_crashes=9) for number in range(8)]
        poison.append(tasks[3].task_id)
        await queue.enqueue_many(tasks)
        for each in tasks:
            assert await queue.handle(each.task_id).result() == each.payload
        assert (await snapshot(queue, tasks[3])).counts.crashes == 1
    assert any("drops the finish" in record.message for record in caplog.records)


async def test_a_task_that_was_claimed_ahead_and_is_cancelled_or_lost_is_never_begun() -> None:
    ran: list[Any] = []
    arranged: list[str] = []
    store = loop_store()

    async def run(payload: Any) -> None:
        ran.append(payload)
        loop = worker._worker_loop
        assert loop is not None
        if len(loop.slots.waiting) < 3 or arranged:
            await anyio.sleep(0.001)
            return
        stolen, cancelled = list(loop.slots.waiting)[1:3]
        arranged.extend((stolen.record.id, cancelled.record.id))
        assert await queue.cancel(cancelled.record.id) == "cancelling"
        loop.handle_lease_events(Beat([(stolen.record.id, stolen.epoch)], [(cancelled.record.id, cancelled.epoch)]))

    async with (
        open_queue(store) as queue,
        new_worker(queue, {"run": run}, lease=LEASE, concurrency=2) as worker,
    ):
        tasks = [Task(task_id=f"t{number}", task_type="run", payload=f"t{number}") for number in range(300)]
        await queue.enqueue_many(tasks)
        for each in tasks:
            if each.task_id not in arranged:
                await until(queue, each, "completed")
        assert arranged
        stolen, cancelled = arranged
        assert not {stolen, cancelled} & set(ran)
        assert (await snapshot(queue, cancelled)).state == "cancelled"
        assert worker.stats().lease_lost == 1
        kept = await until(queue, stolen, "completed")  # by a later claim: this one never had it
        assert (kept.counts.crashes, ran.count(stolen)) == (1, 1)
