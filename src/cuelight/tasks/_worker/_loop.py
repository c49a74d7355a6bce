"""A shift: one run of a worker, from its first claim until its last finish was sent.

Invariants:

1. Every claimed lease waits to be started, runs, or is settled. For a settled lease, a finish is sent until the store
   has answered, unless the lease was lost.
2. No more than `slots` leases run at once. Other claimed leases are started or given back within a second.
3. Leases that wait or run here are renewed; settled leases are not.
4. When `run` returns, nothing is left behind: no task, no thread except for those with calls that cannot be stopped,
   and no lease that a reachable store has not got back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from cuelight._log import get_log
from cuelight.errors import DeadlockError, TaskCancelled, TaskFailed
from cuelight.mailbox import TaskGroup, current_backend
from cuelight.tasks._queue._task_waits import runs
from cuelight.tasks._stores._protocol import Finish
from cuelight.tasks._stores._support import close_store, open_store
from cuelight.tasks._worker._failure import Failure, Released, failure
from cuelight.tasks._worker._fetcher import Claimer
from cuelight.tasks._worker._handlers import Given, Handler
from cuelight.tasks._worker._housekeeping import Chores
from cuelight.tasks._worker._lease_keeper import Keeper
from cuelight.tasks._worker._runner import CANCELLED, LOST, SHUT_DOWN, Executors, Runner
from cuelight.tasks._worker._thread_calls import ThreadCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cuelight.mailbox import Waiter
    from cuelight.tasks._context import TaskContext
    from cuelight.tasks._stores._protocol import Beat, Lease, Store
    from cuelight.tasks._worker._options import Tally, WorkerOptions

log = get_log("cuelight.tasks")

ROUSED: Final = 4
"""The number of runners woken at a time. A runner that finds work wakes others, so short tasks do not wake all."""

FLUSH: Final = 5.0
"""Seconds that the end of a shift may take to settle with its store."""

KILLED_FLUSH: Final = 1.0
"""The same for a shift that was killed."""

MOST_RESTING: Final = 10_000
"""The maximum number of tasks of one worker that wait for others. Each of them uses memory and a lease."""

Settled = tuple["Lease", Finish | None, float, Any, Exception | None]
"""The lease, its finish (None: lost), the seconds it took, the returned value and the raised exception."""


class Shift:
    """The state of a running worker. Belongs to one event loop."""

    def __init__(self, store: Store, options: WorkerOptions, tally: Tally, queue: str = "") -> None:
        self.store, self.options, self.tally, self.queue = store, options, tally, queue
        self.backend = current_backend()
        self.calls: ThreadCalls | None = None
        self.running: dict[str, Runner] = {}
        self.outdated: list[Runner] = []  # with a lost lease, while another runner runs the task again
        self.resting: dict[TaskContext, int] = {}  # tasks that wait for others, with the number of their waits
        self._had_waits = False
        self._thread = threading.get_ident()
        self.waiting: deque[Lease] = deque()
        self.finishes: list[Finish] = []
        self.failures: dict[tuple[str, int], Failure] = {}  # for finishes that the store has not answered
        self.draining = False
        self.taken = 0
        self.on_settled: Callable[[Settled], object] | None = None
        self.executors = Executors(options.kind or "thread", options.threads, options.worker_id)
        self.claimer = Claimer(self)
        self.chores = Chores(self)
        looped = options.heartbeat == "loop"
        self.keeper = Keeper(
            store,
            options.worker_id,
            lease=options.lease,
            notify=self._notify,
            pulse=None if looped else self.chores.pulse,
            clock=self.backend.time if looped else time.monotonic,
        )
        self._group: TaskGroup | None = None
        self._interrupted: BaseException | None = None
        self._opened = False
        self._idle: list[Waiter] = []
        self._runners = self._roused = 0
        self._when_idle: Waiter | None = None
        self._unknown: set[str] = set()

    # Leases in.

    @property
    def room(self) -> int:
        """The number of leases that could be started now."""
        return self.options.slots + len(self.resting) - len(self.running) - len(self.outdated) - len(self.waiting)

    @property
    def busy(self) -> int:
        """The number of running attempts."""
        return len(self.running) + len(self.outdated)

    def feed(self, leases: Sequence[Lease], since: float) -> None:
        """Start as many claimed leases as there are slots; the others wait. `since` is when the claim was sent."""
        hold = self.keeper.hold
        for lease in leases:
            hold(lease.record.id, lease.epoch, since)
        self.waiting.extend(leases)
        if self.draining:
            self.give_back()
        else:
            self._rouse()

    def take(self) -> Lease | None:
        """The next lease for a runner."""
        if not self.waiting or self.draining:
            return None
        if self._had_waits and self.busy - len(self.resting) >= self.options.slots:
            return None
        lease = self.waiting.popleft()
        self.taken += 1
        if self.waiting:
            self._rouse()
        return lease

    def _rouse(self) -> None:
        """Wake or start runners for waiting leases, a few at a time."""
        wanted = min(len(self.waiting), ROUSED)
        while self._roused < wanted:
            if self._idle:
                self._idle.pop().wake()
            elif self._runners < self.options.slots + len(self.resting) and self._group is not None:
                self._runners += 1
                self._group.start_soon(self._new_runner, name=f"{self.options.worker_id} runner")
            else:
                return
            self._roused += 1

    async def _new_runner(self) -> None:
        self._roused -= 1
        await Runner(self).run()

    async def park(self) -> None:
        """Wait until there is a lease to run. A checkpoint."""
        waiter = self.backend.waiter()
        self._idle.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._idle:
                self._idle.remove(waiter)
            else:
                self._roused -= 1
            raise
        self._roused -= 1

    @property
    def has_too_many_runners(self) -> bool:
        """Whether an idle runner is superfluous, because tasks that waited for others have continued."""
        return self._had_waits and self._runners > self.options.slots + len(self.resting)

    def runner_ended(self) -> None:
        """Count a runner that has ended, and replace it if leases wait."""
        self._runners -= 1
        if self.waiting and not self.draining:
            self._rouse()

    def handler_of(self, lease: Lease) -> Handler | None:
        """The handler for this lease. If there is none for its type, the task is parked."""
        handler = self.options.table.find(lease.record.type)
        if handler is None:
            kind = lease.record.type
            if isinstance(lease, Given):
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
            self.tally.unknown += 1
            finish = Finish(lease.record.id, lease.epoch, "unknown")
            if self.on_settled is not None:
                self.on_settled(
                    (lease, finish, 0.0, None, TaskFailed(f"there is no handler for the task type {kind!r}"))
                )
            self._end(lease, finish)
        return handler

    # Tasks that wait for others.

    def node_of(self, task_id: str) -> Any:
        """The async task or the thread that runs a task, as a node in the graph of waits; None if it does not run here.

        May be called from any thread.
        """
        runner = self.running.get(task_id)
        context = None if runner is None else getattr(runner, "context", None)
        return None if context is None else context.node

    def rest(self, context: TaskContext) -> bool:
        """Free the slot of a task that begins to wait for another one. May be called from any thread.

        Raises:
            DeadlockError: too many tasks wait already.
        """
        if len(self.resting) >= MOST_RESTING and context not in self.resting:
            raise DeadlockError(
                f"{context!r} cannot wait for another task: {MOST_RESTING} tasks of {self.options.worker_id} do so "
                f"already. Send the next task at the end of a task, instead of waiting for it"
            )
        if threading.get_ident() == self._thread:
            self._rest(context)
        else:
            self.backend.call_threadsafe(self._rest, context)
        return True

    def resume(self, context: TaskContext) -> None:
        """Continue a task that has waited. May be called from any thread."""
        if threading.get_ident() == self._thread:
            self._resume(context)
        else:
            with suppress(RuntimeError):  # the worker has ended with its loop
                self.backend.call_threadsafe(self._resume, context)

    def _rest(self, context: TaskContext) -> None:
        runner = self.running.get(context.task_id)
        if runner is None or getattr(runner, "context", None) is not context:
            return  # it has ended in the meantime
        self._had_waits = True
        before = self.resting.get(context, 0)
        self.resting[context] = before + 1
        if not before:
            if not runner.handler.in_loop:
                self.executors.lend()
            self._rouse()
            self.claimer.look()

    def _resume(self, context: TaskContext) -> None:
        left = self.resting.pop(context, 0) - 1
        if left > 0:
            self.resting[context] = left
        elif left == 0:
            runner = self.running.get(context.task_id)
            if runner is not None and getattr(runner, "context", None) is context and not runner.handler.in_loop:
                self.executors.take_back()

    def attempt_over(self, runner: Runner) -> None:
        """Forget the waits of an attempt that has ended."""
        if self.resting.pop(runner.context, 0) and not runner.handler.in_loop:
            self.executors.take_back()

    # Leases out.

    def settle(self, lease: Lease, finish: Finish | None, elapsed: float, value: Any, error: Exception | None) -> None:
        """Settle an attempt that has ended; no finish means that its lease was lost."""
        self.tally.count(finish)
        if self.on_settled is not None:
            self.on_settled((lease, finish, elapsed, value, error))
        self._end(lease, finish)
        if self._when_idle is not None and not self.busy:
            self._when_idle.wake()

    def _end(self, lease: Lease, finish: Finish | None) -> None:
        self.keeper.drop(lease.record.id, lease.epoch)
        if finish is not None:
            self.finishes.append(finish)
        self.claimer.wake()

    def give_back(self) -> None:
        """Release claimed leases that were not started."""
        while self.waiting:
            self._finish_unstarted(self.waiting.popleft(), Released("the worker did not start it in time"))

    def _finish_unstarted(self, lease: Lease, why: Exception) -> None:
        options = self.options
        finish = failure(
            lease,
            "cancelled" if isinstance(why, TaskCancelled) else "released",
            why,
            worker=options.worker_id,
            at=self.store.now(),
            elapsed=0.0,
            backoff=options.backoff,
            jitter=0.0,
        )
        self.tally.count(finish)
        self._end(lease, finish)

    async def save(self, lease: Lease, progress: bytes | None, checkpoint: bytes | None) -> bool:
        """Store the progress or the checkpoint of an attempt. Return False if the attempt has lost its lease."""
        if isinstance(lease, Given):
            return True
        return await self.store.save(lease.record.id, lease.epoch, progress=progress, checkpoint=checkpoint)

    # Leases lost, tasks cancelled.

    def _notify(self, beat: Beat) -> None:
        self.backend.call_threadsafe(self.heard, beat)

    def heard(self, beat: Beat) -> None:
        """Handle the keeper's report about leases."""
        for why, keys in ((LOST, beat.lost), (CANCELLED, beat.cancelled)):
            for key in keys:
                runner = self._runner_of(*key)
                if runner is not None:
                    if why is LOST:
                        log.warning(
                            "%s lost its lease of %s (%s): lease_lost, its handler is cancelled",
                            self.options.worker_id,
                            key[0],
                            runner.lease.record.type,
                        )
                    runner.cut_off(why)
                else:
                    self._forget_waiting(key, why)

    def _runner_of(self, task_id: str, epoch: int) -> Runner | None:
        runner = self.running.get(task_id)
        if runner is not None and runner.lease.epoch == epoch:
            return runner
        return next((one for one in self.outdated if (one.lease.record.id, one.lease.epoch) == (task_id, epoch)), None)

    def _forget_waiting(self, key: tuple[str, int], why: str) -> None:
        for lease in self.waiting:
            if (lease.record.id, lease.epoch) == key:
                self.waiting.remove(lease)
                if why is LOST:
                    self.tally.lease_lost += 1
                    self._end(lease, None)
                else:
                    self._finish_unstarted(lease, TaskCancelled(CANCELLED))
                return

    # The shift.

    def interrupt(self, error: BaseException) -> None:
        """End the shift, which then raises the `KeyboardInterrupt` of a task."""
        self._interrupted = error if self._interrupted is None else self._interrupted
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def _raise_interrupt(self) -> None:
        interrupted, self._interrupted = self._interrupted, None
        if interrupted is not None:
            raise interrupted

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Work until `until` returns, then wait for running attempts. A checkpoint.

        If the call is cancelled, running attempts are cancelled and given back at once.

        Args:
            until: returns when the shift must end.

        Raises:
            BaseException: a `KeyboardInterrupt` that a task has raised, possibly in a group.
        """
        gentle = False
        runs[self] = None
        try:
            async with ThreadCalls(self.backend) as self.calls, TaskGroup() as group:
                self._group = group
                group.start_soon(self._begin)
                await until()
                await self._wind_down()
                gentle = True
                group.cancel_scope.cancel()
        finally:
            runs.pop(self, None)
            with anyio.CancelScope(shield=True):
                await self._close(gentle=gentle)
        self._raise_interrupt()

    async def _begin(self) -> None:
        assert self._group is not None  # noqa: S101 - `run` sets it
        await self._open()
        for work in (*[self.claimer.run] * self.store.overlap, self.claimer.watch, *self.chores.all):
            self._group.start_soon(work)

    async def _open(self) -> None:
        await self.claimer.patiently(lambda: open_store(self.store))
        self._opened = True
        if self.options.heartbeat == "thread":
            self.keeper.start()

    async def _wind_down(self) -> None:
        """Stop claiming, wait for running attempts, and cancel them after `shutdown_timeout`."""
        self.draining = True
        self.give_back()
        self.claimer.wake()
        with anyio.move_on_after(self.options.shutdown_timeout):
            await self._until_idle()
        for runner in (*self.running.values(), *self.outdated):
            runner.cut_off(SHUT_DOWN)
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self.busy:
            self._when_idle = self.backend.waiter()
            await self._when_idle
        self._when_idle = None

    async def _close(self, *, gentle: bool) -> None:
        self.draining = True
        self._group = self.calls = None
        self.give_back()
        try:
            with anyio.move_on_after(FLUSH if gentle else KILLED_FLUSH) as scope:
                await self.claimer.flush()
            if scope.cancelled_caught:
                log.warning(
                    "%s ends with %d finishes that its store did not accept: those tasks run again after their leases",
                    self.options.worker_id,
                    self.claimer.unsent,
                )
        finally:
            await self.executors.aclose()
            if self._opened:
                await anyio.to_thread.run_sync(self.keeper.close)
                await close_store(self.store)

    async def once(self, lease: Lease | None) -> Settled | None:
        """Run one lease, or claim one task and run it. Return None if there was no task. A checkpoint.

        Raises:
            StoreUnavailable: the store did not answer for the length of a lease.
        """
        settled: list[Settled] = []
        self.on_settled = settled.append
        runs[self] = None
        try:
            if lease is None:
                await self._open()
                lease = await self.claimer.claim_one()
            if lease is not None:
                async with ThreadCalls(self.backend) as self.calls, TaskGroup() as beside:
                    for chore in self.chores.of_leases:
                        beside.start_soon(chore)
                    async with TaskGroup() as group:
                        group.start_soon(Runner(self).once, lease)
                    beside.cancel_scope.cancel()
        finally:
            runs.pop(self, None)
            self.on_settled = None  # avoids a reference cycle: a traceback in the list refers to this shift
            if isinstance(lease, Given):
                self.finishes.clear()  # the task is in no store
            with anyio.CancelScope(shield=True):
                await self._close(gentle=True)
        self._raise_interrupt()
        return settled[0] if settled else None
