"""Background work of a worker: firing schedules, unparking tasks, returning unstarted tasks, detecting a blocked loop.

Invariants:

1. Each due time of a schedule is fired by exactly one worker. Missed due times are caught up once. When the clock is
   set back, periodic work is not delayed by that amount.
2. A parked task is unparked while a worker that knows its type runs, even if the worker started before the task was
   parked.
3. A task that was claimed ahead and not started within a second is returned to the queue.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import anyio

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import PoolClosed, StoreUnavailable
from cuelight.tasks._queue._periodic import latest_due, next_due
from cuelight.tasks._queue._schedules import moved_back
from cuelight.tasks._stores._protocol import Query

if TYPE_CHECKING:
    from cuelight.tasks._stores._protocol import Schedule
    from cuelight.tasks._worker._lease_slots import LeaseSlots

BackgroundWork = Callable[[], Coroutine[Any, Any, None]]

log = get_log("cuelight.tasks")
slow = get_log("cuelight.slow")

CHECK_INTERVAL: Final = 0.5
UNPARK_INTERVAL: Final = 15.0
"""Seconds between two searches for parked tasks. A worker of an older version may park tasks that this one can run."""

SCHEDULE_POLL: Final = 60.0
"""Seconds after which the schedules are read again if nothing has changed."""

MIN_POLL: Final = 0.25
"""Minimum seconds between two reads of the schedules, however often the queue changes."""

BLOCKED_AFTER: Final = 1.0
"""Seconds without an answer after which an event loop is reported as blocked."""


class Housekeeping:
    """The background work of one worker."""

    def __init__(self, slots: LeaseSlots) -> None:
        self._slots = slots
        self._loop_thread = threading.get_ident()
        self._pinged: float | None = None
        self._reported = False
        self._unreadable: set[str] = set()
        # time of the last read; infinite at first, because the clock may have been set back before
        self._last_read = float("inf")

    @property
    def while_running(self) -> tuple[BackgroundWork, ...]:
        """The work to do while a task runs."""
        return (self._tick, self._renew) if self._slots.options.heartbeat == "loop" else (self._tick,)

    @property
    def all(self) -> tuple[BackgroundWork, ...]:
        """The work to do until the worker ends."""
        return (*self.while_running, self._unpark, self._fire)

    async def _renew(self) -> None:
        while True:  # noqa: ASYNC110 - there is no event to wait for: leases expire with time
            await anyio.sleep(self._slots.keeper.step())

    async def _tick(self) -> None:
        slots, taken = self._slots, -1
        while True:
            await anyio.sleep(CHECK_INTERVAL)
            slots.keeper.expire()  # the keeper's thread may be blocked in a call of the store
            if slots.waiting and slots.taken == taken:
                slots.release_unstarted()
            taken = slots.taken

    # Parked tasks.

    async def _unpark(self) -> None:
        while True:
            pause = UNPARK_INTERVAL
            try:
                await self._unpark_once()
            except StoreUnavailable:
                pause = CHECK_INTERVAL
            except Exception:
                log.exception("%s could not look for parked tasks", self._slots.options.worker_id)
            await anyio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    async def _unpark_once(self) -> None:
        store, handlers = self._slots.store, self._slots.options.handlers
        types = set(handlers.by_type)
        if handlers.fallback is not None:
            types |= {parked.record.type for parked in await store.find(Query(state="parked"))}
        if types:
            await store.unpark(sorted(types))

    # Schedules.

    async def _fire(self) -> None:
        store = self._slots.store
        while True:
            since = store.version()
            try:
                due = await self._fire_due()
                await store.changed(since, max(0.0, min(SCHEDULE_POLL, due - store.now())))
                await anyio.sleep(max(0.0, min(MIN_POLL, due - store.now())))
            except StoreUnavailable:
                await anyio.sleep(CHECK_INTERVAL * random.uniform(1.0, 2.0))  # noqa: S311 - no secret
            except Exception:
                log.exception("%s could not fire the due schedules", self._slots.options.worker_id)
                await anyio.sleep(SCHEDULE_POLL * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    async def _fire_due(self) -> float:
        """Fire all due schedules. Return the next due time, in seconds since the epoch."""
        store = self._slots.store
        soonest = float("inf")
        set_back = store.now() < self._last_read
        schedules = await store.schedules()
        self._last_read = store.now()
        for schedule in schedules:
            try:
                soonest = min(soonest, await self._fire_one(schedule, store.now(), set_back=set_back))
            except (StoreUnavailable, PoolClosed):
                self._last_read = float("inf") if set_back else self._last_read
                raise
            except Exception:  # the other schedules are still fired
                if schedule.name not in self._unreadable:
                    self._unreadable.add(schedule.name)
                    log.exception("the schedule %s cannot be fired", safe_repr(schedule.name), kind="schedule")
        return soonest

    async def _fire_one(self, schedule: Schedule, now: float, *, set_back: bool) -> float:
        """Fire a schedule if it is due. Return its next due time.

        Raises:
            ValueError: its spec is invalid.
            ImportError: it is a cron line, and cronsim is not installed.
        """
        store = self._slots.store
        if schedule.due > now:
            if not set_back or schedule.due <= latest_due(schedule.spec, now):
                return schedule.due
            moved = moved_back(schedule, now, uuid4().hex[:6])
            log.warning("the clock was set back: the schedule %s is due in %g s", moved.name, moved.due - now)
            await store.put_schedule(moved)
            return moved.due
        after = next_due(schedule.spec, now, schedule.due)
        await store.fire(schedule.name, schedule.due, after)
        return after

    # Detecting a blocked loop.

    def check_loop(self) -> None:
        """Check that the loop answers. Runs in the keeper's thread, every half second while a task runs."""
        now = time.monotonic()
        if self._pinged is None:
            self._pinged, self._reported = now, False
            try:
                self._slots.backend.call_threadsafe(self._loop_answered)
            except RuntimeError:
                slow.debug("the loop of %s has ended", self._slots.options.worker_id)
        elif not self._reported and now - self._pinged >= BLOCKED_AFTER:
            self._reported = True
            frames: dict[int, Any] = sys._current_frames()
            stack = "".join(traceback.format_stack(frames.get(self._loop_thread)))
            slow.warning(
                "the event loop of %s has been blocked for %.1f s, %d tasks run in it and their leases are kept. "
                "It stands at:\n%s",
                self._slots.options.worker_id,
                now - self._pinged,
                self._slots.busy,
                stack,
            )

    def _loop_answered(self) -> None:
        self._pinged = None
