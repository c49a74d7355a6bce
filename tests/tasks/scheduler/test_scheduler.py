"""The scheduler: who gets a task, who does not, and what becomes of workers that end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cuelight import Actor, ActorSystem, Message, on
from cuelight.tasks import SchedulingStrategy, Task, TaskScheduler, WorkerInfo
from cuelight.tasks._scheduler import Assignments, affinity


class Nothing(Message):
    pass


class Laborer(Actor[Nothing]):
    @on(Nothing)
    def nothing(self, message: Nothing) -> None:
        pass


async def loads(scheduler: TaskScheduler) -> dict[str, int]:
    return {worker.worker_id: worker.current_load for worker in await scheduler.workers()}


async def test_a_scheduler_made_plainly_works_without_a_block() -> None:
    scheduler = TaskScheduler(strategy=SchedulingStrategy.ROUND_ROBIN)
    assert await scheduler.assign(Task()) == ""
    for name in ("c", "a", "b"):
        await scheduler.register_worker(name)
    assert [await scheduler.assign(Task()) for _ in range(5)] == ["a", "b", "c", "a", "b"]
    assert await loads(scheduler) == {"a": 2, "b": 2, "c": 1}
    assert await scheduler.report_completion("a")
    assert await loads(scheduler) == {"a": 1, "b": 2, "c": 1}
    assert await scheduler.unregister_worker("c")
    assert not await scheduler.unregister_worker("c")
    assert not await scheduler.report_completion("c")


async def test_round_robin_goes_on_in_the_same_order_when_workers_come_and_go() -> None:
    scheduler = TaskScheduler()
    for name in ("a", "b", "d"):
        await scheduler.register_worker(name)
    assert await scheduler.assign(Task()) == "a"
    assert await scheduler.assign(Task()) == "b"
    await scheduler.unregister_worker("b")
    await scheduler.register_worker("c")
    assert [await scheduler.assign(Task()) for _ in range(4)] == ["c", "d", "a", "c"]


async def test_a_worker_without_room_is_passed_over_until_it_reports() -> None:
    scheduler = TaskScheduler()
    await scheduler.register_worker("a", max_concurrent=1)
    await scheduler.register_worker("b", max_concurrent=2)
    assert [await scheduler.assign(Task()) for _ in range(4)] == ["a", "b", "b", ""]
    assert await scheduler.report_completion("a")
    assert await scheduler.assign(Task()) == "a"
    assert not await scheduler.report_completion("nobody")


async def test_only_capable_workers_get_a_task_and_those_without_capabilities_take_all() -> None:
    scheduler = TaskScheduler()
    await scheduler.register_worker("gpu", ["render", "train"])
    assert await scheduler.assign(Task(task_type="mail")) == ""
    await scheduler.register_worker("any")
    assert {await scheduler.assign(Task(task_type="mail")) for _ in range(3)} == {"any"}
    assert {await scheduler.assign(Task(task_type="train")) for _ in range(3)} == {"any", "gpu"}


async def test_the_least_loaded_worker_gets_the_task_and_the_first_among_equals() -> None:
    scheduler = TaskScheduler("least_loaded")
    await scheduler.register_worker(WorkerInfo("a", current_load=2))
    await scheduler.register_worker("c")
    await scheduler.register_worker("b")
    assert [await scheduler.assign(Task()) for _ in range(6)] == ["b", "c", "b", "c", "a", "b"]


async def test_affinity_keeps_a_type_with_its_worker_and_gives_way_when_that_is_full() -> None:
    scheduler = TaskScheduler(SchedulingStrategy.AFFINITY)
    await scheduler.register_worker("a")
    await scheduler.register_worker("b", max_concurrent=2)
    await scheduler.set_affinity("train", "b")
    await scheduler.set_affinity("later", "not there yet")
    assert [await scheduler.assign(Task(task_type="train")) for _ in range(3)] == ["b", "b", "a"]
    assert await scheduler.assign(Task(task_type="later")) == "a"
    await scheduler.register_worker("not there yet")
    assert await scheduler.assign(Task(task_type="later")) == "not there yet"
    await scheduler.set_affinity("train", "")
    await scheduler.report_completion("b")
    assert await scheduler.assign(Task(task_type="train")) == "b"  # the least loaded, the first among equals
    assert await loads(scheduler) == {"a": 2, "b": 2, "not there yet": 1}


async def test_tasks_with_one_key_go_to_one_worker_and_few_move_when_a_worker_leaves() -> None:
    scheduler = TaskScheduler("affinity", key=lambda task: str(task.payload))
    for number in range(5):
        await scheduler.register_worker(f"w{number}", max_concurrent=1000)

    async def places() -> dict[int, str]:
        return {user: await scheduler.assign(Task(payload=user)) for user in range(200)}

    before = await places()
    assert await places() == before
    shares = [sum(place == f"w{number}" for place in before.values()) for number in range(5)]
    assert min(shares) > 15
    await scheduler.unregister_worker("w3")
    after = await places()
    assert {user for user in before if before[user] != after[user]} == {u for u in before if before[u] == "w3"}


def test_where_a_key_belongs_is_the_same_in_every_process() -> None:
    workers = [WorkerInfo(name) for name in ("a", "b", "c")]
    chosen = [
        affinity(workers, Task(), Assignments("", {}, workers, key)) for key in ("user:1", "user:2", "x", "\ud800")
    ]
    assert chosen == ["c", "a", "c", "c"]


async def test_a_strategy_of_ones_own_is_a_function_and_is_held_to_the_eligible() -> None:
    def last(eligible: Any, task: Task, state: Assignments) -> str:
        name: str = eligible[-1].worker_id if task.task_type else "nobody"
        return name

    scheduler = TaskScheduler(last)
    await scheduler.register_worker("a")
    await scheduler.register_worker("b")
    assert await scheduler.assign(Task(task_type="x")) == "b"
    with pytest.raises(ValueError, match="returned 'nobody': return one of a, b"):
        await scheduler.assign(Task())
    assert await loads(scheduler) == {"a": 0, "b": 1}


async def test_the_load_is_kept_in_the_worker_info_that_was_given() -> None:
    info = WorkerInfo("a", ["x"])
    scheduler = TaskScheduler()
    await scheduler.register_worker(info)
    await scheduler.assign(Task(task_type="x"))
    assert info == WorkerInfo("a", ["x"], 10, 1)
    seen = (await scheduler.workers())[0]
    seen.current_load = 9
    seen.capabilities.append("y")
    assert info == WorkerInfo("a", ["x"], 10, 1)


async def test_a_worker_that_registers_again_keeps_its_load() -> None:
    scheduler = TaskScheduler()
    await scheduler.register_worker("a", max_concurrent=2)
    await scheduler.assign(Task())
    await scheduler.register_worker("a", ["x"], max_concurrent=1)
    assert await scheduler.assign(Task(task_type="x")) == ""
    await scheduler.register_worker(WorkerInfo("a"))
    assert await loads(scheduler) == {"a": 0}


async def test_a_worker_whose_actor_ends_gets_no_more_tasks() -> None:
    async with ActorSystem() as system:
        scheduler = TaskScheduler()
        doomed, steady = await system.spawn(Laborer), await system.spawn(Laborer)
        await scheduler.register_worker("doomed", ref=doomed)
        await scheduler.register_worker("steady", ref=steady)
        assert await scheduler.assign(Task()) == "doomed"
        await doomed.kill()
        assert await loads(scheduler) == {"steady": 0}
        with pytest.raises(ValueError, match="this actor has ended"):
            await scheduler.register_worker("doomed", ref=doomed)
        assert not await scheduler.report_completion("doomed")
    assert await loads(scheduler) == {}


async def test_a_worker_that_was_registered_anew_is_not_lost_when_its_former_actor_ends() -> None:
    async with ActorSystem() as system:
        scheduler = TaskScheduler()
        former, latter = await system.spawn(Laborer), await system.spawn(Laborer)
        await scheduler.register_worker("a", ref=former)
        await scheduler.register_worker("a", ref=latter)
        await former.stop()
        assert await loads(scheduler) == {"a": 0}
        await scheduler.unregister_worker("a")
        await scheduler.register_worker("a")
        await latter.stop()
        assert await loads(scheduler) == {"a": 0}


async def test_the_end_of_the_block_ends_the_watch_over_workers() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Laborer)
        async with TaskScheduler() as scheduler:
            await scheduler.register_worker("a", ref=ref)
            assert ref._cell.ensure_extras().when_ended
        assert not ref._cell.ensure_extras().when_ended
        await ref.kill()
        assert await loads(scheduler) == {"a": 0}


async def test_a_watched_worker_may_be_unregistered_from_another_thread() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Laborer)
        scheduler = TaskScheduler()
        await scheduler.register_worker("a", ref=ref)
        with scheduler as blocking:
            thread = threading.Thread(target=blocking.unregister_worker, args=("a",))
            thread.start()
            thread.join()
        assert await loads(scheduler) == {}
        await ref.stop()
    await scheduler.register_worker("b")
    assert await loads(scheduler) == {"b": 0}


def test_in_a_with_block_the_methods_block_and_any_thread_may_call_them() -> None:
    taken: list[str] = []
    with TaskScheduler(SchedulingStrategy.LEAST_LOADED) as scheduler:
        scheduler.register_worker("a", ["x"], max_concurrent=300)
        scheduler.register_worker(WorkerInfo("b", max_concurrent=300))
        scheduler.set_affinity("x", "a")

        def work() -> None:
            taken.extend(scheduler.assign(Task(task_type="x")) for _ in range(100))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (taken.count("a"), taken.count("b"), taken.count("")) == (300, 300, 200)
        assert [worker.current_load for worker in scheduler.workers()] == [300, 300]
        assert scheduler.report_completion("a")
        assert scheduler.unregister_worker("a")


SENSELESS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("",), ValueError, "worker_id=''"),
    ((7,), TypeError, "worker_id=7: give a string"),
    (("a", "gpu"), TypeError, r"capabilities='gpu' of 'a': give a list"),
    (("a", [1]), TypeError, r"capabilities=\[1\] of 'a'"),
    (("a", 5), TypeError, "capabilities=5 of 'a'"),
    (("a", [], 0), ValueError, "max_concurrent=0 of 'a': give 1 or more"),
    (("a", [], 1.5), TypeError, r"max_concurrent=1.5 of 'a': give a whole number"),
    ((WorkerInfo("a", current_load=-1),), ValueError, "current_load=-1 of 'a': give 0 or more"),
    ((WorkerInfo("a"), ["x"]), ValueError, "set capabilities and max_concurrent in the WorkerInfo"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), SENSELESS)
async def test_a_worker_that_makes_no_sense_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    scheduler = TaskScheduler()
    with pytest.raises(error, match=message):
        await scheduler.register_worker(*arguments)
    assert await scheduler.workers() == []


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="strategy='fastest': give a SchedulingStrategy, 'round_robin', 'least_loaded'"
    ):
        TaskScheduler("fastest")
