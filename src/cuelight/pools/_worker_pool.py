"""A pool of threads, or of processes, for programs that block: no event loop in sight."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from cuelight.errors import DeadlockError, TaskNotFound
from cuelight.pools._attempts import Kind, is_async
from cuelight.pools._job import Job
from cuelight.pools._progress import Progress, Reporter
from cuelight.pools._results import TaskMetrics, TaskResult, TaskStatus
from cuelight.pools._thread_crew import Crew, Worker

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.pools._process_call import ProcessCaller

__all__ = ["ReturnWhen", "WorkerPool", "WorkerPoolConfig"]

R = TypeVar("R")
T = TypeVar("T")

ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
"""What `WorkerPool.wait_for_all` waits for."""


@dataclass
class WorkerPoolConfig:
    """How a `WorkerPool` works.

    Attributes:
        max_workers: threads at most; they start when there is something to do.
        task_timeout_seconds: seconds that one attempt may run; `math.inf` for as long as it takes.
        max_retries: attempts after the first. An attempt that took too long counts.
        backoff_base_seconds: seconds before the first retry; they double with each.
        backoff_max_seconds: seconds before a retry at most.
        enable_instrumentation: write log lines, as "cuelight.pools": a task completed (debug), is tried again (info),
            failed or took too long (warning). Metrics are kept in any case.
    """

    max_workers: int = 50
    task_timeout_seconds: float = 180.0
    max_retries: int = 3
    backoff_base_seconds: float = 1.0
    backoff_max_seconds: float = 60.0
    enable_instrumentation: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value makes no sense; the message says which.
        """
        for field, least in {"max_workers": 1, "max_retries": 0}.items():
            count: Any = getattr(self, field)
            if not isinstance(count, int) or count < least:
                raise ValueError(f"WorkerPoolConfig({field}={count!r}): give a whole number, {least} or more")
        for field in ("backoff_base_seconds", "backoff_max_seconds"):
            delay: float = getattr(self, field)
            if not 0 <= delay < math.inf:
                raise ValueError(f"WorkerPoolConfig({field}={delay!r}): give seconds, 0 or more")
        if not self.task_timeout_seconds > 0:
            raise ValueError(
                f"WorkerPoolConfig(task_timeout_seconds={self.task_timeout_seconds!r}): give more than 0 seconds, "
                f"or math.inf for no time-out"
            )


class WorkerPool:
    """Runs plain functions in threads, with retries, time-outs and metrics: `with WorkerPool(config) as pool:`.

    All methods may be called from any thread, those of tasks included; but a task that waits for another keeps its
    worker, so tasks that wait for tasks need more workers than may wait at once.

    Leaving the block waits until all tasks have ended; leaving it by an exception cancels those that do not run yet.
    A thread cannot be stopped: an attempt that takes too long is given up and its thread left behind, while a fresh one
    takes its place. Worker processes (`kind="process"`) are killed instead. Threads are daemons: a program that ends
    without leaving the block does not wait for its tasks.
    """

    _backend_options: dict[str, Any] | None = None  # of the event loop that keeps time; tests put a clock there

    def __init__(
        self,
        config: WorkerPoolConfig | None = None,
        *,
        name: str = "pool",
        kind: Kind = "thread",
        keep_results: int | None = None,
    ) -> None:
        """Set up a pool; nothing is started before the first task.

        Args:
            config: how it works; `WorkerPoolConfig()` by default.
            name: the first part of identifiers and names of threads.
            kind: "thread", or "process": each worker has a process, where functions, arguments and results are pickled.
            keep_results: how many tasks that have ended are remembered; by default all, until the pool is dropped.

        Raises:
            TypeError: the config is none.
            ValueError: a value makes no sense; the message says which.
        """
        config = WorkerPoolConfig() if config is None else config
        if not isinstance(config, WorkerPoolConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"WorkerPool({config!r}): give a WorkerPoolConfig, such as WorkerPoolConfig(max_workers=8)")
        if kind not in {"thread", "process"}:
            raise ValueError(f"WorkerPool(kind={kind!r}): give 'thread' or 'process'")
        if keep_results is not None and keep_results < 1:
            raise ValueError(f"WorkerPool(keep_results={keep_results!r}): give 1 or more, or None for all")
        self.config = WorkerPoolConfig(**{field.name: getattr(config, field.name) for field in fields(config)})
        self.name, self.kind = name, kind
        new_caller = _no_process if kind == "thread" else _new_process
        self._crew = Crew(name, self.config, new_caller, keep_results, self._backend_options)
        self._checked: object = None
        weakref.finalize(self, self._crew.dropped).atexit = False  # a pool that was dropped ends after its last task

    # Tasks.

    def submit_task(
        self,
        task_name: str,
        task_fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        priority: int = 2,
    ) -> str:
        """Have a function called by a worker. Does not wait.

        An exception is retried, up to `max_retries` times and with a back-off, unless it is `Rejected`, or something
        could not be pickled for a process. After `RateLimited` the task waits as long as that says; this is no attempt.

        Args:
            task_name: for people; need not be unique.
            task_fn: a plain function.
            args: its arguments.
            kwargs: its keyword arguments.
            priority: the smaller go first; within one, tasks are begun in the order in which they were submitted.

        Returns:
            The identifier of the task.

        Raises:
            PoolClosed: the pool was shut down. It is a RuntimeError.
            TypeError: the function cannot be called or is async, or the arguments are no tuple.
        """
        if task_fn is not self._checked:
            self._check(task_fn)
        if type(args) is not tuple:
            args = _as_tuple(args)
        job = Job(task_name, task_fn, args, dict(kwargs) if kwargs else {}, priority)
        self._crew.submit(job)
        return job.id

    def map(
        self,
        fn: Callable[[T], R],
        items: Iterable[T],
        *,
        priority: int = 2,
        buffer: int | None = None,
        progress: Progress | bool | None = None,
    ) -> Iterator[TaskResult[R]]:
        """Call a function with each item, and iterate over the results in the order of the items.

        Items are taken as results are: not more than `buffer` of them are under way or wait to be looked at, so the
        source may be infinite. An item whose function raised is a result with an error. Leaving the loop early cancels
        what has not begun, and closes the source if it is a generator. Items are counted in the summary, but
        `get_metrics` and `wait_for_all` do not know them.

        Args:
            fn: a plain function.
            items: the source.
            priority: the smaller go first.
            buffer: items that are read ahead; by default 4 for each worker.
            progress: called with (done, total or None) after each item; or True for a bar, which needs tqdm.

        Raises:
            PoolClosed: the pool was shut down.
            TypeError: the function cannot be called or is async, or the items cannot be iterated.
            ValueError: the buffer is less than 1.
        """
        self._check(fn)
        if buffer is not None and buffer < 1:
            raise ValueError(f"map(buffer={buffer!r}): give 1 or more")
        source = iter(items)
        reporter = None
        if progress is not None and progress is not False:
            reporter = Reporter(progress, len(items) if isinstance(items, Sized) else None, self.name)
        return self._stream(fn, source, priority, buffer or 4 * self.config.max_workers, reporter)

    def _stream(
        self, fn: Callable[[T], R], source: Iterator[T], priority: int, buffer: int, reporter: Reporter | None
    ) -> Iterator[TaskResult[R]]:
        crew, name = self._crew, getattr(fn, "__name__", repr(fn))
        waiting: deque[Job] = deque()
        more = True
        try:
            while more or waiting:
                while more and len(waiting) < buffer:
                    try:
                        item = next(source)
                    except StopIteration:
                        more = False
                        break
                    job = Job(name, fn, (item,), {}, priority)
                    job.kept = False
                    crew.submit(job)
                    waiting.append(job)
                if waiting:
                    self._wait(waiting[0], None)
                    result: TaskResult[R] = waiting.popleft().taken_result()
                    if reporter is not None:
                        reporter.advance()
                    yield result
        finally:
            crew.cancel(waiting)
            if reporter is not None:
                reporter.close()
            if isinstance(source, Generator):
                source.close()

    def abort_pending_tasks(self) -> int:
        """Cancel all tasks that do not run now, those that wait for a retry included; how many there were."""
        return self._crew.cancel()

    # Results.

    def get_task_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """What became of a task. Blocks until it has ended.

        Args:
            task_id: what `submit_task` returned.
            timeout: seconds to wait; None for as long as it takes. It ends the wait, not the task.

        Raises:
            TimeoutError: the task had not ended in time.
            TaskNotFound: there is no such task, or it was forgotten (`keep_results`).
            DeadlockError: a task asks for its own result.
        """
        job = self._crew.board.jobs.get(task_id)
        if job is None:
            raise TaskNotFound(f"the pool {self.name!r} knows no task {task_id!r}: give what submit_task returned")
        if job.ended is None and not self._wait(job, timeout):
            raise TimeoutError(f"the task {job.name!r} ({task_id}) had not ended after {timeout} s: it is {job.status}")
        return job.taken_result()

    def wait_for_all(
        self, timeout: float | None = None, return_when: ReturnWhen = "ALL_COMPLETED"
    ) -> list[TaskResult[Any]]:
        """The results of all submitted tasks that have ended, in the order of submission. Blocks.

        Args:
            timeout: seconds to wait; None for as long as it takes. It ends the wait, not the tasks: those that have
                ended by then are returned.
            return_when: "ALL_COMPLETED" waits until every task has ended, "FIRST_COMPLETED" until any has,
                "FIRST_EXCEPTION" until any has failed, or every one has ended.

        Raises:
            ValueError: `return_when` is none of these.
            DeadlockError: a task of the pool waits for all tasks, so for itself.
        """
        board = self._crew.board
        conditions: dict[str, Callable[[], bool]] = {
            "ALL_COMPLETED": lambda: not board.open,
            "FIRST_COMPLETED": lambda: not board.open or len(board.jobs) > board.open,
            "FIRST_EXCEPTION": lambda: not board.open or board.failures > 0,
        }
        if return_when not in conditions:
            raise ValueError(f"wait_for_all(return_when={return_when!r}): give one of {', '.join(conditions)}")
        if self._worker() is not None:
            raise DeadlockError(f"a task of the pool {self.name!r} waits for all its tasks, so for itself")
        board.wait_until(conditions[return_when], timeout)
        with board.lock:
            ended = [job for job in board.jobs.values() if job.ended is not None]
        return [job.taken_result() for job in ended]

    def _wait(self, job: Job, timeout: float | None) -> bool:
        worker = self._worker()
        if worker is not None and worker.job is job:
            raise DeadlockError(f"the task {job.name!r} of the pool {self.name!r} waits for its own result")
        return self._crew.board.wait_for(job, timeout)

    # Metrics.

    def get_metrics(self) -> dict[str, TaskMetrics]:
        """How each task runs or ran, by identifier, in the order of submission; a copy."""
        with self._crew.lock:
            return {task_id: job.metrics() for task_id, job in self._crew.board.jobs.items()}

    def get_summary_metrics(self) -> dict[str, Any]:
        """Totals of the pool, all taken at the same moment.

        Returns:
            total_tasks: submitted; each of them is one of the next five.
            completed, failed, cancelled: ended so.
            pending: waiting for a worker or for a retry.
            running: having a worker.
            avg_execution_time_ms: milliseconds that tasks which completed or failed ran, on the average.
            total_retries: attempts after the first.
            success_rate: completed ones of those that completed or failed, 0 to 1.
            workers: threads now, without those left behind.
            abandoned: threads that were left behind and still run.
            replaced: threads that were left behind, and processes that were killed.
        """
        crew = self._crew
        with crew.lock:
            counts = dict(crew.board.counts)
            ran, retries = crew.total_ran, crew.retries
            workers, abandoned, replaced = len(crew.threads), crew.abandoned, crew.replaced
        completed, failed = counts[TaskStatus.COMPLETED], counts[TaskStatus.FAILED]
        tried = completed + failed
        return {
            "total_tasks": sum(counts.values()),
            "completed": completed,
            "failed": failed,
            "cancelled": counts[TaskStatus.CANCELLED],
            "pending": counts[TaskStatus.PENDING] + counts[TaskStatus.SCHEDULED],
            "running": counts[TaskStatus.IN_FLIGHT],
            "avg_execution_time_ms": ran * 1000 / tried if tried else 0.0,
            "total_retries": retries,
            "success_rate": completed / tried if tried else 0.0,
            "workers": workers,
            "abandoned": abandoned,
            "replaced": replaced,
        }

    # The end.

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the threads after the last one. May be called again.

        Args:
            wait: block until all has ended, but for threads that were left behind.
            cancel_futures: cancel the tasks that do not run now.

        Raises:
            DeadlockError: a task of the pool waits for the end of the pool, so for its own.
        """
        if wait and self._worker() is not None:
            raise DeadlockError(f"a task waits for the end of its pool {self.name!r}: shutdown(wait=False) does not")
        self._crew.close()
        if cancel_futures:
            self._crew.cancel()
        if wait:
            self._crew.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=error is not None)

    def _worker(self) -> Worker | None:
        """The worker of this pool whose task has called."""
        thread = threading.current_thread()
        return thread if isinstance(thread, Worker) and thread.crew is self._crew else None

    def _check(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called: give a function, and its arguments as a tuple after it")
        if is_async(function):
            raise TypeError(f"{function!r} is an async function, and this pool blocks: give it to an AsyncWorkerPool")
        self._checked = function


def _as_tuple(args: Any) -> tuple[Any, ...]:
    if isinstance(args, list | tuple):
        return tuple(args)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise TypeError(f"args={args!r}: give a tuple of arguments, such as ({args!r},)")


def _no_process(_: str) -> None:
    return None


def _new_process(name: str) -> ProcessCaller:
    from cuelight.pools._process_call import ProcessCaller  # noqa: PLC0415 - threads do without

    return ProcessCaller(name)
