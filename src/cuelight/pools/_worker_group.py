"""The workers of a pool: waiting work, workers, and their supervisor. Idle workers pull work; it is never pushed.

Invariants:
1. A worker takes the waiting work with the smallest (priority, serial). A task that is tried again keeps its serial.
2. While waiting work is ready, and a worker is idle or may still be started, one worker has been woken. A woken worker
   that has taken work wakes the next worker, so a burst wakes no more workers than it needs.
3. There are never more workers than `size`. After a `resize`, surplus workers leave when their task is over.
4. Every task that was accepted ends: with a result, or as cancelled when the group ends.
5. A worker whose work waits for other work of a pool does not count; there may be as many extra workers instead.
"""

from __future__ import annotations

import math
import time
from heapq import heapify, heappop, heappush
from threading import get_ident
from typing import TYPE_CHECKING, Any

from cuelight.actors import ActorRuntime, Cell, ChildSpec, Exit, Ref, Start, child
from cuelight.errors import DeadlockError, PoolClosed, PoolFull, SystemClosed
from cuelight.mailbox._backend import Notifier
from cuelight.pools._dead_letters import DeadLetterBox, FailedCall, report_failure
from cuelight.pools._extra_workers import ExtraWorkers, current_work
from cuelight.pools._functions import Attempts, retry_or_error
from cuelight.pools._pool_worker import WORK_AVAILABLE, PoolWorker, Work
from cuelight.pools._results import TaskResult
from cuelight.pools._threads._executor import full_name
from cuelight.supervision import DynamicSupervisor

if TYPE_CHECKING:
    from cuelight.pools._options import PoolOptions
    from cuelight.pools._results import PoolMetrics

SOME_STALE = 64


class WorkerGroup:
    """One supervised group of workers, in one system."""

    def __init__(
        self, name: str, options: PoolOptions, metrics: PoolMetrics, letters: DeadLetterBox, runtime: ActorRuntime
    ) -> None:
        self.name, self.options, self.metrics, self.letters, self.runtime = name, options, metrics, letters, runtime
        self.size = options.max_workers
        self.heap: list[tuple[int, int, Work]] = []
        self.works: dict[Work, None] = {}
        self.pending = 0
        self.workers: dict[Cell, PoolWorker | None] = {}
        self.idle: dict[Cell, None] = {}
        self.woken: Cell | None = None
        self.extra_workers = ExtraWorkers()
        self.closed = False
        self.over = False
        self._leaving: set[Cell] = set()
        self._serial = 0
        self._started_count = 0
        self._stale = 0
        self._open = 0
        self._when_done = Notifier(runtime.backend)
        self._when_room = Notifier(runtime.backend)
        self.thread = runtime.thread
        # Workers belong to no submitter; the work itself runs in the context of its submitter.
        self._context = runtime.root.context.copy()
        spec = child(GroupSupervisor, self).with_options(shutdown=math.inf)
        self.cell = self._context.run(runtime.root.ensure_children().start_child, spec)
        self.cell.label = name  # shown in paths, but not registered: several pools may have the same name

    # Waiting work.

    def add(self, work: Work) -> None:
        """Accept work. The caller then calls `call` to have a worker take it.

        Raises:
            PoolClosed: the pool is shutting down.
            RuntimeError: this is not the event loop of the pool.
        """
        if get_ident() != self.thread:
            raise self.wrong_thread()
        if self.closed or self.over:
            raise PoolClosed(f"the pool {self.name!r} was shut down and takes no more work")
        self._serial += 1
        work.serial = self._serial
        self.works[work] = None
        work.is_counted = True
        self.work_started()
        if not work.listed:
            work.listed = True
            heappush(self.heap, (work.priority, work.serial, work))

    def wrong_thread(self) -> RuntimeError:
        """The error for a call from another thread than that of the event loop of the pool."""
        return RuntimeError(
            f"the pool {self.name!r} belongs to the event loop of another thread: use it there (from a thread of anyio "
            f"with anyio.from_thread.run), or use a WorkerPool, which all threads may use"
        )

    def check_room(self) -> None:
        """Check that one more task may wait.

        Raises:
            PoolFull: `max_pending` tasks wait already.
        """
        if self.pending >= self.options.max_pending:
            raise PoolFull(
                f"{self.pending} tasks wait in the pool {self.name!r} (max_pending={self.options.max_pending}): "
                f"await wait_for_room() first, or give it a larger max_pending"
            )

    def enqueue(self, work: Work) -> None:
        """Put work that has become ready into the heap, and call a worker."""
        if not work.listed:
            work.listed = True
            heappush(self.heap, (work.priority, work.serial, work))
        self.wake_worker()

    def finished(self, work: Work) -> None:
        """Forget work that is over."""
        if self.extra_workers.awaited:
            self.extra_workers.settled(work)
        if work in self.works:
            del self.works[work]
            if work.is_counted:
                self.work_finished()

    def note_cancelled(self) -> None:
        """Note that an entry of the heap is no longer ready. Cleans the heap up once there are enough such entries."""
        self._stale += 1
        if self._stale > SOME_STALE and self._stale * 2 > len(self.heap):
            self._stale = 0
            for entry in self.heap:
                entry[2].listed = entry[2].ready
            self.heap[:] = [entry for entry in self.heap if entry[2].ready]
            heapify(self.heap)

    def top(self) -> Work | None:
        """The most urgent ready work; None if there is none."""
        heap = self.heap
        while heap:
            work = heap[0][2]
            if work.ready:
                return work
            work.listed = False
            heappop(heap)
        return None

    # Workers.

    def wake_worker(self) -> None:
        """Wake or start one worker, if work is ready and no woken worker is on its way."""
        if self.woken is not None or self.top() is None:
            return
        cell = self._idle_or_new_worker()
        if cell is not None:
            self.woken = cell
            cell.put(WORK_AVAILABLE)
        elif self.extra_workers.parked and self.extra_workers.wants(self):
            self._start_worker(is_extra=True)

    def _idle_or_new_worker(self) -> Cell | None:
        """An idle worker, or a new one; None if all workers are busy and `size` is reached."""
        while self.idle:
            cell, _ = self.idle.popitem()
            if not cell.closed:  # else it is ending
                return cell
        return self._start_worker() if len(self.workers) - len(self.extra_workers.cells) < self.size else None

    def _start_worker(self, *, is_extra: bool = False) -> Cell | None:
        try:
            family = self.cell.ensure_children()
        except SystemClosed:
            return None  # the supervisor is ending, and settles waiting work; or it restarts, and calls again
        cell = self._context.run(family.start_child, ChildSpec(PoolWorker, (self, is_extra)))
        self._started_count += 1
        cell.label = f"{self.name}-{self._started_count}"
        self.workers[cell] = None
        if is_extra:
            self.extra_workers.cells[cell] = None
        cell.ensure_extras().call_when_ended(lambda _exit: self.worker_ended(cell))
        return cell

    def became_idle(self, cell: Cell) -> None:
        """Make a worker without work idle, unless it was woken for work that it has not taken yet."""
        if self.woken is not cell and cell not in self._leaving:
            self.idle[cell] = None
            self.wake_worker()  # work may have come while it was being restarted

    def arrived(self, cell: Cell) -> None:
        """Note that a woken worker has arrived."""
        self.idle.pop(cell, None)
        if self.woken is cell:
            self.woken = None

    def became_unavailable(self, cell: Cell) -> None:
        """Note that the incarnation of a worker is over, so that it takes no work for now."""
        self.arrived(cell)
        worker = self.workers.get(cell)
        if worker is not None:
            self.extra_workers.worker_is_over(worker)
            self.workers[cell] = None
        self.wake_worker()

    def worker_ended(self, cell: Cell) -> None:
        """Forget a worker that has ended for good."""
        self.arrived(cell)
        self.workers.pop(cell, None)
        self.extra_workers.cells.pop(cell, None)
        self._leaving.discard(cell)
        self.wake_worker()

    def resize(self, size: int) -> None:
        """Set the maximum number of workers. Surplus workers finish their work."""
        self.size = size
        surplus = len(self.workers) - len(self.extra_workers.cells) - len(self._leaving) - size
        # Idle ones first, the youngest first.
        for cell in [*reversed(self.idle), *reversed([one for one in self.workers if one not in self.idle])]:
            if surplus <= 0:
                break
            if cell not in self._leaving and cell not in self.extra_workers.cells:
                self._leaving.add(cell)
                self.idle.pop(cell, None)
                surplus -= 1
                cell.stop()
        self.wake_worker()

    @property
    def busy(self) -> int:
        """Number of workers that run work now."""
        return sum(1 for worker in self.workers.values() if worker is not None and worker.busy)

    def busy_nodes(self) -> list[Any]:
        """The nodes of the graph of waits that keep all places; empty if a place is free."""
        busy = [worker for worker in self.workers.values() if worker is not None and worker.busy and not worker.waits]
        if len(busy) < self.size or self.extra_workers.wants(self):
            return []
        return [node for worker in busy for node in worker.nodes()[-1:]]

    # Outcomes of attempts.

    def failed(self, attempts: Attempts, error: Exception, ms: float) -> Exception | None:
        """The final error of a task after this attempt; None if the task is tried again."""
        final = retry_or_error(attempts, error, retries=self.options.retries, max_crashes=self.options.max_crashes)
        if final is None:
            attempts.elapsed_ms += ms
        return final

    def result(  # noqa: PLR0917 - called for each task: keywords would cost more than the rest
        self,
        task_id: str,
        name: str,
        worker: str,
        value: Any,
        error: Exception | None,
        attempts: Attempts | None,
        ms: float,
    ) -> TaskResult[Any]:
        """Make the result of a task, and record it."""
        retries = 0
        if attempts is not None:
            ms += attempts.elapsed_ms
            retries = attempts.errors + attempts.crashes
        made: TaskResult[Any] = TaskResult(
            task_id, error is None, value if error is None else None, error, ms, name, worker, time.time(), None
        )
        self.metrics.record(made, retries)
        return made

    def report(self, result: TaskResult[Any], call: FailedCall, attempts: Attempts | None) -> None:
        """Log a task that has failed for good and make it a dead letter, before its result is delivered."""
        task_type = full_name(call.function)
        retries = 0 if attempts is None else attempts.errors + attempts.crashes
        report_failure(self.name, result, task_type, retries)
        self.letters.add(call, result, task_type)

    # Idleness and the end.

    def work_started(self) -> None:
        """Count work in progress, for which a drain waits and which keeps the system busy_count."""
        if not self._open:
            self.runtime.busy_count += 1
        self._open += 1

    def work_finished(self) -> None:
        """Undo one `work_started`: the work is over, or waits only for its reader."""
        self._open -= 1
        if not self._open:
            self.runtime.mark_idle()
            self._when_done.notify_all()
            self._end_if_closed()

    async def drained(self) -> None:
        """Wait until no work is in progress."""
        await self.runtime.backend.checkpoint()
        while self._open:
            await self._when_done.wait()

    async def wait_for_room(self) -> None:
        await self.runtime.backend.checkpoint()
        place = current_work.get()
        worker = None if place is None else place.worker
        if worker is not None and worker.group is self:
            await self._wait_for_room_as(worker)
            return
        while self.pending >= self.options.max_pending and not self.over:
            await self._when_room.wait()

    async def _wait_for_room_as(self, worker: PoolWorker) -> None:
        """Wait for room on behalf of work of this group, and give its place to work that makes room."""
        extra_workers = self.extra_workers
        while self.pending >= self.options.max_pending and not self.over:
            extra_workers.park(worker)
            extra_workers.room_wanted += 1
            self.wake_worker()
            try:
                await self._when_room.wait()
            finally:
                extra_workers.room_wanted -= 1
                extra_workers.unpark(worker)

    def check_not_own_work(self, what: str) -> None:
        """Check that a caller that waits for all work of this group is not itself such work.

        Raises:
            DeadlockError: the caller is work of this group.
        """
        place = current_work.get()
        if place is not None and place.worker is not None and place.worker.group is self:
            raise DeadlockError(f"a task of the pool {self.name!r} waits for {what}, so for itself")

    def left_queue(self) -> None:
        """Note that a task no longer waits."""
        self.pending -= 1
        if self.pending == self.options.max_pending - 1:
            self._when_room.notify_all()

    def close(self) -> None:
        """Take no more work, and end once all work is done."""
        self.closed = True
        self._end_if_closed()

    def _end_if_closed(self) -> None:
        if self.closed and not self._open:
            for work in list(self.works):  # streams without a reader
                work.cancel()
            self.cell.shut_down()

    def cancel_all(self) -> int:
        """Cancel all work, including running work. Returns the number of cancelled tasks and maps."""
        works = list(self.works)
        for work in works:
            work.cancel()
        return len(works)

    def abort_pending(self) -> int:
        """Cancel waiting tasks. Returns their number."""
        return sum(work.drop("it was aborted before it ran") for work in list(self.works))

    async def ended(self) -> None:
        await Ref[Any](self.cell).ended()

    def supervisor_ended(self) -> None:
        """Cancel the remaining work, because the supervisor and its workers have ended for good."""
        self.over = self.closed = True
        self.cancel_all()
        self._when_room.notify_all()


class GroupSupervisor(DynamicSupervisor):
    """The supervisor of one group. It has only plain hooks, so it needs no task, and starts at once."""

    def __init__(self, group: WorkerGroup) -> None:
        super().__init__(max_restarts=group.options.max_restarts)
        self._group = group

    def started(self, why: Start) -> Any:
        self._group.wake_worker()

    def stopped(self, why: Exit) -> Any:
        self._group.supervisor_ended()
