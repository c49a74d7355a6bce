"""Task functions are immutable: `bind` and `with_options` give changed copies, of functions of a module too."""

from __future__ import annotations

import pickle

from cuelight.tasks import TaskQueue, task


@task(name="copied")
async def copied(text: str) -> None:
    """It stands in a module, where pickle finds it by its name."""


def test_with_options_and_bind_leave_the_function_of_a_module_as_it_was() -> None:
    later = copied.with_options(delay=3.0)
    bound = later.bind(TaskQueue())
    assert later.task("x").delay == bound.task("x").delay == 3.0
    assert copied.task("x").delay == 0.0
    assert (copied.queue, later.queue) == (None, None)
    assert bound.queue is not None
    assert pickle.loads(pickle.dumps(copied)) is copied
