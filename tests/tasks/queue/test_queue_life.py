"""How a queue is opened and closed, and that it leaves nothing behind."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import ActorSystem
from cuelight.errors import PoolClosed, StoreUnavailable, SystemClosed
from cuelight.tasks import MemoryStore, Store, Task, TaskQueue
from cuelight.testing import assert_no_orphans
from helpers.task_queues import flaky

from .conftest import MakeStore


def keeper_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("cuelight leases")]


async def test_a_queue_in_a_system_works_at_once_and_ends_with_it(make_store: MakeStore) -> None:
    async with ActorSystem("demo") as system:
        queue = TaskQueue(make_store(), system=system)
        assert await queue.enqueue(Task())
        found = await queue.dequeue()
        assert found is not None
        assert await queue.ack(found)
        assert queue.system is system
    with pytest.raises(PoolClosed, match="its system has ended"):
        await queue.enqueue(Task())
    assert_no_orphans(system)
    assert keeper_threads() == []


async def test_a_block_around_a_queue_in_a_system_ends_just_the_queue() -> None:
    async with ActorSystem("demo") as system:
        async with TaskQueue(system=system) as queue:
            assert await queue.enqueue(Task())
        with pytest.raises(PoolClosed):
            await queue.dequeue()
        assert system.alive == 1, "the root"
        async with TaskQueue(system=system) as other:
            assert await other.enqueue(Task())


async def test_a_queue_that_is_not_open_shows_the_three_ways() -> None:
    queue = TaskQueue()
    for use in (queue.enqueue(Task()), queue.dequeue(), queue.size(), queue.ready(), queue.drain()):
        with pytest.raises(PoolClosed, match=r"(?s)async with TaskQueue.*with TaskQueue.*TaskQueue\(system=system\)"):
            await use
    for look in (lambda: queue.system, lambda: queue.dead_letters, queue.in_flight, lambda: queue.result_waiters):
        with pytest.raises(PoolClosed, match="not open"):
            look()


async def test_a_queue_is_entered_once(make_store: MakeStore) -> None:
    store = make_store()
    queue = TaskQueue(store)
    async with queue:
        with pytest.raises(PoolClosed, match="entered before"):
            await queue.__aenter__()
        assert await queue.enqueue(Task())
    with pytest.raises(PoolClosed, match="entered before"):
        await queue.__aenter__()
    async with TaskQueue(store) as again:
        assert (await again.size()).pending == 1, "the store outlives the handle"


async def test_a_system_that_does_not_run_takes_no_queue() -> None:
    with pytest.raises(SystemClosed):
        TaskQueue(system=ActorSystem("off"))


async def test_a_store_that_cannot_be_opened_says_so_at_each_call(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStore):
        async def open(self) -> None:
            await super().open()
            raise FileNotFoundError("the folder is missing")

    with caplog.at_level(logging.CRITICAL), pytest.raises(FileNotFoundError, match="missing"):
        async with TaskQueue(Broken()):
            pass
    async with ActorSystem("demo") as system:
        queue = TaskQueue(Broken(), system=system)
        with caplog.at_level(logging.CRITICAL):
            for _ in range(2):
                with pytest.raises(FileNotFoundError, match="missing"):
                    await queue.enqueue(Task())
            with pytest.raises(FileNotFoundError, match="missing"):
                await queue.dequeue()
            async with TaskQueue(system=system) as other:
                assert await other.enqueue(Task()), "the system and all else go on"


async def test_a_store_that_is_away_is_tried_when_it_is_opened() -> None:
    class Away(MemoryStore):
        failures = 2

        async def open(self) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise StoreUnavailable("not yet")
            await super().open()

    async with TaskQueue(Away()) as queue:
        assert await queue.enqueue(Task())
    with pytest.raises(StoreUnavailable):
        async with TaskQueue(Away(), retry_timeout=0):
            pass


async def test_leaving_the_block_gives_back_what_was_not_settled(make_store: MakeStore) -> None:
    store = make_store()
    for error in (None, ValueError("an accident")):
        try:
            async with TaskQueue(store) as queue:
                await queue.enqueue(Task(task_id="left"))
                assert await queue.dequeue() is not None
                if error is not None:
                    raise error
        except ValueError as raised:
            assert raised is error  # noqa: PT017
        async with TaskQueue(store) as queue:
            found = await queue.dequeue()
            assert found is not None
            assert found.task_id == "left"
            assert (found.counts.crashes, found.counts.errors) == (0, 0), "it was no attempt"
            assert await queue.ack(found)
            assert await queue.purge("left") == 1
    assert keeper_threads() == []


async def test_leaving_the_block_ends_all_that_wait(make_store: MakeStore) -> None:
    ended: list[str] = []

    async def wait(queue: TaskQueue, what: str) -> None:
        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "task": lambda: queue.dequeue(math.inf),
            "drained": lambda: queue.drain(scheduled=True),
            "room": lambda: queue.enqueue(Task()),
            "result": queue.handle("tomorrow").result,
            "the same result": queue.handle("tomorrow").result,
        }
        with pytest.raises(PoolClosed):
            await waits[what]()
        ended.append(what)

    whats = ["drained", "result", "room", "task", "the same result"]
    async with anyio.create_task_group() as tasks, TaskQueue(make_store(), max_length=1) as queue:
        await queue.enqueue(Task(task_id="tomorrow", delay=86400.0))
        for what in whats:
            tasks.start_soon(wait, queue, what)
        with anyio.fail_after(5):
            while len(queue.session._waits) < 4:  # one of the two looks for both
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
    assert sorted(ended) == whats


async def test_two_queues_over_one_store_do_not_close_it_for_each_other(make_store: MakeStore) -> None:
    store = make_store()
    async with TaskQueue(store) as first:
        async with TaskQueue(store) as second:
            await first.enqueue(Task(task_id="shared"))
            found = await second.dequeue()
            assert found is not None
            assert not await first.ack(found), "only whoever dequeued it may settle it"
            assert await second.ack(found)
        assert await first.enqueue(Task())
        assert (await first.size()).completed == 1


async def test_a_store_is_opened_and_closed_with_the_handles_that_use_it() -> None:
    events: list[str] = []

    class Seen(MemoryStore):
        async def open(self) -> None:
            events.append("open")
            await super().open()

        async def close(self) -> None:
            events.append("close")
            await super().close()

    store = Seen()

    async def use() -> None:
        for _ in range(5):
            async with TaskQueue(store) as queue:
                await queue.enqueue(Task())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(use)
    assert events.count("open") == 20
    assert events[-1] == "close"
    assert all(before == "open" for before, event in pairwise(events) if event == "close"), "closed once, by the last"


async def test_a_queue_that_comes_while_the_store_is_closing_opens_it_again() -> None:
    class Slow(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.may_close, self.closing = anyio.Event(), anyio.Event()

        async def close(self) -> None:
            self.closing.set()
            await self.may_close.wait()
            await super().close()

    store = Slow()
    entered: list[int] = []

    async def use(number: int) -> None:
        async with TaskQueue(store) as queue:
            assert await queue.enqueue(Task())
            entered.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, 1)
        await store.closing.wait()
        tasks.start_soon(use, 2)
        await anyio.wait_all_tasks_blocked()
        assert entered == [1]
        store.may_close.set()
    assert entered == [1, 2]


async def test_a_claim_that_is_answered_while_the_queue_closes_is_given_back(make_store: MakeStore) -> None:
    """The answer comes to a handle that is closing: nobody may hold the task after that."""
    broken, store = flaky(make_store())
    async with TaskQueue(store) as queue:
        await queue.enqueue(Task(task_id="late"))
        answered, go_on = anyio.Event(), anyio.Event()

        async def late(*args: Any) -> Any:
            answer = await broken._store.exchange(*args)
            answered.set()
            await go_on.wait()
            return answer

        async with anyio.create_task_group() as tasks:

            async def consume() -> None:
                with pytest.raises(PoolClosed):
                    await queue.dequeue()

            broken.instead["exchange"] = late
            tasks.start_soon(consume)
            await answered.wait()
            broken.instead.clear()
            await queue.session.close()
            go_on.set()
    async with TaskQueue(store) as again:
        found = await again.dequeue(5.0)
        assert found is not None
        assert (found.task_id, found.counts.crashes) == ("late", 0)


async def test_a_cancelled_opening_leaves_the_store_to_others() -> None:
    class Slow(MemoryStore):
        opening = 0

        async def open(self) -> None:
            self.opening += 1
            if self.opening == 1:
                await anyio.sleep_forever()
            await super().open()

    store = Slow()
    async with anyio.create_task_group() as tasks:

        async def enter() -> None:
            async with TaskQueue(store):
                raise AssertionError("it cannot open")

        tasks.start_soon(enter)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    async with TaskQueue(store) as queue:
        assert await queue.enqueue(Task())


async def test_a_killed_queue_wakes_those_who_wait_for_it_to_open() -> None:
    class Never(MemoryStore):
        async def open(self) -> None:
            await anyio.sleep_forever()

    ended: list[bool] = []
    async with ActorSystem("demo") as system, anyio.create_task_group() as tasks:
        queue = TaskQueue(Never(), system=system)

        async def use() -> None:
            with pytest.raises(PoolClosed):
                await queue.enqueue(Task())
            ended.append(True)

        tasks.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        system.root.kill("the end")
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
    assert ended == [True]


async def test_a_store_that_is_away_at_the_end_does_not_hold_the_end_up(caplog: pytest.LogCaptureFixture) -> None:
    broken, store = flaky(MemoryStore())
    with caplog.at_level(logging.CRITICAL):
        async with TaskQueue(store) as queue:
            await queue.enqueue(Task())
            assert await queue.dequeue() is not None
            broken.fail(*range(1, 100))
    assert keeper_threads() == []


async def test_a_store_that_somebody_else_closed_harms_nothing_but_the_calls(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    with caplog.at_level(logging.CRITICAL):
        async with TaskQueue(store) as queue:
            await queue.enqueue(Task())
            assert await queue.dequeue() is not None
            await store.close()
            for call in (queue.dequeue, queue.size, lambda: queue.enqueue(Task())):
                with pytest.raises(PoolClosed, match="open"):
                    await call()
    assert keeper_threads() == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 0}, "max_length=0"),
        ({"overflow": "explode"}, "overflow='explode'"),
        ({"lease": 0}, "lease=0"),
        ({"lease": math.inf}, "lease=inf"),
        ({"retry_timeout": -1}, "retry_timeout=-1"),
        ({"heartbeat": "none"}, "heartbeat='none'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], named: str) -> None:
    make: type = TaskQueue
    with pytest.raises(ValueError, match=named):
        make(**options)


async def test_the_store_of_a_queue_is_a_store(queue: TaskQueue) -> None:
    store: Store = queue.store
    assert store.version() >= 0
