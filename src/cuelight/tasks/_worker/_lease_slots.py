"""The leases of a running worker: those that wait for a slot, those that run, and those that have ended.

Invariants:

1. Every claimed lease waits to be started, runs, or is settled. For a settled lease, a finish is sent until the store
   has answered, unless the lease was lost.
2. No more than `slots` leases run at once. Other claimed leases are started or given back within a second.
3. Leases that wait or run here are renewed; settled leases are not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight._log import get_log
from cuelight.errors import DeadlockError, TaskCancelled, TaskFailed
from cuelight.mailbox import TaskGroup, Waiter, current_backend
from cuelight.tasks._context import TaskContext
from cuelight.tasks._stores._protocol import Finish, Lease, Store
from cuelight.tasks._worker._executors import Executors
from cuelight.tasks._worker._failure import Failure, Released, failed_finish
from cuelight.tasks._worker._handlers import DirectTask, Handler
from cuelight.tasks._worker._lease_keeper import LeaseKeeper
from cuelight.tasks._worker._options import WorkerCounters, WorkerOptions

if TYPE_CHECKING:
    from cuelight.tasks._worker._thread_calls import ThreadCalls

log = get_log("cuelight.tasks")

LOST: Final = "its lease was lost"
CANCELLED: Final = "the task was cancelled"
SHUT_DOWN: Final = "the worker was shut down"

RUNNERS_PER_WAKE: Final = 4
"""The number of runners woken at a time. A runner that finds work wakes others, so short tasks do not wake all."""

MAX_SUSPENDED: Final = 10_000
"""The maximum number of tasks of one worker that wait for others. Each of them uses memory and a lease."""

Settled = tuple[Lease, Finish | None, float, Any, Exception | None]
"""The lease, its finish (None: lost), the seconds it took, the returned value and the raised exception."""


class RunningLease(Protocol):
    """A runner, as far as the slots and the loop of its worker use it."""

    lease: Lease
    context: TaskContext
    handler: Handler

    def stop_attempt(self, why: str) -> None: ...


class ClaimRequests(Protocol):
    """The fetcher of the worker, as far as the slots use it."""

    def wake(self) -> None:
        """Continue: an attempt has ended, or a slot is free."""
        ...

    def fetch_more(self) -> None:
        """Claim for a slot that has become free unexpectedly."""
        ...


class LeaseSlots:
    """The slots of a running worker and its leases. Belongs to one event loop."""

    fetcher: ClaimRequests
    keeper: LeaseKeeper

    def __init__(
        self,
        store: Store,
        options: WorkerOptions,
        counters: WorkerCounters,
        queue: str,
        run_leases: Callable[[], Awaitable[None]],
    ) -> None:
        """Set up the slots. The loop of the worker sets `fetcher` and `keeper`.

        Args:
            store: the store of the leases.
            options: the options of the worker.
            counters: the counters of the worker.
            queue: the name of the queue, for log messages.
            run_leases: runs leases of these slots, one after the other, until there are too many such runners.
        """
        self.store, self.options, self.counters, self.queue = store, options, counters, queue
        self._run_leases = run_leases
        self.backend = current_backend()
        self.calls: ThreadCalls | None = None
        self.group: TaskGroup | None = None
        self.running: dict[str, RunningLease] = {}
        self.outdated: list[RunningLease] = []  # with a lost lease, while another runner runs the task again
        self.suspended: dict[TaskContext, int] = {}  # tasks that wait for others, with the number of their waits
        self._had_suspended = False
        self._thread = threading.get_ident()
        self.waiting: deque[Lease] = deque()
        self.finishes: list[Finish] = []
        self.failures: dict[tuple[str, int], Failure] = {}  # for finishes that the store has not answered
        self.draining = False
        self.taken = 0
        self.on_settled: Callable[[Settled], object] | None = None
        self.executors = Executors(options.kind or "thread", options.threads, options.worker_id)
        self.interrupted: BaseException | None = None
        self._idle: list[Waiter] = []
        self._runners = self._woken = 0
        self._when_idle: Waiter | None = None
        self._unknown: set[str] = set()

    # Leases in.

    @property
    def free_slots(self) -> int:
        """The number of leases that could be started now."""
        return self.options.slots + len(self.suspended) - len(self.running) - len(self.outdated) - len(self.waiting)

    @property
    def busy(self) -> int:
        """The number of running attempts."""
        return len(self.running) + len(self.outdated)

    def add_leases(self, leases: Sequence[Lease], since: float) -> None:
        """Start as many claimed leases as there are slots; the others wait. `since` is when the claim was sent."""
        hold = self.keeper.hold
        for lease in leases:
            hold(lease.record.id, lease.epoch, since)
        self.waiting.extend(leases)
        if self.draining:
            self.release_unstarted()
        else:
            self._wake_runners()

    def next_lease(self) -> Lease | None:
        """The next lease for a runner."""
        if not self.waiting or self.draining:
            return None
        if self._had_suspended and self.busy - len(self.suspended) >= self.options.slots:
            return None
        lease = self.waiting.popleft()
        self.taken += 1
        if self.waiting:
            self._wake_runners()
        return lease

    def _wake_runners(self) -> None:
        """Wake or start runners for waiting leases, a few at a time."""
        wanted = min(len(self.waiting), RUNNERS_PER_WAKE)
        while self._woken < wanted:
            if self._idle:
                self._idle.pop().wake()
            elif self._runners < self.options.slots + len(self.suspended) and self.group is not None:
                self._runners += 1
                self.group.start_soon(self._new_runner, name=f"{self.options.worker_id} runner")
            else:
                return
            self._woken += 1

    async def _new_runner(self) -> None:
        self._woken -= 1
        await self._run_leases()

    async def wait_for_lease(self) -> None:
        """Wait until there is a lease to run. A checkpoint."""
        waiter = self.backend.waiter()
        self._idle.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._idle:
                self._idle.remove(waiter)
            else:
                self._woken -= 1
            raise
        self._woken -= 1

    @property
    def has_too_many_runners(self) -> bool:
        """Whether an idle runner is superfluous, because tasks that waited for others have continued."""
        return self._had_suspended and self._runners > self.options.slots + len(self.suspended)

    def runner_ended(self) -> None:
        """Count a runner that has ended, and replace it if leases wait."""
        self._runners -= 1
        if self.waiting and not self.draining:
            self._wake_runners()

    def handler_of(self, lease: Lease) -> Handler | None:
        """The handler for this lease. If there is none for its type, the task is parked."""
        handler = self.options.handlers.find(lease.record.type)
        if handler is None:
            kind = lease.record.type
            if isinstance(lease, DirectTask):
                log.error(
                    "%s has no handler for the task type %r: the task %s is left to its caller",
                    self.options.worker_id,
                    kind,
                    lease.record.id,
                    extra={"task_id": lease.record.id, "task_type": kind, "worker_id": self.options.worker_id},
                )
            elif kind not in self._unknown:
                self._unknown.add(kind)
                log.warning(
                    "%s has no handler for the task type %r: such tasks are parked until a worker with one starts",
                    self.options.worker_id,
                    kind,
                )
            self.counters.unknown += 1
            finish = Finish(lease.record.id, lease.epoch, "unknown")
            if self.on_settled is not None:
                self.on_settled(
                    (lease, finish, 0.0, None, TaskFailed(f"there is no handler for the task type {kind!r}"))
                )
            self.end(lease, finish)
        return handler

    # Tasks that wait for others.

    def node_of(self, task_id: str) -> Any:
        """The async task or the thread that runs a task, as a node in the graph of waits; None if it does not run here.

        May be called from any thread.
        """
        runner = self.running.get(task_id)
        context = None if runner is None else getattr(runner, "context", None)
        return None if context is None else context.node

    def suspend(self, context: TaskContext) -> bool:
        """Free the slot of a task that begins to wait for another one. May be called from any thread.

        Raises:
            DeadlockError: too many tasks wait already.
        """
        if len(self.suspended) >= MAX_SUSPENDED and context not in self.suspended:
            raise DeadlockError(
                f"{context!r} cannot wait for another task: {MAX_SUSPENDED} tasks of {self.options.worker_id} do so "
                f"already. Send the next task at the end of a task, instead of waiting for it"
            )
        if threading.get_ident() == self._thread:
            self._suspend(context)
        else:
            self.backend.call_threadsafe(self._suspend, context)
        return True

    def resume(self, context: TaskContext) -> None:
        """Continue a task that has waited. May be called from any thread."""
        if threading.get_ident() == self._thread:
            self._resume(context)
        else:
            with suppress(RuntimeError):  # the worker has ended with its loop
                self.backend.call_threadsafe(self._resume, context)

    def _suspend(self, context: TaskContext) -> None:
        runner = self.running.get(context.task_id)
        if runner is None or getattr(runner, "context", None) is not context:
            return  # it has ended in the meantime
        self._had_suspended = True
        before = self.suspended.get(context, 0)
        self.suspended[context] = before + 1
        if not before:
            if not runner.handler.in_loop:
                self.executors.add_permit()
            self._wake_runners()
            self.fetcher.fetch_more()

    def _resume(self, context: TaskContext) -> None:
        left = self.suspended.pop(context, 0) - 1
        if left > 0:
            self.suspended[context] = left
        elif left == 0:
            runner = self.running.get(context.task_id)
            if runner is not None and getattr(runner, "context", None) is context and not runner.handler.in_loop:
                self.executors.remove_permit()

    def attempt_ended(self, runner: RunningLease) -> None:
        """Forget the waits of an attempt that has ended."""
        if self.suspended.pop(runner.context, 0) and not runner.handler.in_loop:
            self.executors.remove_permit()

    # Leases out.

    def settle(self, lease: Lease, finish: Finish | None, elapsed: float, value: Any, error: Exception | None) -> None:
        """Settle an attempt that has ended; no finish means that its lease was lost."""
        self.counters.count(finish)
        if self.on_settled is not None:
            self.on_settled((lease, finish, elapsed, value, error))
        self.end(lease, finish)
        if self._when_idle is not None and not self.busy:
            self._when_idle.wake()

    def end(self, lease: Lease, finish: Finish | None) -> None:
        """Stop renewing a lease, and send its finish. No finish means that it was lost."""
        self.keeper.drop(lease.record.id, lease.epoch)
        if finish is not None:
            self.finishes.append(finish)
        self.fetcher.wake()

    def release_unstarted(self) -> None:
        """Release claimed leases that were not started."""
        while self.waiting:
            self.finish_unstarted(self.waiting.popleft(), Released("the worker did not start it in time"))

    def finish_unstarted(self, lease: Lease, why: Exception) -> None:
        """Release or cancel a lease that was not started."""
        options = self.options
        finish = failed_finish(
            lease,
            "cancelled" if isinstance(why, TaskCancelled) else "released",
            why,
            worker=options.worker_id,
            at=self.store.now(),
            elapsed=0.0,
            backoff=options.backoff,
            jitter=0.0,
        )
        self.counters.count(finish)
        self.end(lease, finish)

    async def save(self, lease: Lease, progress: bytes | None, checkpoint: bytes | None) -> bool:
        """Store the progress or the checkpoint of an attempt. Return False if the attempt has lost its lease."""
        if isinstance(lease, DirectTask):
            return True
        return await self.store.save(lease.record.id, lease.epoch, progress=progress, checkpoint=checkpoint)

    # The end.

    def interrupt(self, error: BaseException) -> None:
        """End the worker, which then raises the `KeyboardInterrupt` of a task."""
        self.interrupted = error if self.interrupted is None else self.interrupted
        if self.group is not None:
            self.group.cancel_scope.cancel()

    async def until_idle(self) -> None:
        while self.busy:
            self._when_idle = self.backend.waiter()
            await self._when_idle
        self._when_idle = None
