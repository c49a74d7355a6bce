"""How a worker runs the items of a map: in the event loop, or in chunks in its thread or process."""

# Functions, items and results are Any in this module; the handles in `_map` are typed.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Generator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.pools._contexts import AWAY, Calls, in_context
from cuelight.pools._failures import is_a
from cuelight.pools._functions import Unawaited
from cuelight.pools._threads._executor import Successes

if TYPE_CHECKING:
    from contextvars import Context

    from cuelight.pools._maps._run import MapRun
    from cuelight.pools._pool_worker import PoolWorker
    from cuelight.pools._threads._executor import Outcome

ITEMS_PER_YIELD = 64

Taken = tuple[int, Any]
"""The number of an item, and the item."""


@types.coroutine
def serve_in_loop(  # noqa: C901, PLR0912 - calls for each item would cost as much as the item
    run: MapRun, worker: PoolWorker, context: Context
) -> Generator[Any, Any, None]:
    """Await the function for one item after another, while the map is the most urgent work.

    Each item runs in its own copy of the context, so that variables set by one item do not reach the next.
    """
    timeout, take, settle_one = run.timeout, run.take, run.settle_one
    heap, checkpoint, cell, label = run.crew.heap, run.crew.runtime.backend.checkpoint, worker.cell, worker.label
    budget, helped, quick, totals = ITEMS_PER_YIELD, False, run.endless_room, run.totals
    taken: Taken | None = None
    calls = Calls(run.function)
    try:
        while run.ready and (heap[0][2] is run or worker.goes_on_with(run)) and not (worker.cut or cell.attention):
            if quick and not run.again:  # the same as `take`, but faster
                try:
                    item = run.source.next()
                    if run.ended:  # its own source has ended the map
                        return run.source.close(run)
                except BaseException as error:
                    return run.source_over(error)
                taken = (run.taken, item)
                run.taken += 1
                run.running += 1
                totals.submitted += 1
            else:
                taken = take()
                if taken is None:
                    return None
            if not helped:
                helped = True
                run.crew.call()
            began = perf_counter()
            if timeout is not None:
                worker.start_clock(timeout)
            advance = context.copy().run
            trap = advance(calls.send, taken[1])
            if trap is not AWAY:
                yield from calls.wait(advance, trap)
            if timeout is not None:
                worker.stop_clock()
            ms = (perf_counter() - began) * 1000
            done, taken = taken, None
            if calls.error is None and worker.cut is None and not (run.tries or run.ended):  # type: ignore[redundant-expr]
                settle_one(done[0], calls.value, label, ms)
            else:
                _settle(run, worker, done, calls, ms)
            budget -= 1
            if not budget:
                budget = ITEMS_PER_YIELD
                yield from checkpoint()  # type: ignore[misc]  # a coroutine on asyncio and on trio
    except BaseException as error:
        if taken is not None and not is_a(error, GeneratorExit):
            run.lost(1, error)
        raise
    finally:
        calls.close()


def _settle(run: MapRun, worker: PoolWorker, taken: Taken, calls: Calls, ms: float) -> None:
    """Record the outcome of an item that failed or was stopped, or whose map has retries or has ended."""
    error, fatal = (None, None) if calls.error is None else worker.sort_out(run.name, calls.error)
    if worker.cut is not None:
        error = worker.cut_short(error, run.timeout)
    run.settle(taken, worker, None if calls.error is not None else calls.value, error, fatal, ms)
    if fatal is not None:
        raise fatal


async def serve_in_executor(run: MapRun, worker: PoolWorker, context: Context) -> None:
    """Hand one chunk after another to the worker's executor, while the map is the most urgent work.

    A chunk is settled while the executor runs the next one: the posted callback runs when this worker waits for that
    chunk.
    """
    chunks, post = run.chunks, run.crew.runtime.post
    done = Done(run, worker)
    try:
        while run.ready and worker.goes_on_with(run) and worker.goes_on and not run.in_loop:
            first, items = run.take_many(chunks.next(run.taken, run.crew.size))
            if not items:
                return
            run.crew.call()
            began = perf_counter()
            outcomes, fatal = await _attempt(run, worker, context, items)
            ms = (perf_counter() - began) * 1000
            chunks.took(len(items), ms)
            done.settle()
            done.chunk = first, items, outcomes, fatal, ms / len(items)
            if fatal is not None:
                raise fatal
            post(done.settle)
    finally:
        done.settle()


class Done:
    """Keeps the last chunk of a worker until it is settled."""

    def __init__(self, run: MapRun, worker: PoolWorker) -> None:
        self._run, self._worker = run, worker
        self.chunk: tuple[int, list[Any], Successes | list[Outcome], BaseException | None, float] | None = None

    def settle(self) -> None:
        """Record the results of the chunk, once."""
        if self.chunk is None:
            return
        first, items, outcomes, fatal, each = self.chunk
        self.chunk = None
        run, left = self._run, len(items)
        try:
            if type(outcomes) is Successes:
                if not run.tries:
                    left = 0
                    run.settle_many(first, outcomes, self._worker, each)
                    return
                outcomes = [(True, value) for value in outcomes]
            elif not run.tries and all([fine for fine, _ in outcomes]):  # noqa: C419 - a generator is slower
                left = 0
                run.settle_many(first, [value for _, value in outcomes], self._worker, each)
                return
            for index, (fine, outcome) in enumerate(outcomes, first):
                value, error = (outcome, None) if fine else (None, outcome)
                left -= 1
                run.settle((index, items[index - first]), self._worker, value, error, fatal, each)
        except BaseException as error:
            run.lost(left, error)
            raise


async def _attempt(
    run: MapRun, worker: PoolWorker, context: Context, items: list[Any]
) -> tuple[Successes | list[Outcome], BaseException | None]:
    """Run items in the worker's executor. Returns their outcomes, and an exception that must be raised, if any."""

    async def call() -> Successes | list[Outcome]:
        executor: Any = worker.executor
        if len(items) > 1:
            run_many: Any = getattr(executor, "run_many", executor.run_chunk)
            return _checked(await run_many(run.plain_function, items), len(items), worker.label)
        value = await executor.run(run.plain_function, (items[0],), {})
        if type(value) is Unawaited:  # from now on the function is called in the event loop
            run.in_loop = True
            value = await value
        return [(True, value)]

    outcomes, error, fatal = await worker.attempt(run.name, in_context(context.copy(), call()), run.timeout)
    if error is not None:
        return [(False, error)] * len(items), fatal
    if type(outcomes) is Successes:
        return outcomes, fatal
    for at in [at for at, (fine, value) in enumerate(outcomes) if not fine or type(value) is Unawaited]:
        value = outcomes[at][1]
        if type(value) is Unawaited:
            text = f"{run.name} returned a coroutine, but not for every item: make it an `async def`"
            outcomes[at] = (False, TypeError(text))
        else:
            error, bomb = worker.sort_out(run.name, value)
            outcomes[at] = (False, error)
            fatal = bomb or fatal
    return outcomes, fatal


def _checked(given: Any, items: int, worker: str) -> Successes | list[Outcome]:
    """Check the outcomes that an executor has returned for a chunk.

    Raises:
        TypeError: there is not exactly one outcome for each item, as may happen with executors of users.
    """
    if type(given) is Successes and len(given) == items:
        return given
    # Nearly always all items have succeeded. A call for each item, or a generator, would cost more than all else here.
    plain = type(given) is list and len(given) == items
    if plain and all([type(one) is tuple and len(one) == 2 and one[0] is True for one in given]):  # noqa: C419
        values = [value for _, value in given]
        if not any([type(value) is Unawaited for value in values]):  # noqa: C419
            return Successes(values)
    if isinstance(given, list) and len(given) == items and all([_is_outcome(one) for one in given]):  # noqa: C419
        return given
    raise TypeError(
        f"the executor of {worker} returned {safe_repr(given)} for a chunk of {items} items: return a list with one "
        f"outcome for each, (True, value) or (False, exception)"
    )


def _is_outcome(one: Any) -> bool:
    if type(one) is not tuple or len(one) != 2:
        return False
    return one[0] is True or (one[0] is False and issubclass(type(one[1]), BaseException))
