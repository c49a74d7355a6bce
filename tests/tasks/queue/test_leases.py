"""What a handle has dequeued stays its own as long as it lives, and no longer. On a virtual clock."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest

from cuelight.supervision import ActorSystem
from cuelight.tasks import Beat, Claim, MemoryStore, Store, Task, TaskQueue
from cuelight.tasks._queue._session import QueueActor, RecoverRequests
from cuelight.testing import VIRTUAL_BACKENDS, crash_once, virtual_backend
from helpers import Backend
from helpers.task_queues import flaky


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.fixture
async def store() -> Store:
    return MemoryStore(clock=anyio.current_time)


class Consumer:
    """A queue of one consumer, and what it was told."""

    def __init__(self, store: Store, **options: float) -> None:
        self.lost: list[str] = []
        self.cancelled: list[str] = []
        self.queue = TaskQueue(
            store,
            heartbeat="loop",
            on_lost=lambda task: self.lost.append(task.task_id),
            on_cancel=lambda task: self.cancelled.append(task.task_id),
            lease=options.get("lease", 15.0),
        )


@pytest.fixture
async def consumer(store: Store) -> AsyncIterator[Consumer]:
    consumer = Consumer(store)
    async with consumer.queue:
        yield consumer


async def someone_elses_claim(store: Store) -> list[str]:
    answer = await store.exchange((), Claim("somebody else", str(anyio.current_time()), 10, 3600.0))
    return [lease.record.id for lease in answer.leases]


async def test_a_lease_is_renewed_as_long_as_the_handle_lives(consumer: Consumer, store: Store) -> None:
    await consumer.queue.enqueue(Task(task_id="long"))
    assert await consumer.queue.dequeue() is not None
    for _ in range(10):
        await anyio.sleep(20.0)
        assert await someone_elses_claim(store) == []
    assert await consumer.queue.ack("long")
    assert consumer.lost == []


async def test_a_lost_lease_is_told_and_its_settlement_refused(
    consumer: Consumer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await consumer.queue.enqueue(Task(task_id="stolen"))
    found = await consumer.queue.dequeue()
    assert found is not None
    # As if this process had been stopped for longer than the lease: somebody else has the task now.
    store.beat(consumer.queue.session.worker, [("stolen", 1)], 0.001)
    await anyio.sleep(0.01)
    assert await someone_elses_claim(store) == ["stolen"]
    with caplog.at_level(logging.WARNING):
        await anyio.sleep(6.0)
    assert consumer.lost == ["stolen"]
    assert "has lost its lease of stolen" in caplog.text
    assert consumer.queue.in_flight() == {}
    assert not await consumer.queue.ack(found)
    assert not await consumer.queue.nack(found)
    assert not await consumer.queue.extend(found)


async def test_extend_finds_out_about_a_loss_at_once(consumer: Consumer, store: Store) -> None:
    await consumer.queue.enqueue(Task(task_id="stolen"))
    assert await consumer.queue.dequeue() is not None
    store.beat(consumer.queue.session.worker, [("stolen", 1)], 0.001)
    await anyio.sleep(0.01)
    assert await someone_elses_claim(store) == ["stolen"]
    assert not await consumer.queue.extend("stolen")
    assert consumer.lost == ["stolen"]


async def test_a_late_ack_is_refused_even_before_the_loss_is_known(consumer: Consumer, store: Store) -> None:
    await consumer.queue.enqueue(Task(task_id="stolen"))
    found = await consumer.queue.dequeue()
    assert found is not None
    store.beat(consumer.queue.session.worker, [("stolen", 1)], 0.001)
    await anyio.sleep(0.01)
    assert await someone_elses_claim(store) == ["stolen"]
    assert not await consumer.queue.ack(found)
    assert consumer.queue.in_flight() == {}
    assert consumer.lost == [], "it was told by the answer"


async def test_a_wish_to_cancel_is_told_within_a_second(consumer: Consumer, store: Store) -> None:
    await consumer.queue.enqueue(Task(task_id="unwanted"))
    found = await consumer.queue.dequeue()
    assert found is not None
    await store.cancel(["unwanted"])
    await anyio.sleep(1.0)
    assert consumer.cancelled == ["unwanted"]
    assert not await consumer.queue.nack(found)
    await anyio.sleep(60.0)
    assert consumer.cancelled == ["unwanted"]


async def test_a_callback_that_fails_is_logged_and_harms_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def fail(task: Task) -> None:
        raise ValueError(f"no luck with {task.task_id}")

    async with TaskQueue(store, heartbeat="loop", on_cancel=fail) as queue:
        await queue.enqueue(Task(task_id="unwanted"))
        assert await queue.dequeue() is not None
        with caplog.at_level(logging.ERROR):
            await queue.cancel("unwanted")
            await anyio.sleep(1.0)
        assert "no luck with unwanted" in caplog.text
        assert not await queue.nack("unwanted"), "it is still held, and cancelled now"


async def test_a_store_that_is_away_for_a_whole_lease_costs_the_lease(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(MemoryStore):
        away = False

        def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
            if self.away:
                raise OSError("the store is away")
            return super().beat(worker, leases, lease)

    away = Away(clock=anyio.current_time)
    consumer = Consumer(away, lease=9.0)
    async with consumer.queue:
        await consumer.queue.enqueue(Task(task_id="held"))
        assert await consumer.queue.dequeue() is not None
        away.away = True
        with caplog.at_level(logging.CRITICAL):
            await anyio.sleep(9.0)
        assert consumer.lost == ["held"], "before anybody else may have it"
        away.away = False


async def test_a_lease_may_be_dropped_by_its_store_while_an_ack_waits_for_it(store: Store) -> None:
    broken, behind = flaky(store)
    consumer = Consumer(behind)
    async with consumer.queue:
        await consumer.queue.enqueue(Task(task_id="a"))
        assert await consumer.queue.dequeue() is not None
        broken.fail(1, 2, 3, side="after")
        assert await consumer.queue.ack("a")
        assert consumer.lost == []
        assert consumer.queue.in_flight() == {}


async def test_leases_survive_a_crash_of_the_queues_actor(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer(store)
    async with consumer.queue:
        queue = consumer.queue
        await queue.enqueue_many([Task(task_id="held"), Task(task_id="next")])
        assert await queue.dequeue() is not None
        with crash_once(QueueActor, RecoverRequests), caplog.at_level(logging.CRITICAL):
            assert queue.session.ref is not None
            await queue.session.ref.tell(RecoverRequests())
            await anyio.sleep(1.0)
        assert await someone_elses_claim(store) == ["next"]
        for _ in range(5):
            await anyio.sleep(20.0)
            assert await someone_elses_claim(store) == []
        assert await queue.ack("held")


async def test_what_was_given_up_before_a_crash_is_seen_to_after_it(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    broken, behind = flaky(store)
    async with ActorSystem("demo") as system:
        queue = TaskQueue(behind, system=system, heartbeat="loop", lease=3600.0)
        await queue.enqueue(Task(task_id="a"))
        broken.fail(1, side="after")
        with crash_once(QueueActor, RecoverRequests), caplog.at_level(logging.CRITICAL):
            with anyio.move_on_after(0.001):
                await queue.dequeue()
            await anyio.sleep(5.0)
        assert (await queue.size()).pending == 1


async def test_a_dequeue_that_waits_for_ever_takes_what_a_lost_lease_leaves(store: Store) -> None:
    async with TaskQueue(store, heartbeat="loop") as queue:
        await queue.enqueue(Task(task_id="left"))
        assert (await store.exchange((), Claim("mortal", "1", 1, 30.0))).leases
        began = anyio.current_time()
        found = await queue.dequeue(math.inf)
        assert found is not None
        assert found.counts.crashes == 1
        assert 30.0 <= anyio.current_time() - began < 30.1
