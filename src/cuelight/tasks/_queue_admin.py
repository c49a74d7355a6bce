"""What can be asked and told of a whole queue: its tasks by their identifiers, its switches, limits and schedules."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from cuelight._checks import check_seconds
from cuelight.errors import DeadlockError
from cuelight.tasks._arguments import check_function, check_limit, check_query, items_given, string_given
from cuelight.tasks._checks import ids_given
from cuelight.tasks._codec import task_of
from cuelight.tasks._context import running_task
from cuelight.tasks._dead_letter_queue import DeadLetterQueue
from cuelight.tasks._queue_base import QueueBase
from cuelight.tasks._schedules import Cron, Every, ScheduleChanges, declared, is_changed, updated
from cuelight.tasks._store import Claim, Query, Schedule, Size, Snapshot
from cuelight.tasks._task import Limit, Task
from cuelight.tasks._watch import FOREVER, SOON

if TYPE_CHECKING:
    from cuelight.tasks._function import TaskFunction

__all__ = ["QueueAdmin"]

R = TypeVar("R")


class QueueAdmin(QueueBase):
    """The part of `TaskQueue` that neither produces nor consumes."""

    # Tasks.

    async def size(self) -> Size:
        """How many tasks are in each state, and whether the queue is paused or closed. A checkpoint."""
        life = await self._ready()
        return await life.patiently(life.store.size)

    async def snapshot(self, task_id: str) -> Snapshot | None:
        """A task as the store has it, with its result and its progress as bytes; None if it is not there.

        A checkpoint.
        """
        life = await self._ready()
        return (await life.patiently(lambda: life.store.get([task_id])))[0]

    async def get(self, task_id: str) -> Task | None:
        """A task as it is now; None if it is not there (any more). A checkpoint."""
        snapshot = await self.snapshot(task_id)
        return None if snapshot is None else task_of(snapshot)

    async def find(self, query: Query) -> list[Snapshot]:
        """Tasks that fulfil a query, as the store has them. A checkpoint."""
        check_query("find", query)
        life = await self._ready()
        return await life.patiently(lambda: life.store.find(query))

    def results(self, function: TaskFunction[..., R]) -> AsyncIterator[tuple[str, R]]:
        """What tasks of a function have returned, with their identifiers, oldest first, as long as they are kept.

        It reads a page of tasks at a time, so that there may be any number; each page is a checkpoint. The loop over
        them may be left at any time.
        """
        check_function("results", function)
        return _Results(self, function)

    @overload
    async def cancel(self, task_id: str) -> str: ...  # type: ignore[overload-overlap]  # a str comes first
    @overload
    async def cancel(self, task_id: Iterable[str]) -> dict[str, str]: ...
    async def cancel(self, task_id: str | Iterable[str]) -> str | dict[str, str]:
        """Cancel a task, or many at once. A checkpoint.

        Args:
            task_id: the identifier of a task, or many of them. Many are one step of the store; over Redis, one for
                each thousand.

        Returns:
            "cancelled" if it is; "cancelling" if a worker runs it, which will learn of it within a second; "finished"
            if it was over before; "unknown" if it is not there. For many a dict of these, by their identifiers.

        Raises:
            TypeError: an identifier is no string.
        """
        life = await self._ready()
        if isinstance(task_id, str):
            return (await life.patiently(lambda: life.store.cancel([task_id])))[0]
        ids = ids_given(task_id)
        outcomes = await life.patiently(lambda: life.store.cancel(ids)) if ids else []
        return dict(zip(ids, outcomes, strict=True))

    async def purge(self, task_ids: Iterable[str] | str) -> int:
        """Forget tasks that are over for good. A checkpoint.

        Args:
            task_ids: completed and cancelled tasks, and dead letters; others are left alone.

        Returns:
            How many are forgotten. If the store was away in between, those it forgot then are not counted.
        """
        life = await self._ready()
        ids = [task_ids] if isinstance(task_ids, str) else ids_given(task_ids)
        return await life.patiently(lambda: life.store.purge(ids))

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The tasks that were given up: to look at, edit, replay and purge.

        Raises:
            PoolClosed: the queue is not open.
        """
        self.life.check()
        return DeadLetterQueue(self.store, owns_store=False)

    # Switches.

    async def pause(self) -> None:
        """Give no more tasks to anybody, in any process, until `resume`. What runs goes on. A checkpoint."""
        await self._control(paused=True)

    async def resume(self) -> None:
        """Give tasks again. A checkpoint."""
        await self._control(paused=False)

    async def close(self) -> None:
        """Take no more tasks from anybody, in any process, until `reopen`: `enqueue` raises `PoolClosed`.

        What is there is worked on. A checkpoint.
        """
        await self._control(closed=True)

    async def reopen(self) -> None:
        """Take tasks again. A checkpoint."""
        await self._control(closed=False)

    async def _control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        life = await self._ready()
        await life.patiently(lambda: life.store.control(paused=paused, closed=closed))

    async def drain(self, timeout: float | None = None, *, scheduled: bool = False) -> bool:
        """Wait until no task is pending or in flight, nor one scheduled whose time has come. A checkpoint.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            scheduled: wait also for tasks whose time has not come: delayed ones, and those that are to be tried again.

        Returns:
            Whether it is so; False if the time was over before.

        Raises:
            DeadlockError: a task of this queue would wait for itself.
            ValueError: the time is not a number.
        """
        if timeout is not None:
            check_seconds("drain(timeout)", timeout)
        running = running_task.get()
        if timeout is None and running is not None and running.is_of(self.store):
            raise DeadlockError(
                f"{running!r} waits until its own queue is drained, and would wait for ever: wait for the handles of "
                f"other tasks, or give a timeout"
            )
        life = await self._ready()
        clock, store = life.backend.time, life.store
        until = clock() + (inf if timeout is None else timeout)
        while True:
            version = store.version()
            # It takes nothing: it does what time has brought, so that what is due counts as pending.
            look = Claim(life.worker, life.new_nonce(), 0, life.lease)
            wake_at = (await life.patiently(lambda: store.exchange((), look))).wake_at  # noqa: B023 - awaited here
            size = await life.patiently(store.size)
            if not (size.pending or size.in_flight or (scheduled and size.scheduled)):
                return True
            left = until - clock()
            if left <= 0:
                return False
            await life.changed(version, max(SOON, min(left, wake_at - store.now(), FOREVER)))

    # Limits.

    async def set_limit(self, limit: Limit) -> None:
        """Override what all tasks say of the limit with this key, also those that are there. A checkpoint."""
        check_limit("set_limit", limit)
        life = await self._ready()
        await life.patiently(lambda: life.store.set_limit(limit, limit.key))

    async def clear_limit(self, key: str) -> None:
        """Undo `set_limit`: what each task says holds again. A checkpoint."""
        string_given("clear_limit(key)", key)
        life = await self._ready()
        await life.patiently(lambda: life.store.set_limit(None, key))

    async def pause_limit(self, key: str, seconds: float) -> None:
        """Start no task that has this limit for so many seconds, in any process. A checkpoint."""
        string_given("pause_limit(key)", key)
        check_seconds("pause_limit(seconds)", seconds, 0, finite=True)
        life = await self._ready()
        await life.patiently(lambda: life.store.pause_limit(key, seconds))

    # Periodic work.

    async def every(self, seconds: float, what: Task | TaskFunction[..., Any], *, name: str | None = None) -> str:
        """Enqueue a task every so many seconds, first in so many, for as long as a worker of any process runs.

        Saying it again, as when a program starts anew, changes nothing but the options of the task. Other `seconds`
        count from the last time.

        Args:
            seconds: the period.
            what: the task; a function is called without arguments, for others give `function.task(...)`.
            name: by which it is replaced and removed, unique in the queue; the name of the task type by default.

        Returns:
            The name.

        Raises:
            ValueError: the period makes no sense, the task has a deadline or no type, or no name was given and a
                schedule with the same type has other arguments.
            TypeError: it is no task.
        """
        return await self._put_schedule(Every(seconds, what, name=name))

    async def cron(
        self, line: str, what: Task | TaskFunction[..., Any], *, tz: str = "UTC", name: str | None = None
    ) -> str:
        """Enqueue a task when a cron line says so, for as long as a worker of any process runs.

        Args:
            line: "30 9 * * MON-FRI": minute, hour, day, month, weekday; or "@daily". It needs the extra `cron`.
            what: as for `every`.
            tz: the time zone of the line: "Europe/Berlin".
            name: as for `every`.

        Returns:
            The name.

        Raises:
            ValueError: as for `every`, or the line makes no sense.
            TypeError: it is no task.
            ImportError: the extra `cron` is not installed.
        """
        return await self._put_schedule(Cron(line, what, tz=tz, name=name))

    async def _put_schedule(self, entry: Every | Cron) -> str:
        periodic = entry.periodic()
        life = await self._ready()
        there = {schedule.name: schedule for schedule in await life.patiently(life.store.schedules)}
        schedule = updated(periodic, there.get(periodic.name), life.store.now())
        await life.patiently(lambda: life.store.put_schedule(schedule))
        return periodic.name

    async def sync_schedules(self, schedules: Iterable[Every | Cron]) -> ScheduleChanges:
        """Have exactly these schedules in the queue: add, change and remove what differs. A checkpoint.

        `await queue.sync_schedules([Every(60, poll), Cron("@daily", report.task("all"), name="all reports")])` when a
        program starts keeps the queue as the program says, whatever an earlier version of it said. Due times stay as
        they are where the time of a schedule has not changed. Each schedule is one step; when this is cut off, calling
        it again does the rest.

        Args:
            schedules: all that the queue is to have, also those of other programs that use it; none removes all.

        Returns:
            What was done.

        Raises:
            ValueError: one of them makes no sense, or two have one name; nothing was done.
            TypeError: one of them is no schedule; nothing was done.
            ImportError: there is a cron line, and the extra `cron` is not installed; nothing was done.
        """
        wanted = declared(items_given("sync_schedules", schedules, "a list of Every and Cron"))
        life = await self._ready()
        store, changes = life.store, ScheduleChanges()
        there = {schedule.name: schedule for schedule in await life.patiently(store.schedules)}
        for name, periodic in wanted.items():
            before = there.get(name)
            after = updated(msgspec.structs.replace(periodic, is_named=True), before, store.now())
            if before is not None and not is_changed(after, before):
                changes.unchanged.append(name)
                continue
            await life.patiently(lambda: store.put_schedule(after))  # noqa: B023 - awaited here
            (changes.added if before is None else changes.changed).append(name)
        for name in sorted(there.keys() - wanted.keys()):
            await life.patiently(lambda: store.remove_schedule(name))  # noqa: B023 - awaited here
            changes.removed.append(name)
        return changes

    async def remove_schedule(self, name: str) -> bool:
        """Forget periodic work. False if there is none of this name (any more). A checkpoint."""
        string_given("remove_schedule(name)", name)
        life = await self._ready()
        return await life.patiently(lambda: life.store.remove_schedule(name))

    async def schedules(self) -> list[Schedule]:
        """All periodic work, by due time. A checkpoint."""
        life = await self._ready()
        return await life.patiently(life.store.schedules)


class _Results(Generic[R]):
    """Not an async generator, so that nothing is left to close when a loop is left early."""

    def __init__(self, queue: QueueAdmin, function: TaskFunction[..., R]) -> None:
        self._queue, self._function = queue, function
        self._page: deque[Snapshot] = deque()
        self._after = 0

    def __aiter__(self) -> _Results[R]:
        return self

    async def __anext__(self) -> tuple[str, R]:
        if not self._page:
            query = Query(state="completed", type=self._function.name, after=self._after)
            self._page.extend(await self._queue.find(query))
        if not self._page:
            raise StopAsyncIteration
        snapshot = self._page.popleft()
        self._after = snapshot.sequence
        return snapshot.record.id, self._function.read_result(snapshot.result)
