"""A pool of threads, or of processes, for blocking programs without an event loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from cuelight._checks import check_seconds
from cuelight._fork import forks
from cuelight._text import safe_repr
from cuelight.actors import current_cell
from cuelight.errors import DeadlockError, TaskNotFound
from cuelight.pools._contexts import submission_context
from cuelight.pools._dead_letters import DeadLetterBox, FailedCall, report_failure
from cuelight.pools._functions import Kind, is_async, name_of
from cuelight.pools._maps._blocking import stream
from cuelight.pools._maps._source import count_items
from cuelight.pools._options import WorkerPoolConfig, check_priority, check_text, check_whole
from cuelight.pools._processes._start import check_executable
from cuelight.pools._results import Progress, Reporter, TaskMetrics, TaskResult
from cuelight.pools._threads._executor import full_name
from cuelight.pools._threads._job import Job
from cuelight.pools._threads._pool import ThreadPool
from cuelight.pools._threads._timer import load_event_loop
from cuelight.pools._threads._worker import Worker, current_worker

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType

    from cuelight._dead_letters._queue import DeadLetterQueue
    from cuelight.pools._processes._caller import ProcessCaller

R = TypeVar("R")
T = TypeVar("T")

ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
"""The event for which `WorkerPool.wait_for_all` waits."""


class WorkerPool:
    """Runs plain functions in threads, with retries, time-outs and metrics: `with WorkerPool(config) as pool:`.

    All methods may be called from any thread, including threads of tasks. A task that waits for another task of the
    pool gives its place to that task. Each task runs in a copy of the context (`contextvars`) in which it was
    submitted.

    Leaving the block waits until all tasks have ended; leaving it by an exception cancels tasks that do not run yet.
    A thread cannot be stopped. If an attempt takes too long, the pool abandons its thread, and a new thread takes its
    place. Worker processes (`kind="process"`) are killed instead. The threads are daemons: a program that ends without
    leaving the block does not wait for its tasks.
    """

    _backend_options: dict[str, Any] | None = None  # of the timer thread's event loop; tests set a virtual clock

    def __init__(
        self,
        config: WorkerPoolConfig | None = None,
        *,
        name: str = "pool",
        kind: Kind = "thread",
        keep_results: int | None = None,
        executable: str | PathLike[str] | None = None,
        dead_letters: DeadLetterQueue | None = None,
    ) -> None:
        """Set up a pool. Its threads start with the first task.

        Args:
            config: the options of the pool; `WorkerPoolConfig()` by default.
            name: the first part of task identifiers and thread names.
            kind: "thread", or "process". With "process" each worker has a process; functions, arguments and results
                are pickled.
            keep_results: number of ended tasks that the pool remembers; by default all, until the pool is dropped.
            executable: path of the Python interpreter of worker processes; by default the one that runs this program.
            dead_letters: queue for tasks that have failed for good; by default the pool has its own queue, which keeps
                the last 1,000.

        Raises:
            TypeError: the config is not a `WorkerPoolConfig`, or the queue cannot store dead letters of a pool.
            ValueError: a value is invalid; the message says which.
        """
        config = WorkerPoolConfig() if config is None else config
        if not isinstance(config, WorkerPoolConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"WorkerPool({safe_repr(config)}): give a WorkerPoolConfig, such as WorkerPoolConfig(max_workers=8)"
            )
        if kind not in ("thread", "process"):
            raise ValueError(f"WorkerPool(kind={safe_repr(kind)}): give 'thread' or 'process'")
        if keep_results is not None:
            check_whole("keep_results", keep_results, 1)
        self.config = WorkerPoolConfig(**{field.name: getattr(config, field.name) for field in fields(config)})
        self.name, self.kind = check_text("name", name), kind
        self._keep = keep_results
        if executable is not None and kind != "process":
            raise ValueError(f"executable={safe_repr(executable)} is for worker processes: give kind='process', too")
        self._executable = check_executable(executable)
        self._letters = DeadLetterBox(self, dead_letters)
        self._checked: object = None
        self._generation = forks.generation
        self._current = self._new_thread_pool()
        load_event_loop()

    def _new_thread_pool(self) -> ThreadPool:
        new_caller = _no_process if self.kind == "thread" else partial(_new_process, self._executable)
        report = partial(_report, self.name, self.config.enable_instrumentation, self._letters)
        thread_pool = ThreadPool(self.name, self.config, new_caller, self._keep, self._backend_options, report)
        self._when_dropped = weakref.finalize(
            self, thread_pool.close_when_dropped
        )  # a pool that was dropped ends after its last task
        self._when_dropped.atexit = False
        return thread_pool

    @property
    def _thread_pool(self) -> ThreadPool:
        """The group of threads. A forked process makes a new one, because the threads are in the parent."""
        if self._generation != forks.generation:
            self._generation = forks.generation
            self._current = self._new_thread_pool().inherit(self._current)
        return self._current

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
        """Submit a task. Does not wait.

        A task that raises is tried again, up to `max_retries` times and with a back-off. It is not tried again after
        `Rejected`, or if an object could not be pickled for a process. After `RateLimited` the task waits for the
        delay of this exception; this does not count as an attempt.

        Args:
            task_name: readable name of the task; need not be unique.
            task_fn: a plain function.
            args: arguments of the function.
            kwargs: keyword arguments of the function.
            priority: tasks with a smaller number go first; tasks with the same number begin in the order of submission.

        Returns:
            The identifier of the task.

        Raises:
            PoolClosed: the pool was shut down. It is a RuntimeError.
            TypeError: the function cannot be called or is async, or `args` is not a tuple or list.
            DeadlockError: the caller is a signal handler or finaliser that has interrupted a step of the pool.
        """
        if task_fn is not self._checked:
            self._check(task_fn)
        if type(args) is not tuple:
            args = _as_tuple(args)
        if type(task_name) is not str:
            task_name = check_text("task_name", task_name)
        if type(priority) is not int:
            priority = check_priority(priority)
        context = copy_context() if current_cell.get() is None else submission_context()
        job = Job(task_name, task_fn, args, {} if kwargs is None else dict(kwargs), priority, context)
        thread_pool = self._current if self._generation == forks.generation else self._thread_pool
        thread_pool.submit(job)
        return job.id

    def submit_again(self, call: FailedCall, task_id: str) -> None:
        """Submit the task of a dead letter again, as `DeadLetterQueue.replay` does. The task gets a new identifier."""
        self.submit_task(call.name, call.function, call.args, call.kwargs, priority=call.priority)

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

        The iterator takes items as its results are read: at most `buffer` items run or have results that are not read
        yet, so the source may be infinite. If the function raises for an item, the result of this item has the error.
        Leaving the loop early cancels items that have not begun, and closes the source if it is a generator. The
        summary counts items of maps, but `get_metrics` and `wait_for_all` do not include them.

        Args:
            fn: a plain function.
            items: an iterable of the items.
            priority: tasks with a smaller number go first.
            buffer: number of items that are read ahead; by default 4 for each worker.
            progress: called with (done, total or None) after each item; or True for a bar, which needs tqdm.

        Raises:
            PoolClosed: the pool was shut down.
            TypeError: the function cannot be called or is async, or the items cannot be iterated.
            ValueError: the buffer is less than 1.
        """
        self._check(fn)
        source = iter(items)
        reporter = None
        if progress is not None and progress is not False:
            reporter = Reporter(progress, count_items(items), self.name)
        return stream(
            self._thread_pool,
            fn,
            source,
            submission_context(),
            priority=check_priority(priority),
            buffer=4 * self.config.max_workers if buffer is None else check_whole("buffer", buffer, 1),
            reporter=reporter,
        )

    def abort_pending_tasks(self) -> int:
        """Cancel all tasks that do not run now, including tasks that wait for a retry. Returns their number."""
        return self._thread_pool.cancel()

    # Results.

    def get_task_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """Return the result of a task. Blocks until the task has ended.

        Args:
            task_id: the identifier that `submit_task` returned.
            timeout: seconds to wait; None for no limit. It ends the wait, not the task.

        Raises:
            TimeoutError: the task had not ended in time.
            TaskNotFound: there is no such task, or the pool no longer remembers it (`keep_results`).
            DeadlockError: the task waits for the caller, for example a task asks for its own result.
        """
        if timeout is not None:
            check_seconds("get_task_result(timeout)", timeout)
        thread_pool = self._current if self._generation == forks.generation else self._thread_pool
        job = thread_pool.table.jobs.get(task_id)
        if job is None:
            raise TaskNotFound(
                f"the pool {self.name!r} knows no task {safe_repr(task_id)}: give what submit_task returned"
            )
        if job.ended is None and not thread_pool.wait(job, timeout):
            raise TimeoutError(f"the task {job.name!r} ({task_id}) had not ended after {timeout} s: it is {job.status}")
        return job.make_result(metrics=self.config.enable_instrumentation)

    def wait_for_all(
        self, timeout: float | None = None, return_when: ReturnWhen = "ALL_COMPLETED"
    ) -> list[TaskResult[Any]]:
        """Wait for submitted tasks, and return the results of the ended ones, in the order of submission. Blocks.

        Args:
            timeout: seconds to wait; None for no limit. It ends the wait, not the tasks: the results of the tasks that
                have ended by then are returned.
            return_when: "ALL_COMPLETED" waits until every task has ended, "FIRST_COMPLETED" until any task has ended,
                "FIRST_EXCEPTION" until any task has failed, or every task has ended.

        Raises:
            ValueError: `return_when` is none of these.
            DeadlockError: a task of the pool waits for all tasks, so for itself.
        """
        if timeout is not None:
            check_seconds("wait_for_all(timeout)", timeout)
        table = self._thread_pool.table
        conditions: dict[str, Callable[[], bool]] = {
            "ALL_COMPLETED": lambda: not table.open,
            "FIRST_COMPLETED": lambda: not table.open or len(table.jobs) > table.open,
            "FIRST_EXCEPTION": lambda: not table.open or table.failures > 0,
        }
        if return_when not in conditions:
            raise ValueError(f"wait_for_all(return_when={safe_repr(return_when)}): give one of {', '.join(conditions)}")
        if self._worker() is not None:
            raise DeadlockError(f"a task of the pool {self.name!r} waits for all its tasks, so for itself")
        table.check_free()
        table.wait_until(conditions[return_when], timeout)
        with table.lock:
            ended = [job for job in table.jobs.values() if job.ended is not None]
        metrics = self.config.enable_instrumentation
        return [job.make_result(metrics=metrics) for job in ended]

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The tasks that have failed for good, with their errors, to inspect, edit, replay and purge.

        `replay` submits a task again. In blocking code, use the queue in a block: `with pool.dead_letters as letters:`.
        """
        return self._letters.queue

    # Metrics.

    def get_metrics(self) -> dict[str, TaskMetrics]:
        """Return the metrics of each remembered task, by identifier, in the order of submission; a copy.

        The dictionary is empty with `enable_instrumentation=False`.
        """
        if not self.config.enable_instrumentation:
            return {}
        with self._thread_pool.lock:
            jobs = list(self._thread_pool.table.jobs.values())
        return {job.id: job.metrics() for job in jobs}

    def get_summary_metrics(self) -> dict[str, Any]:
        """Return the totals of the pool, all read at the same moment.

        With `enable_instrumentation=False` the pool measures nothing: the time and the retries stay 0.

        Returns:
            total_tasks: number of submitted tasks, which is the sum of the next five numbers.
            completed, failed, cancelled: number of tasks that ended in this way.
            pending: number of tasks that wait for a worker or for a retry.
            running: number of tasks that a worker has.
            avg_execution_time_ms: average run time of completed and failed tasks, in milliseconds.
            total_retries: number of attempts after the first ones.
            success_rate: completed tasks as a fraction of completed and failed tasks, 0 to 1.
            workers: current number of threads, without abandoned ones.
            abandoned: number of threads that were abandoned and still run.
            replaced: number of threads that were abandoned, and of processes that were killed.
        """
        thread_pool = self._thread_pool
        with thread_pool.lock:
            counts = dict(thread_pool.table.counts)
            measured = self.config.enable_instrumentation
            run_seconds: float = thread_pool.total_run_seconds if measured else 0.0
            retries: int = thread_pool.retries if measured else 0
            workers, abandoned, replaced = len(thread_pool.threads), thread_pool.abandoned, thread_pool.replaced
        completed, failed = counts["completed"], counts["failed"]
        tried = completed + failed
        return {
            "total_tasks": sum(counts.values()),
            "completed": completed,
            "failed": failed,
            "cancelled": counts["cancelled"],
            "pending": counts["pending"] + counts["scheduled"],
            "running": counts["in_flight"],
            "avg_execution_time_ms": run_seconds * 1000 / tried if tried else 0.0,
            "total_retries": retries,
            "success_rate": completed / tried if tried else 0.0,
            "workers": workers,
            "abandoned": abandoned,
            "replaced": replaced,
        }

    # The end.

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the threads after the last task. May be called again.

        Args:
            wait: block until all tasks and threads have ended, except abandoned threads.
            cancel_futures: cancel the tasks that do not run now.

        Raises:
            DeadlockError: a task of the pool waits for the end of the pool, so for its own.
        """
        if wait and self._worker() is not None:
            raise DeadlockError(f"a task waits for the end of its pool {self.name!r}: shutdown(wait=False) does not")
        self._thread_pool.close()
        self._when_dropped.detach()
        if cancel_futures:
            self._thread_pool.cancel()
        if wait:
            self._thread_pool.table.check_free()
            self._thread_pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=error is not None)

    def _worker(self) -> Worker | None:
        """The worker of this pool whose task is the caller; None if the caller is no task of this pool."""
        worker = current_worker()
        return worker if worker is not None and worker.pool is self._thread_pool else None

    def _check(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise TypeError(
                f"{safe_repr(function)} cannot be called: give a function, and its arguments as a tuple after it"
            )
        if is_async(function):
            raise TypeError(
                f"{name_of(function)} is an async function, and this pool blocks: give it to an AsyncWorkerPool"
            )
        self._checked = function


def _as_tuple(args: Any) -> tuple[Any, ...]:
    if isinstance(args, list | tuple):
        return tuple(args)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    shown = safe_repr(args)
    raise TypeError(f"args={shown}: give a tuple of arguments, such as ({shown},)")


def _report(pool: str, logged: bool, letters: DeadLetterBox, job: Job, error: Exception) -> None:
    """Log a task that has failed for good, and make it a dead letter. Called before the task ends."""
    result: TaskResult[Any] = TaskResult(job.id, error=error, task_name=job.name, worker_id=job.worker or "")
    task_type = full_name(job.function)
    if logged:
        report_failure(pool, result, task_type, job.retries)
    letters.add(job.call(), result, task_type)


def _no_process(_: str) -> None:
    return None


def _new_process(executable: str | None, name: str) -> ProcessCaller:
    from cuelight.pools._processes._caller import ProcessCaller  # noqa: PLC0415 - pools of threads do not need it

    return ProcessCaller(name, executable)
