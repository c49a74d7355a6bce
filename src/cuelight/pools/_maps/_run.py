"""A running map: workers take its items, and its results go into a list or to a reader.

Invariants:
1. Each item that was taken from the source gets one result, or the map as a whole ends early.
2. The items taken by a stream whose results are not yet read never exceed its window.
3. A map is over once none of its items runs and its source is closed. Only then are waiting tasks notified.
"""

# Functions, items and results are Any in this module; the handles in `_map` are typed.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import types
from collections import deque
from collections.abc import Generator
from threading import get_ident
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors import wait_code
from cuelight.errors import CuelightError, TaskCancelled, ends_the_program
from cuelight.mailbox._backend import Notifier
from cuelight.pools._contexts import CALL_DONE, ContextCalls, in_context
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._extra_workers import current_work, worker_released
from cuelight.pools._failures import is_a
from cuelight.pools._functions import Attempts, PendingCoroutine, name_of, wrap_coroutine
from cuelight.pools._maps._chunk_sizer import ChunkSizer
from cuelight.pools._maps._request import MapRequest, ServedItems, map_failure
from cuelight.pools._maps._sinks import ResultSink
from cuelight.pools._maps._source import SyncSource, count_items, source_of
from cuelight.pools._pool_worker import StopReason
from cuelight.pools._results import COMPLETED, Reporter, Shared, TaskResult, successes
from cuelight.pools._threads._executor import Successes
from cuelight.pools._waiting import OUTSIDE, PoolWait

if TYPE_CHECKING:
    from contextvars import Context

    from cuelight.actors._timers import ScheduledCall
    from cuelight.mailbox import Waiter
    from cuelight.pools._pool_worker import PoolWorker
    from cuelight.pools._threads._executor import Outcome
    from cuelight.pools._worker_group import WorkerGroup


ITEMS_PER_YIELD = 64

Item = tuple[int, Any]
"""The number of an item, and the item."""

log = get_log("cuelight")


class MapRun:
    """A map as `Work` of a group."""

    def __init__(self, group: WorkerGroup, request: MapRequest, sink: ResultSink) -> None:
        self.priority, self.serial = request.priority, 0
        self.listed = self.is_counted = self.ready = False
        self.failure: BaseException | None = None
        self.is_unobserved = False
        self.group, self._request, self.sink = group, request, sink
        self.function, self.in_loop, self.timeout = request.function, request.in_loop, request.timeout
        process = group.options.kind == "process"
        self.plain_function = request.function if process else wrap_coroutine(request.function)
        self.name, self.task_id = name_of(request.function), request.task_id
        self.context = request.context
        self.source = source_of(request.items, self.context)
        total = self.context.run(count_items, request.items)
        self.reporter = None if request.progress in (None, False) else Reporter(request.progress, total, self.name)
        self.chunk_sizer = ChunkSizer(1 if request.timeout is not None else request.chunk_size, total)
        self.totals, self._add_row, self._put = group.metrics.totals, group.metrics.add_row, sink.put
        self.taken = 0
        self.running = 0
        self.exhausted = self.ended = self._over = False
        self.retries_due: deque[Item] = deque()
        self.delayed: dict[int, ScheduledCall] = {}
        self.attempts: dict[int, Attempts] = {}
        self._workers: dict[PoolWorker, None] = {}
        self._notifier = Notifier(group.runtime.backend)
        group.add(self)
        sink.opened(self)
        try:
            self.source.start(group, self)
        except CuelightError as error:  # the group is ending, or being restarted
            self.fail(error)
        self.refresh()

    # State.

    @property
    def window(self) -> int:
        """Number of items that a stream may be ahead of its reader."""
        if self._request.buffer is not None:
            return self._request.buffer
        return 2 * self.group.size * self.chunk_sizer.size

    @property
    def over(self) -> bool:
        """Whether the map is over. There may still be unread results."""
        return self._over

    def refresh(self) -> None:
        """Update whether workers can take items, and whether the map is over."""
        if not (self.ended or self.exhausted):
            room = self.sink.limit - self.taken
            if room > 0 or self.running or self.delayed:
                self._start_counting()
            else:
                self._stop_counting()  # it waits only for its reader
            self.source.wanted(int(min(room, self.group.size * self.chunk_sizer.size)))
            self._set_ready(bool(self.retries_due) or (room > 0 and self.source.has_items))
        else:
            self._start_counting()
            self._set_ready(bool(self.retries_due))
            if not (self.running or self.retries_due or self.delayed or self.source.busy or self._over):
                self._finish()

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            if ready:
                self.group.enqueue(self)
            else:
                self.group.note_cancelled()

    def _start_counting(self) -> None:
        if not self.is_counted:
            self.is_counted = True
            self.group.work_started()

    def _stop_counting(self) -> None:
        if self.is_counted:
            self.is_counted = False
            self.group.work_finished()

    def _finish(self) -> None:
        self._over = True
        self.group.finished(self)
        self.sink.closed()
        self._notifier.notify_all()
        if self.is_unobserved and self.failure is not None:
            log.error("a map of %s was left, and then its source failed: %r", self.name, self.failure)
        if self.reporter is not None:
            self.reporter.close()

    async def wait(self) -> None:
        """Wait until the map is over."""
        if not self._over:
            with worker_released(self):
                await self.until_over()

    async def until_over(self) -> None:
        """As `wait`, without giving the place away: a cancelled map needs no worker to end."""
        while not self._over:
            await self._notifier.wait()

    # In the graph of waits.

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        return f"map of {self.name!r} of the pool {self.group.name!r}"

    def running_nodes(self) -> list[Any] | None:
        """The nodes that run its items; None if it waits for a worker."""
        if self._workers:
            return [node for worker in self._workers for node in worker.nodes()]
        return None if self.ready else []

    def busy_nodes(self) -> list[Any]:
        """The nodes that keep all places, one of which must end before it can begin."""
        return self.group.busy_nodes()

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        return OUTSIDE

    def waiter(self) -> Waiter:
        """A new waiter for its reader."""
        return self.group.runtime.backend.waiter()

    def cancel(self) -> bool:
        """Stop running items, and take no more. Always returns True."""
        self.end(TaskCancelled(f"the map of {self.name} was cancelled"))
        return True

    def drop(self, why: str) -> bool:
        """Do nothing, because a map is not a waiting task."""
        return False

    def fail(self, error: BaseException) -> None:
        """End the map because its source or its progress callback raised."""
        self.end(map_failure(self.name, error))

    def abandon_items(self, items: int, error: BaseException) -> None:
        """End the map because results of taken items could not be recorded, so that it does not wait for them."""
        self.running -= items
        self.fail(error)

    def abandon(self) -> None:
        """End the map, because its reader is gone. May be called from any thread, as the garbage collector does."""
        if self._over or self.ended:
            return
        if get_ident() == self.group.thread:
            self.end(None)
        else:
            try:
                self.group.runtime.call_threadsafe(self.end, None)
            except RuntimeError:
                pass  # the loop has ended, and the map with it

    def end(self, error: BaseException | None) -> None:
        """Stop running items, and take no more. The map fails with the first error."""
        if self._over:
            return
        if self.failure is None:
            self.failure = error
        if not self.ended:
            self.ended = True
            self.retries_due.clear()
            for call_later in self.delayed.values():
                call_later.cancel()
            self.delayed.clear()
            for worker in list(self._workers):
                worker.stop_task(StopReason.CANCELLED)
            self.source.close(self)
        if self.group.over:
            self.running = 0  # no worker is left
        self.refresh()

    # Work.

    async def serve(self, worker: PoolWorker) -> None:
        """Have a worker run items until there are none, or more urgent work is ready."""
        self._workers[worker] = None
        place = ServedItems(worker)
        context = self.context.copy()
        context.run(current_work.set, place)
        try:
            if self.in_loop:
                await serve_in_loop(self, worker, context)
            else:
                await serve_in_executor(self, worker, context)
        finally:
            place.worker = None
            del self._workers[worker]

    @property
    def endless_room(self) -> bool:
        """Whether a worker may take items without checking anything but the source."""
        return self.sink.limit == math.inf and type(self.source) is SyncSource

    def next_item(self) -> Item | None:
        """Take the next item; None if there is none now."""
        if self.retries_due:
            taken = self.retries_due.popleft()
        else:
            try:
                item = self.source.next()
                if self.ended:  # its own source has ended the map
                    self.source.close(self)
                    return None
            except BaseException as error:
                self.source_over(error)
                return None
            index = self.taken
            taken = (index, item)
            self.taken = index + 1
            self.totals.submitted += 1
        self.running += 1
        if self.taken >= self.sink.limit or not self.source.has_items:
            self.refresh()
        return taken

    def source_over(self, error: BaseException) -> None:
        """Note that there are no more items, because the source has ended or failed."""
        self.exhausted = True
        if is_a(error, StopIteration):
            self.refresh()
            return
        self.fail(error)
        if ends_the_program(error):
            raise error

    def next_items(self, most: int) -> tuple[int, list[Any]]:
        """Take up to `most` items. Returns the number of the first, and the items; no items if there are none now."""
        first = self.next_item()  # it handles all special cases
        if first is None:
            return 0, []
        index, item = first
        items = [item]
        most = int(min(most, self.sink.limit - self.taken + 1))
        if most > 1 and self.ready and index == self.taken - 1:
            try:
                items += self.source.next_many(most - 1)
            except BaseException as error:
                self.exhausted = True
                self.abandon_items(1, error)
                if ends_the_program(error):
                    raise
                return 0, []
            more = len(items) - 1
            self.running += more
            self.taken += more
            self.totals.submitted += more
            if self.ended:  # its own source has ended the map
                self.source.close(self)
            self.refresh()
        return index, items

    def finish(  # noqa: PLR0917 - called for each item: keywords would cost more than the rest
        self,
        taken: Item,
        worker: PoolWorker,
        value: Any,
        error: Exception | None,
        fatal: BaseException | None,
        ms: float,
    ) -> None:
        """Record the end of an attempt at an item: store its result, or try it again."""
        group, index = self.group, taken[0]
        self.running -= 1
        attempts = self.attempts.get(index) if self.attempts else None
        if error is not None and not self.ended and worker.may_retry(error, fatal):
            if attempts is None:
                attempts = self.attempts[index] = Attempts()
            error = group.failed(attempts, error, ms)
            if error is None:
                if attempts.delay is None:
                    self.retries_due.append(taken)
                else:
                    self.delayed[index] = group.runtime.call_later(attempts.delay, self._delay_is_over, taken)
                self.refresh()
                return
        if attempts is not None:
            self.attempts.pop(index, None)
        try:
            result = group.result(f"{self.task_id}-{index}", self.name, worker.label, value, error, attempts, ms)
            if error is not None and not is_a(error, TaskCancelled):
                call = FailedCall(self.function, (taken[1],), {}, self.name, self.priority, self.timeout)
                group.report(result, call, attempts)
        except BaseException as broken:  # no memory is left
            self.fail(broken)
            raise
        if not self.ended:
            self.sink.put(index, result)
            self.report(1)
        if self.exhausted or not self.ready:
            self.refresh()

    def _delay_is_over(self, taken: Item) -> None:
        del self.delayed[taken[0]]
        self.retries_due.append(taken)
        self.refresh()

    def finish_one(self, index: int, value: Any, worker: str, ms: float) -> None:
        """Record that an item has succeeded at its first attempt. A faster `finish`."""
        self.running -= 1
        now = time()
        task_id = f"{self.task_id}-{index}"
        try:
            totals = self.totals
            totals.completed += 1
            totals.total_elapsed_ms += ms
            self._add_row((task_id, 0, 0, self.name, COMPLETED, now, ms, worker, 0, None))
            self._put(index, TaskResult(task_id, True, value, None, ms, self.name, worker, now, None))
        except BaseException as broken:  # no memory is left
            self.fail(broken)
            raise
        if self.reporter is not None:
            self.report(1)
        if self.exhausted or not self.ready:
            self.refresh()

    def finish_many(self, first: int, values: list[Any], worker: PoolWorker, ms: float) -> None:
        """Record that the items from number `first` on have succeeded, each in `ms` milliseconds."""
        prefix, name, label, now = self.task_id, self.name, worker.label, time()
        self.running -= len(values)
        try:
            results = successes(first, values, Shared(prefix, ms, name, label, now))
            self.group.metrics.record_many(prefix, first, len(values), name, now, ms, label)
            if not self.ended:
                self.sink.put_many(first, results)
        except BaseException as broken:  # no memory is left
            self.fail(broken)
            raise
        if not self.ended:
            self.report(len(values))
        if self.exhausted or not self.ready:
            self.refresh()

    def report(self, items: int) -> None:
        """Report progress, if there is a reporter."""
        if self.reporter is not None:
            try:
                # The callback may end the map, which closes the source.
                self.context.copy().run(self.reporter.advance, items)
            except BaseException as error:
                self.fail(error)
                if ends_the_program(error):
                    raise


@types.coroutine
def serve_in_loop(  # noqa: C901, PLR0912 - calls for each item would cost as much as the item
    run: MapRun, worker: PoolWorker, context: Context
) -> Generator[Any, Any, None]:
    """Await the function for one item after another, while the map is the most urgent work.

    Each item runs in its own copy of the context, so that variables set by one item do not reach the next.
    """
    timeout, next_item, finish_one = run.timeout, run.next_item, run.finish_one
    heap, checkpoint, cell, label = run.group.heap, run.group.runtime.backend.checkpoint, worker.cell, worker.label
    budget, helped, quick, totals = ITEMS_PER_YIELD, False, run.endless_room, run.totals
    taken: Item | None = None
    calls = ContextCalls(run.function)
    try:
        while run.ready and (heap[0][2] is run or worker.is_first(run)) and not (worker.stop_reason or cell.attention):
            if quick and not run.retries_due:  # the same as `next_item`, but faster
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
                taken = next_item()
                if taken is None:
                    return None
            if not helped:
                helped = True
                run.group.wake_worker()
            began = perf_counter()
            if timeout is not None:
                worker.start_clock(timeout)
            advance = context.copy().run
            trap = advance(calls.send, taken[1])
            if trap is not CALL_DONE:
                yield from calls.wait(advance, trap)
            if timeout is not None:
                worker.stop_clock()
            ms = (perf_counter() - began) * 1000
            done, taken = taken, None
            if calls.error is None and worker.stop_reason is None and not (run.attempts or run.ended):  # type: ignore[redundant-expr]
                finish_one(done[0], calls.value, label, ms)
            else:
                _settle(run, worker, done, calls, ms)
            budget -= 1
            if not budget:
                budget = ITEMS_PER_YIELD
                yield from checkpoint()  # type: ignore[misc]  # a coroutine on asyncio and on trio
    except BaseException as error:
        if taken is not None and not is_a(error, GeneratorExit):
            run.abandon_items(1, error)
        raise
    finally:
        calls.close()


def _settle(run: MapRun, worker: PoolWorker, taken: Item, calls: ContextCalls, ms: float) -> None:
    """Record the outcome of an item that failed or was stopped, or whose map has retries or has ended."""
    error, fatal = (None, None) if calls.error is None else worker.classify_error(run.name, calls.error)
    if worker.stop_reason is not None:
        error = worker.stopped_error(error, run.timeout)
    run.finish(taken, worker, None if calls.error is not None else calls.value, error, fatal, ms)
    if fatal is not None:
        raise fatal


async def serve_in_executor(run: MapRun, worker: PoolWorker, context: Context) -> None:
    """Hand one chunk after another to the worker's executor, while the map is the most urgent work.

    A chunk is settled while the executor runs the next one: the posted callback runs when this worker waits for that
    chunk.
    """
    chunk_sizer, post = run.chunk_sizer, run.group.runtime.post
    done = PendingChunk(run, worker)
    try:
        while run.ready and worker.is_first(run) and worker.may_continue and not run.in_loop:
            first, items = run.next_items(chunk_sizer.next(run.taken, run.group.size))
            if not items:
                return
            run.group.wake_worker()
            began = perf_counter()
            outcomes, fatal = await _attempt(run, worker, context, items)
            ms = (perf_counter() - began) * 1000
            chunk_sizer.record(len(items), ms)
            done.settle()
            done.chunk = first, items, outcomes, fatal, ms / len(items)
            if fatal is not None:
                raise fatal
            post(done.settle)
    finally:
        done.settle()


class PendingChunk:
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
                if not run.attempts:
                    left = 0
                    run.finish_many(first, outcomes, self._worker, each)
                    return
                outcomes = [(True, value) for value in outcomes]
            elif not run.attempts and all([fine for fine, _ in outcomes]):  # noqa: C419 - a generator is slower
                left = 0
                run.finish_many(first, [value for _, value in outcomes], self._worker, each)
                return
            for index, (fine, outcome) in enumerate(outcomes, first):
                value, error = (outcome, None) if fine else (None, outcome)
                left -= 1
                run.finish((index, items[index - first]), self._worker, value, error, fatal, each)
        except BaseException as error:
            run.abandon_items(left, error)
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
        if type(value) is PendingCoroutine:  # from now on the function is called in the event loop
            run.in_loop = True
            value = await value
        return [(True, value)]

    outcomes, error, fatal = await worker.attempt(run.name, in_context(context.copy(), call()), run.timeout)
    if error is not None:
        return [(False, error)] * len(items), fatal
    if type(outcomes) is Successes:
        return outcomes, fatal
    for at in [at for at, (fine, value) in enumerate(outcomes) if not fine or type(value) is PendingCoroutine]:
        value = outcomes[at][1]
        if type(value) is PendingCoroutine:
            text = f"{run.name} returned a coroutine, but not for every item: make it an `async def`"
            outcomes[at] = (False, TypeError(text))
        else:
            error, bomb = worker.classify_error(run.name, value)
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
        if not any([type(value) is PendingCoroutine for value in values]):  # noqa: C419
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


wait_code[MapRun.until_over.__code__] = lambda variables, node: PoolWait(variables["self"], [node])
