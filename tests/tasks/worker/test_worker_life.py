"""The life of a worker: how it takes work, and how it ends without losing any."""

from __future__ import annotations

import time
from collections import Counter
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolClosed, RestartLimitExceeded, WorkerDied
from cuelight.supervision import ActorSystem
from cuelight.tasks import Task, TaskQueue, TaskWorker
from cuelight.tasks._worker import _housekeeping
from helpers.workers import loop_store, new_worker, open_queue, snapshot, until


class Gate:
    """A handler whose tasks run until the gate is opened; it knows how many run, and who was cut off."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.began: list[Any] = []
        self.cut: list[Any] = []
        self.running = self.most = 0

    async def pass_through(self, payload: Any) -> Any:
        self.began.append(payload)
        self.running += 1
        self.most = max(self.most, self.running)
        through = False
        try:
            await self.opened.wait()
            through = True
        finally:
            self.running -= 1
            if not through:
                self.cut.append(payload)
        return payload


async def fill(queue: TaskQueue, count: int, **fields: Any) -> list[Task]:
    tasks = [Task(task_type="gate", payload=number, **fields) for number in range(count)]
    await queue.enqueue_many(tasks)
    return tasks


async def settle() -> None:
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("concurrency", [1, 3, 40])
async def test_never_more_than_concurrency_run_at_once_and_all_slots_are_used(concurrency: int) -> None:
    gate = Gate()
    async with open_queue() as queue:
        tasks = await fill(queue, 50)
        async with new_worker(queue, {"gate": gate.pass_through}, concurrency=concurrency) as worker:
            await settle()
            assert worker.stats().running == concurrency
            gate.opened.set()
            for each in tasks:
                await until(queue, each, "completed")
        assert gate.most == concurrency
        assert sorted(gate.began) == list(range(50))


async def test_a_worker_with_full_slots_leaves_the_rest_to_others() -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 10)
        async with new_worker(queue, {"gate": gate.pass_through}, concurrency=3):
            await anyio.sleep(5)
            size = await queue.size()
            assert (size.in_flight, size.pending) == (3, 7)
            gate.opened.set()


async def test_what_was_claimed_ahead_and_not_begun_goes_back() -> None:
    gate = Gate()
    quick = Counter[str]()

    async def blink(_: Any) -> None:
        quick["ran"] += 1
        await anyio.sleep(0.001)

    async with open_queue() as queue:
        await queue.enqueue_many([Task(task_type="blink") for _ in range(200)])
        await fill(queue, 20)
        async with new_worker(queue, {"gate": gate.pass_through, "blink": blink}, concurrency=5) as worker:
            await anyio.sleep(5)
            size = await queue.size()
            assert (size.in_flight, size.pending, worker.stats().waiting) == (5, 15, 0)
            gate.opened.set()
    assert quick["ran"] == 200


async def test_leaving_the_block_lets_what_runs_end_and_begins_nothing_new() -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 9)
        async with anyio.create_task_group() as group:
            async with new_worker(queue, {"gate": gate.pass_through}, concurrency=4):
                await settle()
                group.start_soon(open_later, gate, 3.0)
            assert anyio.current_time() == pytest.approx(3.0, abs=0.3)
        size = await queue.size()
        assert (size.completed, size.pending, size.in_flight) == (4, 5, 0)
        assert (len(gate.began), gate.cut) == (4, [])


async def open_later(gate: Gate, seconds: float) -> None:
    await anyio.sleep(seconds)
    gate.opened.set()


async def test_what_does_not_end_in_time_is_cancelled_and_given_back_which_costs_no_attempt() -> None:
    gate = Gate()
    async with open_queue() as queue:
        tasks = await fill(queue, 3, max_retries=1, max_crashes=1)
        async with new_worker(queue, {"gate": gate.pass_through}, concurrency=2, shutdown_timeout=4) as worker:
            await settle()
        assert anyio.current_time() == pytest.approx(4.0, abs=0.3)
        assert sorted(gate.cut) == [0, 1]
        assert worker.stats().released == 2
        kept = await snapshot(queue, tasks[0])
        assert (kept.state, kept.counts.released, kept.counts.errors, kept.counts.crashes) == ("pending", 1, 0, 0)
        assert kept.history[0].kind == "released"
        gate.opened.set()
        async with new_worker(queue, {"gate": gate.pass_through}):
            for each in tasks:
                await until(queue, each, "completed")


async def test_an_exception_in_the_block_gives_all_back_at_once() -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 3)
        with pytest.raises(ValueError, match="mine"):
            async with new_worker(queue, {"gate": gate.pass_through}):
                await settle()
                raise ValueError("mine")
        assert anyio.current_time() < 0.5
        size = await queue.size()
        assert (size.pending, size.in_flight, len(gate.cut)) == (3, 0, 3)


async def test_cancelling_run_lets_what_runs_end() -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 3)
        worker = new_worker(queue, {"gate": gate.pass_through}, concurrency=2)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            await settle()
            group.start_soon(shielded, open_later, gate, 2.0)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        size = await queue.size()
        assert (size.completed, size.pending, size.in_flight) == (2, 1, 0)


async def shielded(function: Any, *args: Any) -> None:
    with anyio.CancelScope(shield=True):
        await function(*args)


async def test_the_end_of_the_system_ends_the_worker_first_and_then_the_queue() -> None:
    gate, store, workers = Gate(), loop_store(), list[TaskWorker]()
    async with anyio.create_task_group() as group, open_queue(store, shutdown_timeout=30) as queue:
        await fill(queue, 3)
        workers.append(new_worker(queue, {"gate": gate.pass_through}, concurrency=2))
        group.start_soon(workers[0].run)
        await settle()
        gate.opened.set()
    assert workers[0].stats().succeeded in {2, 3}
    await store.open()
    size = await store.size()
    assert (size.in_flight, size.completed + size.pending) == (0, 3)


async def test_killing_the_worker_gives_all_back_at_once_and_its_block_hears_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 3)
        worker = new_worker(queue, {"gate": gate.pass_through}, worker_id="w")
        with pytest.raises(WorkerDied, match=r"the worker 'w' has ended, killed \(no more\): it takes no more tasks"):
            async with worker:
                await settle()
                ref = worker._ref
                assert ref is not None
                await ref.kill("no more")
                await anyio.sleep(1000)
        assert anyio.current_time() < 100, "the block was cancelled"
        size = await queue.size()
        assert (size.pending, size.in_flight, len(gate.cut)) == (3, 0, 3)
        assert repr(worker) == "<TaskWorker w: off>"
        [record] = [record for record in caplog.records if "has ended, killed" in record.getMessage()]
        assert (record.levelname, getattr(record, "worker_id", "")) == ("ERROR", "w")
        gate.opened.set()
        async with worker:  # and it can be started again
            assert await queue.drain(100)


async def test_a_worker_that_runs_says_that_it_was_killed() -> None:
    async with open_queue() as queue, anyio.create_task_group() as group:
        worker = new_worker(queue, handler=print)

        async def kill() -> None:
            while worker._ref is None:
                await anyio.lowlevel.checkpoint()
            await worker._ref.kill()

        group.start_soon(kill)
        with pytest.raises(WorkerDied):
            await worker.run()


async def test_an_error_of_the_block_of_a_worker_that_was_killed_is_what_leaves_it() -> None:
    async with open_queue() as queue:
        with pytest.raises(ValueError, match="of the block"):
            async with new_worker(queue, handler=print) as worker:
                assert worker._ref is not None
                await worker._ref.kill()
                raise ValueError("of the block")


async def test_a_block_that_is_cancelled_from_outside_says_nothing_of_its_worker() -> None:
    async with open_queue() as queue:
        with anyio.CancelScope() as scope:
            async with new_worker(queue, handler=print) as worker:
                assert worker._ref is not None
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await worker._ref.kill()
                await anyio.sleep(1)
        assert scope.cancelled_caught


async def test_a_worker_that_crashes_too_often_fails_the_system_that_it_lives_in() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with open_queue() as queue, new_worker(queue, handler=print) as worker:
            for _ in range(10):
                assert worker._ref is not None
                worker._ref._cell.fail_with(RuntimeError("arranged"))
                await anyio.sleep(1)
    assert raised.group_contains(RestartLimitExceeded)


async def test_tasks_find_the_context_in_which_their_worker_was_started_and_not_that_of_a_producer() -> None:
    request: ContextVar[str] = ContextVar("request", default="nobody's")

    async def look(_: Any) -> str:
        return request.get()

    def look_in_thread(_: Any) -> str:
        return request.get()

    async def send(queue: TaskQueue, whose: str, kind: str) -> str:
        request.set(whose)
        mine = Task(task_type=kind)
        await queue.enqueue(mine)
        return str(await queue.handle(mine.task_id).result())

    async with open_queue() as queue:
        request.set("the worker's")
        async with new_worker(queue, {"async": look, "thread": look_in_thread}) as worker:
            request.set("nobody's")
            for kind in ("async", "thread"):
                for whose in ("a", "b"):
                    assert await send(queue, whose, kind) == "the worker's"
            assert worker._ref is not None
            worker._ref._cell.fail_with(RuntimeError("arranged"))  # it is restarted
            await anyio.sleep(1)
            assert await send(queue, "c", "async") == "the worker's"


async def test_a_worker_can_be_entered_again_after_its_block_but_not_twice_at_once() -> None:
    gate = Gate()
    gate.opened.set()
    async with open_queue() as queue:
        worker = new_worker(queue, {"gate": gate.pass_through})
        for _ in range(2):
            async with worker:
                with pytest.raises(RuntimeError, match="is already running"):
                    await worker.__aenter__()
                for each in await fill(queue, 1):
                    await until(queue, each, "completed")
        assert worker.stats().succeeded == 2


async def test_two_workers_share_a_queue_and_nothing_runs_twice() -> None:
    ran = Counter[int]()

    async def note(payload: int) -> None:
        ran[payload] += 1
        await anyio.sleep(0.01)

    async with open_queue() as queue:
        tasks = [Task(task_type="note", payload=number) for number in range(300)]
        await queue.enqueue_many(tasks)
        async with new_worker(queue, {"note": note}, concurrency=10), new_worker(queue, {"note": note}, concurrency=10):
            for each in tasks:
                await until(queue, each, "completed")
    assert set(ran.values()) == {1}
    assert len(ran) == 300


async def test_delayed_tasks_begin_when_they_are_due() -> None:
    began: list[float] = []

    async def note(_: Any) -> None:
        began.append(anyio.current_time())

    async with open_queue() as queue, new_worker(queue, {"note": note}):
        mine = Task(task_type="note", delay=7.5)
        await queue.enqueue(mine)
        await until(queue, mine, "completed")
    assert began == [pytest.approx(7.5, abs=0.05)]


async def test_a_paused_queue_is_not_asked_in_circles() -> None:
    gate = Gate()
    async with open_queue() as queue, new_worker(queue, {"gate": gate.pass_through}) as worker:
        await queue.pause()
        tasks = await fill(queue, 1)
        before = worker.stats().last_claim
        await anyio.sleep(60)
        assert not gate.began
        assert worker.stats().last_claim > before + 50
        gate.opened.set()
        await queue.resume()
        await until(queue, tasks[0], "completed")


async def test_an_idle_worker_keeps_asking() -> None:
    async with open_queue() as queue, new_worker(queue, handler=print) as worker:
        await anyio.sleep(100)
        assert worker.stats().last_claim >= queue.store.now() - 10


async def test_a_worker_without_a_queue_says_what_it_lacks() -> None:
    worker = new_worker(None, handler=print)
    with pytest.raises(PoolClosed, match="has no queue"):
        await worker.process_one()
    with pytest.raises(PoolClosed, match="has no queue"):
        await worker.run()
    assert "off" in repr(worker)


async def test_a_task_may_ask_and_be_told_of_no_deadlock_with_its_neighbours() -> None:
    order: list[str] = []

    async def parent(_: Any) -> str:
        mine = Task(task_type="child")
        await queue.enqueue(mine)
        order.append("parent waits")
        result: str = await queue.handle(mine.task_id).result()
        return result

    async def kid(_: Any) -> str:
        order.append("child ran")
        return "from the child"

    async with open_queue() as queue, new_worker(queue, {"parent": parent, "child": kid}, concurrency=2):
        mine = Task(task_type="parent")
        await queue.enqueue(mine)
        assert await queue.handle(mine.task_id).result() == "from the child"
    assert order == ["parent waits", "child ran"]


async def test_an_error_inside_a_worker_is_survived_by_a_restart_and_costs_no_attempt() -> None:
    gate = Gate()
    async with open_queue() as queue, new_worker(queue, {"gate": gate.pass_through}, concurrency=2) as worker:
        tasks = await fill(queue, 5, max_crashes=1, max_retries=1)
        await settle()
        loop = worker._worker_loop
        assert loop is not None

        def fail() -> None:
            raise AssertionError("arranged")

        loop.slots.next_lease = fail  # type: ignore[method-assign]
        gate.opened.set()
        for each in tasks:
            assert (await until(queue, each, "completed")).counts.crashes == 0
        assert worker._worker_loop is not loop


async def test_what_goes_wrong_beside_the_tasks_does_not_end_them(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.opened.set()

    async def fail(*_: Any) -> Any:
        raise OSError("arranged")

    async with open_queue() as queue:
        store: Any = queue.store
        store.unpark = store.schedules = fail
        changed = store.changed
        store.changed = fail
        async with new_worker(queue, {"gate": gate.pass_through}):
            await anyio.sleep(100)
            store.changed = changed
            for each in await fill(queue, 3):
                await until(queue, each, "completed")
        assert (await queue.size()).in_flight == 0
    for what in ("could not look for parked", "could not fire", "cannot watch"):
        assert what in caplog.text


def test_a_blocking_queue_is_refused_with_the_way_out() -> None:
    with TaskQueue() as queue:
        given: Any = queue
        with pytest.raises(TypeError, match="needs an async TaskQueue"):
            new_worker(given, handler=print)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_that_blocks_the_loop_is_reported_with_where_it_stands(
    backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_housekeeping, "BLOCKED_AFTER", 0.1)

    async def block(_: Any) -> None:
        give_up = time.monotonic() + 20
        while "has been blocked" not in caplog.text and time.monotonic() < give_up:
            time.sleep(0.01)  # noqa: ASYNC251 - what this is about

    async def main() -> None:
        async with TaskQueue() as queue, TaskWorker(queue, {"block": block}, worker_id="w"):
            mine = Task(task_type="block")
            await queue.enqueue(mine)
            await queue.handle(mine.task_id).result(timeout=30)

    anyio.run(main, backend=backend)
    [report] = [record.getMessage() for record in caplog.records if "has been blocked" in record.message]
    assert "the event loop of w has been blocked for" in report
    assert "1 tasks run in it and their leases are kept" in report
    assert "in block\n" in report


async def test_a_worker_that_could_not_begin_can_be_entered_later() -> None:
    async with ActorSystem("test", slow_after=None) as system:
        queue = TaskQueue(loop_store(), system=system)
        worker = new_worker(queue, handler=print)
        await queue.ready()
    for _ in range(2):
        with pytest.raises(PoolClosed, match="its system has ended"):
            await worker.__aenter__()
    await worker.__aexit__(None, None, None)


async def test_a_store_that_is_closed_under_a_worker_ends_it_and_the_finishes_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    async with open_queue() as queue:
        await fill(queue, 3)
        async with new_worker(queue, {"gate": gate.pass_through}, concurrency=3, worker_id="w"):
            await settle()
            await queue.store.close()
            gate.opened.set()
            await settle()
        assert "w: its store was closed with 3 unsent finishes" in caplog.text
