"""Tasks that a step hands over to a waiting worker when it adds them, and what happens when that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint as yield_now

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, RedisStore
from cuelight.redis._tasks import _scripts as steps
from cuelight.tasks import Claim, Counts, Exchange, Lease, Limit, Query, TaskQueue, TaskWorker, task
from helpers.redis_servers import shared_server, until
from helpers.stores import START, Driver, HandClock

LENGTH: Final = 15.0
"""Seconds of a lease."""


class Idle:
    """A worker of a store that waits for tasks."""

    def __init__(self, store: RedisStore, name: str = "idle") -> None:
        self.store, self.name = store, name
        self.handed: list[Lease] = []
        self.arrived = anyio.Event()
        self._nonces = count(1)

    def _apply_reply(self, lease: Lease) -> None:
        self.handed.append(lease)
        self.arrived.set()

    def claim(self, most: int = 1, confirmed: tuple[tuple[str, int], ...] = ()) -> Claim:
        nonce = f"{self.name}-{next(self._nonces)}"
        return Claim(self.name, nonce, most, LENGTH, self._apply_reply, confirmed)

    async def wait(self, confirmed: tuple[tuple[str, int], ...] = ()) -> Exchange:
        """Claim, and wait for a task if there is none."""
        self.arrived = anyio.Event()
        claim = self.claim(confirmed=confirmed)
        if not self.store._hand_overs._listeners:
            await self.store.exchange([], self.claim())  # the first one finds no subscription
            await self.store._hand_overs.listen(self.store._server)
        return await self.store.exchange([], claim)

    async def next(self) -> Lease:
        with anyio.fail_after(10):
            await self.arrived.wait()
        return self.handed[-1]


@pytest.fixture
async def other(client: RedisClient, prefix: str, clock: HandClock) -> AsyncIterator[RedisStore]:
    """The store of another process."""
    store = RedisStore(client, prefix=prefix, clock=clock)
    await store.open()
    yield store
    await store.close()


async def commands(client: RedisClient, name: str) -> int:
    info: Any = await client.execute("INFO", "commandstats")
    text = info if isinstance(info, str) else info.decode()
    lines = [line for line in text.splitlines() if line.startswith(f"cmdstat_{name}:")]
    return int(lines[0].split("calls=")[1].split(",")[0]) if lines else 0


async def deafen(store: RedisStore) -> None:
    """Let all messages to the waiting workers of a store be lost."""
    store._hand_overs._on_message = list[bytes]().append  # type: ignore[method-assign, assignment]


async def test_an_idle_worker_is_handed_a_task_by_the_step_that_adds_it(
    store: RedisStore, other: RedisStore, desk: Driver
) -> None:
    worker = Idle(store)
    assert (await worker.wait()).waits
    await Driver(other, desk.clock).add("a", priority=3, deadline=START + 100, payload=b"bytes")
    lease = await worker.next()
    assert (lease.record.id, lease.record.payload, lease.epoch) == ("a", b"bytes", 1)
    assert lease.expires == START + 1
    there = await desk.snapshot("a")
    assert (there.state, there.worker, there.epoch) == ("in_flight", "idle", 1)
    assert await desk.finish(lease) == "completed"


async def test_a_claim_that_returned_tasks_returns_them_again_whatever_is_added_since(
    store: RedisStore, desk: Driver
) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("x")  # is handed over
    await worker.next()
    await desk.add("a")
    await desk.add("b")
    claim = worker.claim(most=5, confirmed=(("x", 1),))
    first = await store.exchange([], claim)
    assert [lease.record.id for lease in first.leases] == ["a", "b"]
    assert not first.waits
    await desk.add("c")
    again = await store.exchange([], claim)  # as if its answer was lost
    assert [(lease.record.id, lease.epoch) for lease in again.leases] == [("a", 1), ("b", 1)]
    assert await desk.state("c") == "pending"


async def test_a_wait_is_served_once(store: RedisStore, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("a")
    await desk.add("b")
    await worker.next()
    assert [await desk.state(task_id) for task_id in "ab"] == ["in_flight", "pending"]
    exchange = await worker.wait(confirmed=(("a", 1),))
    assert [lease.record.id for lease in exchange.leases] == ["b"]


async def test_a_confirmed_hand_over_lasts_as_long_as_a_claim(store: RedisStore, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("a")
    lease = await worker.next()
    desk.clock.advance(0.5)
    assert (await worker.wait(confirmed=((lease.record.id, lease.epoch),))).leases == []
    assert (await desk.snapshot("a")).due == START + 0.5 + LENGTH
    desk.clock.advance(LENGTH + 1)
    (again,) = await desk.claim()
    assert (again.epoch, again.counts.crashes) == (2, 1), "it counts as a crash as any other lease does"


async def test_a_beat_confirms_a_hand_over_too(store: RedisStore, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("a")
    await worker.next()
    assert store.beat("idle", [("a", 1)], LENGTH).lost == []
    assert (await desk.snapshot("a")).due == START + LENGTH
    desk.clock.advance(2)
    assert await desk.claim() == []


async def test_a_hand_over_that_is_not_confirmed_ends_after_a_second_and_counts_no_crash(
    store: RedisStore, desk: Driver
) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("a", max_crashes=1)
    stale = await worker.next()
    assert await desk.claim() == []
    desk.clock.advance(1)
    (lease,) = await desk.claim(worker="other")
    assert (lease.record.id, lease.epoch, lease.counts.crashes) == ("a", 2, 0)
    assert await desk.finish(stale) == "", "its epoch is over"
    assert (await desk.snapshot("a")).history == ()


async def test_a_cancelled_task_that_nobody_confirms_is_cancelled(store: RedisStore, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    await desk.add("a")
    assert await store.cancel(["a"]) == ["cancelling"]
    desk.clock.advance(1)
    assert await desk.claim() == []
    assert await desk.state("a") == "cancelled"


async def test_a_hand_over_that_got_lost_is_returned_by_the_next_claim(store: RedisStore, desk: Driver) -> None:
    await deafen(store)
    worker = Idle(store)
    await worker.wait()
    await desk.add("a")
    assert await desk.state("a") == "in_flight"
    exchange = await worker.wait()
    assert [(lease.record.id, lease.epoch, lease.expires) for lease in exchange.leases] == [("a", 1, START + LENGTH)]
    desk.clock.advance(2)
    assert await desk.claim() == []


async def test_a_hand_over_that_comes_too_late_is_not_passed_on(store: RedisStore, desk: Driver) -> None:
    worker, messages = Idle(store), list[bytes]()
    arrives = store._hand_overs._on_message
    store._hand_overs._on_message = messages.append  # type: ignore[method-assign, assignment]
    await worker.wait()
    await desk.add("a")
    await until(lambda: messages)
    desk.clock.advance(1)
    arrives(messages[0])
    assert worker.handed == []
    assert [lease.epoch for lease in await desk.claim(worker="other")] == [2]


async def test_a_claim_whose_answer_was_lost_returns_what_was_handed_over_since(
    store: RedisStore, desk: Driver
) -> None:
    worker = Idle(store)
    await worker.wait()
    claim = worker.claim()
    send = store._send

    async def lose(call: Any) -> Any:
        await send(call)
        raise StoreUnavailable("the answer is lost")

    store._send = lose  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await store.exchange([], claim)
    store._send = send  # type: ignore[method-assign]
    await desk.add("a")
    assert await desk.state("a") == "in_flight"
    exchange = await store.exchange([], claim)
    assert [(lease.record.id, lease.epoch) for lease in exchange.leases] == [("a", 1)]
    assert worker.handed == []
    assert (await desk.snapshot("a")).due == START + LENGTH


async def test_a_hand_over_that_overtakes_the_answer_is_passed_on_once(store: RedisStore, desk: Driver) -> None:
    worker, send, seen = Idle(store), store._send, anyio.Event()
    arrives = store._hand_overs._on_message

    def hear(message: bytes) -> None:
        arrives(message)
        seen.set()

    async def delay(call: Any) -> Any:
        reply = await send(call)
        if call.script is steps.EXCHANGE:
            await desk.add("a")
            with anyio.move_on_after(10):
                await seen.wait()
        return reply

    store._hand_overs._on_message = hear  # type: ignore[method-assign]
    await worker.wait()
    store._send = delay  # type: ignore[method-assign]
    exchange = await store.exchange([], worker.claim())
    store._send = send  # type: ignore[method-assign]
    assert exchange.leases == []
    assert [lease.record.id for lease in worker.handed] == ["a"]


async def test_a_task_that_comes_while_the_worker_claims_is_given_once(store: RedisStore, desk: Driver) -> None:
    """Its message is ignored: the answer contains the task."""
    worker = Idle(store)
    await worker.wait()
    send = store._send

    async def before(call: Any) -> Any:
        if call.script is steps.EXCHANGE:
            await desk.add("a")
            await anyio.sleep(0.02)
        return await send(call)

    store._send = before  # type: ignore[method-assign]
    exchange = await store.exchange([], worker.claim())
    store._send = send  # type: ignore[method-assign]
    assert [lease.record.id for lease in exchange.leases] == ["a"]
    assert worker.handed == []


async def test_workers_that_wait_take_turns(store: RedisStore, other: RedisStore, desk: Driver) -> None:
    first, second = Idle(store, "first"), Idle(other, "second")
    await first.wait()
    desk.clock.advance(0.1)
    await second.wait()
    await desk.add("a")
    await desk.add("b")
    assert (await first.next()).record.id == "a"
    assert (await second.next()).record.id == "b"


async def test_a_worker_that_is_gone_is_passed_over(store: RedisStore, other: RedisStore, desk: Driver) -> None:
    gone, there = Idle(store, "gone"), Idle(other, "there")
    await gone.wait()
    desk.clock.advance(0.1)
    await there.wait()
    subscription = next(iter(store._hand_overs._listeners.values())).subscription
    assert subscription is not None
    subscription.close()
    channel = next(iter(store._hand_overs._listeners.values())).channel
    with anyio.fail_after(10):
        while (await other._server.execute("PUBSUB", "NUMSUB", channel))[1]:
            await yield_now()
    await desk.add("a")
    assert (await there.next()).record.id == "a"
    await desk.add("b")
    assert await desk.state("b") == "pending", "nobody waits any more"


async def test_a_wait_is_forgotten_after_some_seconds(store: RedisStore, client: RedisClient, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    assert 0 < await client.execute("TTL", str(store._keys[-1])) <= 6
    desk.clock.advance(6)
    await desk.add("a")
    assert await desk.state("a") == "pending"


async def test_damage_to_the_waits_costs_only_these(store: RedisStore, client: RedisClient, desk: Driver) -> None:
    worker = Idle(store)
    await worker.wait()
    for member in (b"", b"\xc1", b"\x01", b"\x94\x01\x02\x03\x04"):
        await client.zadd(str(store._keys[-1]), {member: START - 1})
    await desk.add("a")
    assert (await worker.next()).record.id == "a"


@pytest.mark.parametrize("what", ["paused", "pending", "due", "ended lease", "limited", "delayed", "two"])
async def test_nothing_is_handed_over_that_a_claim_would_not_give_next(
    store: RedisStore, desk: Driver, what: str
) -> None:
    worker = Idle(store)
    if what == "due":
        await desk.add("before", delay=1.0)
    elif what == "ended lease":
        await desk.add("before")
        await desk.claim(worker="other", lease=1.0)
    elif what == "pending":
        limit = Limit("k", max_concurrent=1)
        await desk.add("x", "before", limits=(limit,))
        await desk.claim(2, worker="other")
    await worker.wait()
    if what == "paused":
        await store.control(paused=True)
    if what in ("due", "ended lease"):
        desk.clock.advance(1.5)
    limited, delayed = {"limits": (Limit("k", max_concurrent=1),)}, {"delay": 1.0}
    fields: dict[str, Any] = limited if what == "limited" else delayed if what == "delayed" else {}
    await desk.add(*("ab" if what == "two" else "a"), **fields)
    assert await desk.state("a") in ("pending", "scheduled")
    assert worker.handed == []


async def test_a_queue_at_rest_hands_over_its_next_task(store: RedisStore, client: RedisClient, desk: Driver) -> None:
    await desk.add("before", result_ttl=1.0)
    (lease,) = await desk.claim()
    await desk.finish(lease)
    worker = Idle(store)
    await worker.wait()
    assert await client.hget(str(store._keys[0]), "resting") == b"1"
    await desk.add("a")
    assert (await worker.next()).record.id == "a"
    assert await client.hget(str(store._keys[0]), "resting") == b"0"
    assert await client.execute("TTL", str(store._keys[1])) == -1


async def test_a_worker_that_claims_without_a_function_is_handed_nothing(store: RedisStore, desk: Driver) -> None:
    exchange = await desk.exchange([])
    assert not exchange.waits
    await desk.add("a")
    assert await desk.state("a") == "pending"


async def test_a_server_that_refuses_the_channel_costs_only_hand_overs(
    store: RedisStore, desk: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*args: Any, **options: Any) -> Any:
        raise StoreRefused("NOPERM")

    subscribe, store._server.subscribe = store._server.subscribe, refuse  # type: ignore[method-assign]
    try:
        await store.exchange([], Idle(store).claim())
        await store._hand_overs.listen(store._server)
        assert not (await store.exchange([], Idle(store).claim())).waits
    finally:
        store._server.subscribe = subscribe  # type: ignore[method-assign]
    assert "no tasks are handed over" in caplog.text


# Whole workers

ran: list[int] = []
may_end: dict[int, anyio.Event] = {}


@task(name="note")
async def note(number: int) -> None:
    ran.append(number)


@task(name="hold")
async def hold(number: int) -> None:
    await may_end[number].wait()
    ran.append(number)


async def waiting(client: RedisClient, store: RedisStore, number: int = 1) -> None:
    with anyio.fail_after(10):
        while await client.execute("ZCARD", str(store._keys[-1])) < number:
            await yield_now()


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_an_idle_worker_runs_what_it_is_handed(client: RedisClient, prefix: str, concurrency: int) -> None:
    ran.clear()
    url = shared_server().url
    producer, consumer = RedisStore(url, prefix=prefix), RedisStore(url, prefix=prefix)
    async with TaskQueue(producer) as sender, TaskQueue(consumer) as queue:
        async with TaskWorker(queue, [note], concurrency=concurrency):
            for number in range(20):
                await waiting(client, consumer)
                await sender.send(note, number)
                await until(lambda end=number + 1: ran == list(range(end)))  # type: ignore[misc]
            handed = await commands(client, "zpopmin")
        assert handed > 0
        assert (await queue.size()).completed == 20
        assert await client.execute("ZCARD", str(consumer._keys[-1])) == 0, "a worker that has ended does not wait"


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_worker_confirms_a_task_that_takes_long(client: RedisClient, prefix: str, concurrency: int) -> None:
    ran.clear()
    may_end[7] = anyio.Event()
    store = RedisStore(shared_server().url, prefix=prefix)
    async with TaskQueue(store) as queue, TaskWorker(queue, [hold], concurrency=concurrency):
        await waiting(client, store)
        sent = await queue.send(hold, 7)
        with anyio.fail_after(10):
            while True:
                (there,) = await store.get([sent.task_id])
                assert there is not None
                if there.due > store.now() + 5:
                    break
                await yield_now()
        may_end[7].set()
        await sent.result()
        assert (await queue.size()).completed == 1
    assert ran == [7]


async def test_a_task_whose_hand_over_got_lost_runs_all_the_same(client: RedisClient, prefix: str) -> None:
    ran.clear()
    deaf, hearing = (RedisStore(shared_server().url, prefix=prefix) for _ in range(2))
    await deafen(deaf)
    async with TaskQueue(deaf) as queue, TaskQueue(hearing) as sender:
        async with TaskWorker(queue, [note], concurrency=2):
            await waiting(client, deaf)
            for number in range(5):
                await sender.send(note, number)
            with anyio.fail_after(30):
                await sender.drain()
        done = await sender.find(Query(state="completed"))
    assert sorted(ran) == list(range(5))
    assert [there.counts for there in done] == [Counts()] * 5


async def test_a_frozen_worker_keeps_a_task_from_an_idle_one_for_some_seconds_only(
    client: RedisClient, prefix: str
) -> None:
    ran.clear()
    frozen, store = (RedisStore(shared_server().url, prefix=prefix) for _ in range(2))
    await frozen.open()
    worker = Idle(frozen, "frozen")
    async with TaskQueue(store) as queue, TaskWorker(queue, [note]):
        await waiting(client, store)
        await worker.wait()
        # The frozen worker has waited for longer.
        (first, *_) = await client.execute("ZRANGE", str(store._keys[-1]), 0, 0)
        if b"frozen" not in first:
            await client.execute("ZREM", str(store._keys[-1]), first)
        sent = await queue.send(note, 1)
        await worker.next()
        with anyio.fail_after(10):
            await sent.result()
        there = await queue.snapshot(sent.task_id)
        assert there is not None
        assert (there.counts.crashes, there.epoch) == (0, 2)
    assert ran == [1]
    await frozen.close()


async def test_each_task_runs_once_when_workers_come_and_go(client: RedisClient, prefix: str) -> None:
    ran.clear()
    store = RedisStore(shared_server().url, prefix=prefix)
    async with TaskQueue(store) as sender:

        async def come_and_go() -> None:
            for _ in range(8):
                mine = RedisStore(shared_server().url, prefix=prefix)
                async with TaskQueue(mine) as queue, TaskWorker(queue, [note], concurrency=2):
                    await anyio.sleep(0.05)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(come_and_go)
            for number in range(100):
                await sender.send(note, number)
                await anyio.sleep(0.003)
        async with TaskWorker(sender, [note]):
            with anyio.fail_after(20):
                await sender.drain()
    assert sorted(ran) == list(range(100))


async def test_a_worker_that_ends_gives_back_what_it_was_handed(client: RedisClient, prefix: str) -> None:
    ran.clear()
    store = RedisStore(shared_server().url, prefix=prefix)
    await deafen(store)
    async with TaskQueue(store) as queue:
        async with TaskWorker(queue, [note]):
            await waiting(client, store)
            sent = await queue.send(note, 1)
        there = await queue.snapshot(sent.task_id)
        assert there is not None
        assert there.counts.crashes == 0
        assert there.state == "completed" if ran else there.state == "pending"
