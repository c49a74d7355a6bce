"""What a worker process does with a function: it finds its context, and only while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from cuelight.tasks._context import running_task
from cuelight.tasks._worker._handlers import call_in_process


def test_a_function_in_a_worker_process_finds_its_context_while_it_runs() -> None:
    context: Any = object()
    before = running_task.get()

    def function(number: int, *, factor: int) -> tuple[Any, int]:
        return running_task.get(), number * factor

    assert call_in_process(context, function, (3,), {"factor": 2}) == (context, 6)
    assert running_task.get() is before


def test_a_function_that_fails_in_a_worker_process_leaves_no_context() -> None:
    context: Any = object()
    before = running_task.get()

    def function() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        call_in_process(context, function, (), {})
    assert running_task.get() is before
