"""A map of a blocking pool: tasks that are submitted as their results are read."""

# Items are Any here: the pool's method is typed.
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cuelight.errors import ends_the_program
from cuelight.pools._attempts import name_of
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._job import Job
from cuelight.pools._map_source import close_generator

if TYPE_CHECKING:
    from contextvars import Context

    from cuelight.pools._progress import Reporter
    from cuelight.pools._results import TaskResult
    from cuelight.pools._thread_crew import Crew

__all__ = ["stream"]


def stream(
    crew: Crew,
    function: Callable[[Any], Any],
    source: Iterator[Any],
    context: Context,
    *,
    priority: int,
    buffer: int,
    reporter: Reporter | None,
) -> Iterator[TaskResult[Any]]:
    """The results of a function for each item, in order.

    Args:
        crew: whose threads call it.
        function: what to call.
        source: the items; read here, by the reader of the results.
        context: each call has a copy of it.
        priority: the smaller go first.
        buffer: items that are read ahead.
        reporter: told of each result, if there is one.
    """
    name, metrics = name_of(function), crew.config.enable_instrumentation
    waiting: deque[Job] = deque()
    more = True
    try:
        while more or waiting:
            while more and len(waiting) < buffer:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                    break
                except BaseException as error:
                    if is_a(error, Exception) or ends_the_program(error):
                        raise
                    raise as_failure(f"the source of the map of {name}", error) from error
                job = Job(name, function, (item,), {}, priority, context.copy())
                job.kept = False
                crew.submit(job)
                waiting.append(job)
            if waiting:
                crew.wait(waiting[0], None)
                result = waiting.popleft().taken_result(metrics=metrics)
                if reporter is not None:
                    reporter.advance()
                yield result
    finally:
        try:
            crew.cancel(waiting)
            if reporter is not None:
                reporter.close()
        finally:
            close_generator(source)
