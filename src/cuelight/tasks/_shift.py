"""A shift: one working period of a worker, from its first claim to the last finish that was sent.

Invariants:

1. Every lease that was claimed is waiting to be begun, running, or settled; settled ones have a finish that is sent
   until the store has answered, unless the lease was lost.
2. No more than `slots` leases run at once, and what waits beside them is begun or given back within a second.
3. Leases that are held here are renewed, those that are settled are not.
4. When `run` returns nothing is left: no task, no thread of ours but those of calls that cannot be stopped, no lease
   that was not given back to a store that answers.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from cuelight._log import get_log
from cuelight.errors import TaskCancelled, TaskFailed
from cuelight.mailbox import current_backend
from cuelight.tasks._chores import Chores
from cuelight.tasks._claimer import Claimer
from cuelight.tasks._executors import Executors
from cuelight.tasks._failures import Failure
from cuelight.tasks._handling import Given, Handler
from cuelight.tasks._keeper import Keeper
from cuelight.tasks._opened import close_store, open_store
from cuelight.tasks._outcome import Released, failure
from cuelight.tasks._runner import CANCELLED, LOST, SHUT_DOWN, Runner
from cuelight.tasks._store import Finish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from cuelight.mailbox import Waiter
    from cuelight.tasks._options import Tally, WorkerOptions
    from cuelight.tasks._store import Beat, Lease, Store

__all__ = ["Shift"]

log = get_log("cuelight.tasks")

ROUSED: Final = 4
"""Runners that are woken at a time. Each that finds work wakes others, so that no-ops do not wake them all."""

FLUSH: Final = 5.0
"""Seconds that the end of a shift may take to settle with its store."""

KILLED_FLUSH: Final = 1.0
"""The same when it was killed."""

Settled = tuple["Lease", Finish | None, float, Any, Exception | None]
"""The lease, how it was finished (None: lost), seconds, what it returned and what it raised."""


class Shift:
    """What one worker has while it works. Belongs to one loop."""

    def __init__(self, store: Store, options: WorkerOptions, tally: Tally, queue: str = "") -> None:
        self.store, self.options, self.tally, self.queue = store, options, tally, queue
        self.backend = current_backend()
        self.portal: BlockingPortal | None = None
        self.running: dict[tuple[str, int], Runner] = {}
        self.waiting: deque[Lease] = deque()
        self.finishes: list[Finish] = []
        self.failures: dict[tuple[str, int], Failure] = {}  # of finishes that the store has not answered
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
        self._opened = False
        self._idle: list[Waiter] = []
        self._runners = self._roused = 0
        self._when_idle: Waiter | None = None
        self._unknown: set[str] = set()

    # Leases in.

    @property
    def room(self) -> int:
        """How many leases could be begun now."""
        return self.options.slots - len(self.running) - len(self.waiting)

    def feed(self, leases: Sequence[Lease], since: float) -> None:
        """Begin what was claimed, as far as there are slots; the rest waits. `since`: when the claim was sent."""
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
        lease = self.waiting.popleft()
        self.taken += 1
        if self.waiting:
            self._rouse()
        return lease

    def _rouse(self) -> None:
        """See that runners come for what waits, a few at a time."""
        wanted = min(len(self.waiting), ROUSED)
        while self._roused < wanted:
            if self._idle:
                self._idle.pop().wake()
            elif self._runners < self.options.slots and self._group is not None:
                self._runners += 1
                self._group.start_soon(self._new_runner, name=f"{self.options.worker_id} runner")
            else:
                return
            self._roused += 1

    async def _new_runner(self) -> None:
        self._roused -= 1
        await Runner(self).run()

    async def park(self) -> None:
        """Sleep until there is something to run. A checkpoint."""
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

    def runner_ended(self) -> None:
        """A runner has ended; if there is something to run another takes its place."""
        self._runners -= 1
        if self.waiting and not self.draining:
            self._rouse()

    def handler_of(self, lease: Lease) -> Handler | None:
        """What runs this lease. If nobody knows the type the task is parked."""
        handler = self.options.table.find(lease.record.type)
        if handler is None:
            kind = lease.record.type
            if kind not in self._unknown:
                self._unknown.add(kind)
                log.warning(
                    "%s knows no task type %r: such tasks are parked until a worker starts that does",
                    self.options.worker_id,
                    kind,
                )
            self.tally.unknown += 1
            finish = Finish(lease.record.id, lease.epoch, "unknown")
            if self.on_settled is not None:
                self.on_settled((lease, finish, 0.0, None, TaskFailed(f"no handler knows the task type {kind!r}")))
            self._end(lease, finish)
        return handler

    # Leases out.

    def settle(self, lease: Lease, finish: Finish | None, elapsed: float, value: Any, error: Exception | None) -> None:
        """An attempt has ended. Without a finish its lease was lost."""
        self.tally.count(finish)
        if self.on_settled is not None:
            self.on_settled((lease, finish, elapsed, value, error))
        self._end(lease, finish)
        if self._when_idle is not None and not self.running:
            self._when_idle.wake()

    def _end(self, lease: Lease, finish: Finish | None) -> None:
        self.keeper.drop(lease.record.id, lease.epoch)
        if finish is not None:
            self.finishes.append(finish)
        self.claimer.wake()

    def give_back(self) -> None:
        """Release what was claimed and not begun."""
        while self.waiting:
            self._finish_unstarted(self.waiting.popleft(), Released("the worker did not come to start it"))

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
        """Keep what a running attempt has. False if it is stale."""
        if isinstance(lease, Given):
            return True
        return await self.store.save(lease.record.id, lease.epoch, progress=progress, checkpoint=checkpoint)

    # Leases lost, tasks cancelled.

    def _notify(self, beat: Beat) -> None:
        self.backend.call_threadsafe(self.heard, beat)

    def heard(self, beat: Beat) -> None:
        """The keeper has heard of leases."""
        for why, keys in ((LOST, beat.lost), (CANCELLED, beat.cancelled)):
            for key in keys:
                runner = self.running.get(key)
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

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Work until `until` returns, then let what runs end. A checkpoint.

        Cancelled, what runs is cancelled and given back at once.

        Args:
            until: waits for the end of the shift.
        """
        gentle = False
        try:
            async with BlockingPortal() as portal, anyio.create_task_group() as group:
                self.portal, self._group = portal, group
                group.start_soon(self._begin)
                await until()
                await self._wind_down()
                gentle = True
                group.cancel_scope.cancel()
                await portal.stop(cancel_remaining=True)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(gentle=gentle)

    async def _begin(self) -> None:
        assert self._group is not None  # noqa: S101 - it was entered
        await self._open()
        for work in (*[self.claimer.run] * self.store.overlap, self.claimer.watch, *self.chores.all):
            self._group.start_soon(work)

    async def _open(self) -> None:
        await self.claimer.patiently(lambda: open_store(self.store))
        self._opened = True
        if self.options.heartbeat == "thread":
            self.keeper.start()

    async def _wind_down(self) -> None:
        """Claim no more, let what runs end, and cancel it when its time is over."""
        self.draining = True
        self.give_back()
        self.claimer.wake()
        with anyio.move_on_after(self.options.shutdown_timeout):
            await self._until_idle()
        for runner in tuple(self.running.values()):
            runner.cut_off(SHUT_DOWN)
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self.running:
            self._when_idle = self.backend.waiter()
            await self._when_idle
        self._when_idle = None

    async def _close(self, *, gentle: bool) -> None:
        self.draining = True
        self._group = self.portal = None
        self.give_back()
        try:
            with anyio.move_on_after(FLUSH if gentle else KILLED_FLUSH) as scope:
                await self.claimer.flush()
            if scope.cancelled_caught:
                log.warning(
                    "%s ends with %d finishes that its store did not take: those tasks run again after their leases",
                    self.options.worker_id,
                    self.claimer.unsent,
                )
        finally:
            await self.executors.aclose()
            if self._opened:
                await anyio.to_thread.run_sync(self.keeper.close)
                await close_store(self.store)

    async def once(self, lease: Lease | None) -> Settled | None:
        """Run one lease, or claim one task and run that. None if there was none. A checkpoint.

        Raises:
            StoreUnavailable: the store did not answer for as long as a lease lasts.
        """
        settled: list[Settled] = []
        self.on_settled = settled.append
        try:
            if lease is None:
                await self._open()
                lease = await self.claimer.claim_one()
            if lease is not None:
                async with BlockingPortal() as self.portal, anyio.create_task_group() as beside:
                    for chore in self.chores.of_leases:
                        beside.start_soon(chore)
                    async with anyio.create_task_group() as group:
                        group.start_soon(Runner(self).once, lease)
                    beside.cancel_scope.cancel()
        finally:
            self.on_settled = None  # a traceback holds this shift, and would hold itself through it
            if isinstance(lease, Given):
                self.finishes.clear()  # no store has heard of it
            with anyio.CancelScope(shield=True):
                await self._close(gentle=True)
        return settled[0] if settled else None
