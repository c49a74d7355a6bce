"""Mistakes with queues, tasks and workers: the error names the value and what to give, never something of ours."""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from cuelight.supervision import ActorSystem
from cuelight.tasks import Cron, DeadLetterQueue, Every, Limit, MemoryStore, Task, TaskQueue, TaskWorker, task
from helpers.workers import open_queue


@task(name="greet")
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@task(name="look")
async def look() -> None:
    pass


def plain(name: str) -> str:
    return name


NAN = math.nan
TASK = Task(task_id="a")

# Without types, because the arguments are wrong on purpose.
new_worker: Any = TaskWorker
new_queue: Any = TaskQueue
new_task: Any = Task
letters: Any = DeadLetterQueue
every: Any = Every
cron: Any = Cron
decorate: Any = task
any_greet: Any = greet

USES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "send a plain function": (lambda q: q.send(plain, "Ann"), "this is not a task function: decorate it with @task"),
    "send a name": (lambda q: q.send("greet", "Ann"), "send('greet'): give the function itself"),
    "send a task": (lambda q: q.send(greet.task("Ann")), "`enqueue` takes a Task"),
    "send nothing": (lambda q: q.send(None), "send(None): give a function that is decorated with @task"),
    "enqueue a function": (lambda q: q.enqueue(greet), "enqueue(<task greet>): this is a task function: `queue.send"),
    "enqueue a plain function": (lambda q: q.enqueue(plain), "to send a function, decorate it with @task"),
    "enqueue a list": (lambda q: q.enqueue([TASK]), "give one Task; `enqueue_many` takes several"),
    "enqueue the class": (lambda q: q.enqueue(Task), "give a Task, such as Task("),
    "enqueue a text": (lambda q: q.enqueue("greet"), "enqueue('greet'): give a Task, such as Task("),
    "enqueue_many of one": (lambda q: q.enqueue_many(TASK), "give a list of Tasks"),
    "enqueue_many of none": (lambda q: q.enqueue_many(None), "enqueue_many(None): give a list of Tasks"),
    "enqueue_many of functions": (lambda q: q.enqueue_many([greet]), "this is a task function"),
    "dequeue for a text": (lambda q: q.dequeue("5"), "dequeue(timeout): '5' is no number of seconds"),
    "dequeue for NaN": (lambda q: q.dequeue(NAN), "dequeue(timeout): nan is not 0 seconds or more"),
    "ack of nothing": (lambda q: q.ack(None), "ack(None): give the Task, or its identifier"),
    "nack of a number": (lambda q: q.nack(5), "nack(5): give the Task, or its identifier"),
    "nack with a number": (lambda q: q.nack("a", 5), "nack(error=5): give an exception, a text, or None"),
    "nack after NaN": (lambda q: q.nack("a", delay=NAN), "nack(delay): nan is not"),
    "nack after a text": (lambda q: q.nack("a", delay="5"), "nack(delay): '5' is no number"),
    "extend by NaN": (lambda q: q.extend("a", NAN), "extend(seconds): nan is not"),
    "extend for ever": (lambda q: q.extend("a", math.inf), "extend(seconds): inf is not a finite number"),
    "extend by nothing": (lambda q: q.extend("a", 0), "extend(seconds=0): give more than 0"),
    "extend by a list": (lambda q: q.extend([], 5), "extend([]): give the Task, or its identifier"),
    "handle of a number": (lambda q: q.handle(5), "handle: 5 is not a string"),
    "handle of a task": (lambda q: q.handle(TASK), "is a Task: give its identifier, `task.task_id`"),
    "handle of a plain function": (lambda q: q.handle("a", plain), "this is not a task function"),
    "result within NaN": (lambda q: q.handle("a").result(NAN), "result(timeout): nan is not a number of seconds"),
    "result within a text": (lambda q: q.handle("a").result("5"), "result(timeout): '5' is no number of seconds"),
    "results of a plain function": (lambda q: q.results(plain), "this is not a task function"),
    "drain within NaN": (lambda q: q.drain(NAN), "drain(timeout): nan is not a number of seconds"),
    "find by a text": (lambda q: q.find("pending"), "find('pending'): give a Query, such as"),
    "get a task": (lambda q: q.get(TASK), "is not a task identifier"),
    "cancel a task": (lambda q: q.cancel(TASK), "give the identifier of a task, or a list of them"),
    "every NaN": (lambda q: q.every(NAN, look), "every(nan): give a period of 0.01 seconds or more"),
    "every text": (lambda q: q.every("60", look), "every('60'): give a number of seconds"),
    "every 0": (lambda q: q.every(0, look), "every(0): give a period of 0.01 seconds or more"),
    "every plain function": (
        lambda q: q.every(60, plain),
        "is not a task: give a function that is decorated with @task",
    ),
    "every with a name that is none": (lambda q: q.every(60, look, name=5), "name=5: give a string"),
    "cron of a number": (lambda q: q.cron(5, look), "cron 5: give a string"),
    "cron nowhere": (lambda q: q.cron("@daily", look, tz="Mars"), "there is no time zone 'Mars'"),
    "Every of NaN": (lambda _: every(NAN, look), "every(nan): give a period"),
    "Every of nothing": (lambda _: every(60, None), "None is not a task"),
    "Cron of nonsense": (lambda _: cron("now", look), "cron 'now'"),
    "Cron of a plain function": (lambda _: cron("@daily", plain), "is not a task"),
    "sync_schedules of one": (lambda q: q.sync_schedules(Every(60, look)), "give a list of Every and Cron"),
    "sync_schedules of tasks": (lambda q: q.sync_schedules([look]), "<task look> is not a schedule: give Every("),
    "remove_schedule of a number": (lambda q: q.remove_schedule(5), "remove_schedule(name): 5 is not a string"),
    "set_limit of a text": (lambda q: q.set_limit("a"), "set_limit('a'): give a Limit"),
    "clear_limit of a limit": (lambda q: q.clear_limit(Limit("a", rate=1)), "clear_limit(key): Limit(key='a'"),
    "pause_limit for NaN": (lambda q: q.pause_limit("a", NAN), "pause_limit(seconds): nan is not"),
    "pause_limit of a number": (lambda q: q.pause_limit(5, 1), "pause_limit(key): 5 is not a string"),
    "a store that is a path": (lambda _: new_queue("tasks.db"), "'tasks.db' is not a task store"),
    "a name that is none": (lambda _: new_queue(name=5), "TaskQueue(name): 5 is not a string"),
    "a system that is none": (lambda _: new_queue(system=5), "give a running ActorSystem"),
    "a length of NaN": (lambda _: new_queue(max_length=NAN), "max_length=nan: give a whole number"),
    "an overflow that is none": (lambda _: new_queue(overflow=[]), "overflow=[]: give 'wait'"),
    "a heartbeat that is none": (lambda _: new_queue(heartbeat=[]), "heartbeat=[]: give"),
    "a lease of NaN": (lambda _: new_queue(lease=NAN), "lease: nan is not a number of seconds"),
    "retry_timeout of NaN": (lambda _: new_queue(retry_timeout=NAN), "TaskQueue(retry_timeout): nan is not a number"),
    "on_lost that is none": (lambda _: new_queue(on_lost=5), "TaskQueue(on_lost): 5 is not a function"),
    "a worker of a store": (lambda q: new_worker(q.store, [greet]), "give a TaskQueue, and then the handlers"),
    "a worker with a lease of NaN": (lambda q: new_worker(q, [greet], lease=NAN), "TaskWorker(lease): nan is not"),
    "a worker with NaN to run": (lambda q: new_worker(q, [greet], timeout=NAN), "TaskWorker(timeout): nan is not"),
    "a worker with NaN to end": (lambda q: new_worker(q, [greet], shutdown_timeout=NAN), "nan is not a number"),
    "a back-off that is a number": (lambda q: new_worker(q, [greet], backoff=5), "give a Backoff, such as"),
    "a worker_id that is a number": (lambda q: new_worker(q, [greet], worker_id=5), "5 is not a string"),
    "a kind that is none": (lambda q: new_worker(q, [greet], kind=[]), "kind=[]: give one of None, 'thread'"),
    "process_one of a function": (lambda q: new_worker(q, [greet]).process_one(greet), "this is a task function"),
    "dead letters of a queue": (lambda q: letters(q), "`queue.store` is the store of a queue"),
    "dead letters of a path": (lambda _: letters("a.db"), "'a.db' is not a task store"),
    "dead letters of a number": (lambda _: letters.of(5), "of(5): give an ActorSystem"),
    "dead letters since NaN": (lambda q: q.dead_letters.list(since=NAN), "since=nan: give seconds since the epoch"),
    "a replay at a rate of NaN": (lambda q: q.dead_letters.replay_all(rate=NAN), "rate: nan is not"),
    "limits that are none": (lambda q: q.enqueue(new_task(limits=5)), "limits=5: give Limit objects"),
    "options of limits that are none": (lambda _: any_greet.with_options(limits="a"), "limits='a': give Limit objects"),
    "a task of a class": (
        lambda _: decorate(Task),
        "_task.Task'>: decorate a function",
    ),
    "a task of a task": (
        lambda _: decorate(greet),
        "this is a task function already; `with_options` changes its options",
    ),
    "a task with a name that is none": (lambda _: decorate(name=5)(plain), "@task(name=5): give a string"),
    "a task of a store": (lambda q: decorate(queue=q.store)(plain), "is not a queue: give a TaskQueue"),
}


@pytest.mark.parametrize("use", USES)
async def test_a_mistake_is_told_with_the_value_and_the_way_out(use: str) -> None:
    call, text = USES[use]
    async with open_queue() as queue:
        with pytest.raises((TypeError, ValueError)) as raised:
            value = call(queue)
            if inspect.isawaitable(value):
                await value
        assert text in str(raised.value)
        assert "has no attribute" not in str(raised.value)
        size = await queue.size()
        assert (size.pending, size.in_flight) == (0, 0)


def test_a_queue_for_a_blocking_system_is_told_how_to_be_made() -> None:
    with ActorSystem.blocking() as system, pytest.raises(TypeError, match="in blocking code use `with TaskQueue"):
        new_queue(MemoryStore(), system=system)


async def test_an_argument_whose_repr_raises_is_named_all_the_same() -> None:
    class Evil:
        def __repr__(self) -> str:
            raise RuntimeError("evil")

    evil: Any = Evil()
    async with open_queue() as queue:
        for call in (queue.enqueue, queue.send, queue.ack, queue.handle, queue.find, queue.set_limit, queue.results):
            with pytest.raises(TypeError, match="Evil"):
                value: Any = call(evil)
                await value
        for fields in ("task_id", "priority", "max_retries", "deadline", "limits", "tenant_weight", "payload"):
            with pytest.raises((TypeError, ValueError), match="Evil"):
                await queue.enqueue(Task(**{fields: evil}))
