"""A task queue from blocking code, alone and beside async code."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

from cuelight.errors import PoolClosed, QueueFull, TaskFailed, TaskNotFound
from cuelight.pools import TaskStatus
from cuelight.supervision import ActorSystem
from cuelight.tasks import BlockingTaskQueue, Limit, MemoryStore, Query, SQLiteStore, Task, TaskQueue, task
from cuelight.tasks._functions._values import encode

from .conftest import MakeStore


@task(name="double")
def double(number: int) -> int:
    return 2 * number


def taken(queue: BlockingTaskQueue) -> Task:
    found = queue.dequeue(timeout=5.0)
    assert found is not None
    return found


def test_blocking_code_has_the_same_methods(make_store: MakeStore) -> None:
    with TaskQueue(make_store()) as queue:
        queue.ready()
        assert queue.enqueue(Task(task_id="a"))
        assert queue.enqueue_many([Task(task_id="a"), Task(task_id="b", max_retries=1)]) == [False, True]
        first, second = taken(queue), taken(queue)
        assert set(queue.in_flight()) == {"a", "b"}
        assert queue.extend(first)
        assert queue.ack(first, "done")
        assert not queue.nack(second, ValueError("no luck"))
        assert queue.dead_letters.get("b").reason == "errors"
        assert [letter.id for letter in queue.dead_letters] == ["b"]
        found = queue.get("a")
        assert found is not None
        assert found.status == TaskStatus.COMPLETED
        assert queue.drain(1.0)
        assert queue.purge(["a", "b"]) == 2
        assert queue.cancel("a") == "unknown"
        queue.pause()
        queue.resume()
        queue.set_limit(Limit("api", max_concurrent=1))
        queue.clear_limit("api")
        queue.pause_limit("api", 1.0)
        assert queue.every(60, double.task(1)) == "double"
        assert queue.cron("* * * * *", double.task(1), name="minutely") == "minutely"
        assert sorted(one.name for one in queue.schedules()) == ["double", "minutely"]
        assert queue.remove_schedule("double")
        queue.close()
        with pytest.raises(PoolClosed):
            queue.enqueue(Task())
        queue.reopen()
        assert queue.size().pending == 0


def test_results_are_waited_for_from_blocking_code(make_store: MakeStore) -> None:
    with TaskQueue(make_store()) as queue:
        handle = queue.send(double, 21)
        assert handle.is_new
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.01)
        assert handle.status() == TaskStatus.PENDING
        with ThreadPoolExecutor(1) as threads:
            result = threads.submit(handle.result, 5.0)
            queue.ack(taken(queue), 42)
            assert result.result() == 42
        assert handle.task().status == TaskStatus.COMPLETED
        assert queue.handle(handle.task_id, double).result() == 42
        assert handle.cancel() == "finished"
        assert handle.progress() is None
        assert list(handle.updates()) == []
        assert handle.task_id in repr(handle)
        with pytest.raises(TaskNotFound):
            queue.handle("nobody").result()
        failing = queue.send(double.with_options(max_retries=1), 1)
        queue.nack(taken(queue), "no luck")
        with pytest.raises(TaskFailed, match="no luck"):
            failing.result()


def test_progress_is_followed_from_blocking_code() -> None:
    store = MemoryStore()
    with TaskQueue(store) as queue:
        handle = queue.send(double, 1)
        found = taken(queue)
        saved = anyio.run(lambda: store.save(found.task_id, 1, progress=encode(50)))
        assert saved
        updates = handle.updates()
        assert next(updates) == 50
        queue.ack(found, 2)
        assert list(updates) == []


def test_many_threads_share_a_blocking_queue(make_store: MakeStore) -> None:
    done: list[str] = []
    with TaskQueue(make_store()) as queue:

        def produce(producer: int) -> None:
            for number in range(20):
                assert queue.enqueue(Task(task_id=f"{producer}-{number}"))

        def consume() -> None:
            while len(done) < 80:
                found = queue.dequeue(timeout=0.05)
                if found is not None:
                    assert queue.ack(found)
                    done.append(found.task_id)

        threads = [threading.Thread(target=produce, args=(number,)) for number in range(4)]
        threads += [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(done) == sorted(f"{producer}-{number}" for producer in range(4) for number in range(20))


async def test_blocking_and_async_code_share_a_store(make_store: MakeStore) -> None:
    store = make_store()

    def consume() -> list[int]:
        results: list[int] = []
        with TaskQueue(store) as queue:
            for _ in range(5):
                found = taken(queue)
                results.append(found.payload["kwargs"]["number"])
                assert queue.ack(found, 2 * results[-1])
        return results

    async with TaskQueue(store) as queue, anyio.create_task_group() as tasks:
        consumed: list[int] = []

        async def work() -> None:
            consumed.extend(await anyio.to_thread.run_sync(consume))

        tasks.start_soon(work)
        for number in range(5):
            assert await (await queue.send(double, number)).result(10.0) == 2 * number
    async with TaskQueue(store) as queue:
        assert (await queue.size()).completed == 5


def test_a_blocked_call_ends_with_the_block(make_store: MakeStore) -> None:
    ended = threading.Event()
    with TaskQueue(make_store()) as queue:
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            with pytest.raises(PoolClosed):
                queue.dequeue(timeout=60.0)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
    assert ended.wait(5.0)
    thread.join()
    with pytest.raises(PoolClosed):
        queue.enqueue(Task())
    with pytest.raises(PoolClosed):
        queue.dead_letters.count()


def test_leaving_gives_back_what_was_not_settled(make_store: MakeStore) -> None:
    store = make_store()
    with TaskQueue(store) as queue:
        queue.enqueue(Task(task_id="left"))
        taken(queue)
    with TaskQueue(store) as queue:
        assert taken(queue).task_id == "left"


def test_options_reach_the_queue() -> None:
    with TaskQueue(max_length=1, overflow="reject", name="small") as queue:
        queue.enqueue(Task())
        with pytest.raises(QueueFull, match="'small' is full"):
            queue.enqueue(Task())


def test_a_store_that_cannot_be_opened_says_so_on_entering() -> None:
    class Broken(MemoryStore):
        async def open(self) -> None:
            await super().open()
            raise FileNotFoundError("the folder is missing")

    queue = TaskQueue(Broken())
    with pytest.raises(FileNotFoundError, match="missing"), queue:
        raise AssertionError("it was not entered")
    with pytest.raises(PoolClosed, match="entered before"), queue:
        raise AssertionError("it was not entered")


async def test_with_inside_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="async with"), TaskQueue():
        raise AssertionError("it was not entered")
    async with ActorSystem("demo") as system:
        with pytest.raises(PoolClosed, match="lives in a system"), TaskQueue(system=system):
            raise AssertionError("it was not entered")


def test_what_was_enqueued_survives_the_program(tmp_path: object) -> None:
    path = f"{tmp_path}/tasks.db"
    with TaskQueue(SQLiteStore(path)) as queue:
        queue.enqueue(Task(task_id="kept", payload={"n": [1, 2]}, deadline=time.time() + 600))
    with TaskQueue(SQLiteStore(path)) as queue:
        found = taken(queue)
        assert (found.task_id, found.payload) == ("kept", {"n": [1, 2]})
        assert queue.ack(found)


def test_results_of_a_function_are_read_in_pages_from_blocking_code(make_store: MakeStore) -> None:
    with TaskQueue(make_store()) as queue:
        queue.enqueue_many([double.task(number) for number in range(250)])
        queue.enqueue(Task(task_id="other"))
        for number in range(250):
            assert queue.ack(taken(queue), 2 * number)
        assert queue.ack(taken(queue), "of another type")
        results = dict(queue.results(double))
        assert list(results.values()) == [2 * number for number in range(250)]
        assert [found.record.id for found in queue.find(Query(state="completed", type=""))] == ["other"]
