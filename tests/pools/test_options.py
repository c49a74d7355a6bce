"""What callers give a pool, and the names by which it speaks of that."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from cuelight.pools import AsyncWorkerPool, TaskResult, WorkerPool, WorkerPoolConfig
from cuelight.pools import _options as options
from cuelight.pools._dead_letters import _reason
from cuelight.pools._functions import name_of
from cuelight.pools._results import _count
from cuelight.pools._threads._executor import full_name


class Level(IntEnum):
    LOW = 7


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ZeroDivisionError


class Nameless:
    """Has no name that could be read."""

    def __call__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


class Lost:
    """Has a name, but no module that could be read."""

    __qualname__ = "lost"

    def __getattribute__(self, name: str) -> Any:
        if name == "__module__":
            raise ZeroDivisionError(name)
        return object.__getattribute__(self, name)

    def __call__(self) -> int:
        return 1


def test_the_default_of_an_option_is_shown_in_words() -> None:
    assert repr(options.DEFAULT) == "the pool's"


def test_whole_numbers_are_checked() -> None:
    assert options.check_whole("size", 3, 1) == 3
    for bad in (True, 0, 1.0, "3", None):
        with pytest.raises(ValueError, match=r"size=.*: give a whole number, 1 or more"):
            options.check_whole("size", bad, 1)


def test_a_priority_and_a_text_become_plain() -> None:
    assert type(options.check_priority(Level.LOW)) is int
    assert type(options.check_text("name", Text("a"))) is str
    with pytest.raises(TypeError, match=r"priority=1.5: give a whole number; smaller ones go first"):
        options.check_priority(1.5)
    with pytest.raises(TypeError, match=r"name=3: give a string"):
        options.check_text("name", 3)


async def test_a_member_of_an_enumeration_is_a_priority() -> None:
    half: Any = 0.5
    async with AsyncWorkerPool(1) as pool:
        task = pool.submit(len, "ab", priority=Level.LOW)
        assert (await task).result == 2
        with pytest.raises(TypeError, match="give a whole number"):
            await pool.submit(len, "ab", priority=half)


def test_a_name_and_a_priority_of_odd_types_are_fine_in_a_blocking_pool() -> None:
    with WorkerPool(WorkerPoolConfig(max_workers=1)) as pool:
        task_id = pool.submit_task(Text("named"), len, ("ab",), priority=Level.LOW)
        result = pool.get_task_result(task_id, timeout=30)
    assert (result.result, result.task_name, type(result.task_name)) == (2, "named", str)


def test_a_function_whose_name_cannot_be_read_is_called_a_function() -> None:
    assert name_of(Nameless()) == "a function"
    assert full_name(Nameless()).endswith("a function")
    assert full_name(Lost()) == name_of(Lost())


def test_one_value_has_two_names() -> None:
    assert TaskResult("1", elapsed_ms=5.0).duration_ms == 5.0
    assert TaskResult("1", duration_ms=5.0).elapsed_ms == 5.0
    with pytest.raises(ValueError, match="are two names of one value: give one of them"):
        TaskResult("1", elapsed_ms=5.0, duration_ms=6.0)


def test_a_failure_without_an_error_has_a_reason() -> None:
    assert _reason(None) == "failed"


def test_an_executor_that_does_not_count_has_counted_nothing() -> None:
    executor: Any = Nameless()
    assert _count(executor, "abandoned") == 0
