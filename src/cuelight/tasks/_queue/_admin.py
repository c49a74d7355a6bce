"""The administration of a queue: its tasks by identifier, its switches, limits and schedules."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from cuelight._checks import check_seconds
from cuelight._dead_letters._queue import DeadLetterQueue
from cuelight.errors import DeadlockError
from cuelight.tasks._arguments import check_function, check_limit, check_query, items_given, string_given
from cuelight.tasks._codec import task_of
from cuelight.tasks._context import running_task
from cuelight.tasks._queue._base import QueueBase
from cuelight.tasks._queue._schedules import Cron, Every, ScheduleChanges, declared, is_changed, updated
from cuelight.tasks._queue._session import FOREVER, SOON
from cuelight.tasks._stores._checks import ids_given
from cuelight.tasks._stores._protocol import Claim, Query, Schedule, Size, Snapshot
from cuelight.tasks._task import Limit, Task

if TYPE_CHECKING:
    from cuelight.tasks._functions._function import TaskFunction

R = TypeVar("R")


class QueueAdmin(QueueBase):
    """The methods of `TaskQueue` that are neither for producers nor for consumers."""

    # Tasks.

    async def size(self) -> Size:
        """Return the number of tasks in each state, and whether the queue is paused or closed. A checkpoint."""
        session = await self._ready()
        return await session.with_retries(session.store.size)

    async def snapshot(self, task_id: str) -> Snapshot | None:
        """Return a task as the store has it, or None if it does not exist. A checkpoint.

        The result and the progress are bytes.
        """
        session = await self._ready()
        return (await session.with_retries(lambda: session.store.get([task_id])))[0]

    async def get(self, task_id: str) -> Task | None:
        """Return a task in its current state, or None if it does not exist or was removed. A checkpoint."""
        snapshot = await self.snapshot(task_id)
        return None if snapshot is None else task_of(snapshot)

    async def find(self, query: Query) -> list[Snapshot]:
        """Return the tasks that match a query, as the store has them. A checkpoint."""
        check_query("find", query)
        session = await self._ready()
        return await session.with_retries(lambda: session.store.find(query))

    def results(self, function: TaskFunction[..., R]) -> AsyncIterator[tuple[str, R]]:
        """Return an async iterator of `(task_id, result)` over the stored results of a function, oldest first.

        It reads one page of tasks at a time, so there may be any number of them. Each page is a checkpoint. A loop over
        the iterator can be left at any time.
        """
        check_function("results", function)
        return _ResultIterator(self, function)

    @overload
    async def cancel(self, task_id: str) -> str: ...  # type: ignore[overload-overlap]  # a str comes first
    @overload
    async def cancel(self, task_id: Iterable[str]) -> dict[str, str]: ...
    async def cancel(self, task_id: str | Iterable[str]) -> str | dict[str, str]:
        """Cancel one task or many tasks. A checkpoint.

        Args:
            task_id: the identifier of a task, or an iterable of identifiers. Many tasks are cancelled in one step of
                the store; over Redis, in one step per thousand.

        Returns:
            "cancelled"; "cancelling" if a worker runs the task, and will be notified within a second; "finished" if the
            task had ended before; "unknown" if it does not exist. For many tasks, a dict of these by identifier.

        Raises:
            TypeError: an identifier is not a string.
        """
        session = await self._ready()
        if isinstance(task_id, str):
            return (await session.with_retries(lambda: session.store.cancel([task_id])))[0]
        ids = ids_given(task_id)
        outcomes = await session.with_retries(lambda: session.store.cancel(ids)) if ids else []
        return dict(zip(ids, outcomes, strict=True))

    async def purge(self, task_ids: Iterable[str] | str) -> int:
        """Permanently delete tasks that have ended. A checkpoint.

        Args:
            task_ids: identifiers of completed and cancelled tasks, and of dead letters; other tasks are not changed.

        Returns:
            The number of deleted tasks. If the store was unavailable during the call, tasks that it deleted then are
            not counted.
        """
        session = await self._ready()
        ids = [task_ids] if isinstance(task_ids, str) else ids_given(task_ids)
        return await session.with_retries(lambda: session.store.purge(ids))

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The tasks that were given up: for listing, editing, replaying and purging.

        Raises:
            PoolClosed: the queue is not open.
        """
        self.session.check()
        return DeadLetterQueue(self.store, owns_store=False)

    # Switches.

    async def pause(self) -> None:
        """Hand out no more tasks, in any process, until `resume`. Running tasks continue. A checkpoint."""
        await self._control(paused=True)

    async def resume(self) -> None:
        """Hand out tasks again. A checkpoint."""
        await self._control(paused=False)

    async def close(self) -> None:
        """Accept no more tasks, in any process, until `reopen`: `enqueue` raises `PoolClosed`. A checkpoint.

        Tasks that are already in the queue are processed.
        """
        await self._control(closed=True)

    async def reopen(self) -> None:
        """Accept tasks again. A checkpoint."""
        await self._control(closed=False)

    async def _control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        session = await self._ready()
        await session.with_retries(lambda: session.store.control(paused=paused, closed=closed))

    async def drain(self, timeout: float | None = None, *, scheduled: bool = False) -> bool:
        """Wait until no task is pending or in flight, and no scheduled task is due. A checkpoint.

        Args:
            timeout: seconds to wait; None for no limit.
            scheduled: whether to wait for scheduled tasks that are not due yet, too: delayed tasks, and tasks that will
                be tried again.

        Returns:
            True if the queue is drained; False if the time is over.

        Raises:
            DeadlockError: a task of this queue would wait for itself.
            ValueError: `timeout` is NaN.
        """
        if timeout is not None:
            check_seconds("drain(timeout)", timeout)
        running = running_task.get()
        if timeout is None and running is not None and running.is_of(self.store):
            raise DeadlockError(
                f"{running!r} waits until its own queue is drained, and would wait forever: wait for the handles of "
                f"other tasks, or give a timeout"
            )
        session = await self._ready()
        clock, store = session.backend.time, session.store
        until = clock() + (inf if timeout is None else timeout)
        while True:
            version = store.version()
            # This claims no tasks, but makes due tasks pending, so that they are counted as such.
            look = Claim(session.worker, session.new_nonce(), 0, session.lease)
            wake_at = (await session.with_retries(lambda: store.exchange((), look))).wake_at  # noqa: B023 - awaited here
            size = await session.with_retries(store.size)
            if not (size.pending or size.in_flight or (scheduled and size.scheduled)):
                return True
            left = until - clock()
            if left <= 0:
                return False
            await session.changed(version, max(SOON, min(left, wake_at - store.now(), FOREVER)))

    # Limits.

    async def set_limit(self, limit: Limit) -> None:
        """Override the limit with this key for all tasks, including tasks in the queue. A checkpoint."""
        check_limit("set_limit", limit)
        session = await self._ready()
        await session.with_retries(lambda: session.store.set_limit(limit, limit.key))

    async def clear_limit(self, key: str) -> None:
        """Undo `set_limit`, so that each task's own limit applies again. A checkpoint."""
        string_given("clear_limit(key)", key)
        session = await self._ready()
        await session.with_retries(lambda: session.store.set_limit(None, key))

    async def pause_limit(self, key: str, seconds: float) -> None:
        """Start no task that has this limit for `seconds` seconds, in any process. A checkpoint."""
        string_given("pause_limit(key)", key)
        check_seconds("pause_limit(seconds)", seconds, 0, finite=True)
        session = await self._ready()
        await session.with_retries(lambda: session.store.pause_limit(key, seconds))

    # Periodic work.

    async def every(self, seconds: float, what: Task | TaskFunction[..., Any], *, name: str | None = None) -> str:
        """Enqueue a task every `seconds` seconds, as long as any worker runs. A checkpoint.

        The first task is due after one period. A repeated call, for example when a program restarts, only updates the
        options of the task. A changed period counts from the last due time.

        Args:
            seconds: the period.
            what: the task. A task function is called without arguments; for arguments, pass `function.task(...)`.
            name: the name by which the schedule can be replaced and removed, unique in the queue; by default, the task
                type.

        Returns:
            The name.

        Raises:
            ValueError: the period is invalid, the task has a deadline or no type, or no name was given and a schedule
                of the same task type has other arguments.
            TypeError: `what` is neither a task nor a task function.
        """
        return await self._put_schedule(Every(seconds, what, name=name))

    async def cron(
        self, line: str, what: Task | TaskFunction[..., Any], *, tz: str = "UTC", name: str | None = None
    ) -> str:
        """Enqueue a task at the times of a cron line, as long as any worker runs. A checkpoint.

        Args:
            line: "30 9 * * MON-FRI" (minute, hour, day, month, weekday), or "@daily". This needs the extra `cron`.
            what: see `every`.
            tz: the time zone of the line: "Europe/Berlin".
            name: see `every`.

        Returns:
            The name.

        Raises:
            ValueError: see `every`; or the line is invalid.
            TypeError: `what` is neither a task nor a task function.
            ImportError: the extra `cron` is not installed.
        """
        return await self._put_schedule(Cron(line, what, tz=tz, name=name))

    async def _put_schedule(self, entry: Every | Cron) -> str:
        periodic = entry.periodic()
        session = await self._ready()
        there = {schedule.name: schedule for schedule in await session.with_retries(session.store.schedules)}
        schedule = updated(periodic, there.get(periodic.name), session.store.now())
        await session.with_retries(lambda: session.store.put_schedule(schedule))
        return periodic.name

    async def sync_schedules(self, schedules: Iterable[Every | Cron]) -> ScheduleChanges:
        """Make the schedules of the queue equal to these: add, change and remove schedules. A checkpoint.

        A program can call
        `await queue.sync_schedules([Every(60, poll), Cron("@daily", report.task("all"), name="all reports")])` when it
        starts. The queue then has these schedules, whatever an earlier version of the program declared. A schedule
        keeps its due time if its period or cron line has not changed. Each schedule is one step; if the call is
        interrupted, another call does the rest.

        Args:
            schedules: all schedules that the queue should have, including those of other programs; an empty list
                removes all.

        Returns:
            The changes.

        Raises:
            ValueError: a schedule is invalid, or two have the same name; nothing was changed.
            TypeError: an item is not a schedule; nothing was changed.
            ImportError: there is a cron line, and the extra `cron` is not installed; nothing was changed.
        """
        wanted = declared(items_given("sync_schedules", schedules, "a list of Every and Cron"))
        session = await self._ready()
        store, changes = session.store, ScheduleChanges()
        there = {schedule.name: schedule for schedule in await session.with_retries(store.schedules)}
        for name, periodic in wanted.items():
            before = there.get(name)
            after = updated(msgspec.structs.replace(periodic, is_named=True), before, store.now())
            if before is not None and not is_changed(after, before):
                changes.unchanged.append(name)
                continue
            await session.with_retries(lambda: store.put_schedule(after))  # noqa: B023 - awaited here
            (changes.added if before is None else changes.changed).append(name)
        for name in sorted(there.keys() - wanted.keys()):
            await session.with_retries(lambda: store.remove_schedule(name))  # noqa: B023 - awaited here
            changes.removed.append(name)
        return changes

    async def remove_schedule(self, name: str) -> bool:
        """Remove a schedule. Return False if there is none with this name. A checkpoint."""
        string_given("remove_schedule(name)", name)
        session = await self._ready()
        return await session.with_retries(lambda: session.store.remove_schedule(name))

    async def schedules(self) -> list[Schedule]:
        """Return all schedules, sorted by due time. A checkpoint."""
        session = await self._ready()
        return await session.with_retries(session.store.schedules)


class _ResultIterator(Generic[R]):
    """Not an async generator, so that no cleanup is necessary when a loop is left early."""

    def __init__(self, queue: QueueAdmin, function: TaskFunction[..., R]) -> None:
        self._queue, self._function = queue, function
        self._page: deque[Snapshot] = deque()
        self._after = 0

    def __aiter__(self) -> _ResultIterator[R]:
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
