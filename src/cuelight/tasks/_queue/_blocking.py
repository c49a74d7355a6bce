"""The blocking interface of `TaskQueue`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from cuelight._blocking_proxy import BlockingProxy
from cuelight._dead_letters._queue import BlockingDeadLetterQueue
from cuelight.coordination._owner import this_thread
from cuelight.tasks._queue._operations import QueueOperations
from cuelight.tasks._queue._task_waits import blocking_thread
from cuelight.tasks._stores._protocol import Query

if TYPE_CHECKING:
    from cuelight.pools import TaskStatus
    from cuelight.supervision import ActorSystem
    from cuelight.tasks._functions._function import TaskFunction
    from cuelight.tasks._queue._schedules import Cron, Every, ScheduleChanges
    from cuelight.tasks._queue._task_handle import TaskHandle
    from cuelight.tasks._stores._protocol import Schedule, Size, Snapshot
    from cuelight.tasks._task import Limit, Task

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class BlockingTaskQueue(BlockingProxy[QueueOperations]):
    """A task queue for blocking code, made by `with TaskQueue(...) as queue:`.

    Its methods may be called from any thread. The callbacks `on_lost` and `on_cancel` are called in the thread of the
    queue's event loop.
    """

    def __init__(self, make: Callable[[ActorSystem], QueueOperations], name: str) -> None:
        super().__init__(make, name=name)
        self._lock = Lock()
        self._letters: BlockingDeadLetterQueue | None = None

    def ready(self) -> None:
        """Blocking version of `TaskQueue.ready`."""
        self._call(self._handle.ready)

    # Producing.

    def enqueue(self, task: Task) -> bool:
        """Blocking version of `TaskQueue.enqueue`."""
        return self._call(self._handle.enqueue, task)

    def enqueue_many(self, tasks: Iterable[Task]) -> list[bool]:
        """As `TaskQueue.enqueue_many`."""
        return self._call(self._handle.enqueue_many, tasks)

    def send(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> BlockingTaskHandle[R]:
        """Blocking version of `TaskQueue.send`."""
        handle = self._handle
        return BlockingTaskHandle(self, self._call(lambda: handle.send(function, *args, **kwargs)))

    @overload
    def handle(self, task_id: str) -> BlockingTaskHandle[Any]: ...
    @overload
    def handle(self, task_id: str, function: TaskFunction[..., R]) -> BlockingTaskHandle[R]: ...
    def handle(self, task_id: str, function: TaskFunction[..., Any] | None = None) -> BlockingTaskHandle[Any]:
        """Blocking version of `TaskQueue.handle`."""
        queue = self._handle
        return BlockingTaskHandle(self, queue.handle(task_id) if function is None else queue.handle(task_id, function))

    # Consuming.

    def dequeue(self, timeout: float = 0.0) -> Task | None:
        """Blocking version of `TaskQueue.dequeue`."""
        return self._call(self._handle.dequeue, timeout)

    def ack(self, task: Task | str, result: Any = None) -> bool:
        """Blocking version of `TaskQueue.ack`."""
        return self._call(self._handle.ack, task, result)

    def nack(self, task: Task | str, error: BaseException | str | None = None, delay: float | None = None) -> bool:
        """Blocking version of `TaskQueue.nack`."""
        return self._call(self._handle.nack, task, error, delay)

    def extend(self, task: Task | str, seconds: float | None = None) -> bool:
        """Blocking version of `TaskQueue.extend`."""
        return self._call(self._handle.extend, task, seconds)

    def in_flight(self) -> dict[str, Task]:
        """As `TaskQueue.in_flight`."""
        return self._call_sync(self._handle.in_flight)

    # Tasks.

    def size(self) -> Size:
        """Blocking version of `TaskQueue.size`."""
        return self._call(self._handle.size)

    def get(self, task_id: str) -> Task | None:
        """Blocking version of `TaskQueue.get`."""
        return self._call(self._handle.get, task_id)

    def find(self, query: Query) -> list[Snapshot]:
        """Blocking version of `TaskQueue.find`."""
        return self._call(self._handle.find, query)

    def results(self, function: TaskFunction[..., R]) -> Iterator[tuple[str, R]]:
        """Blocking version of `TaskQueue.results`: a generator that reads one page of tasks at a time."""
        after = 0
        while page := self.find(Query(state="completed", type=function.name, after=after)):
            for snapshot in page:
                yield snapshot.record.id, function.read_result(snapshot.result)
            after = page[-1].sequence

    @overload
    def cancel(self, task_id: str) -> str: ...  # type: ignore[overload-overlap]  # a str comes first
    @overload
    def cancel(self, task_id: Iterable[str]) -> dict[str, str]: ...
    def cancel(self, task_id: str | Iterable[str]) -> str | dict[str, str]:
        """Blocking version of `TaskQueue.cancel`."""
        queue: Any = self._handle
        outcomes: str | dict[str, str] = self._call(queue.cancel, task_id)
        return outcomes

    def purge(self, task_ids: Iterable[str] | str) -> int:
        """Blocking version of `TaskQueue.purge`."""
        return self._call(self._handle.purge, task_ids)

    @property
    def dead_letters(self) -> BlockingDeadLetterQueue:
        """Blocking version of `TaskQueue.dead_letters`."""
        handle = self._handle
        with self._lock:
            if self._letters is None:
                letters = BlockingDeadLetterQueue(lambda _: handle.dead_letters, system=self._system)
                self._letters = self._stack.enter_context(letters)
            return self._letters

    # Switches.

    def pause(self) -> None:
        """Blocking version of `TaskQueue.pause`."""
        self._call(self._handle.pause)

    def resume(self) -> None:
        """Blocking version of `TaskQueue.resume`."""
        self._call(self._handle.resume)

    def close(self) -> None:
        """Blocking version of `TaskQueue.close`."""
        self._call(self._handle.close)

    def reopen(self) -> None:
        """Blocking version of `TaskQueue.reopen`."""
        self._call(self._handle.reopen)

    def drain(self, timeout: float | None = None, *, scheduled: bool = False) -> bool:
        """Blocking version of `TaskQueue.drain`."""
        return self._call(self._handle.drain, timeout, scheduled=scheduled)

    # Limits.

    def set_limit(self, limit: Limit) -> None:
        """As `TaskQueue.set_limit`."""
        self._call(self._handle.set_limit, limit)

    def clear_limit(self, key: str) -> None:
        """As `TaskQueue.clear_limit`."""
        self._call(self._handle.clear_limit, key)

    def pause_limit(self, key: str, seconds: float) -> None:
        """As `TaskQueue.pause_limit`."""
        self._call(self._handle.pause_limit, key, seconds)

    # Periodic work.

    def every(self, seconds: float, what: Task | TaskFunction[..., Any], *, name: str | None = None) -> str:
        """Blocking version of `TaskQueue.every`."""
        return self._call(self._handle.every, seconds, what, name=name)

    def cron(self, line: str, what: Task | TaskFunction[..., Any], *, tz: str = "UTC", name: str | None = None) -> str:
        """Blocking version of `TaskQueue.cron`."""
        return self._call(self._handle.cron, line, what, tz=tz, name=name)

    def sync_schedules(self, schedules: Iterable[Every | Cron]) -> ScheduleChanges:
        """As `TaskQueue.sync_schedules`."""
        return self._call(self._handle.sync_schedules, schedules)

    def remove_schedule(self, name: str) -> bool:
        """As `TaskQueue.remove_schedule`."""
        return self._call(self._handle.remove_schedule, name)

    def schedules(self) -> list[Schedule]:
        """Blocking version of `TaskQueue.schedules`."""
        return self._call(self._handle.schedules)


class BlockingTaskHandle(Generic[R_co]):
    """The blocking version of `TaskHandle`.

    Attributes:
        task_id: the identifier of the task.
        is_new: see `TaskHandle.is_new`.
    """

    __slots__ = ("_handle", "_proxy", "is_new", "task_id")

    def __init__(self, proxy: BlockingProxy[Any], handle: TaskHandle[R_co]) -> None:
        self._proxy, self._handle = proxy, handle
        self.task_id, self.is_new = handle.task_id, handle.is_new

    def result(self, timeout: float | None = None) -> R_co:
        """Blocking version of `TaskHandle.result`."""
        token = blocking_thread.set(this_thread.owner)
        try:
            return self._proxy._call(self._handle.result, timeout)
        finally:
            blocking_thread.reset(token)

    def status(self) -> TaskStatus:
        """Blocking version of `TaskHandle.status`."""
        return self._proxy._call(self._handle.status)

    def task(self) -> Task:
        """Blocking version of `TaskHandle.task`."""
        return self._proxy._call(self._handle.task)

    def cancel(self) -> str:
        """Blocking version of `TaskHandle.cancel`."""
        return self._proxy._call(self._handle.cancel)

    def progress(self) -> Any:
        """Blocking version of `TaskHandle.progress`."""
        return self._proxy._call(self._handle.progress)

    def updates(self) -> Iterator[Any]:
        """Blocking version of `TaskHandle.updates`."""
        return self._proxy._iterate(self._handle.updates)

    def __repr__(self) -> str:
        return f"<blocking task handle {self.task_id}>"
