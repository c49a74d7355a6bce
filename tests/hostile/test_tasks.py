"""Whatever tasks, callbacks and values of users do, workers go on, no task is lost, and waiting callers are told.

Each place where queues and workers call code of users runs with each case; afterwards other tasks of the same worker
run, time out and report progress, nothing is in flight, and the system has ended in time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from cuelight._text import format_traceback
from cuelight.errors import RateLimited, Rejected, TaskFailed, TaskTimedOut, ends_the_program
from cuelight.supervision import ActorSystem
from cuelight.tasks import (
    DeadLetterQueue,
    Every,
    Limit,
    MemoryStore,
    Task,
    TaskHandle,
    TaskQueue,
    TaskScheduler,
    TaskWorker,
    current_task,
    task,
)
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, real_time, virtual_backend
from helpers import Backend
from helpers.workers import EPOCH, Wrapped, loop_store, new_worker, until
from hostile.cases import AWAITED, CALLED, CASES, RAISING, Case, catch_a_stray_cancellation, covers

Place = Callable[[TaskQueue, Case], Awaitable[None]]

PLACES: list[Any] = []


def _interrupts(case: Case) -> bool:
    return case.name == "KeyboardInterrupt"


def _ends_the_program(case: Case) -> bool:
    return case.ends_the_program


def _never(_: Case) -> bool:
    return False


def place(*names: str, cases: list[Case], ends: Callable[[Case], bool] = _interrupts) -> Callable[[Place], Place]:
    """Enter a place, to be tried with these cases.

    Args:
        *names: for the register.
        cases: what may happen there.
        ends: whether a case ends the system here; by default an interrupt does.
    """

    def enter(function: Place) -> Place:
        covers(*names)(function)
        PLACES.extend(
            pytest.param(function, case, ends(case), id=f"{function.__name__}-{case.name.replace(' ', '_')}")
            for case in cases
        )
        return function

    return enter


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


# Bystanders.


@task(name="double")
async def double(number: int) -> int:
    await current_task().progress(number)
    await anyio.sleep(0.1)
    return 2 * number


@task(name="forever", max_timeouts=1, timeout=1.0)
async def forever() -> None:
    await anyio.sleep_forever()


BYSTANDERS: Any = [double, forever]


async def goes_on(queue: TaskQueue) -> None:
    """Other tasks run, time out, and report their progress."""
    handles = [await queue.send(double, number) for number in range(3)]
    late = await queue.send(forever)
    assert [await handle.result(100) for handle in handles] == [0, 2, 4]
    assert await handles[2].progress() == 2
    with pytest.raises(TaskTimedOut):
        await late.result(100)


@asynccontextmanager
async def working(queue: TaskQueue, functions: Any = (), **options: Any) -> AsyncGenerator[TaskWorker]:
    """A worker that runs these functions and the bystanders."""
    handlers: dict[str, Any] = {one.name: one for one in BYSTANDERS}
    handlers |= functions if isinstance(functions, dict) else {one.name: one for one in functions}
    with ExitStack() as end:
        async with new_worker(queue, handlers, **({"concurrency": 3} | options)) as worker:
            yield worker
            await goes_on(queue)
            end.enter_context(real_time())  # the clock knows nothing of threads that end
    assert (worker.stats().running, worker.stats().unsent) == (0, 0)


async def outcome(handle: TaskHandle[Any]) -> Any:
    """What came of a task: its result, or the error that says why there is none."""
    try:
        return await handle.result(1000)
    except TaskFailed as error:
        return error


@pytest.mark.parametrize(("function", "case", "ends"), PLACES)
async def test_workers_go_on_whatever_code_of_users_does(function: Place, case: Case, ends: bool) -> None:
    await _try(function, case, ends)


def _fail(text: str) -> None:
    pytest.fail(text, pytrace=False)


async def _try(function: Place, case: Case, ends: bool) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    store = loop_store()
    system = ActorSystem(shutdown_timeout=20, slow_after=None)
    try:
        with anyio.fail_after(5000):
            async with system:
                await function(TaskQueue(store, system=system), case)
    except BaseException as error:
        raised = error
    if ends:
        assert raised is not None
        assert ends_the_program(raised), format_traceback(raised)
    elif raised is not None:  # as text, because the runner of the tests is no match for some of these errors
        _fail(format_traceback(raised))
    await store.open()
    assert (await store.size()).in_flight == 0
    assert_no_orphans(system)


# Functions of tasks.


@place("TaskWorker(handlers: async)", "task(async)", cases=AWAITED)
async def an_async_function(queue: TaskQueue, case: Case) -> None:
    @task(name="act", max_retries=2, max_timeouts=2)
    async def act() -> str:
        await case.act_async()
        return "done"

    async with working(queue, [act]):
        answer = await outcome(await queue.send(act.with_options(timeout=5.0)))
        if case.raises or case.name == "never returns":
            assert isinstance(answer, TaskFailed)
            letter = (await queue.dead_letters.list())[0]
            assert len(letter.history) == 2
            assert letter.error
        else:
            assert answer == "done"


@place("TaskWorker(handlers: def)", "task(def)", cases=CALLED)
async def a_plain_function(queue: TaskQueue, case: Case) -> None:
    @task(name="act", max_retries=2)
    def act() -> str:
        case.act()
        return "done"

    async with working(queue, [act]):
        with real_time():
            answer = await outcome(await queue.send(act))
        assert isinstance(answer, TaskFailed) if case.raises else answer == "done"


@place("TaskWorker(handler)", cases=AWAITED)
async def a_handler_of_all_other_types(queue: TaskQueue, case: Case) -> None:
    async def handle(_: Task) -> str:
        await case.act_async()
        return "done"

    async with working(queue, handler=handle):
        mine = Task(task_type="other", max_retries=1, max_timeouts=1, timeout=5.0)
        await queue.enqueue(mine)
        answer = await outcome(queue.handle(mine.task_id))
        assert isinstance(answer, TaskFailed) is (case.raises or case.name == "never returns")


@place("TaskWorker(handlers: def that returns an awaitable)", cases=CALLED)
async def an_awaitable_that_a_plain_function_returns(queue: TaskQueue, case: Case) -> None:
    class Later:
        def __await__(self) -> Iterator[Any]:
            case.act()
            return iter(())

    def handle(_: Any) -> Later:
        return Later()

    async with working(queue, {"other": handle}):
        mine = Task(task_type="other", max_retries=1)
        with real_time():
            await queue.enqueue(mine)
            assert isinstance(await outcome(queue.handle(mine.task_id)), TaskFailed) is case.raises


@place("TaskWorker.process_one(task)", cases=AWAITED)
async def a_task_at_hand(queue: TaskQueue, case: Case) -> None:
    async def handle(_: Any) -> str:
        await case.act_async()
        return "done"

    async with working(queue):
        worker = new_worker(queue, {"other": handle}, timeout=5.0)
        result = await worker.process_one(Task(task_type="other"))
        assert result is not None
        assert result.success is not (case.raises or case.name == "never returns")
        assert (result.error is None) is result.success


@place("TaskWorker(kind='process')", cases=[CASES["Exception"]])
async def functions_in_processes(queue: TaskQueue, case: Case) -> None:
    names = [one.name for one in RAISING if one.name not in {"KeyboardInterrupt", "CancelledError"}]
    with real_time():
        async with new_worker(queue, [in_process], kind="process", threads=2, concurrency=2):
            handles = [await queue.send(in_process, name) for name in names]
            for name, handle in zip(names, handles, strict=True):
                assert isinstance(await outcome(handle), TaskFailed), name
            await (await queue.send(in_process, "blocks")).result()


@task(name="in a process", max_retries=1, max_crashes=1)
def in_process(name: str) -> None:
    CASES[name].act()


# Values.


class Spiteful:
    """A value of which nothing can be asked."""

    case: Case = CASES["Exception"]

    def _act(self, *_: Any) -> Any:
        type(self).case.act()
        return NotImplemented

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __getattr__ = __format__ = __lt__ = _act

    def __hash__(self) -> int:
        self._act()
        return 0

    def __reduce__(self) -> Any:
        return self._act()


@place("TaskWorker(handlers: what they return)", "TaskContext.save", "TaskContext.progress", cases=CALLED, ends=_never)
async def a_value_that_nobody_can_look_at(queue: TaskQueue, case: Case) -> None:
    async def handle(what: str) -> Any:
        if what == "progress":
            await current_task().progress(Spiteful())
        elif what == "save":
            await current_task().save([Spiteful()])
        elif what == "raise":
            raise ValueError(Spiteful())
        return {"key": Spiteful()}

    Spiteful.case = case
    async with working(queue, {"other": handle}):
        for what in ("return", "progress", "save", "raise"):
            mine = Task(task_type="other", payload=what, max_retries=1)
            await queue.enqueue(mine)
            assert isinstance(await outcome(queue.handle(mine.task_id)), TaskFailed)
        result = await new_worker(queue, {"other": handle}).process_one(Task(task_type="other", payload="return"))
        assert result is not None
        assert result.success
        for use in (
            lambda: queue.enqueue(Task(payload=Spiteful())),
            lambda: queue.enqueue(Task(task_id=Spiteful())),  # type: ignore[arg-type]
            lambda: queue.enqueue(Spiteful()),  # type: ignore[arg-type]
            lambda: queue.send(double, Spiteful()),  # type: ignore[arg-type]
            lambda: queue.ack("nobody's", Spiteful()),
            lambda: queue.nack("nobody's", Spiteful()),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError):
                await use()


@dataclass
class Point:
    """Acts when it is made, unless it is made by its producer."""

    x: int

    def __post_init__(self) -> None:
        if Armed.case is not None:
            Armed.case.act()


class Armed:
    case: Case | None = None


@task(name="move", max_retries=1)
async def move(point: Point) -> Point:
    return point


@place("task(parameters)", "TaskHandle.result", cases=CALLED)
async def a_class_of_parameters_and_results(queue: TaskQueue, case: Case) -> None:
    Armed.case = None
    try:
        async with working(queue, [move]):
            moved = await queue.send(move, Point(1))
            assert await moved.result(10) == Point(1)
            handle = await queue.send(move.with_options(delay=1.0), Point(2))
            Armed.case = case
            answer: Any = None
            try:
                answer = await moved.result(10)
            except BaseException as error:  # it is that of who asks
                answer = error
            assert isinstance(answer, BaseException) is case.raises
            # A ValueError or TypeError says that the arguments do not fit; that would be tried for an hour.
            if case.name not in {"Exception", "unprintable", "long text", "half a surrogate pair", "unpicklable"}:
                assert isinstance(await outcome(handle), TaskFailed) is case.raises
            await handle.cancel()
            Armed.case = None
    finally:
        Armed.case = None


@place("task(unique)", "task(limits)", cases=CALLED, ends=_never)
async def functions_of_arguments(queue: TaskQueue, case: Case) -> None:
    def unique(number: int) -> str:
        case.act()
        return "key"

    def limits(number: int) -> Limit:
        case.act()
        return Limit("key", max_concurrent=1)

    async with working(queue):
        for function in (double.with_options(unique=unique), double.with_options(limits=limits)):
            raised: BaseException | None = None
            try:
                await (await queue.send(function, 1)).result()
            except BaseException as error:  # it is that of who sends
                raised = error
            assert (raised is not None) is case.raises
        size = await queue.size()
        assert (size.pending, size.in_flight) == (0, 0)


# What controls retries.


@place("TaskWorker(backoff)", cases=CALLED)
async def a_back_off(queue: TaskQueue, case: Case) -> None:
    class Own:
        def delay(self, restarts: int, jitter: float) -> float:
            case.act()
            return 0.0

    @task(name="fail", max_retries=2)
    async def fail() -> None:
        raise ValueError("arranged")

    async with working(queue, [fail], backoff=Own()):
        handle = await queue.send(fail)
        assert isinstance(await outcome(handle), TaskFailed)
        assert len((await queue.dead_letters.list())[0].history) == 2


@place("RateLimited.retry_after", "RateLimited.key", "Rejected", cases=CALLED)
async def an_exception_that_controls(queue: TaskQueue, case: Case) -> None:
    class Mine(RateLimited):
        @property
        def retry_after(self) -> Any:
            case.act()
            return 0.1

        @retry_after.setter
        def retry_after(self, _: Any) -> None:
            pass

        def __str__(self) -> str:
            case.act()
            return ""

    class Enough(Rejected):
        def __str__(self) -> str:
            case.act()
            return ""

    async def handle(what: str) -> None:
        if what == "reject":
            raise Enough
        if current_task().counts.rate_limited < 2:
            raise Mine(0.1)

    async with working(queue, {"other": handle}):
        limited, rejected = (Task(task_type="other", payload=what) for what in ("limit", "reject"))
        await queue.enqueue_many([limited, rejected])
        assert await outcome(queue.handle(limited.task_id)) is None
        assert isinstance(await outcome(queue.handle(rejected.task_id)), TaskFailed)


# Callbacks.


@place("TaskQueue(on_lost)", "TaskQueue(on_cancel)", cases=CALLED, ends=_ends_the_program)
async def the_callbacks_of_a_consumer(queue: TaskQueue, case: Case) -> None:
    called: list[str] = []

    def callback(one: Task) -> None:
        called.append(one.task_id)
        case.act()

    mine = TaskQueue(
        queue.store, system=queue.system, on_lost=callback, on_cancel=callback, lease=6.0, heartbeat="loop"
    )
    await mine.enqueue_many([Task(task_id="lost"), Task(task_id="cancelled"), Task(task_id="kept")])
    held = [await mine.dequeue() for _ in range(3)]
    assert None not in held
    await mine.cancel("cancelled")
    mine.store.beat(mine.session.worker, [("lost", mine.session.dequeued["lost"].epoch)], 0.1)
    await anyio.sleep(0.2)
    assert await queue.dequeue() is not None
    assert await queue.ack("lost")
    await anyio.sleep(7)
    assert set(called) == {"lost", "cancelled"}
    assert await mine.ack("kept")
    assert await mine.ack("cancelled")
    async with working(queue):
        pass


@place("logging.Handler(cuelight.tasks)", cases=RAISING, ends=_never)
async def a_log_handler(queue: TaskQueue, case: Case) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            case.act()

    @task(name="fail", max_retries=2)
    async def fail() -> None:
        raise ValueError("arranged")

    handler = Raising()
    logging.getLogger("cuelight").addHandler(handler)
    try:
        async with working(queue, [fail]):
            assert isinstance(await outcome(await queue.send(fail)), TaskFailed)
            unknown = Task(task_type="unknown")
            await queue.enqueue(unknown)
            await until(queue, unknown, "parked")
            await queue.cancel(unknown.task_id)
            mine = Task(task_id="mine")
            await queue.enqueue(mine)
            await queue.pause()
            await queue.resume()
        other = TaskQueue(queue.store, system=queue.system)
        await other.enqueue(Task(task_id="nacked"))
        while (taken := await other.dequeue()) is not None:
            await other.nack(taken, ValueError("arranged"), delay=1000.0)
    finally:
        logging.getLogger("cuelight").removeHandler(handler)


@place("DeadLetterQueue(to)", "DeadLetterQueue.replay(to)", cases=AWAITED, ends=_never)
async def a_target_of_replays(queue: TaskQueue, case: Case) -> None:
    async def target(_: Any) -> None:
        await case.act_async()

    letters = DeadLetterQueue()
    for number in range(2):
        await letters.add(number, letter_id=str(number))
    raised: BaseException | None = None
    with anyio.move_on_after(1):
        try:
            await letters.replay("0", to=target)
        except BaseException as error:  # it is that of who asks
            raised = error
            if not case.raises:
                raise
    assert (raised is not None) is case.raises or case.suspends
    assert await letters.count() == (2 if case.raises or case.name == "never returns" else 1)
    assert not letters._replaying
    async with working(queue):
        pass


@place("TaskScheduler(strategy)", "TaskScheduler(key)", cases=CALLED, ends=_never)
async def a_strategy(queue: TaskQueue, case: Case) -> None:
    def choose(workers: Any, one: Any, before: Any) -> str:
        case.act()
        return str(workers[0].worker_id)

    def key(_: Task) -> str:
        case.act()
        return "key"

    for scheduler in (TaskScheduler(choose), TaskScheduler("affinity", key=key)):
        await scheduler.register_worker("a")
        raised: BaseException | None = None
        try:
            assert await scheduler.assign(Task()) == "a"
        except BaseException as error:  # it is that of who asks
            raised = error
        assert (raised is not None) is case.raises
        assert [worker.current_load for worker in await scheduler.workers()] == [0 if case.raises else 1]
    async with working(queue):
        pass


# Iterators.


@place(
    "TaskQueue.enqueue_many",
    "TaskQueue.sync_schedules",
    "TaskQueue.cancel",
    "TaskQueue.purge",
    cases=CALLED,
    ends=_never,
)
async def an_iterator(queue: TaskQueue, case: Case) -> None:
    def items(first: Any) -> Iterator[Any]:
        yield first
        case.act()

    await queue.enqueue(Task(task_id="there", delay=1000.0))
    for use in (
        lambda: queue.enqueue_many(items(Task(delay=1000.0))),
        lambda: queue.sync_schedules(items(Every(1000.0, forever))),
        lambda: queue.cancel(items("there")),
        lambda: queue.purge(items("there")),
    ):
        raised: BaseException | None = None
        try:
            await use()
        except BaseException as error:  # it is that of who asks
            raised = error
        assert (raised is not None) is case.raises
    if case.raises:
        assert ((await queue.size()).scheduled, await queue.schedules()) == (1, [])
    await queue.sync_schedules([])
    async with working(queue):
        pass


# Clocks and stores.


@place("MemoryStore(clock)", cases=CALLED)
async def a_clock_that_fails_now_and_then(queue: TaskQueue, case: Case) -> None:
    times, failing = 0, False
    time = queue.session.backend.time

    def clock() -> float:
        nonlocal times
        times += 1
        if failing and times % 97 == 0:
            case.act()
        return EPOCH + time()

    store = MemoryStore(clock=clock)
    mine = TaskQueue(store, system=queue.system)
    async with new_worker(mine, BYSTANDERS, concurrency=3):
        if case.name != "KeyboardInterrupt":
            await goes_on(mine)
        else:
            raise KeyboardInterrupt
    await queue.size()


@place("Store", cases=[case for case in RAISING if not case.ends_the_program])
async def a_store_of_somebody_elses(queue: TaskQueue, case: Case) -> None:
    """It raises once at each of its first calls in turn."""
    calls, at = 0, 0

    def around(_: str, call: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            case.act()
        return call()

    for at in range(1, 12):
        calls = 0
        store: Any = Wrapped(loop_store(), around)
        mine = TaskQueue(store, system=queue.system, name=str(at))
        with anyio.fail_after(500):
            try:
                async with mine:
                    await mine.enqueue(Task(task_id="a"))
                    taken = await mine.dequeue(1)
                    if taken is not None:
                        await mine.ack(taken)
            except BaseException as error:  # it is that of who asks
                assert calls >= at, error  # noqa: PT017
    async with working(queue):
        pass
