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
from collections import deque
from threading import get_ident
from time import time
from typing import TYPE_CHECKING, Any, Protocol

from cuelight._log import get_log
from cuelight.actors import wait_code
from cuelight.errors import CuelightError, TaskCancelled, ends_the_program
from cuelight.mailbox._backend import Notifier
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._extra_workers import current_place, place_given_away
from cuelight.pools._failures import is_a
from cuelight.pools._functions import Tries, holding_coroutine, name_of
from cuelight.pools._maps._request import MapPlace, MapRequest, map_failure
from cuelight.pools._maps._source import SyncSource, count_items, source_of
from cuelight.pools._maps._work import Taken, serve_in_executor, serve_in_loop
from cuelight.pools._pool_worker import Cut
from cuelight.pools._results import COMPLETED, Reporter, Shared, TaskResult, successes
from cuelight.pools._waiting import OUTSIDE, PoolWait

if TYPE_CHECKING:
    from cuelight.actors._timers import ScheduledCall
    from cuelight.mailbox import Waiter
    from cuelight.pools._pool_worker import PoolWorker
    from cuelight.pools._worker_group import Crew


# The destinations of the results of a map: a list, or a reader.


class Store(Protocol):
    """The destination of the results of a map."""

    limit: float
    """Maximum number of items taken since the start of the map. It grows when results are read."""

    def opened(self, run: MapRun) -> None: ...

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Accept the result of an item."""
        ...

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        """Accept the results of consecutive items."""
        ...

    def closed(self) -> None:
        """Called when there will be no more results."""
        ...


class Gathered:
    """Collects all results in a list, in the order of the items or of completion."""

    limit = math.inf

    def __init__(self, results: list[Any], *, ordered: bool) -> None:
        self._results, self._ordered = results, ordered

    def opened(self, run: MapRun) -> None:
        """Nothing to do."""

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Put the result in its place. Missing results before it arrive later."""
        results = self._results
        if not self._ordered or index == len(results):
            results.append(result)
        else:
            if index > len(results):
                results.extend([None] * (index + 1 - len(results)))
            results[index] = result

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        if not self._ordered:
            self._results.extend(results)
        else:
            missing = first - len(self._results)
            if missing > 0:
                self._results.extend([None] * missing)
            self._results[first : first + len(results)] = results

    def closed(self) -> None:
        """Nothing to do."""


class Streamed:
    """Keeps results for a reader. The map is at most one window ahead of the reader."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._out: deque[TaskResult[Any]] = deque()
        self._early: dict[int, TaskResult[Any]] = {}
        self._next = 0
        self._read = 0
        self.limit: float = 0
        self.waiter: Waiter | None = None

    def opened(self, run: MapRun) -> None:
        self._run = run
        self.limit = run.window

    def put(self, index: int, result: TaskResult[Any]) -> None:
        """Make the result readable; if ordered, after all results before it."""
        if not self._ordered:
            self._out.append(result)
        elif index == self._next:
            self._out.append(result)
            self._next = index + 1
            early = self._early
            while early and self._next in early:
                self._out.append(early.pop(self._next))
                self._next += 1
        else:
            self._early[index] = result
        if self.waiter is not None:
            self.waiter.wake()

    def put_many(self, first: int, results: list[TaskResult[Any]]) -> None:
        for index, result in enumerate(results, first):
            self.put(index, result)

    def closed(self) -> None:
        """Wake the reader, because there will be no more results."""
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None:
            self.waiter.wake()

    def clear(self) -> None:
        """Drop the remaining results, which nobody will read."""
        self._out.clear()
        self._early.clear()

    def pop(self) -> TaskResult[Any] | None:
        """The next result; None if it is not there yet."""
        if not self._out:
            return None
        result = self._out.popleft()
        self._read += 1
        run = self._run
        limit = self._read + run.window
        if limit > self.limit:
            self.limit = limit
            if not run.ready:
                run.refresh()
        return result


# The number of items of a map that go to a thread or process at once.


AIM_MS = 10.0
"""Intended run time of a chunk in milliseconds: much longer than the hand-over, too short for a noticeable wait."""
GROWTH = 8
MOST = 8192


class Chunks:
    """Adapts the size of chunks to the run time of the last ones.

    Attributes:
        size: number of items in a chunk.
    """

    def __init__(self, fixed: int | None, total: int | None) -> None:
        """Set the size up.

        Args:
            fixed: a fixed size; None adapts the size.
            total: number of all items, if it is known: then the last chunks are smaller, so that all workers end at
                about the same time.
        """
        self.size = fixed or 1
        self._fixed = fixed is not None
        self._total = total

    def next(self, taken: int, workers: int) -> int:
        """The size of the next chunk, after `taken` items."""
        if self._fixed or self._total is None:
            return self.size
        return max(1, min(self.size, (self._total - taken) // (2 * workers)))

    def took(self, items: int, ms: float) -> None:
        """Record that a chunk of `items` items took `ms` milliseconds."""
        if not self._fixed:
            fitting = int(AIM_MS * items / ms) if ms > 0 else MOST
            self.size = max(1, min(fitting, self.size * GROWTH, MOST))


log = get_log("cuelight")


class MapRun:
    """A map as `Work` of a crew."""

    def __init__(self, crew: Crew, request: MapRequest, store: Store) -> None:
        self.priority, self.serial = request.priority, 0
        self.listed = self.held = self.ready = False
        self.failure: BaseException | None = None
        self.unheard = False
        self.crew, self._request, self.store = crew, request, store
        self.function, self.in_loop, self.timeout = request.function, request.in_loop, request.timeout
        process = crew.options.kind == "process"
        self.plain_function = request.function if process else holding_coroutine(request.function)
        self.name, self.task_id = name_of(request.function), request.task_id
        self.context = request.context
        self.source = source_of(request.items, self.context)
        total = self.context.run(count_items, request.items)
        self.reporter = None if request.progress in (None, False) else Reporter(request.progress, total, self.name)
        self.chunks = Chunks(1 if request.timeout is not None else request.chunk_size, total)
        self.totals, self._note, self._put = crew.ledger.totals, crew.ledger.note, store.put
        self.taken = 0
        self.running = 0
        self.exhausted = self.ended = self._over = False
        self.again: deque[Taken] = deque()
        self.delayed: dict[int, ScheduledCall] = {}
        self.tries: dict[int, Tries] = {}
        self._workers: dict[PoolWorker, None] = {}
        self._notifier = Notifier(crew.runtime.backend)
        crew.enter(self)
        store.opened(self)
        try:
            self.source.start(crew, self)
        except CuelightError as error:  # the crew is ending, or being restarted
            self.fail(error)
        self.refresh()

    # State.

    @property
    def window(self) -> int:
        """Number of items that a stream may be ahead of its reader."""
        if self._request.buffer is not None:
            return self._request.buffer
        return 2 * self.crew.size * self.chunks.size

    @property
    def over(self) -> bool:
        """Whether the map is over. There may still be unread results."""
        return self._over

    def refresh(self) -> None:
        """Update whether workers can take items, and whether the map is over."""
        if not (self.ended or self.exhausted):
            room = self.store.limit - self.taken
            if room > 0 or self.running or self.delayed:
                self._hold()
            else:
                self._let_go()  # it waits only for its reader
            self.source.wanted(int(min(room, self.crew.size * self.chunks.size)))
            self._set_ready(bool(self.again) or (room > 0 and self.source.has_items))
        else:
            self._hold()
            self._set_ready(bool(self.again))
            if not (self.running or self.again or self.delayed or self.source.busy or self._over):
                self._finish()

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            if ready:
                self.crew.line_up(self)
            else:
                self.crew.note_cancelled()

    def _hold(self) -> None:
        if not self.held:
            self.held = True
            self.crew.hold()

    def _let_go(self) -> None:
        if self.held:
            self.held = False
            self.crew.release()

    def _finish(self) -> None:
        self._over = True
        self.crew.finished(self)
        self.store.closed()
        self._notifier.notify_all()
        if self.unheard and self.failure is not None:
            log.error("a map of %s was left, and then its source failed: %r", self.name, self.failure)
        if self.reporter is not None:
            self.reporter.close()

    async def settled(self) -> None:
        """Wait until the map is over."""
        if not self._over:
            with place_given_away(self):
                await self.until_over()

    async def until_over(self) -> None:
        """As `settled`, without giving the place away: a cancelled map needs no worker to end."""
        while not self._over:
            await self._notifier.wait()

    # In the graph of waits.

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        return f"map of {self.name!r} of the pool {self.crew.name!r}"

    def runners(self) -> list[Any] | None:
        """The nodes that run its items; None if it waits for a worker."""
        if self._workers:
            return [node for worker in self._workers for node in worker.nodes()]
        return None if self.ready else []

    def occupants(self) -> list[Any]:
        """The nodes that keep all places, one of which must end before it can begin."""
        return self.crew.occupants()

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        return OUTSIDE

    def waiter(self) -> Waiter:
        """A new waiter for its reader."""
        return self.crew.runtime.backend.waiter()

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

    def lost(self, items: int, error: BaseException) -> None:
        """End the map because results of taken items could not be recorded, so that it does not wait for them."""
        self.running -= items
        self.fail(error)

    def abandon(self) -> None:
        """End the map, because its reader is gone. May be called from any thread, as the garbage collector does."""
        if self._over or self.ended:
            return
        if get_ident() == self.crew.thread:
            self.end(None)
        else:
            try:
                self.crew.runtime.call_threadsafe(self.end, None)
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
            self.again.clear()
            for later in self.delayed.values():
                later.cancel()
            self.delayed.clear()
            for worker in list(self._workers):
                worker.stop_task(Cut.CANCELLED)
            self.source.close(self)
        if self.crew.over:
            self.running = 0  # no worker is left
        self.refresh()

    # Work.

    async def serve(self, worker: PoolWorker) -> None:
        """Have a worker run items until there are none, or more urgent work is ready."""
        self._workers[worker] = None
        place = MapPlace(worker)
        context = self.context.copy()
        context.run(current_place.set, place)
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
        return self.store.limit == math.inf and type(self.source) is SyncSource

    def take(self) -> Taken | None:
        """Take the next item; None if there is none now."""
        if self.again:
            taken = self.again.popleft()
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
        if self.taken >= self.store.limit or not self.source.has_items:
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

    def take_many(self, most: int) -> tuple[int, list[Any]]:
        """Take up to `most` items. Returns the number of the first, and the items; no items if there are none now."""
        first = self.take()  # it handles all special cases
        if first is None:
            return 0, []
        index, item = first
        items = [item]
        most = int(min(most, self.store.limit - self.taken + 1))
        if most > 1 and self.ready and index == self.taken - 1:
            try:
                items += self.source.next_many(most - 1)
            except BaseException as error:
                self.exhausted = True
                self.lost(1, error)
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

    def settle(  # noqa: PLR0917 - called for each item: keywords would cost more than the rest
        self,
        taken: Taken,
        worker: PoolWorker,
        value: Any,
        error: Exception | None,
        fatal: BaseException | None,
        ms: float,
    ) -> None:
        """Record the end of an attempt at an item: store its result, or try it again."""
        crew, index = self.crew, taken[0]
        self.running -= 1
        tries = self.tries.get(index) if self.tries else None
        if error is not None and not self.ended and worker.may_retry(error, fatal):
            if tries is None:
                tries = self.tries[index] = Tries()
            error = crew.failed(tries, error, ms)
            if error is None:
                if tries.delay is None:
                    self.again.append(taken)
                else:
                    self.delayed[index] = crew.runtime.call_later(tries.delay, self._delay_is_over, taken)
                self.refresh()
                return
        if tries is not None:
            self.tries.pop(index, None)
        try:
            result = crew.result(f"{self.task_id}-{index}", self.name, worker.label, value, error, tries, ms)
            if error is not None and not is_a(error, TaskCancelled):
                call = FailedCall(self.function, (taken[1],), {}, self.name, self.priority, self.timeout)
                crew.report(result, call, tries)
        except BaseException as broken:  # no memory is left
            self.fail(broken)
            raise
        if not self.ended:
            self.store.put(index, result)
            self.report(1)
        if self.exhausted or not self.ready:
            self.refresh()

    def _delay_is_over(self, taken: Taken) -> None:
        del self.delayed[taken[0]]
        self.again.append(taken)
        self.refresh()

    def settle_one(self, index: int, value: Any, worker: str, ms: float) -> None:
        """Record that an item has succeeded at its first attempt. A faster `settle`."""
        self.running -= 1
        now = time()
        task_id = f"{self.task_id}-{index}"
        try:
            totals = self.totals
            totals.completed += 1
            totals.total_elapsed_ms += ms
            self._note((task_id, 0, 0, self.name, COMPLETED, now, ms, worker, 0, None))
            self._put(index, TaskResult(task_id, True, value, None, ms, self.name, worker, now, None))
        except BaseException as broken:  # no memory is left
            self.fail(broken)
            raise
        if self.reporter is not None:
            self.report(1)
        if self.exhausted or not self.ready:
            self.refresh()

    def settle_many(self, first: int, values: list[Any], worker: PoolWorker, ms: float) -> None:
        """Record that the items from number `first` on have succeeded, each in `ms` milliseconds."""
        prefix, name, label, now = self.task_id, self.name, worker.label, time()
        self.running -= len(values)
        try:
            results = successes(first, values, Shared(prefix, ms, name, label, now))
            self.crew.ledger.enter_many(prefix, first, len(values), name, now, ms, label)
            if not self.ended:
                self.store.put_many(first, results)
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


wait_code[MapRun.until_over.__code__] = lambda variables, node: PoolWait(variables["self"], [node])
