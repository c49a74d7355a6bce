"""The task queue: what producers and consumers hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import msgspec

from cuelight._checks import check_seconds
from cuelight._log import get_log
from cuelight._text import format_traceback, safe_repr, safe_str
from cuelight.errors import PoolClosed, QueueFull, TaskTimedOut, control_error
from cuelight.pools import TaskStatus
from cuelight.tasks._arguments import check_function, check_task, id_given, items_given, string_given
from cuelight.tasks._blocking_queue import BlockingTaskQueue
from cuelight.tasks._codec import decode, encode, record_of
from cuelight.tasks._context import running_task
from cuelight.tasks._failures import QUIET, Failure
from cuelight.tasks._function import TaskFunction
from cuelight.tasks._outcome import kind_of, pause_of, said, trace_of
from cuelight.tasks._queue_admin import QueueAdmin
from cuelight.tasks._queue_life import Held, Life
from cuelight.tasks._store import Added, Finish, Record
from cuelight.tasks._task import Task
from cuelight.tasks._task_handle import TaskHandle
from cuelight.tasks._waiting import resting
from cuelight.tasks._watch import FOREVER, SOON

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["TaskQueue"]

log = get_log("cuelight.tasks")

P = ParamSpec("P")
R = TypeVar("R")


class TaskQueue(QueueAdmin):
    """A durable queue of tasks: priorities, deadlines, delays, unique tasks, limits, retries, dead letters.

    There are three ways to use one:

    * `async with TaskQueue() as queue:` has a system of its own.
    * `TaskQueue(system=system)` lives in a system that runs; its methods work at once, and end with the system.
    * `with TaskQueue() as queue:` gives the same methods for blocking code, usable from any thread.

    The tasks are in the store: `MemoryStore()`, or `SQLiteStore("tasks.db")` to outlive the process and to share the
    queue with others. Several queues may use one store at a time, in different loops and threads.

    Whoever takes tasks with `dequeue` settles each with `ack` or `nack`. Until then it is leased to this handle, and
    the lease is renewed by a thread, however busy the loop is. When the process dies the lease runs out, and the task
    is given to somebody else. Leaving the block gives back what was not settled.

    While the store is away all methods try again, for `patience` seconds, and what happened once does not happen
    twice. After that they raise `StoreUnavailable`, and `PoolClosed` once the handle is closed. A handle belongs to the
    loop of its system.
    """

    # For producers.

    async def enqueue(self, task: Task) -> bool:
        """Put a task into the queue. A checkpoint.

        Cancelled while it waits for room it has added nothing; cancelled while the store is at it, it may have.

        Args:
            task: the task. It begins a new life here: what it counted elsewhere does not come along.

        Returns:
            False if there is a task with its identifier, or an unfinished one with its unique key.

        Raises:
            QueueFull: the queue is full, and `overflow` is not to wait.
            ValueError: a field makes no sense; the message says which.
            TypeError: a field has the wrong type, or the payload cannot be stored.
            PoolClosed: the queue takes no more tasks.
        """
        check_task("enqueue", task)
        return (await self._add([task]))[0].outcome == "added"

    async def enqueue_many(self, tasks: Iterable[Task]) -> list[bool]:
        """Put tasks into the queue, as one batch. A checkpoint.

        Args:
            tasks: the tasks; if one of them makes no sense, none is added.

        Returns:
            For each what `enqueue` returns.

        Raises:
            QueueFull: there was no room for all of them, and `overflow` is not to wait. Those before are in the queue;
                to enqueue all of them again adds only the others.
            ValueError: a field makes no sense; the message says which.
            TypeError: a field has the wrong type, or a payload cannot be stored.
            PoolClosed: the queue takes no more tasks.
        """
        given = items_given("enqueue_many", tasks, "a list of Tasks")
        for task in given:
            check_task("enqueue_many", task)
        return [added.outcome == "added" for added in await self._add(given)]

    async def send(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Put a task into the queue that calls a function with these arguments. A checkpoint.

        Returns:
            A handle to the task; if its identifier or its unique key is taken, to the task that has it.

        Raises:
            TypeError: an argument is missing, too many, of the wrong type, or cannot be stored.
            QueueFull: as for `enqueue`, like whatever else that raises.
        """
        check_function("send", function)
        added = (await self._add([function.task(*args, **kwargs)]))[0]
        return TaskHandle(self, added.id, function.read_result, is_new=added.outcome == "added")

    @overload
    def handle(self, task_id: str) -> TaskHandle[Any]: ...
    @overload
    def handle(self, task_id: str, function: TaskFunction[..., R]) -> TaskHandle[R]: ...
    def handle(self, task_id: str, function: TaskFunction[..., Any] | None = None) -> TaskHandle[Any]:
        """A handle to a task that somebody else has sent, or this program before it was started anew.

        Args:
            task_id: of the task.
            function: what it calls, for the type of the result; without it that is a plain value.

        Raises:
            TypeError: the identifier is no string, or the function no task function.
        """
        string_given("handle", task_id)
        if function is not None:
            check_function("handle", function)
        return TaskHandle(self, task_id, _plain if function is None else function.read_result)

    async def _add(self, tasks: Sequence[Task]) -> list[Added]:
        life = self.life
        records = [record_of(task, life.new_nonce()) for task in tasks]
        await life.ready()
        if self._options.overflow != "wait":
            added = await self._try(life, records)
            self._refuse_full(added)
            return added
        ticket = life.line.ticket()
        added = [] if len(life.line) else await self._try(life, records)
        outcomes = {index: one for index, one in enumerate(added) if one.outcome != "full"}
        if len(outcomes) < len(records):
            await self._wait_for_room(life, ticket, records, outcomes)
        return [outcomes[index] for index in range(len(records))]

    async def _try(self, life: Life, records: Sequence[Record]) -> list[Added]:
        return await life.patiently(lambda: life.store.add(records, self._bound))

    async def _wait_for_room(
        self, life: Life, ticket: int, records: Sequence[Record], outcomes: dict[int, Added]
    ) -> None:
        """Add what was not, first come, first served."""
        with resting(running_task.get()), life.line.joined(ticket):
            while True:
                await life.line.until_first(ticket)
                version = life.store.version()
                left = [index for index in range(len(records)) if index not in outcomes]
                answers = await self._try(life, [records[index] for index in left])
                outcomes |= {at: one for at, one in zip(left, answers, strict=True) if one.outcome != "full"}
                if len(outcomes) == len(records):
                    return
                await life.changed(version, FOREVER)

    def _refuse_full(self, added: Sequence[Added]) -> None:
        full = [one.id for one in added if one.outcome == "full"]
        if not full:
            return
        shed = ", and no less urgent one can give way" if self._options.overflow == "shed_lowest" else ""
        raise QueueFull(
            f"the queue {self.name!r} is full ({self._options.max_length} tasks wait{shed}): {len(full)} of "
            f"{len(added)} tasks were not added, the first is {full[0]}; try again later, wait for room with "
            f"overflow='wait', or give it a larger max_length"
        )

    # For consumers.

    async def dequeue(self, timeout: float = 0.0) -> Task | None:
        """Take the most urgent task that may run. A checkpoint.

        Tasks whose deadline has passed are not taken: they become dead letters. Cancelled, it has taken nothing.

        Args:
            timeout: seconds to wait for a task; `math.inf` for as long as it takes.

        Returns:
            The task, which is to be settled with `ack` or `nack`; None if there was none in time.

        Raises:
            ValueError: the time is negative or not a number.
        """
        check_seconds("dequeue(timeout)", timeout, 0)
        life = await self._ready()
        clock = life.backend.time
        until = clock() + timeout
        while True:
            version = life.store.version()
            task, wait = await life.claim()
            if task is not None:
                return task
            left = until - clock()
            if left <= 0:
                return None
            await life.changed(version, max(SOON, min(left, wait, FOREVER)))

    async def ack(self, task: Task | str, result: Any = None) -> bool:
        """Say that a task is done. A checkpoint; cancelled there, it is done all the same.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            result: what came of it, for `TaskHandle.result`.

        Returns:
            False if it was not this handle's, or its lease was lost: somebody else may have it.

        Raises:
            TypeError: the result cannot be stored; the task is still this handle's.
            StoreUnavailable: the store was away for too long; the task is still this handle's.
        """
        data = encode(result, "result")
        life, held = await self._held("ack", task)
        if held is None:
            return False
        return await self._settle(life, held, Finish(held.task.task_id, held.epoch, result=data)) != ""

    async def nack(
        self, task: Task | str, error: BaseException | str | None = None, delay: float | None = None
    ) -> bool:
        """Say that a task has failed. A checkpoint; cancelled there, it has failed all the same.

        It counts in `Task.retry_count`, and the task becomes a dead letter when that reaches `max_retries`. An error
        that says more is heeded as in a worker: `RateLimited` does not count, `Rejected` gives the task up at once,
        `TaskTimedOut` counts as a time-out.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            error: why, for its history.
            delay: seconds before it is tried again.

        Returns:
            True if it will be tried again; False if it was given up, or was not this handle's.

        Raises:
            ValueError: the delay is negative or not a number.
            TypeError: an argument has the wrong type.
            StoreUnavailable: the store was away for too long; the task is still this handle's.
        """
        if delay is not None:
            check_seconds("nack(delay)", delay, 0, finite=True)
        if not (error is None or isinstance(error, BaseException | str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"nack(error={safe_repr(error)}): give an exception, a text, or None")
        life, held = await self._held("nack", task)
        if held is None:
            return False
        finish = _failed(life, held, error, delay)
        state = await self._settle(life, held, finish)
        if state and finish.kind not in QUIET:
            text, raised = (safe_str(error), None) if isinstance(error, str) else ("", error)
            failed = Failure.of_task(held.task)
            failed.report(
                log, worker=life.worker, queue=self.name, kind=finish.kind, state=state, text=text, error=raised
            )
        return state in {"pending", "scheduled"}

    async def extend(self, task: Task | str, seconds: float | None = None) -> bool:
        """Renew the lease of a task now. There is no need to: all leases of a handle are renewed in time.

        A checkpoint.

        Args:
            task: a task that this handle has dequeued, or its identifier.
            seconds: how long from now; the `lease` of the queue by default.

        Returns:
            False if it was not this handle's, or its lease was lost.

        Raises:
            ValueError: the time is not more than 0.
        """
        renewed = self._options.lease if seconds is None else seconds
        check_seconds("extend(seconds)", renewed, 0, finite=True)
        if not renewed:
            raise ValueError("extend(seconds=0): give more than 0 seconds")
        life, held = await self._held("extend", task)
        if held is None:
            return False
        return await life.renew(held, renewed)

    def in_flight(self) -> dict[str, Task]:
        """The tasks that this handle has dequeued and not settled, by their identifiers. Not a checkpoint.

        Raises:
            PoolClosed: the queue is not open.
        """
        return {task_id: held.task for task_id, held in self.life.held.items()}

    # For blocking code.

    def __enter__(self) -> BlockingTaskQueue:
        self._refuse_second_block()
        if self._state is not None:
            raise PoolClosed(f"the task queue {self.name!r} lives in a system: use `await` in its loop, not `with`")
        options = msgspec.structs.asdict(self._options)
        make = type(self)
        face = BlockingTaskQueue(lambda system: make(self.store, name=self.name, system=system, **options), self.name)
        entered = self._blocking.enter_context(face)
        try:
            entered.ready()
        except BaseException:
            self._blocking.close()
            raise
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._blocking.__exit__(kind, error, trace)

    # Inside.

    async def _held(self, call: str, task: Task | str) -> tuple[Life, Held | None]:
        life = await self._ready()
        return life, life.held.get(id_given(call, task))

    async def _settle(self, life: Life, held: Held, finish: Finish) -> str:
        state = await life.settle(held, finish)
        if state:
            held.task.retry_count += finish.kind == "error"
            held.task.status = TaskStatus(state)
        return state


def _plain(data: bytes | None) -> Any:
    return None if data is None else decode(data)


def _failed(life: Life, held: Held, error: BaseException | str | None, delay: float | None) -> Finish:
    """How an attempt ended, by its error."""
    if not isinstance(error, BaseException):
        return life.finish(held, "error", delay=delay or 0.0, error="" if error is None else safe_str(error))
    kind, cause = ("error", error) if not isinstance(error, Exception) else kind_of(error)
    if kind == "error" and control_error(error, TaskTimedOut) is not None:
        kind = "timeout"
    pause, key = pause_of(cause) if kind == "rate_limited" else (0.0, None)
    seconds = pause if delay is None else delay
    trace = trace_of(error) or format_traceback(error, 2000)  # it may have been made and not raised
    return life.finish(held, kind, delay=seconds, error=said(cause), traceback=trace, pause_key=key)
