"""The map of a blocking pool, which submits tasks as their results are read."""

# Items are Any in this module; the method of the pool is typed.
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cuelight.errors import ends_the_program
from cuelight.pools._failures import as_failure, is_a
from cuelight.pools._functions import name_of
from cuelight.pools._maps._source import close_generator
from cuelight.pools._threads._job import Job

if TYPE_CHECKING:
    from contextvars import Context

    from cuelight.pools._results import Reporter, TaskResult
    from cuelight.pools._threads._pool import ThreadPool


def stream(
    pool: ThreadPool,
    function: Callable[[Any], Any],
    source: Iterator[Any],
    context: Context,
    *,
    priority: int,
    buffer: int,
    reporter: Reporter | None,
) -> Iterator[TaskResult[Any]]:
    """Yield the results of a function for each item, in order.

    Args:
        pool: the threads that call the function.
        function: called with one item.
        source: the items; the reader of the results reads them here.
        context: each call runs in a copy of it.
        priority: tasks with a smaller number go first.
        buffer: number of items that are read ahead.
        reporter: notified of each result, if not None.
    """
    name, metrics = name_of(function), pool.config.enable_instrumentation
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
                pool.submit(job)
                waiting.append(job)
            if waiting:
                pool.wait(waiting[0], None)
                result = waiting.popleft().make_result(metrics=metrics)
                if reporter is not None:
                    reporter.advance()
                yield result
    finally:
        try:
            pool.cancel(waiting)
            if reporter is not None:
                reporter.close()
        finally:
            close_generator(source)
