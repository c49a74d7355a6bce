"""Whatever the functions, sources, callbacks, executors, rules and values that pools are given do, other work goes on.

Each place where pools call code of users runs with each case. Afterwards other tasks of the pool have run, a time-out
has come, a map has given a result for each item, and the pool has ended.
"""

# Values are Any here, and functions are made to fit nothing.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorPool,
    ActorSystem,
    AskError,
    AsyncWorkerPool,
    DeadLetterQueue,
    Message,
    Request,
    TaskResult,
    child,
    on,
)
from cuelight._text import format_traceback
from cuelight.errors import TaskCancelled, TaskFailed, TaskTimedOut, UnexpectedCancellation, ends_the_program
from cuelight.pools import by_key, may_wait
from cuelight.pools._threads._executor import ThreadExecutor
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import BACKENDS, Backend
from hostile.cases import AWAITED, CALLED, CASES, NEVER, RAISING, Case, ProgressBar, catch_a_stray_cancellation, covers
from hostile.pool_work import Finalized, Hostile, Lying

Place = Callable[[AsyncWorkerPool, Case], Awaitable[None]]

IN_LOOP: list[Any] = []
IN_THREADS: list[Any] = []
ACTOR_POOLS: list[Any] = []


released = threading.Event()
"""Lets the threads go on that are left behind by the tests."""


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Time is virtual, but where threads run."""
    if "in_threads" in request.node.name:
        return BACKENDS[request.param]
    return virtual_backend(request.param)


def place(
    *names: str, cases: list[Case], table: list[Any] = IN_LOOP, contained: bool = False, **options: Any
) -> Callable[[Any], Any]:
    """Enter a place, to be tried with these cases.

    Args:
        *names: for the register.
        cases: what may happen there.
        table: the test that tries it.
        contained: what ends programs does not end the pool here.
        **options: of the pool.
    """

    def enter(function: Any) -> Any:
        covers(*names)(function)
        table.extend(
            pytest.param(function, case, contained, options, id=f"{function.__name__}-{case.name.replace(' ', '_')}")
            for case in cases
        )
        return function

    return enter


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def for_ever() -> None:
    await anyio.sleep_forever()


async def goes_on(pool: AsyncWorkerPool) -> None:
    assert (await pool.submit(double, 4)).unwrap() == 8
    assert (await pool.map(double, range(10))).values == list(range(0, 20, 2))
    assert isinstance((await pool.submit(for_ever, timeout=0.05)).error, TaskTimedOut)


@pytest.mark.parametrize(("function", "case", "contained", "options"), IN_LOOP)
async def test_work_of_pools_goes_on_whatever_code_of_users_does(
    function: Place, case: Case, contained: bool, options: dict[str, Any]
) -> None:
    await _try(function, case, contained, options)


@pytest.mark.parametrize(("function", "case", "contained", "options"), IN_THREADS)
async def test_work_of_pools_in_threads_goes_on_whatever_code_of_users_does(
    function: Place, case: Case, contained: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    released.clear()
    monkeypatch.setattr("cuelight.pools._pool_worker._CLOSE", 0.2)
    try:
        await _try(function, case, contained, options)
    finally:
        released.set()


def _fail(text: str) -> None:
    pytest.fail(text, pytrace=False)


async def _try(function: Place, case: Case, contained: bool, options: dict[str, Any]) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    system = ActorSystem(shutdown_timeout=2, slow_after=None)
    given = {name: made(case) if name == "executor" else made for name, made in options.items()}
    pool = AsyncWorkerPool(2, system=system, **given)
    try:
        with anyio.fail_after(30):
            async with system, pool:
                await function(pool, case)
                await goes_on(pool)
    except BaseException as error:
        raised = error
    if case.ends_the_program and not contained:
        assert raised is not None
        assert ends_the_program(raised)
    elif raised is not None:  # as text, because the runner of the tests is no match for some of these errors
        _fail(format_traceback(raised))
    assert_no_orphans(system)
    assert (pool.stats().workers, pool.stats().busy, pool.stats().pending) == (0, 0, 0)


def check(result: TaskResult[Any], case: Case) -> None:
    """A task ends in a result or in an error, and the error says what has happened."""
    assert result.success is (result.error is None)
    if not case.raises:
        assert result.success
        return
    error = result.error
    assert error is not None
    assert issubclass(type(error), Exception)
    wanted = case.error()
    if issubclass(type(wanted), Exception):
        assert type(error) in (type(wanted), RuntimeError)
    elif case.name == "CancelledError":
        assert type(error) is UnexpectedCancellation
    else:
        assert type(error) in (TaskFailed, TaskCancelled)
    assert type(repr(result)) is str


# Functions.


@place("AsyncWorkerPool.submit(fn)", cases=AWAITED)
async def a_task(pool: AsyncWorkerPool, case: Case) -> None:
    result = await pool.submit(case.act_async, timeout=1)
    if case.suspends:
        assert isinstance(result.error, TaskTimedOut)
    else:
        check(result, case)


@place("AsyncWorkerPool.submit(fn, retried)", cases=AWAITED, retries=2)
async def a_task_that_is_tried_again(pool: AsyncWorkerPool, case: Case) -> None:
    result = await pool.submit(case.act_async, timeout=1)
    assert result.success is (case.name == "blocks")
    assert pool.metrics()[result.task_id].retries_used == (0 if case.ends_the_program or result.success else 2)


@place("AsyncWorkerPool.submit(fn, cancelled)", cases=AWAITED)
async def the_cleanup_of_a_task(pool: AsyncWorkerPool, case: Case) -> None:
    async def clean() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if case.suspends:
                with anyio.move_on_after(3, shield=True):
                    await case.act_async()
            else:
                case.act()

    task = pool.submit(clean)
    await anyio.sleep(0.1)
    task.cancel()
    result = await task
    assert isinstance(result.error, TaskCancelled | TaskFailed)
    assert isinstance((await pool.submit(clean, timeout=0.5)).error, TaskTimedOut | TaskFailed)


# Trio's own task groups look at the exceptions in them, and asyncio ends the program itself on what is meant to end it.
IN_GROUPS = [case for case in AWAITED if case.name not in {"unprintable", "deep groups"} and not case.ends_the_program]


@place("AsyncWorkerPool.submit(fn, in a task group)", cases=IN_GROUPS)
async def a_task_with_a_task_group(pool: AsyncWorkerPool, case: Case) -> None:
    async def grouped() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(case.act_async)

    result = await pool.submit(grouped, timeout=1)
    # A task group takes a cancellation of a task in it for its own.
    assert result.success is (case.name in ("blocks", "CancelledError"))


@place("AsyncWorkerPool.submit(fn, called)", cases=CALLED, contained=True)
async def a_function_that_raises_before_its_coroutine(pool: AsyncWorkerPool, case: Case) -> None:
    class Called:
        async def __call__(self, item: int) -> int:
            return item

        def __getattribute__(self, name: str) -> Any:
            if name not in ("__call__", "__class__", "__dict__"):
                case.act()
            return object.__getattribute__(self, name)

    # Names are asked for when a task is given to the pool, by `functools` and `inspect` too: the caller is told.
    try:
        task = pool.submit(Called(), 1)
    except BaseException as error:
        assert type(error) is type(case.error())  # noqa: PT017
        return
    assert (await task).result == 1


@place("AsyncWorkerPool.map(fn)", cases=AWAITED)
async def a_map(pool: AsyncWorkerPool, case: Case) -> None:
    async def at_three(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        if number == 3:
            await case.act_async()
        return number

    if case.ends_the_program:
        with pytest.raises(TaskCancelled):
            await pool.map(at_three, range(8), timeout=1)
        return
    failed = case.raises or case.suspends
    for ordered in (True, False):
        results = await pool.map(at_three, range(8), timeout=1, ordered=ordered)
        assert sorted(results.values) == [number for number in range(8) if number != 3 or not failed]
        assert len(results) == 8
        assert len(results.errors) == failed
    read = [result async for result in pool.map(at_three, range(8), timeout=1)]
    assert [result.success for result in read] == [number != 3 or not failed for number in range(8)]


# Sources, callbacks.


class Source:
    def __init__(self, case: Case, where: str) -> None:
        self._case, self._where = case, where
        self._left = 5

    def _at(self, where: str) -> None:
        if self._where == where:
            self._case.act()

    def __iter__(self) -> Iterator[int]:
        self._at("iter")
        return self

    def __next__(self) -> int:
        self._left -= 1
        if self._left == 2:
            self._at("next")
        if self._left < 0:
            raise StopIteration
        return self._left

    def __len__(self) -> int:
        self._at("len")
        return 5

    def __length_hint__(self) -> int:
        self._at("hint")
        return 5


async def results_of(pool: AsyncWorkerPool, source: Any, case: Case, **options: Any) -> Any:
    """The results of a map in both ways of reading it, or its error, which is in time."""
    found: list[Any] = []
    for read in ("awaited", "looped"):
        try:
            if read == "awaited":
                found.append([one.result for one in await pool.map(double, source(), **options)])
            else:
                found.append([one.result async for one in pool.map(double, source(), **options)])
        except TimeoutError as error:
            if case.name != "TimeoutError":
                raise
            found.append(error)
        except BaseException as error:
            if pool.group is not None and pool.group.over and not case.ends_the_program:
                raise
            found.append(error)
            if case.ends_the_program:
                break
    return found


@place("AsyncWorkerPool.map(items.__iter__)", "AsyncWorkerPool.map(items.__next__)", cases=CALLED)
async def a_source(pool: AsyncWorkerPool, case: Case) -> None:
    whole = [8, 6, 4, 2, 0]
    for found in await results_of(pool, lambda: Source(case, "next"), case):
        if case.name == "StopIteration":
            assert found == [8, 6]  # that is how an iterator says that it is over
        else:
            assert isinstance(found, BaseException) if case.raises else found == whole
    if not case.ends_the_program:  # the caller calls this, and is told
        for found in await results_of(pool, lambda: Source(case, "iter"), case):
            assert isinstance(found, BaseException) if case.raises else found == whole


@place("AsyncWorkerPool.map(items.__len__)", cases=[one for one in CALLED if not one.ends_the_program])
async def the_length_of_a_source(pool: AsyncWorkerPool, case: Case) -> None:
    for where in ("len", "hint"):
        for found in await results_of(pool, lambda where=where: Source(case, where), case):
            assert found == [8, 6, 4, 2, 0]


@place("AsyncWorkerPool.map(items.close)", cases=CALLED)
async def the_cleanup_of_a_source(pool: AsyncWorkerPool, case: Case) -> None:
    def source() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            case.act()

    stream = aiter(pool.map(double, source()))
    error: BaseException | None = None
    try:
        async with stream:
            async for _ in stream:
                break
    except BaseException as raised:
        error = raised
    # A generator whose `close` raises GeneratorExit is closed.
    assert (error is not None) is (case.raises and case.name != "GeneratorExit")
    if case.ends_the_program:
        raise SystemExit


@place("AsyncWorkerPool.map(items.__anext__)", cases=AWAITED)
async def an_async_source(pool: AsyncWorkerPool, case: Case) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        await case.act_async()

    if case.suspends:
        stream = aiter(pool.map(double, source()))
        assert [(await anext(stream)).result for _ in range(2)] == [2, 4]
        if case.name == "never returns":
            with anyio.move_on_after(1) as scope:
                await anext(stream)
            assert scope.cancelled_caught
        await stream.aclose()
        return
    for found in await results_of(pool, source, case):
        assert isinstance(found, BaseException) if case.raises else found == [2, 4]


@place("AsyncWorkerPool.map(items.__aiter__)", cases=CALLED)
async def an_async_source_that_cannot_begin(pool: AsyncWorkerPool, case: Case) -> None:
    class Odd:
        def __aiter__(self) -> AsyncIterator[int]:
            case.act()
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    for found in await results_of(pool, Odd, case):
        assert isinstance(found, BaseException) if case.raises else found == []


@place("AsyncWorkerPool.map(items.aclose)", cases=AWAITED)
async def the_cleanup_of_an_async_source(pool: AsyncWorkerPool, case: Case) -> None:
    async def source() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                await case.act_async()

    stream = aiter(pool.map(double, source()))
    await anext(stream)
    try:
        await stream.aclose()
    except BaseException as error:
        assert case.raises or case.suspends
        if ends_the_program(error):
            raise
    await anyio.sleep(1)


@place("AsyncWorkerPool.map(progress)", cases=CALLED)
async def a_progress_callback(pool: AsyncWorkerPool, case: Case) -> None:
    def progress(done: int, total: int | None) -> None:
        if done == 3:
            case.act()

    for found in await results_of(pool, lambda: range(5), case, progress=progress):
        assert isinstance(found, BaseException) if case.raises else found == [0, 2, 4, 6, 8]


@place("tqdm.update", "tqdm.close", cases=CALLED)
async def a_progress_bar(pool: AsyncWorkerPool, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for where in ("update", "close"):
            patch.setattr("tqdm.tqdm", partial(ProgressBar, case, where))
            for found in await results_of(pool, lambda: range(5), case, progress=True):
                fails = case.raises and (where == "update" or case.ends_the_program)
                assert isinstance(found, BaseException) if fails else found == [0, 2, 4, 6, 8]


# Values.


@place("items and results: __eq__, __hash__, __bool__, __repr__, ...", cases=RAISING, contained=True, retries=1)
async def values_that_cannot_be_looked_at(pool: AsyncWorkerPool, case: Case) -> None:
    async def give_back(value: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return value

    async def refuse(value: Any) -> Any:
        raise ValueError(type(value).__name__)

    hostile: Any = Hostile(case)
    assert (await pool.submit(give_back, hostile)).result is hostile
    assert (await pool.submit(give_back, value=hostile)).result is hostile
    assert type((await pool.submit(refuse, hostile)).error) is ValueError
    for kind in (True, False):
        results = await pool.map(give_back, [hostile] * 5, ordered=kind)
        assert [one.result is hostile for one in results] == [True] * 5
        results = await pool.map(refuse, [hostile] * 5, ordered=kind)
        assert len(results.errors) == 5
    letters = await pool.dead_letters.list(limit=20)
    assert len(letters) == 11
    if not case.ends_the_program:
        assert type(repr(await pool.submit(give_back, hostile))) is str


# CPython 3.11 crashes when one CancelledError is raised by several finalizers.
FINALIZED = [case for case in RAISING if case.name != "CancelledError"]


@place("items and results: __del__", cases=FINALIZED, contained=True)
async def values_whose_finalizers_raise(pool: AsyncWorkerPool, case: Case) -> None:
    async def make(_: Any) -> Any:
        return Finalized(case)

    for _ in range(3):
        assert (await pool.submit(make, Finalized(case))).success
    results = await pool.map(make, (Finalized(case) for _ in range(5)))
    assert len(results.values) == 5
    del results


@place("exceptions: __str__, __repr__, __class__, __notes__", cases=RAISING, contained=True, retries=1)
async def errors_that_cannot_be_looked_at(pool: AsyncWorkerPool, case: Case) -> None:
    async def fail(_: int = 0) -> None:
        await anyio.lowlevel.checkpoint()
        raise Lying(case)

    async def fail_in_group(_: int = 0) -> None:
        raise ExceptionGroup("two", [Lying(case), Lying(case)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr.write", lambda _: None, raising=False)
        for function in (fail, fail_in_group):
            assert type((await pool.submit(function)).error) in (Lying, ExceptionGroup)
            assert len((await pool.map(function, range(5))).errors) == 5
    assert await pool.dead_letters.count() == 12


@place("AsyncWorkerPool(dead_letters)", cases=CALLED, contained=True)
async def a_queue_of_dead_letters(pool: AsyncWorkerPool, case: Case) -> None:
    class Letters(DeadLetterQueue):
        def add_nowait(self, *args: Any, **options: Any) -> Any:
            case.act()
            return super().add_nowait(*args, **options)

    async def fail(_: int = 0) -> None:
        raise ValueError("no such row")

    if case.ends_the_program:
        error: BaseException | None = None
        try:
            async with AsyncWorkerPool(2, dead_letters=Letters()) as other:
                assert type((await other.submit(fail)).error) is TaskFailed
        except BaseException as raised:
            error = raised
        assert error is not None
        assert ends_the_program(error)
        return
    async with AsyncWorkerPool(2, dead_letters=Letters()) as other:
        assert type((await other.submit(fail)).error) is ValueError
        assert len((await other.map(fail, range(5))).errors) == 5
        await goes_on(other)


@place("log handlers and filters", cases=CALLED, contained=True, retries=1)
async def a_log_handler(pool: AsyncWorkerPool, case: Case) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            case.act()

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            case.act()
            return True

    async def fail(_: int = 0) -> None:
        raise ValueError("no such row")

    logger = logging.getLogger("cuelight.pools")
    handler = Handler()
    filters = Filter()
    logger.addHandler(handler)
    logger.addFilter(filters)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr.write", lambda _: None, raising=False)
            assert type((await pool.submit(fail)).error) is ValueError
            assert len((await pool.map(fail, range(5))).errors) == 5
            await goes_on(pool)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(filters)
        logger.setLevel(before)


# Threads.


def block_until_released() -> None:
    released.wait(50)


@place("AsyncWorkerPool.submit(fn, in a thread)", cases=CALLED, table=IN_THREADS, timeout=5)
async def a_task_in_a_thread(pool: AsyncWorkerPool, case: Case) -> None:
    check(await pool.submit(case.act), case)


@place("AsyncWorkerPool.submit(fn, never returns)", cases=NEVER[:1], table=IN_THREADS)
async def a_task_in_a_thread_that_never_returns(pool: AsyncWorkerPool, case: Case) -> None:
    results = [pool.submit(block_until_released, timeout=0.05) for _ in range(3)]
    for result in results:
        assert isinstance((await result).error, TaskTimedOut)
    assert pool.stats().abandoned == 3


@place("AsyncWorkerPool.submit(fn, returns a coroutine)", cases=AWAITED, table=IN_THREADS)
async def a_coroutine_out_of_a_thread(pool: AsyncWorkerPool, case: Case) -> None:
    result = await pool.submit(lambda: case.act_async(), timeout=0.3)
    if case.suspends:
        assert isinstance(result.error, TaskTimedOut)
    else:
        check(result, case)


@place("AsyncWorkerPool.map(fn, in threads)", cases=CALLED, table=IN_THREADS)
async def a_map_in_threads(pool: AsyncWorkerPool, case: Case) -> None:
    def at_three(number: int) -> int:
        if number == 3:
            case.act()
        return number

    if case.ends_the_program:
        with pytest.raises(TaskCancelled):
            await pool.map(at_three, range(8))
        return
    for chunk in (1, 8):
        results = await pool.map(at_three, range(8), chunk_size=chunk)
        assert len(results) == 8
        assert results.values == [number for number in range(8) if number != 3 or not case.raises]
        read = [one async for one in pool.map(at_three, range(8), chunk_size=chunk)]
        assert [one.success for one in read] == [number != 3 or not case.raises for number in range(8)]


@place("items and results in threads", cases=FINALIZED, table=IN_THREADS, contained=True)
async def values_in_threads(pool: AsyncWorkerPool, case: Case) -> None:
    def give_back(value: Any) -> Any:
        return value

    def finalized(_: Any) -> Any:
        return Finalized(case)

    hostile: Any = Hostile(case)
    assert (await pool.submit(give_back, hostile)).result is hostile
    results = await pool.map(give_back, [hostile] * 5)
    assert [one.result is hostile for one in results] == [True] * 5
    assert (await pool.submit(finalized, Finalized(case))).success
    assert len((await pool.map(finalized, (Finalized(case) for _ in range(5)))).values) == 5


class OddExecutor(ThreadExecutor):
    """An executor of a user."""

    def __init__(self, name: str, case: Case, where: str) -> None:
        super().__init__(name)
        self._case, self._where = case, where
        if where == "made":
            case.act()

    async def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if self._where == "run":
            await self._case.act_async()
        return await super().run(function, args, kwargs)

    async def run_chunk(self, function: Any, items: Any) -> Any:
        if self._where == "chunk":
            await self._case.act_async()
        return await super().run_chunk(function, items)

    async def aclose(self) -> None:
        await super().aclose()
        if self._where == "close":
            await self._case.act_async()


def odd_executors(where: str) -> Callable[[Case], Any]:
    return lambda case: lambda name: OddExecutor(name, case, where)


def double_at_once(number: int) -> int:
    return 2 * number


async def _through_executor(pool: AsyncWorkerPool, case: Case, fails: str) -> None:
    result = await pool.submit(double_at_once, 4, timeout=0.3)
    if fails == "submit":
        assert result.success is (case.name == "blocks")
    else:
        assert result.result == 8
    if case.ends_the_program and fails:
        with pytest.raises(TaskCancelled):
            await pool.map(double_at_once, range(4), chunk_size=4)
        return
    timeout = 0.3 if case.suspends else None
    if not case.suspends or fails != "map":  # with a time-out there are no chunks
        results = await pool.map(double_at_once, range(4), chunk_size=None if timeout else 4, timeout=timeout)
        assert len(results) == 4


for _where, _fails, _cases in (
    ("made", "submit", CALLED),
    ("run", "submit", AWAITED),
    ("chunk", "map", AWAITED),
    ("close", "", AWAITED),
):

    @place(f"AsyncWorkerPool(executor: {_where})", cases=_cases, table=IN_THREADS, executor=odd_executors(_where))
    async def an_executor(pool: AsyncWorkerPool, case: Case, fails: str = _fails) -> None:
        await _through_executor(pool, case, fails)


# Actor pools.


class Do(Request[Any]):
    case: Any = None


class Tell(Message):
    case: Any = None


class Ping(Request[str]):
    pass


class Member(Actor[Do | Tell | Ping]):
    @on(Do)
    async def do(self, message: Do) -> Any:
        await message.case.act_async()

    @on(Tell)
    async def tell(self, message: Tell) -> None:
        await message.case.act_async()

    @on(Ping)
    def ping(self, message: Ping) -> str:
        return "pong"


class Rule:
    """A rule of a user: it acts once, for one message."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, members: Any, message: Any, turn: int) -> Any:
        if type(message) is not Ping:
            self.case.act()
        return (0,)


class PatientRule(Rule):
    __may_wait__ = True

    def __call__(self, members: Any, message: Any, turn: int) -> Any:
        chosen = super().__call__(members, message, turn)
        return chosen if members[0].ready else ()


def odd_key(case: Case) -> Any:
    def key(message: Any) -> Any:
        if type(message) is not Ping:
            case.act()
        return 1

    return by_key(key)


def odd_repr_of_key(case: Case) -> Any:
    return by_key(lambda message: 1 if type(message) is Ping else Hostile(case))


RULES: dict[str, Callable[[Case], Any]] = {
    "a rule": Rule,
    "a rule that may wait": PatientRule,
    "by_key(key)": odd_key,
    "repr of a key": odd_repr_of_key,
}

covers("ActorPool(routing)", "by_key(key)", "by_key(key.__repr__)")(Rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CALLED, ids=repr)
async def test_actor_pools_go_on_whatever_their_rules_do(rule: str, case: Case) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    if rule == "repr of a key" and not case.raises:
        return
    with anyio.fail_after(30):
        async with ActorPool(child(Member), 2, routing=RULES[rule](case)) as pool:
            for send in (pool.ask, pool.tell, pool.tell_nowait):
                error = None
                try:
                    sent = send(Do(CASES["blocks"]))
                    if sent is not None:
                        await sent
                except BaseException as raised:
                    error = raised
                assert error is None or case.raises
                assert send is not pool.ask or (error is not None) is case.raises
                assert await pool.ask(Ping(), timeout=1) == "pong"
            await pool.drain()
            assert pool.stats().queued == 0
        system = pool.system
    assert_no_orphans(system)


WRONG_CHOICES: dict[str, Any] = {
    "no such member": lambda: (7,),
    "none": lambda: (),
    "no sequence": lambda: 3,
    "nothing": lambda: None,
    "no number": lambda: ("a",),
    "two": lambda: (0, 1),
    "no end": lambda: iter(int, 1),
}


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("choice", [one for one in WRONG_CHOICES if one not in ("two", "no end")])
async def test_a_rule_that_chooses_nonsense_is_told(choice: str, waits: bool) -> None:
    def rule(members: Any, message: Any, turn: int) -> Any:
        return (0,) if type(message) is Ping else WRONG_CHOICES[choice]()

    async with ActorPool(child(Member), 2, routing=may_wait(rule) if waits else rule) as pool:
        if choice == "none" and waits:  # it waits, as it says
            with pytest.raises(AskError):
                await pool.ask(Do(CASES["blocks"]), timeout=0.5)
        else:
            with pytest.raises(ValueError, match=r"ask_all|return a sequence with the positions"):
                await pool.ask(Do(CASES["blocks"]), timeout=0.5)
        assert await pool.ask(Ping(), timeout=1) == "pong"


@pytest.mark.parametrize("case", AWAITED, ids=repr)
async def test_members_of_actor_pools_go_on_whatever_handlers_do(case: Case) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    system = ActorSystem(shutdown_timeout=2, slow_after=None, ask_timeout=5)
    try:
        with anyio.fail_after(100):
            async with system, ActorPool(child(Member), 2, system=system, capacity=10) as pool:
                error = None
                try:
                    await pool.ask(Do(case), timeout=1)
                except AskError as failed:
                    error = failed
                assert (error is not None) is (case.raises or case.suspends)
                await pool.tell(Tell(CASES["blocks"] if case.suspends else case))
                assert [await pool.ask(Ping(), timeout=3) for _ in range(5)] == ["pong"] * 5
    except BaseException as error:
        raised = error
    if case.ends_the_program:
        assert raised is not None
        assert ends_the_program(raised)
    elif raised is not None:
        _fail(format_traceback(raised))
    assert_no_orphans(system)


@pytest.mark.parametrize("case", RAISING, ids=repr)
async def test_actor_pools_never_look_at_messages(case: Case) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()

    class Echo(Actor[Do]):
        @on(Do)
        async def do(self, message: Do) -> Any:
            await anyio.sleep(1)
            return message.case

    hostile = Hostile(case)
    async with ActorPool(child(Echo), 1) as pool:
        replies = [pool.ask(Do(hostile), timeout=10) for _ in range(3)]
        replies[1].cancel()
        assert (await replies[0]) is hostile
        assert (await replies[2]) is hostile
        with pytest.raises(AskError):
            await pool.ask(Do(hostile), timeout=0.5)
