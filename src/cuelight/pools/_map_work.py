"""The two ways in which a worker does the items of a map: in the loop, or in chunks in its thread or process."""

# Functions, items and results are Any here: the handles in `_map` are typed.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from cuelight.pools._attempts import Unawaited
from cuelight.pools._executor import Successes

if TYPE_CHECKING:
    from cuelight.pools._executor import Outcome
    from cuelight.pools._map_run import MapRun
    from cuelight.pools._pool_worker import PoolWorker

__all__ = ["Taken", "serve_in_executor", "serve_in_loop"]

ITEMS_PER_YIELD = 64

Taken = tuple[int, Any]
"""The number of an item, and the item."""


async def serve_in_loop(run: MapRun, worker: PoolWorker) -> None:
    """Await the function for one item after another, while the map is what is to be done next."""
    function, timeout, take, settle_one = run.function, run.timeout, run.take, run.settle_one
    heap, checkpoint, cell, label = run.crew.heap, run.crew.runtime.backend.checkpoint, worker.cell, worker.label
    budget, helped = ITEMS_PER_YIELD, False
    while run.ready and heap[0][2] is run and worker.cut is None and not cell.attention:
        taken = take()
        if taken is None:
            return
        if not helped:
            helped = True
            run.crew.call()
        value: Any = None
        error: Exception | None = None
        fatal: BaseException | None = None
        began = perf_counter()
        if timeout is not None:
            worker.start_clock(timeout)
        try:
            value = await function(taken[1])
        except Exception as raised:
            error = raised
        except BaseException as raised:
            error, fatal = worker.caught(raised)
        if timeout is not None:
            worker.stop_clock()
        if worker.cut is not None:
            error = worker.cut_short(error, timeout)
        ms = (perf_counter() - began) * 1000
        if error is None and not run.tries and not run.ended:
            settle_one(taken[0], value, label, ms)
        else:
            run.settle(taken, worker, value, error, fatal, ms)
            if fatal is not None:
                raise fatal
        budget -= 1
        if not budget:
            budget = ITEMS_PER_YIELD
            await checkpoint()


async def serve_in_executor(run: MapRun, worker: PoolWorker) -> None:
    """Hand one chunk after another to the worker's executor, while the map is what is to be done next.

    A chunk is settled while the executor has the next one: posted, it comes when this worker waits for that.
    """
    heap, chunks, post = run.crew.heap, run.chunks, run.crew.runtime.post
    done = Done(run, worker)
    try:
        while run.ready and heap[0][2] is run and worker.goes_on and not run.in_loop:
            first, items = run.take_many(chunks.next(run.taken, run.crew.size))
            if not items:
                return
            run.crew.call()
            began = perf_counter()
            outcomes, fatal = await _attempt(run, worker, items)
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
    """The last chunk of a worker, until it is settled."""

    def __init__(self, run: MapRun, worker: PoolWorker) -> None:
        self._run, self._worker = run, worker
        self.chunk: tuple[int, list[Any], Successes | list[Outcome], BaseException | None, float] | None = None

    def settle(self) -> None:
        """Enter the results of the chunk. Harmless if that was done."""
        if self.chunk is None:
            return
        first, items, outcomes, fatal, each = self.chunk
        self.chunk = None
        run = self._run
        if type(outcomes) is Successes:
            if not run.tries:
                run.settle_many(first, outcomes, self._worker, each)
                return
            outcomes = [(True, value) for value in outcomes]
        elif not run.tries and all([fine for fine, _ in outcomes]):  # noqa: C419 - a generator costs more
            run.settle_many(first, [value for _, value in outcomes], self._worker, each)
            return
        for index, (fine, outcome) in enumerate(outcomes, first):
            value, error = (outcome, None) if fine else (None, outcome)
            run.settle((index, items[index - first]), self._worker, value, error, fatal, each)


async def _attempt(
    run: MapRun, worker: PoolWorker, items: list[Any]
) -> tuple[Successes | list[Outcome], BaseException | None]:
    """Run items in the worker's thread or process: an outcome for each, and what must not vanish."""

    async def call() -> Successes | list[Outcome]:
        if len(items) > 1:
            executor: Any = worker.executor
            run_many: Any = getattr(executor, "run_many", executor.run_chunk)
            outcomes: Successes | list[Outcome] = await run_many(run.plain_function, items)
            return outcomes
        value = await worker.executor.run(run.plain_function, (items[0],), {})
        if isinstance(value, Unawaited):  # from now on the function is called in the loop
            run.in_loop = True
            value = await value
        return [(True, value)]

    outcomes, error, fatal = await worker.attempt(call, run.timeout)
    if error is not None:
        return [(False, error)] * len(items), fatal
    if type(outcomes) is Successes:
        return outcomes, fatal
    for at in [at for at, (fine, value) in enumerate(outcomes) if not fine or type(value) is Unawaited]:
        value = outcomes[at][1]
        if isinstance(value, Unawaited):
            text = f"{run.name} returned a coroutine, but not for every item: make it an `async def`"
            outcomes[at] = (False, TypeError(text))
        elif not isinstance(value, Exception):
            error, fatal = worker.caught(value)
            outcomes[at] = (False, error)
    return outcomes, fatal
