"""Leases: who has a task, since which claim, and what an answer that was lost changes."""

import threading
from math import inf

import anyio
import anyio.to_thread

from cuelight.tasks import Claim, Finish, Lease, Record, Schedule, Store
from helpers.stores import START, Driver, HandClock


async def test_a_lease_that_runs_out_is_a_crash_and_the_task_runs_again(driver: Driver, clock: HandClock) -> None:
    await driver.add("a")
    (lost,) = await driver.claim(worker="dead", lease=15)
    assert await driver.wake_at() == START + 15
    clock.advance(14.999)
    assert await driver.claim_ids() == []
    clock.advance(0.001)
    (lease,) = await driver.claim(worker="alive")
    assert (lease.record.id, lease.epoch, lease.counts.crashes, lease.expires) == ("a", 2, 1, START + 30)
    there = await driver.snapshot("a")
    assert (there.history[0].kind, there.history[0].worker, there.worker) == ("crash", "dead", "alive")
    assert await driver.finish(lost) == ""
    assert driver.store.beat("dead", [("a", lost.epoch)], 15).lost == [("a", 1)]
    assert not await driver.store.save("a", lost.epoch, progress=b"x")
    assert await driver.finish(lease) == "completed"


async def test_a_task_that_kills_its_workers_is_quarantined(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", max_crashes=2)
    for _ in range(2):
        assert await driver.claim_ids() == ["a"]
        clock.advance(15)
    assert await driver.claim_ids() == []
    there = await driver.snapshot("a")
    assert (there.state, there.reason, there.counts.crashes) == ("dead_letter", "quarantined", 2)


async def test_a_beat_renews_a_lease(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b")
    a, b = await driver.claim(2)
    clock.advance(10)
    beat = driver.store.beat("w", [("a", a.epoch), ("b", b.epoch), ("b", 9), ("nobody", 1)], 15)
    assert beat.lost == [("b", 9), ("nobody", 1)]
    assert (await driver.snapshot("a")).due == START + 25
    clock.advance(14)
    assert await driver.claim_ids() == []
    assert driver.store.beat("w", [("a", a.epoch)], None).lost == []  # looking renews nothing
    clock.advance(1)
    assert await driver.claim_ids() == ["a", "b"]


async def test_a_beat_may_shorten_a_lease(driver: Driver, clock: HandClock) -> None:
    await driver.add("a")
    (lease,) = await driver.claim(lease=100)
    driver.store.beat("w", [("a", lease.epoch)], 5)
    clock.advance(5)
    assert await driver.claim_ids() == ["a"]


async def test_only_its_own_worker_renews_a_lease(driver: Driver) -> None:
    await driver.add("a")
    (lease,) = await driver.claim(worker="w1")
    assert driver.store.beat("w2", [("a", lease.epoch)], 15).lost == [("a", 1)]


async def test_a_lease_that_ran_out_is_good_until_somebody_has_noticed(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b")
    a, b = await driver.claim(2)
    clock.advance(100)
    assert await driver.finish(a) == "completed"
    assert driver.store.beat("w", [("b", b.epoch)], 15).lost == []
    assert await driver.claim_ids() == []


async def test_finishing_again_after_a_lost_answer_changes_nothing(driver: Driver) -> None:
    await driver.add("a", "b")
    a, b = await driver.claim(2)
    finishes = [Finish("a", a.epoch, result=b"1"), Finish("b", b.epoch, "error")]
    for _ in range(2):
        assert (await driver.store.exchange(finishes)).accepted == ["completed", "pending"]
    assert (await driver.snapshot("b")).counts.errors == 1
    (again,) = await driver.claim()
    assert (await driver.store.exchange(finishes)).accepted == ["completed", "pending"]
    assert await driver.state("b") == "in_flight"
    await driver.finish(again, "timeout")
    assert (await driver.store.exchange(finishes)).accepted == ["completed", ""]


async def test_another_finish_of_the_same_attempt_is_refused(driver: Driver) -> None:
    await driver.add("a")
    (lease,) = await driver.claim()
    assert await driver.finish(lease, "error") == "pending"
    assert await driver.finish(lease, "done") == ""
    assert await driver.finish(lease, "error") == "pending"


async def test_claiming_again_after_a_lost_answer_gives_the_same_leases(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b", "c")
    claim = Claim("w", "once", 2, 15.0)
    first = await driver.store.exchange([], claim)
    await driver.add("urgent", priority=0)
    second = await driver.store.exchange([], claim)
    assert _names(second.leases) == _names(first.leases) == [("a", 1), ("b", 1)]
    await driver.finish(first.leases[0])
    assert _names((await driver.store.exchange([], claim)).leases) == [("b", 1)]
    assert (await driver.store.size()).in_flight == 1
    clock.advance(16)
    assert await driver.claim_ids() == ["urgent", "b", "c"]
    assert _names((await driver.store.exchange([], claim)).leases) == []


def _names(leases: list[Lease]) -> list[tuple[str, int]]:
    return [(lease.record.id, lease.epoch) for lease in leases]


async def test_leases_of_a_claim_that_is_made_again_last_from_then_on(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b", "c")
    claim = Claim("w", "once", 2, 15.0)
    await driver.store.exchange([], claim)
    clock.advance(20)  # the answer was lost, and nobody was there to claim what has run out
    again = await driver.store.exchange([], claim)
    assert [(lease.epoch, lease.expires) for lease in again.leases] == [(1, clock.now + 15.0)] * 2
    clock.advance(14)
    (c,) = await driver.claim()
    assert await driver.finish(c) == "completed"
    assert _names((await driver.store.exchange([], claim)).leases) == [("a", 1), ("b", 1)]
    assert driver.store.beat("w", [("a", 1)], 100.0).lost == []
    assert [lease.expires for lease in (await driver.store.exchange([], claim)).leases] == [
        clock.now + 100.0,  # nobody shortens what was renewed
        clock.now + 15.0,
    ]
    clock.advance(16)
    assert await driver.claim_ids() == ["b"]


async def test_one_exchange_settles_and_claims(driver: Driver) -> None:
    await driver.add("a", "b")
    (a,) = await driver.claim()
    exchange = await driver.exchange([Finish("a", a.epoch, "error"), Finish("nobody", 1)], most=2)
    assert exchange.accepted == ["pending", ""]
    assert _names(exchange.leases) == [("a", 2), ("b", 1)]


async def test_a_claim_of_nothing_still_does_what_time_has_brought(driver: Driver, clock: HandClock) -> None:
    await driver.add("a")
    await driver.claim()
    clock.advance(15)
    assert (await driver.exchange([], most=0)).leases == []
    assert await driver.state("a") == "pending"
    assert await driver.wake_at() == inf


async def test_what_a_store_hands_out_shares_nothing_with_it(driver: Driver) -> None:
    record = Record(id="a", type="t", payload=b"1")
    await driver.store.add([record])
    record.payload = b"2"
    (lease,) = await driver.claim()
    assert lease.record.payload == b"1"
    lease.record.payload = b"3"
    lease.counts.errors = 9
    there = await driver.snapshot("a")
    assert (there.record.payload, there.counts.errors) == (b"1", 0)


async def test_a_clock_that_is_set_back_breaks_nothing(driver: Driver, clock: HandClock) -> None:
    await driver.add("a")
    await driver.add("delayed", delay=5)
    (lease,) = await driver.claim(lease=15)
    clock.advance(-30)  # a small step is waited out
    assert driver.store.now() == START
    assert await driver.claim_ids() == []
    clock.advance(-3600)  # a large one is followed
    assert driver.store.now() == START - 3630
    assert await driver.claim_ids() == []
    assert driver.store.beat("w", [("a", lease.epoch)], 15).lost == []
    clock.advance(3635)
    assert await driver.claim_ids() == ["a", "delayed"]


# Schedules


def _schedule(due: float = START + 10, spec: str = "every 10 s", payload: bytes = b"1") -> Schedule:
    return Schedule(name="s", spec=spec, due=due, record=Record(id="s", type="t", payload=payload))


async def test_each_due_time_of_a_schedule_fires_once(driver: Driver) -> None:
    await driver.store.put_schedule(_schedule())
    assert await driver.store.fire("s", START + 10, START + 20)
    assert not await driver.store.fire("s", START + 10, START + 20)
    assert not await driver.store.fire("nobody", START + 10, START + 20)
    (there,) = await driver.store.schedules()
    assert there.due == START + 20
    (lease,) = await driver.claim(2)
    assert (lease.record.id, lease.record.payload, lease.record.created) == (f"s@{START + 10:.3f}", b"1", START)


async def test_a_schedule_that_is_put_again_keeps_its_due_time(driver: Driver) -> None:
    await driver.store.put_schedule(_schedule())
    await driver.store.put_schedule(_schedule(START + 99, payload=b"2"))
    (there,) = await driver.store.schedules()
    assert (there.due, there.record.payload) == (START + 10, b"2")
    await driver.store.put_schedule(_schedule(START + 99, spec="every 99 s"))
    (there,) = await driver.store.schedules()
    assert (there.due, there.spec) == (START + 99, "every 99 s")
    assert await driver.store.remove_schedule("s")
    assert not await driver.store.remove_schedule("s")
    assert await driver.store.schedules() == []


async def test_schedules_come_by_their_due_times(driver: Driver) -> None:
    for name, due in (("late", 30), ("soon", 10), ("next", 20)):
        record = Record(id=name, type="t")
        await driver.store.put_schedule(Schedule(name=name, spec="", due=START + due, record=record))
    assert [there.name for there in await driver.store.schedules()] == ["soon", "next", "late"]


# Waiting for changes


async def test_whoever_waits_is_woken_by_a_change(driver: Driver) -> None:
    store, woken = driver.store, list[str]()
    since = store.version()

    async def wait(name: str) -> None:
        await store.changed(since, 60)
        woken.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait, "a")
            group.start_soon(wait, "b")
            await anyio.wait_all_tasks_blocked()
            assert woken == []
            await driver.add("x")
        await store.changed(since, 60)  # it has changed already


async def test_a_claim_that_finds_nothing_changes_nothing(driver: Driver) -> None:
    await driver.add("a", delay=60)
    since = driver.store.version()
    assert await driver.claim() == []
    await driver.store.size()
    await driver.store.get(["a"])
    driver.store.beat("w", [("a", 1)], None)
    assert driver.store.version() == since


async def test_waiting_for_a_change_ends_with_its_time(store: Store) -> None:
    with anyio.fail_after(5):
        await store.changed(store.version(), 0.01)
        await store.changed(store.version(), 0)


async def test_waiting_for_a_change_can_be_cancelled(driver: Driver) -> None:
    with anyio.move_on_after(0.01) as scope:
        await driver.store.changed(driver.store.version(), inf)
    assert scope.cancelled_caught
    await driver.add("a")


async def test_closing_wakes_those_who_wait(store: Store) -> None:
    async with anyio.create_task_group() as group:
        with anyio.fail_after(5):
            group.start_soon(store.changed, store.version(), 60)
            await anyio.wait_all_tasks_blocked()
            await store.close()


async def test_several_loops_and_threads_use_one_store(driver: Driver) -> None:
    store, ids = driver.store, [[f"{name}{number}" for number in range(50)] for name in "abc"]
    done: list[str] = []
    lock = threading.Lock()

    async def work(name: int) -> None:
        await store.add([Record(id=task_id, type="t") for task_id in ids[name]])
        finishes: list[Finish] = []
        for turn in range(100):
            exchange = await store.exchange(finishes, Claim(f"w{name}", f"{name}-{turn}", 5, 60.0))
            with lock:
                done.extend(finish.id for finish, state in zip(finishes, exchange.accepted, strict=True) if state)
            finishes = [Finish(lease.record.id, lease.epoch) for lease in exchange.leases]
            pairs = [(finish.id, finish.epoch) for finish in finishes]
            assert store.beat(f"w{name}", pairs, 60.0).lost == []
            if not finishes:
                return

    async def elsewhere(name: int, backend: str) -> None:
        await anyio.to_thread.run_sync(lambda: anyio.run(work, name, backend=backend))

    async with anyio.create_task_group() as group:
        group.start_soon(work, 0)
        group.start_soon(elsewhere, 1, "asyncio")
        group.start_soon(elsewhere, 2, "trio")
    assert sorted(done) == sorted(task_id for some in ids for task_id in some)
    assert (await store.size()).completed == 150
