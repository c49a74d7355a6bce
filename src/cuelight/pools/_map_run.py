"""A map while it runs: workers take its items, and its results go into a list or to a reader.

Invariants:
1. Each item that was taken from the source has one result, or the map as a whole ends early.
2. A stream is never more than its window ahead of its reader: items taken and results not yet read.
3. A map is over once nothing of it runs and its source is closed; whoever waits for it hears of that only then.
"""

# Functions, items and results are Any here: the handles in `_map` are typed.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sized
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight.errors import TaskCancelled
from cuelight.pools._attempts import Tries, is_coroutine, name_of
from cuelight.pools._bell import Bell
from cuelight.pools._chunks import Chunks
from cuelight.pools._map_results import Store
from cuelight.pools._map_source import source_of
from cuelight.pools._pool_worker import Cut
from cuelight.pools._progress import Progress, Reporter

if TYPE_CHECKING:
    from cuelight.mailbox import Waiter
    from cuelight.pools._crew import Crew
    from cuelight.pools._executor import Outcome
    from cuelight.pools._pool_worker import PoolWorker

__all__ = ["MapRequest", "MapRun"]

log = logging.getLogger("cuelight")

ITEMS_PER_YIELD = 64


class MapRequest(msgspec.Struct, frozen=True):
    """What `AsyncWorkerPool.map` was asked for."""

    function: Callable[[Any], Any]
    items: Any
    task_id: str
    in_loop: bool
    ordered: bool
    chunk_size: int | None
    buffer: int | None
    timeout: float | None
    priority: int
    progress: Progress | bool | None


Taken = tuple[int, Any]
"""The number of an item, and the item."""


class MapRun:
    """The work of one map; see `Work`."""

    def __init__(self, crew: Crew, request: MapRequest, store: Store) -> None:
        self.priority, self.serial = request.priority, 0
        self.listed = self.held = self.ready = False
        self.failure: BaseException | None = None
        self.unheard = False
        self._crew, self._request, self._store = crew, request, store
        self._function, self._in_loop, self._timeout = request.function, request.in_loop, request.timeout
        self._name = name_of(request.function)
        self._source = source_of(request.items)
        total = len(request.items) if isinstance(request.items, Sized) else None
        self._reporter = None if request.progress in (None, False) else Reporter(request.progress, total, self._name)
        self._chunks = Chunks(1 if request.timeout is not None else request.chunk_size, total)
        self._taken = 0
        self._running = 0
        self._exhausted = self._ended = self._over = False
        self._again: deque[Taken] = deque()
        self._tries: dict[int, Tries] = {}
        self._workers: dict[PoolWorker, None] = {}
        self._bell = Bell(crew.runtime.backend)
        crew.enter(self)
        store.opened(self)
        self._source.start(crew, self)
        self.refresh()

    # Its state.

    @property
    def window(self) -> int:
        """How many items a stream may be ahead of its reader."""
        if self._request.buffer is not None:
            return self._request.buffer
        return 2 * self._crew.size * self._chunks.size

    @property
    def over(self) -> bool:
        """Whether nothing of it is left, but perhaps results to be read."""
        return self._over

    def refresh(self) -> None:
        """Look again whether workers can take something, and whether it is over."""
        if not (self._ended or self._exhausted):
            room = self._store.limit - self._taken
            if room > 0 or self._running:
                self._hold()
            else:
                self._let_go()  # it waits for its reader alone
            self._source.wanted(int(min(room, self._crew.size * self._chunks.size)))
            self._set_ready(bool(self._again) or (room > 0 and self._source.has_items))
        else:
            self._hold()
            self._set_ready(bool(self._again))
            if not (self._running or self._again or self._source.busy or self._over):
                self._finish()

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            if ready:
                self._crew.line_up(self)
            else:
                self._crew.note_stale()

    def _hold(self) -> None:
        if not self.held:
            self.held = True
            self._crew.hold()

    def _let_go(self) -> None:
        if self.held:
            self.held = False
            self._crew.release()

    def _finish(self) -> None:
        self._over = True
        if self._reporter is not None:
            self._reporter.close()
        self._crew.finished(self)
        self._store.closed()
        if self.unheard and self.failure is not None:
            log.error("a map of %s was left, and then its source failed: %r", self._name, self.failure)
        self._bell.ring()

    async def settled(self) -> None:
        """Wait until it is over."""
        while not self._over:
            await self._bell.wait()

    def waiter(self) -> Waiter:
        """A place for its reader to sleep."""
        return self._crew.runtime.backend.waiter()

    def cancel(self) -> bool:
        """Stop what runs, and take no more items. Returns whether it was not over yet."""
        self.end(TaskCancelled(f"the map of {self._name} was cancelled"))
        return True

    def drop(self, why: str) -> bool:
        """A map is no task that waits."""
        return False

    def fail(self, error: BaseException) -> None:
        """End the map as a whole: its source or its progress callback raised."""
        self.end(error)

    def abandon(self) -> None:
        """End the map: nobody wants more results. Called from any thread, as the garbage collector may."""
        if self._over or self._ended:
            return
        if get_ident() == self._crew.thread:
            self.end(None)
        else:
            try:
                self._crew.runtime.call_threadsafe(self.end, None)
            except RuntimeError:
                pass  # the loop has ended, and the map with it

    def end(self, error: BaseException | None) -> None:
        """Stop what runs, and take no more items; the first error counts."""
        if self._over:
            return
        if self.failure is None:
            self.failure = error
        if self._ended:
            return
        self._ended = True
        self._again.clear()
        for worker in list(self._workers):
            worker.stop_task(Cut.CANCELLED)
        self._source.close(self)
        self.refresh()

    # Work.

    async def serve(self, worker: PoolWorker) -> None:
        """Have a worker do items until there are none, or something more urgent."""
        self._workers[worker] = None
        try:
            if self._in_loop:
                await self._serve_in_loop(worker)
            else:
                await self._serve_in_executor(worker)
        finally:
            del self._workers[worker]

    def _is_next(self, worker: PoolWorker) -> bool:
        heap = self._crew.heap
        return self.ready and heap[0][2] is self and not worker.cell.attention and worker.cut is None

    def _take(self) -> Taken | None:
        """The next item; None if there is none just now."""
        if self._again:
            taken = self._again.popleft()
            self._running += 1
        else:
            try:
                item = self._source.next()
            except StopIteration:
                self._exhausted = True
                self.refresh()
                return None
            except Exception as error:
                self._exhausted = True
                self.fail(error)
                return None
            if self._ended:  # by its own source
                self._source.close(self)
                return None
            taken = (self._taken, item)
            self._taken += 1
            self._running += 1
            self._crew.ledger.totals.submitted += 1
            self._store.taken()
        if self._taken >= self._store.limit or not self._source.has_items:
            self.refresh()
        return taken

    async def _serve_in_loop(self, worker: PoolWorker) -> None:
        function, timeout, checkpoint = self._function, self._timeout, self._crew.runtime.backend.checkpoint
        budget, helped = ITEMS_PER_YIELD, False
        while self._is_next(worker):
            taken = self._take()
            if taken is None:
                return
            if not helped:
                helped = True
                self._crew.call()
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
            self._running -= 1
            self._settle(taken, worker, value, error, fatal, (perf_counter() - began) * 1000)
            if fatal is not None:
                raise fatal
            budget -= 1
            if not budget:
                budget = ITEMS_PER_YIELD
                await checkpoint()

    async def _serve_in_executor(self, worker: PoolWorker) -> None:
        while self._is_next(worker) and not self._in_loop:
            first = self._take()
            if first is None:
                return
            batch = [first]
            most = self._chunks.next(self._taken, self._crew.size)
            while len(batch) < most and self.ready and (taken := self._take()) is not None:
                batch.append(taken)
            self._crew.call()
            began = perf_counter()
            outcomes, fatal = await self._run(worker, batch)
            ms = (perf_counter() - began) * 1000
            self._chunks.took(len(batch), ms)
            self._running -= len(batch)
            for taken, (fine, outcome) in zip(batch, outcomes, strict=True):
                value, error = (outcome, None) if fine else (None, outcome)
                self._settle(taken, worker, value, error, fatal, ms / len(batch))
            if fatal is not None:
                raise fatal

    async def _run(self, worker: PoolWorker, batch: list[Taken]) -> tuple[list[Outcome], BaseException | None]:
        """Run a batch in the worker's thread or process: an outcome for each, and what must not vanish."""
        outcomes: list[Outcome] = []

        async def call() -> list[Outcome]:
            if len(batch) > 1:
                return await worker.executor.run_chunk(self._function, [item for _, item in batch])
            value = await worker.executor.run(self._function, (batch[0][1],), {})
            if is_coroutine(value):  # from now on the function is called in the loop
                self._in_loop = True
                value = await value
            return [(True, value)]

        made, error, fatal = await worker.attempt(call, self._timeout)
        if error is not None:
            return [(False, error)] * len(batch), fatal
        outcomes = made
        for at, (fine, value) in enumerate(outcomes):
            if fine and is_coroutine(value):
                value.close()
                text = f"{self._name} returned a coroutine, but not for every item: make it an `async def`"
                outcomes[at] = (False, TypeError(text))
            elif not fine and not isinstance(value, Exception):
                error, fatal = worker.caught(value)
                outcomes[at] = (False, error)
        return outcomes, fatal

    def _settle(  # noqa: PLR0917 - called for each item: keywords would cost more than the rest
        self,
        taken: Taken,
        worker: PoolWorker,
        value: Any,
        error: Exception | None,
        fatal: BaseException | None,
        ms: float,
    ) -> None:
        """An attempt at an item is over: it has its result, or is tried again."""
        crew, index = self._crew, taken[0]
        tries = self._tries.get(index) if self._tries else None
        if error is not None and not self._ended and worker.may_retry(error, fatal):
            if tries is None:
                tries = self._tries[index] = Tries()
            error = crew.failed(tries, error, ms)
            if error is None:
                self._again.append(taken)
                self.refresh()
                return
        if tries is not None:
            self._tries.pop(index, None)
        result = crew.result(f"{self._request.task_id}-{index}", self._name, worker.label, value, error, tries, ms)
        if not self._ended:
            self._store.put(index, result)
            if self._reporter is not None:
                self._report(self._reporter)
        if self._exhausted or self._ended:
            self.refresh()

    def _report(self, reporter: Reporter) -> None:
        try:
            reporter.advance()
        except Exception as error:
            self.fail(error)
