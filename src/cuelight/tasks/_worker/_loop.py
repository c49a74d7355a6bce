"""The loop of a running worker, from its first claim until its last finish was sent.

When `run` returns, nothing is left behind: no task, no thread except for those with calls that cannot be stopped, and
no lease that a reachable store has not got back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from cuelight._log import get_log
from cuelight.errors import TaskCancelled
from cuelight.mailbox import TaskGroup
from cuelight.tasks._queue._task_waits import local_runners
from cuelight.tasks._stores._support import acquire_store, release_store
from cuelight.tasks._worker._fetcher import Fetcher
from cuelight.tasks._worker._handlers import DirectTask
from cuelight.tasks._worker._housekeeping import Housekeeping
from cuelight.tasks._worker._lease_keeper import LeaseKeeper
from cuelight.tasks._worker._lease_slots import CANCELLED, LOST, SHUT_DOWN, LeaseSlots, RunningLease, Settled
from cuelight.tasks._worker._runner import Runner
from cuelight.tasks._worker._thread_calls import ThreadCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.tasks._stores._protocol import Beat, Lease, Store
    from cuelight.tasks._worker._options import WorkerCounters, WorkerOptions

log = get_log("cuelight.tasks")

FLUSH: Final = 5.0
"""Seconds that a worker may take at its end to settle with its store."""

KILLED_FLUSH: Final = 1.0
"""The same for a worker that was killed."""


class WorkerLoop:
    """A running worker: its slots, and everything that fills, runs and renews their leases."""

    def __init__(self, store: Store, options: WorkerOptions, counters: WorkerCounters, queue: str = "") -> None:
        self._store, self._options = store, options
        self.slots = slots = LeaseSlots(store, options, counters, queue, self._run_leases)
        self.fetcher = slots.fetcher = Fetcher(slots)
        self._housekeeping = Housekeeping(slots)
        looped = options.heartbeat == "loop"
        slots.keeper = LeaseKeeper(
            store,
            options.worker_id,
            lease=options.lease,
            notify=self._notify,
            on_step=None if looped else self._housekeeping.check_loop,
            clock=slots.backend.time if looped else time.monotonic,
        )
        self._opened = False

    async def _run_leases(self) -> None:
        await Runner(self.slots).run()

    # Leases lost, tasks cancelled.

    def _notify(self, beat: Beat) -> None:
        self.slots.backend.call_threadsafe(self.handle_lease_events, beat)

    def handle_lease_events(self, beat: Beat) -> None:
        """Handle the keeper's report about leases."""
        for why, keys in ((LOST, beat.lost), (CANCELLED, beat.cancelled)):
            for key in keys:
                runner = self._runner_of(*key)
                if runner is not None:
                    if why is LOST:
                        log.warning(
                            "%s lost its lease of %s (%s): lease_lost, its handler is cancelled",
                            self._options.worker_id,
                            key[0],
                            runner.lease.record.type,
                        )
                    runner.stop_attempt(why)
                else:
                    self._forget_waiting(key, why)

    def _runner_of(self, task_id: str, epoch: int) -> RunningLease | None:
        runner = self.slots.running.get(task_id)
        if runner is not None and runner.lease.epoch == epoch:
            return runner
        return next(
            (one for one in self.slots.outdated if (one.lease.record.id, one.lease.epoch) == (task_id, epoch)), None
        )

    def _forget_waiting(self, key: tuple[str, int], why: str) -> None:
        for lease in self.slots.waiting:
            if (lease.record.id, lease.epoch) == key:
                self.slots.waiting.remove(lease)
                if why is LOST:
                    self.slots.counters.lease_lost += 1
                    self.slots.end(lease, None)
                else:
                    self.slots.finish_unstarted(lease, TaskCancelled(CANCELLED))
                return

    # Start and end.

    def _raise_interrupt(self) -> None:
        interrupted, self.slots.interrupted = self.slots.interrupted, None
        if interrupted is not None:
            raise interrupted

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Work until `until` returns, then wait for running attempts. A checkpoint.

        If the call is cancelled, running attempts are cancelled and given back at once.

        Args:
            until: returns when the worker must end.

        Raises:
            BaseException: a `KeyboardInterrupt` that a task has raised, possibly in a group.
        """
        slots, gentle = self.slots, False
        local_runners[slots] = None
        try:
            async with ThreadCalls(slots.backend) as slots.calls, TaskGroup() as group:
                slots.group = group
                group.start_soon(self._begin)
                await until()
                await self._wind_down()
                gentle = True
                group.cancel_scope.cancel()
        finally:
            local_runners.pop(slots, None)
            with anyio.CancelScope(shield=True):
                await self._close(gentle=gentle)
        self._raise_interrupt()

    async def _begin(self) -> None:
        group = self.slots.group
        assert group is not None  # noqa: S101 - `run` sets it
        await self._open()
        for work in (*[self.fetcher.run] * self._store.overlap, self.fetcher.watch, *self._housekeeping.all):
            group.start_soon(work)

    async def _open(self) -> None:
        await self.fetcher.with_retries(lambda: acquire_store(self._store))
        self._opened = True
        if self._options.heartbeat == "thread":
            self.slots.keeper.start()

    async def _wind_down(self) -> None:
        """Stop claiming, wait for running attempts, and cancel them after `shutdown_timeout`."""
        slots = self.slots
        slots.draining = True
        slots.release_unstarted()
        self.fetcher.wake()
        with anyio.move_on_after(self._options.shutdown_timeout):
            await slots.until_idle()
        for runner in (*slots.running.values(), *slots.outdated):
            runner.stop_attempt(SHUT_DOWN)
        await slots.until_idle()

    async def _close(self, *, gentle: bool) -> None:
        slots = self.slots
        slots.draining = True
        slots.group = slots.calls = None
        slots.release_unstarted()
        try:
            with anyio.move_on_after(FLUSH if gentle else KILLED_FLUSH) as scope:
                await self.fetcher.flush()
            if scope.cancelled_caught:
                log.warning(
                    "%s ends with %d finishes that its store did not accept: those tasks run again after their leases",
                    self._options.worker_id,
                    self.fetcher.unsent,
                )
        finally:
            await slots.executors.aclose()
            if self._opened:
                await anyio.to_thread.run_sync(self.slots.keeper.close)
                await release_store(self._store)

    async def once(self, lease: Lease | None) -> Settled | None:
        """Run one lease, or claim one task and run it. Return None if there was no task. A checkpoint.

        Raises:
            StoreUnavailable: the store did not answer for the length of a lease.
        """
        slots = self.slots
        settled: list[Settled] = []
        slots.on_settled = settled.append
        local_runners[slots] = None
        try:
            if lease is None:
                await self._open()
                lease = await self.fetcher.claim_one()
            if lease is not None:
                async with ThreadCalls(slots.backend) as slots.calls, TaskGroup() as beside:
                    for chore in self._housekeeping.while_running:
                        beside.start_soon(chore)
                    async with TaskGroup() as group:
                        group.start_soon(Runner(slots).run_one, lease)
                    beside.cancel_scope.cancel()
        finally:
            local_runners.pop(slots, None)
            slots.on_settled = None  # avoids a reference cycle: a traceback in the list refers to this loop
            if isinstance(lease, DirectTask):
                slots.finishes.clear()  # the task is in no store
            with anyio.CancelScope(shield=True):
                await self._close(gentle=True)
        self._raise_interrupt()
        return settled[0] if settled else None
