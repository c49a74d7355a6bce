"""Arguments that need no packing, and names of tasks: made in a short way, the same as in the long one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.tasks import Task, task

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.lists(st.integers(), max_size=2),
)
HINTS = st.sampled_from([Any, int, float, bool, str, bytes, None, int | None, str | int, float | None, list[int], Any])


@given(hints=st.tuples(HINTS, HINTS), values=st.tuples(VALUES, VALUES))
def test_plain_arguments_are_packed_alike_by_place_and_by_name(hints: tuple[Any, Any], values: tuple[Any, Any]) -> None:
    def given_to(first: Any, second: Any) -> None: ...

    given_to.__annotations__ = {"first": hints[0], "second": hints[1]}
    function: Any = task(given_to)
    by_place = payload_of(function, *values)
    by_name = payload_of(function, first=values[0], second=values[1])
    assert repr(by_place) == repr(by_name)


def payload_of(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function.task(*args, **kwargs).payload
    except TypeError as error:
        return f"TypeError: {error}"


@pytest.mark.parametrize("attempt", range(50))
def test_a_task_is_named_by_a_random_uuid(attempt: int) -> None:
    name = Task(task_type="t", payload=None).task_id
    made = uuid.UUID(name)
    assert (str(made), made.version, made.variant) == (name, 4, uuid.RFC_4122)
