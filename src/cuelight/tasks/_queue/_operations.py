"""The methods of a queue for producers and consumers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from cuelight._checks import check_seconds
from cuelight._dead_letters._attempt import error_text, traceback_text
from cuelight._log import get_log
from cuelight._text import format_traceback, safe_repr, safe_str
from cuelight.errors import QueueFull, TaskTimedOut, control_error
from cuelight.pools import TaskStatus
from cuelight.tasks._arguments import (
    check_function,
    check_task,
    id_given,
    items_given,
    string_given,
)
from cuelight.tasks._codec import record_of
from cuelight.tasks._context import running_task
from cuelight.tasks._functions._function import TaskFunction
from cuelight.tasks._functions._values import decode, encode
from cuelight.tasks._queue._admin import QueueAdmin
from cuelight.tasks._queue._session import FOREVER, SOON, DequeuedTask, QueueSession
from cuelight.tasks._queue._task_handle import TaskHandle
from cuelight.tasks._queue._task_waits import slot_released
from cuelight.tasks._stores._protocol import Added, Finish
from cuelight.tasks._task import Record, Task
from cuelight.tasks._worker._failure import QUIET, Failure, kind_of, pause_of

log = get_log("cuelight.tasks")

P = ParamSpec("P")
R = TypeVar("R")


class QueueOperations(QueueAdmin):
    """The methods of `TaskQueue` for producers and consumers."""

    # Producing.

    async def enqueue(self, task: Task) -> bool:
        """Add a task to the queue. A checkpoint.

        If the call is cancelled while it waits for room, the task was not added. If it is cancelled during a call of
        the store, the task may have been added.

        Args:
            task: the task. It is added as a new task: its counts and its history are not copied.

        Returns:
            False if a task with the same identifier, or an unfinished one with the same unique key, exists.

        Raises:
            QueueFull: the queue is full, and `overflow` is not "wait".
            ValueError: a field has an invalid value; the message names it.
            TypeError: a field has the wrong type, or the payload cannot be stored.
            PoolClosed: the queue is closed to new tasks.
        """
        check_task("enqueue", task)
        return (await self._add([task]))[0].outcome == "added"

    async def enqueue_many(self, tasks: Iterable[Task]) -> list[bool]:
        """Add tasks to the queue as one batch. A checkpoint.

        Args:
            tasks: the tasks; if one of them is invalid, none is added.

        Returns:
            The result of `enqueue` for each task.

        Raises:
            QueueFull: there was not enough room for all tasks, and `overflow` is not "wait". The first tasks are in the
                queue; a second call with all tasks adds only the others.
            ValueError: a field has an invalid value; the message names it.
            TypeError: a field has the wrong type, or a payload cannot be stored.
            PoolClosed: the queue is closed to new tasks.
        """
        given = items_given("enqueue_many", tasks, "a list of Tasks")
        for task in given:
            check_task("enqueue_many", task)
        return [added.outcome == "added" for added in await self._add(given)]

    async def send(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Enqueue a task that calls a function with these arguments. A checkpoint.

        Returns:
            A handle to the task. If its identifier or its unique key is already used, a handle to the existing task.

        Raises:
            TypeError: an argument is missing, unexpected, of the wrong type, or cannot be stored.
            QueueFull: see `enqueue`, whose other exceptions are raised, too.
        """
        check_function("send", function)
        added = (await self._add([function.task(*args, **kwargs)]))[0]
        return TaskHandle(self, added.id, function.read_result, is_new=added.outcome == "added")

    @overload
    def handle(self, task_id: str) -> TaskHandle[Any]: ...
    @overload
    def handle(self, task_id: str, function: TaskFunction[..., R]) -> TaskHandle[R]: ...
    def handle(self, task_id: str, function: TaskFunction[..., Any] | None = None) -> TaskHandle[Any]:
        """Return a handle to a task that another program, or an earlier run of this one, has sent.

        Args:
            task_id: the identifier of the task.
            function: the task function, for the type of the result; without it, the result is a plain value.

        Raises:
            TypeError: the identifier is not a string, or `function` is not a task function.
        """
        string_given("handle", task_id)
        if function is not None:
            check_function("handle", function)
        return TaskHandle(self, task_id, _plain if function is None else function.read_result)

    async def _add(self, tasks: Sequence[Task]) -> list[Added]:
        session = self.session
        records = [record_of(task, session.new_nonce()) for task in tasks]
        await session.ready()
        if self._options.overflow != "wait":
            added = await self._try(session, records)
            self._refuse_full(added)
            return added
        ticket = session.waiting_producers.ticket()
        added = [] if len(session.waiting_producers) else await self._try(session, records)
        outcomes = {index: one for index, one in enumerate(added) if one.outcome != "full"}
        if len(outcomes) < len(records):
            await self._wait_for_room(session, ticket, records, outcomes)
        return [outcomes[index] for index in range(len(records))]

    async def _try(self, session: QueueSession, records: Sequence[Record]) -> list[Added]:
        return await session.with_retries(lambda: session.store.add(records, self._bound))

    async def _wait_for_room(
        self, session: QueueSession, ticket: int, records: Sequence[Record], outcomes: dict[int, Added]
    ) -> None:
        """Add the remaining records, in the order of the tickets."""
        with slot_released(running_task.get()), session.waiting_producers.joined(ticket):
            while True:
                await session.waiting_producers.until_first(ticket)
                version = session.store.version()
                left = [index for index in range(len(records)) if index not in outcomes]
                answers = await self._try(session, [records[index] for index in left])
                outcomes |= {at: one for at, one in zip(left, answers, strict=True) if one.outcome != "full"}
                if len(outcomes) == len(records):
                    return
                await session.changed(version, FOREVER)

    def _refuse_full(self, added: Sequence[Added]) -> None:
        full = [one.id for one in added if one.outcome == "full"]
        if not full:
            return
        shed = ", and none of them is less urgent" if self._options.overflow == "shed_lowest" else ""
        raise QueueFull(
            f"the queue {self.name!r} is full ({self._options.max_length} tasks wait{shed}): {len(full)} of "
            f"{len(added)} tasks were not added, the first is {full[0]}; try again later, wait for room with "
            f"overflow='wait', or give it a larger max_length"
        )

    # Consuming.

    async def dequeue(self, timeout: float = 0.0) -> Task | None:
        """Take the most urgent task that may run. A checkpoint.

        Tasks whose deadline has passed are skipped and become dead letters. If the call is cancelled, no task is taken.

        Args:
            timeout: seconds to wait for a task; `math.inf` for no limit.

        Returns:
            The task, which must be settled with `ack` or `nack`; None if there was none within the time.

        Raises:
            ValueError: `timeout` is negative or NaN.
        """
        check_seconds("dequeue(timeout)", timeout, 0)
        session = await self._ready()
        clock = session.backend.time
        until = clock() + timeout
        while True:
            version = session.store.version()
            task, wait = await session.claim()
            if task is not None:
                return task
            left = until - clock()
            if left <= 0:
                return None
            await session.changed(version, max(SOON, min(left, wait, FOREVER)))

    async def ack(self, task: Task | str, result: Any = None) -> bool:
        """Settle a task as done. A checkpoint; the task is also done if the call is cancelled there.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            result: the result for `TaskHandle.result`.

        Returns:
            False if the task was not dequeued by this handle, or its lease was lost, so that another consumer may have
            it.

        Raises:
            TypeError: the result cannot be stored; this handle still has the task.
            StoreUnavailable: the store was unavailable for too long; this handle still has the task.
        """
        data = encode(result, "result")
        session, held = await self._dequeued("ack", task)
        if held is None:
            return False
        return await self._settle(session, held, Finish(held.task.task_id, held.epoch, result=data)) != ""

    async def nack(
        self, task: Task | str, error: BaseException | str | None = None, delay: float | None = None
    ) -> bool:
        """Settle a task as failed. A checkpoint; the task has also failed if the call is cancelled there.

        The failure is counted in `Task.retry_count`. When that reaches `max_retries`, the task becomes a dead letter.
        Some exceptions have the same effect as in a worker: `RateLimited` is not counted, `Rejected` gives up the task
        at once, and `TaskTimedOut` counts as a time-out.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            error: the reason, for the history of the task.
            delay: seconds before the task is tried again.

        Returns:
            True if the task will be tried again; False if it was given up, or was not dequeued by this handle.

        Raises:
            ValueError: `delay` is negative or not finite.
            TypeError: an argument has the wrong type.
            StoreUnavailable: the store was unavailable for too long; this handle still has the task.
        """
        if delay is not None:
            check_seconds("nack(delay)", delay, 0, finite=True)
        if not (error is None or isinstance(error, BaseException | str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"nack(error={safe_repr(error)}): give an exception, a text, or None")
        session, held = await self._dequeued("nack", task)
        if held is None:
            return False
        finish = _failed(session, held, error, delay)
        state = await self._settle(session, held, finish)
        if state and finish.kind not in QUIET:
            text, raised = (safe_str(error), None) if isinstance(error, str) else ("", error)
            failed = Failure.of_task(held.task)
            failed.report(
                log, worker=session.worker, queue=self.name, kind=finish.kind, state=state, text=text, error=raised
            )
        return state in {"pending", "scheduled"}

    async def extend(self, task: Task | str, seconds: float | None = None) -> bool:
        """Renew the lease of a task now. A checkpoint.

        This is usually not necessary, because all leases of a handle are renewed automatically.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            seconds: the length of the lease from now on; the `lease` of the queue by default.

        Returns:
            False if the task was not dequeued by this handle, or its lease was lost.

        Raises:
            ValueError: `seconds` is not more than 0.
        """
        renewed = self._options.lease if seconds is None else seconds
        check_seconds("extend(seconds)", renewed, 0, finite=True)
        if not renewed:
            raise ValueError("extend(seconds=0): give more than 0 seconds")
        session, held = await self._dequeued("extend", task)
        if held is None:
            return False
        return await session.renew(held, renewed)

    def in_flight(self) -> dict[str, Task]:
        """Return the tasks that this handle has dequeued and not settled, by their identifiers. Not a checkpoint.

        Raises:
            PoolClosed: the queue is not open.
        """
        return {task_id: held.task for task_id, held in self.session.dequeued.items()}

    # Internals.

    async def _dequeued(self, call: str, task: Task | str) -> tuple[QueueSession, DequeuedTask | None]:
        session = await self._ready()
        return session, session.dequeued.get(id_given(call, task))

    async def _settle(self, session: QueueSession, held: DequeuedTask, finish: Finish) -> str:
        state = await session.settle(held, finish)
        if state:
            held.task.retry_count += finish.kind == "error"
            held.task.status = TaskStatus(state)
        return state


def _plain(data: bytes | None) -> Any:
    return None if data is None else decode(data)


def _failed(
    session: QueueSession, held: DequeuedTask, error: BaseException | str | None, delay: float | None
) -> Finish:
    """The finish of an attempt that failed with this error."""
    if not isinstance(error, BaseException):
        return session.finish(held, "error", delay=delay or 0.0, error="" if error is None else safe_str(error))
    kind, cause = ("error", error) if not isinstance(error, Exception) else kind_of(error)
    if kind == "error" and control_error(error, TaskTimedOut) is not None:
        kind = "timeout"
    pause, key = pause_of(cause) if kind == "rate_limited" else (0.0, None)
    seconds = pause if delay is None else delay
    trace = traceback_text(error) or format_traceback(error, 2000)  # the exception may never have been raised
    return session.finish(held, kind, delay=seconds, error=error_text(cause), traceback=trace, pause_key=key)
