"""What is stored of a task comes back, and what makes no sense is refused at the producer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.pools import TaskStatus
from cuelight.tasks import Counts, Lease, Limit, Record, Task, TaskPriority
from cuelight.tasks._codec import record_of, task_of
from cuelight.tasks._functions._values import decode, encode
from helpers.task_values import values


@given(
    st.builds(
        Task,
        task_id=st.text(min_size=1),
        task_type=st.text(),
        payload=values,
        priority=st.sampled_from(TaskPriority),
        deadline=st.none() | st.floats(1, 1e12),
        max_retries=st.integers(0, 100),
        delay=st.floats(0, 1e9),
        timeout=st.none() | st.floats(0.001, 1e9),
        max_timeouts=st.integers(0, 100),
        max_crashes=st.integers(0, 100),
        unique=st.none() | st.text(min_size=1),
        limits=st.lists(
            st.builds(Limit, st.text(min_size=1), st.none() | st.integers(1, 9)), unique_by=lambda one: one.key
        ).map(tuple),
        result_ttl=st.floats(0, 1e9),
        tenant=st.text(min_size=1),
        tenant_weight=st.floats(0.001, 1000),
    )
)
def test_a_record_gives_back_the_task_that_it_was_made_of(task: Task) -> None:
    back = task_of(Lease(record_of(task, "n"), 1, 0.0, Counts()))
    task.status = TaskStatus.IN_FLIGHT
    assert back == task


class Point(msgspec.Struct):
    x: Any
    y: int = 0


@dataclass
class Shape:
    points: list[Point] = field(default_factory=list[Point])
    name: str = ""


RING: list[Any] = []
RING.append(RING)


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (object(), "payload cannot"),
        ([1, {"a": {1, 2}, "b": (3, object())}], r"payload\[1\]\['b'\]\[1\] cannot"),
        (
            {"shape": Shape([Point(1), Point(open)])},
            r"payload\['shape'\] cannot .*Shape, and would come back as a dict",
        ),
        ({"n": 2**64}, r"payload\['n'\] cannot be stored: of type int"),
        ({"n": (1, {2**64})}, r"payload\['n'\]\[1\] cannot be stored: of type int"),
        ({"half": "\ud800"}, r"payload\['half'\] cannot"),
        ({object(): 1}, r"payload \(key <object"),
        (RING, "contains itself"),
    ],
)
def test_what_cannot_be_stored_is_named(payload: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        record_of(Task(payload=payload), "")


def test_what_no_queue_has_stored_is_said_to_be_so() -> None:
    assert decode(b"") is None
    with pytest.raises(ValueError, match="not what a task queue stores"):
        decode(b"\xc1 no such thing")


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("task_id", ""),
        ("unique", ""),
        ("priority", 5),
        ("priority", "high"),
        ("deadline", -1.0),
        ("deadline", math.nan),
        ("delay", -0.1),
        ("delay", math.inf),
        ("timeout", 0),
        ("timeout", math.inf),
        ("max_retries", -1),
        ("max_timeouts", -1),
        ("max_crashes", -1),
        ("result_ttl", -1),
        ("created_at", math.nan),
        ("unique_for", 60.0),
        ("limits", (Limit("a"), Limit("a"))),
    ],
)
def test_a_value_that_makes_no_sense_is_named(field_name: str, value: Any) -> None:
    task = Task()
    setattr(task, field_name, value)
    with pytest.raises(ValueError, match=field_name):
        record_of(task, "")


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("task_id", UUID(int=1)),
        ("task_type", None),
        ("unique", 5),
        ("deadline", "tomorrow"),
        ("delay", None),
        ("timeout", True),
        ("max_retries", 1.5),
        ("max_crashes", True),
        ("result_ttl", None),
        ("created_at", "now"),
        ("limits", ("openai",)),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field_name: str, value: Any) -> None:
    task = Task()
    setattr(task, field_name, value)
    with pytest.raises(TypeError, match=field_name):
        record_of(task, "")


@pytest.mark.parametrize("deadline", [None, 0, 0.0])
def test_no_deadline_is_never(deadline: float | None) -> None:
    record = record_of(Task(deadline=deadline), "")
    assert record.deadline == math.inf
    assert task_of(Lease(record, 1, 0.0, Counts())).deadline is None


def test_whole_numbers_and_lists_will_do() -> None:
    task = Task(priority=0, timeout=5, delay=1, result_ttl=60, limits=[Limit("a")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    record = record_of(task, "n")
    assert (record.priority, record.timeout, record.limits) == (0, 5.0, (Limit("a"),))


@pytest.mark.parametrize(("number", "priority"), [(-3, TaskPriority.CRITICAL), (7, TaskPriority.BACKGROUND)])
def test_a_priority_of_a_later_version_is_the_nearest_that_is_known(number: int, priority: TaskPriority) -> None:
    record = Record(id="a", type="t", priority=number)
    assert task_of(Lease(record, 1, 0.0, Counts())).priority is priority


def test_what_an_attempt_saved_comes_back() -> None:
    record = Record(id="a", type="t", payload=encode({"n": 1}))
    back = task_of(Lease(record, 2, 0.0, Counts(errors=2), encode([1, 2])))
    assert (back.payload, back.checkpoint, back.retry_count) == ({"n": 1}, [1, 2], 2)
