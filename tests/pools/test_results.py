"""Results that are written down only when somebody looks at them are as any other."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from cuelight.pools import TaskResult
from cuelight.pools._results import Shared, successes

SHARED = Shared("map", 1.5, "double", "worker-1", 12.0)


def _written() -> TaskResult[Any]:
    return TaskResult("map-7", True, "value", None, 1.5, "double", "worker-1", 12.0, None)


def _lazy() -> TaskResult[Any]:
    [_, result] = successes(6, ["other", "value"], SHARED)
    return result


@pytest.mark.parametrize("name", [*(one.name for one in dataclasses.fields(TaskResult)), "__class__"])
def test_each_attribute_is_the_same(name: str) -> None:
    result = _lazy()
    assert getattr(result, name) == getattr(_written(), name)
    assert getattr(result, name) == getattr(_written(), name)


def test_they_are_equal_shown_copied_and_pickled_alike() -> None:
    assert _lazy() == _written()
    assert _written() == _lazy()
    assert repr(_lazy()) == repr(_written())
    for same in (copy.copy(_lazy()), copy.deepcopy(_lazy()), pickle.loads(pickle.dumps(_lazy()))):
        assert same == _written()
        assert repr(same) == repr(_written())
    assert pickle.dumps(_lazy()) == pickle.dumps(_written())
    assert dataclasses.astuple(_lazy()) == dataclasses.astuple(_written())
    assert _lazy().unwrap() == "value"


def test_what_was_assigned_stays() -> None:
    result = _lazy()
    result.task_name = "mine"
    result.duration_ms = 3.0
    assert (result.task_id, result.task_name, result.elapsed_ms) == ("map-7", "mine", 3.0)


@pytest.mark.parametrize("make", [_lazy, _written])
def test_other_attributes_are_missing(make: Any) -> None:
    result = make()
    with pytest.raises(AttributeError, match="'TaskResult' object has no attribute 'value'"):
        result.value  # noqa: B018
    with pytest.raises(AttributeError):
        result.value = 1
    assert result.task_id
    if make is _written:
        del result.task_id
        with pytest.raises(AttributeError):
            result.task_id  # noqa: B018
