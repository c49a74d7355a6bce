"""Whatever functions do in worker processes, and whatever their arguments, results and exceptions do when they are
pickled, there and here: it costs that task, its process at most, and other tasks go on.

One pool, with one process, is given every case in turn.
"""

# Values are Any here, and functions are made to fit nothing.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from cuelight import AsyncWorkerPool, TaskResult, WorkerPool, WorkerPoolConfig
from cuelight.errors import TaskFailed, TaskTimedOut, UnexpectedCancellation, ends_the_program
from helpers import BACKENDS, Backend
from hostile import pool_work
from hostile.cases import CASES, RAISING, Case, covers
from hostile.pool_work import Rebuilt, Unreduced


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


Check = Callable[[Case, TaskResult[Any]], None]

CASES_HERE = [*RAISING, CASES["blocks"]]


def raised_there(case: Case, result: TaskResult[Any]) -> None:
    """The function raised in the process: it comes back as itself, or as what says why it cannot."""
    assert result.success is not case.raises
    if not case.raises:
        return
    error, wanted = result.error, case.error()
    if case.name in ("unpicklable", "deep groups", "StopIteration"):  # a StopIteration could not be raised in a loop
        assert type(error) in (RuntimeError, type(wanted))
    elif issubclass(type(wanted), Exception):
        assert type(error) is type(wanted)
    elif case.name == "CancelledError":
        assert type(error) is UnexpectedCancellation
    else:
        assert type(error) is TaskFailed


def failed_in_pickle(case: Case, result: TaskResult[Any]) -> None:
    """An argument or a result raised when it was pickled or unpickled."""
    assert result.success is not case.raises
    if case.raises:
        assert issubclass(type(result.error), Exception)


def failed_as_itself(case: Case, result: TaskResult[Any]) -> None:
    """The exception has a constructor that takes something else, and cannot be printed."""
    assert type(result.error) is pool_work.OddlyMade
    assert result.error.name == case.name


def sent(case: Case) -> Any:
    return case.name


PLACES: dict[str, tuple[Any, Callable[[Case], Any], Check]] = {
    "fn": (pool_work.act, sent, raised_there),
    "an argument's __reduce__": (type, lambda case: Unreduced(case.name), failed_in_pickle),
    "an argument's __setstate__": (type, lambda case: Rebuilt(case.name), failed_in_pickle),
    "a result's __reduce__": (pool_work.unreduced, sent, failed_in_pickle),
    "a result's __setstate__": (pool_work.rebuilt, sent, failed_in_pickle),
    "an exception's __init__ and __str__": (pool_work.raise_oddly_made, sent, failed_as_itself),
}


def covered(test: Any) -> Any:
    return covers(*[f"{test.__name__}: {name}" for name in PLACES])(test)


def ends_the_pool(case: Case, place: str) -> bool:
    """Whether it runs here, and is meant to end the program."""
    if place == "a result's __setstate__":  # an interrupt there is a Ctrl-C
        return case.name == "KeyboardInterrupt"
    return case.ends_the_program and place == "an argument's __reduce__"


@covered
@pytest.mark.parametrize("place", PLACES)
async def test_tasks_in_processes_go_on_whatever_code_of_users_does(place: str) -> None:
    function, argument, check = PLACES[place]
    async with AsyncWorkerPool(1, kind="process") as pool:
        for case in CASES_HERE:
            if ends_the_pool(case, place):
                continue
            check(case, await pool.submit(function, argument(case)))
            results = await pool.map(function, [argument(one) for one in (case, CASES["blocks"], case)], chunk_size=3)
            assert len(results) == 3
            check(case, results[0])
            check(case, results[2])
            check(CASES["blocks"], results[1])
            assert (await pool.submit(pool_work.double, 4)).result == 8
        assert (await pool.map(pool_work.double, range(50))).values == list(range(0, 100, 2))
        assert isinstance((await pool.submit(pool_work.sleep_long, timeout=0.2)).error, TaskTimedOut)
        assert (await pool.submit(pool_work.double, 4)).result == 8


ENDING = [(place, case) for place in PLACES for case in CASES_HERE if ends_the_pool(case, place)]


@pytest.mark.parametrize(("place", "case"), ENDING)
async def test_what_ends_the_program_while_it_is_pickled_here_ends_the_pool(place: str, case: Case) -> None:
    function, argument, _ = PLACES[place]
    error: BaseException | None = None
    try:
        async with AsyncWorkerPool(1, kind="process") as pool:
            result = await pool.submit(function, argument(case))
            assert type(result.error) is TaskFailed
    except BaseException as raised:
        error = raised
    assert error is not None
    assert ends_the_program(error)


@covered
@pytest.mark.parametrize("place", PLACES)
def test_tasks_of_blocking_pools_in_processes_go_on_whatever_code_of_users_does(place: str) -> None:
    function, argument, check = PLACES[place]
    config = WorkerPoolConfig(max_workers=1, max_retries=0, task_timeout_seconds=30)
    with WorkerPool(config, kind="process") as pool:
        for case in CASES_HERE:
            check(case, _ended(pool, function, argument(case)))
            results = list(pool.map(function, [argument(one) for one in (case, CASES["blocks"])]))
            check(case, results[0])
            check(CASES["blocks"], results[1])
            assert _ended(pool, pool_work.double, 4).result == 8


def _ended(pool: WorkerPool, function: Any, *args: Any) -> TaskResult[Any]:
    return pool.get_task_result(pool.submit_task("a task", function, args), timeout=40)


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    with WorkerPool(WorkerPoolConfig(max_workers=1), kind="process") as pool:
        error = _ended(pool, pool_work.double, Unreduced("Exception")).error
        assert isinstance(error, pickle.PicklingError)
        assert "argument 1 of hostile.pool_work.double, a Unreduced" in str(error)
