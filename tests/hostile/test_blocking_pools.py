"""Whatever the functions, sources, callbacks and values that blocking pools are given do, other tasks go on.

Each place where a `WorkerPool` calls code of users runs with each case. Afterwards other tasks have run, a time-out has
come, and the pool has ended. What would end a program ends only its task here.
"""

# Values are Any here, and functions are made to fit nothing.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cuelight import DeadLetterQueue, TaskResult, WorkerPool, WorkerPoolConfig
from cuelight.errors import TaskFailed, TaskTimedOut, UnexpectedCancellation
from hostile.cases import CALLED, CASES, RAISING, Case, ProgressBar, covers
from hostile.pool_work import Finalized, Hostile, Lying

Place = Callable[[WorkerPool, Case], None]

PLACES: list[Any] = []

PATIENCE = 20.0
released = threading.Event()


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def place(*names: str, cases: list[Case], **options: Any) -> Callable[[Place], Place]:
    """Enter a place, to be tried with these cases.

    Args:
        *names: for the register.
        cases: what may happen there.
        **options: of the config.
    """

    def enter(function: Place) -> Place:
        covers(*names)(function)
        PLACES.extend(
            pytest.param(function, case, options, id=f"{function.__name__}-{case.name.replace(' ', '_')}")
            for case in cases
        )
        return function

    return enter


def double(number: int) -> int:
    return 2 * number


def block_until_released() -> None:
    released.wait(50)


def _ignore(*_: object) -> None:
    pass


def goes_on(pool: WorkerPool) -> None:
    assert ended(pool, double, 4).unwrap() == 8
    assert [one.result for one in pool.map(double, range(10))] == list(range(0, 20, 2))


def ended(pool: WorkerPool, function: Any, *args: Any) -> TaskResult[Any]:
    return pool.get_task_result(pool.submit_task("a task", function, args), timeout=PATIENCE)


@pytest.mark.parametrize(("function", "case", "options"), PLACES)
def test_blocking_pools_go_on_whatever_code_of_users_does(
    function: Place, case: Case, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.write", _ignore, raising=False)
    threads = threading.active_count()
    given: dict[str, Any] = {"max_workers": 2, "max_retries": 0, "backoff_base_seconds": 0.0} | options
    with WorkerPool(WorkerPoolConfig(**given)) as pool:
        function(pool, case)
        goes_on(pool)
    summary = pool.get_summary_metrics()
    assert (summary["pending"], summary["running"], summary["workers"]) == (0, 0, 0)
    released.set()
    assert threading.active_count() <= threads + summary["abandoned"]


def check(result: TaskResult[Any], case: Case) -> None:
    assert result.success is (result.error is None)
    if not case.raises:
        assert result.success
        return
    error = result.error
    wanted = case.error()
    if issubclass(type(wanted), Exception):
        assert type(error) is type(wanted)
    elif case.name == "CancelledError":
        assert type(error) is UnexpectedCancellation
    else:
        assert type(error) is TaskFailed
    assert type(repr(result)) is str


@place("WorkerPool.submit_task(task_fn)", cases=CALLED)
def a_task(pool: WorkerPool, case: Case) -> None:
    check(ended(pool, case.act), case)
    assert len(pool.wait_for_all()) == 1
    assert next(iter(pool.get_metrics().values())).error_message is None or case.raises


@place("WorkerPool.submit_task(task_fn, retried)", cases=CALLED, max_retries=2)
def a_task_that_is_tried_again(pool: WorkerPool, case: Case) -> None:
    result = ended(pool, case.act)
    check(result, case)
    assert result.metrics is not None
    assert result.metrics.retries_used == (2 if case.raises and not case.ends_the_program else 0)


@place("WorkerPool.submit_task(task_fn, never returns)", cases=[CASES["never returns"]], task_timeout_seconds=0.1)
def a_task_that_never_returns(pool: WorkerPool, case: Case) -> None:
    tasks = [pool.submit_task("a task", block_until_released) for _ in range(3)]
    for task in tasks:
        assert isinstance(pool.get_task_result(task, timeout=PATIENCE).error, TaskTimedOut)
    assert pool.get_summary_metrics()["abandoned"] == 3


@place("WorkerPool.submit_task(task_fn, looked at)", cases=CALLED)
def a_function_that_cannot_be_looked_at(pool: WorkerPool, case: Case) -> None:
    class Odd:
        def __call__(self) -> int:
            return 7

        def __getattribute__(self, name: str) -> Any:
            if name != "__class__":
                case.act()
            return object.__getattribute__(self, name)

        def _act(self, *_: object) -> Any:
            case.act()
            return 0

        __eq__ = __hash__ = __bool__ = __repr__ = _act

    try:
        result = ended(pool, Odd())
    except BaseException as error:  # it is looked at when it is given to the pool: the caller is told
        assert type(error) is type(case.error())  # noqa: PT017
    else:
        assert result.result == 7


@place("WorkerPool.map(fn)", cases=CALLED)
def a_map(pool: WorkerPool, case: Case) -> None:
    def at_three(number: int) -> int:
        if number == 3:
            case.act()
        return number

    results = list(pool.map(at_three, range(8)))
    assert [one.success for one in results] == [number != 3 or not case.raises for number in range(8)]
    check(results[3], case)


def results_of(pool: WorkerPool, items: Any, **options: Any) -> Any:
    try:
        return [one.result for one in pool.map(double, items, **options)]
    except BaseException as error:
        return error


@place("WorkerPool.map(items.__next__)", cases=CALLED)
def a_source(pool: WorkerPool, case: Case) -> None:
    class Source:
        left = 5

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            self.left -= 1
            if self.left == 2:
                case.act()
            if self.left < 0:
                raise StopIteration
            return self.left

    found = results_of(pool, Source())
    if case.name == "StopIteration":
        assert found == [8, 6]
    else:
        assert isinstance(found, BaseException) if case.raises else found == [8, 6, 4, 2, 0]


@place("WorkerPool.map(items.__len__)", cases=CALLED)
def the_length_of_a_source(pool: WorkerPool, case: Case) -> None:
    class Source(list[int]):
        def __len__(self) -> int:
            case.act()
            return 5

    found = results_of(pool, Source(range(5)), progress=_ignore)
    if case.ends_the_program:
        assert isinstance(found, BaseException)
    else:
        assert found == [0, 2, 4, 6, 8]


@place("WorkerPool.map(items.close)", cases=CALLED)
def the_cleanup_of_a_source(pool: WorkerPool, case: Case) -> None:
    def source() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            case.act()

    results: Any = pool.map(double, source())
    next(results)
    error: BaseException | None = None
    try:
        results.close()
    except BaseException as raised:
        error = raised
    assert (error is not None) is (case.raises and case.name != "GeneratorExit")


@place("WorkerPool.map(progress)", cases=CALLED)
def a_progress_callback(pool: WorkerPool, case: Case) -> None:
    def progress(done: int, total: int | None) -> None:
        if done == 3:
            case.act()

    found = results_of(pool, range(5), progress=progress)
    assert isinstance(found, BaseException) if case.raises else found == [0, 2, 4, 6, 8]


@place("tqdm.update", "tqdm.close", cases=CALLED)
def a_progress_bar(pool: WorkerPool, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for where in ("update", "close"):
            patch.setattr("tqdm.tqdm", partial(ProgressBar, case, where))
            found = results_of(pool, range(5), progress=True)
            fails = case.raises and (where == "update" or case.ends_the_program)
            assert isinstance(found, BaseException) if fails else found == [0, 2, 4, 6, 8]


@place("arguments and results of WorkerPool: __eq__, __hash__, __bool__, __repr__, ...", cases=RAISING, max_retries=1)
def values_that_cannot_be_looked_at(pool: WorkerPool, case: Case) -> None:
    def give_back(value: Any) -> Any:
        return value

    def refuse(value: Any) -> Any:
        raise ValueError(type(value).__name__)

    hostile: Any = Hostile(case)
    assert ended(pool, give_back, hostile).result is hostile
    assert type(ended(pool, refuse, hostile).error) is ValueError
    assert [one.result is hostile for one in pool.map(give_back, [hostile] * 5)] == [True] * 5
    assert [type(one.error) for one in pool.map(refuse, [hostile] * 5)] == [ValueError] * 5
    assert len(pool.wait_for_all()) == 2
    assert len(pool.get_metrics()) == 2
    with pool.dead_letters as letters:
        assert letters.count() == 6


FINALIZED = [case for case in RAISING if case.name != "CancelledError"]


@place("arguments and results of WorkerPool: __del__", cases=FINALIZED)
def values_whose_finalizers_raise(pool: WorkerPool, case: Case) -> None:
    def make(_: Any) -> Any:
        return Finalized(case)

    for _ in range(3):
        assert ended(pool, make, Finalized(case)).success
    assert [one.success for one in pool.map(make, (Finalized(case) for _ in range(5)))] == [True] * 5


@place("exceptions of WorkerPool: __str__, __repr__, __class__, __notes__", cases=RAISING, max_retries=1)
def errors_that_cannot_be_looked_at(pool: WorkerPool, case: Case) -> None:
    def fail(_: int = 0) -> None:
        raise Lying(case)

    def fail_in_group(_: int = 0) -> None:
        raise ExceptionGroup("two", [Lying(case), Lying(case)])

    for function in (fail, fail_in_group):
        assert type(ended(pool, function).error) in (Lying, ExceptionGroup)
        assert len([one for one in pool.map(function, range(5)) if one.error is not None]) == 5
    assert len(pool.get_metrics()) == 2
    with pool.dead_letters as letters:
        assert letters.count() == 12


@place("WorkerPool(dead_letters)", cases=CALLED)
def a_queue_of_dead_letters(pool: WorkerPool, case: Case) -> None:
    class Letters(DeadLetterQueue):
        def add_nowait(self, *args: Any, **options: Any) -> Any:
            case.act()
            return super().add_nowait(*args, **options)

    def fail(_: int = 0) -> None:
        raise ValueError("no such row")

    with WorkerPool(WorkerPoolConfig(max_workers=2, max_retries=0), dead_letters=Letters()) as other:
        for _ in range(3):
            result = ended(other, fail)
            assert type(result.error) in (ValueError, TaskFailed)
        goes_on(other)


@place("log handlers and filters of WorkerPool", cases=CALLED, max_retries=1)
def a_log_handler(pool: WorkerPool, case: Case) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            case.act()

    def fail(_: int = 0) -> None:
        raise ValueError("no such row")

    logger = logging.getLogger("cuelight.pools")
    handler, before = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        assert type(ended(pool, fail).error) is ValueError
        assert [type(one.error) for one in pool.map(fail, range(5))] == [ValueError] * 5
        goes_on(pool)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
