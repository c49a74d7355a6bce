"""`unique=True`: one key for each set of arguments."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given

from cuelight.tasks import TaskQueue, task
from cuelight.tasks._functions._unique_key import unique_key
from helpers.task_values import AN_HOUR, BERLIN, values

NOTHING = object()


@dataclass(frozen=True)
class Shape:
    name: str
    size: float = 1.0


class Struct(msgspec.Struct):
    tags: set[str]


class Point(NamedTuple):
    x: float


class Color(Enum):
    RED = "red"


@task(name="sync", unique=True)
def sync(tags: set[str], options: dict[str, int], page: int = 1, *more: float, scale: float = 1, **rest: Any) -> int:
    return page


@task(name="loose", unique=True)
def loose(given, missing=NOTHING, other=(1, 2)):  # type: ignore[no-untyped-def]
    return given


def key(*args: Any, **kwargs: Any) -> str:
    made = sync.task(*args, **kwargs).unique
    assert made is not None
    return made


def loose_key(*args: Any, **kwargs: Any) -> str:
    made: str | None = loose.task(*args, **kwargs).unique
    assert made is not None
    return made


def test_unique_true_is_one_key_for_each_set_of_bound_and_converted_arguments() -> None:
    one = key({"a", "b"}, {"x": 1, "y": 2})
    assert one == key({"b", "a"}, {"y": 2, "x": 1}), "the order of sets and dicts"
    assert one == key({"a", "b"}, {"x": 1, "y": 2}, 1), "a default that is spelled out"
    assert one == key(options={"x": 1, "y": 2}, tags={"a", "b"}, scale=1.0, page=1), "by name, and 1.0 for 1"
    assert one == key(["a", "b"], {"x": 1, "y": 2}), "what a worker gets is a set"
    assert key({"a"}, {}, 1, 2) == key({"a"}, {}, 1, 2.0)
    assert key({"a"}, {}, one=1, two=2) == key({"a"}, {}, two=2, one=1)
    assert one.startswith("sync:")


def test_other_arguments_have_another_key() -> None:
    calls = [
        key({"a"}, {}),
        key({"a"}, {}, 2),
        key({"a"}, {}, 1, 2),
        key({"a"}, {}, 1, 2, 3),
        key({"a"}, {}, scale=2),
        key({"a"}, {}, rest=1),
        key({"a"}, {}, rest=1.0),
        key({"a"}, {}, rest=True),
        key({"a"}, {}, rest="1"),
        key({"a"}, {}, rest=[1]),
        key({"a"}, {}, rest=(1,)),
        key({"a"}, {}, rest=None),
        key({"a"}, {}, rest={"a": 1}),
        key({"a"}, {}, rest=["a", 1]),
        key({"a"}, {}, rest=["a1"]),
        key({"ab"}, {}),
        key({"a", "b"}, {}),
        key({"a"}, {"b": 1}),
    ]
    assert len(set(calls)) == len(calls)


def test_a_default_that_nobody_can_give_is_no_argument() -> None:
    assert loose_key(1) == loose_key(1)
    assert loose_key(1) != loose_key(1, None)
    assert loose_key(1, None) == loose_key(1, None, (1, 2))
    assert loose_key(1, None) != loose_key(1, None, [1, 2])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (0.0, -0.0),
        (Decimal("1.10"), Decimal("1.1")),
        (Decimal("1E+2"), Decimal(100)),
        (Decimal(0), Decimal("-0.00")),
        (datetime(2025, 7, 1, 12, tzinfo=BERLIN), datetime(2025, 7, 1, 10, tzinfo=UTC)),
        ({1, "a", (2, 3)}, {(2, 3), "a", 1}),
        ({frozenset({1, 2}): [{"a": 1, "b": 2}]}, {frozenset({2, 1}): [{"b": 2, "a": 1}]}),
    ],
)
def test_values_that_are_equal_have_the_same_key(left: Any, right: Any) -> None:
    assert loose_key(left) == loose_key(right)


def test_objects_are_known_by_their_fields() -> None:
    def named(given: Any) -> str:
        return unique_key("f", {"given": given})

    assert named(Shape("a")) == named(Shape("a", 1.0)) != named(Shape("b"))
    assert named(Struct({"a", "b"})) == named(Struct({"b", "a"})) != named(Struct({"a"}))
    assert named(Point(1.0)) == named(Point(1.0)) != named(Point(2.0))
    assert named(Color.RED) == named(Color.RED) != named("red")
    assert named(time(1, tzinfo=BERLIN)) != named(time(1, tzinfo=AN_HOUR)) != named(time(1))
    assert named(float("nan")) == named(-float("nan"))
    assert named(Decimal("NaN")) != named(Decimal("Infinity"))
    assert named({"ab": "c"}) != named({"a": "bc"})


def shuffled(value: Any) -> Any:
    """An equal value whose dicts and sets were filled the other way round."""
    kind: Any = type(value)
    if kind is dict:
        return {key: shuffled(value[key]) for key in reversed(value)}
    if kind in {list, tuple}:
        return kind(map(shuffled, value))
    return kind(sorted(value, key=repr)) if kind in {set, frozenset} else value


@given(values)
def test_the_key_does_not_depend_on_the_order_of_dicts_and_sets(value: Any) -> None:
    assert loose_key(value) == loose_key(shuffled(value))


def test_the_key_is_the_same_in_every_process() -> None:
    program = (
        "from tasks.queue.test_unique_key import key\n"
        "print(key({'red', 'green', 'blue', 'x', 'y'}, {'a': 1, 'b': 2}, one={frozenset('abc'): {'k', 'l', 'm'}}))"
    )
    here = key({"red", "green", "blue", "x", "y"}, {"a": 1, "b": 2}, one={frozenset("abc"): {"k", "l", "m"}})
    assert here == "sync:bb8dca75af7096e3d21910d521c3e20af3984ace2ca6a068615aedd91d0a2ca6"
    for seed in ("0", "1", "2"):
        made = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "tests"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert made.stdout.strip() == here


async def test_the_same_arguments_in_another_order_are_a_duplicate(queue: TaskQueue) -> None:
    first = await queue.send(sync, {"a", "b"}, {"x": 1, "y": 2})
    second = await queue.send(sync, {"b", "a"}, {"y": 2, "x": 1}, 1, scale=1)
    third = await queue.send(sync, {"b", "a"}, {"y": 2, "x": 1}, 2)
    assert (first.is_new, second.is_new, third.is_new) == (True, False, True)
    assert second.task_id == first.task_id
