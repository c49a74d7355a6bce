"""The tasks of a pool that have failed for good: their log records and their dead letters."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cuelight._dead_letters._queue import DeadLetterQueue
from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr, type_name
from cuelight.errors import PoolClosed, Rejected, TaskQuarantined, TaskTimedOut, WorkerDied, ends_the_program
from cuelight.pools._failures import is_a

if TYPE_CHECKING:
    from cuelight.pools._results import TaskResult


log = get_log("cuelight.pools")


class FailedCall(msgspec.Struct, frozen=True):
    """A task of a pool that has failed for good: the payload of its dead letter.

    Attributes:
        function: the function of the task.
        args: its arguments; the item, for an item of a map.
        kwargs: its keyword arguments.
        name: the name of the task.
        priority: tasks with a smaller number go first.
        timeout: seconds that an attempt may take; None for no limit. A `WorkerPool` uses its config instead.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    priority: int = 2
    timeout: float | None = None

    def with_args(self, *args: Any, **kwargs: Any) -> FailedCall:
        """The same call with other arguments, for `DeadLetterQueue.edit`."""
        return msgspec.structs.replace(self, args=args, kwargs=kwargs)


class Pool(Protocol):
    """The interface of the pool that a dead letter came from."""

    name: str

    def submit_again(self, call: FailedCall, task_id: str) -> Any:
        """Submit a failed task again. The caller awaits the returned value if it is awaitable."""
        ...


class DeadLetterBox:
    """The dead letters of one pool. The queue is made with the first letter, or when it is first accessed."""

    def __init__(self, pool: Pool, given: DeadLetterQueue | None) -> None:
        """Set the box up.

        Args:
            pool: the pool. Letters hold it weakly, so that a pool that was dropped can be freed.
            given: a queue that was made elsewhere, perhaps for several pools.

        Raises:
            TypeError: `given` is not a queue, or a queue that takes no letters.
        """
        if given is not None:
            _check(given)
        self._queue: dict[str, DeadLetterQueue] = {} if given is None else {"queue": given}
        self._pool = weakref.ref(pool)
        self._name = pool.name

    @property
    def queue(self) -> DeadLetterQueue:
        found = self._queue.get("queue")
        # `setdefault` is one step, also if several threads come here at once.
        return self._queue.setdefault("queue", DeadLetterQueue()) if found is None else found

    def add(self, call: FailedCall, result: TaskResult[Any], task_type: str) -> None:
        """Store a task that has failed for good. Raises only exceptions that end the program."""
        error = result.error
        try:
            self.queue.add_nowait(
                call,
                error=error,
                reason=_reason(error),
                task_type=task_type,
                source=result.worker_id or self._name,
                letter_id=result.task_id,
                way_back=self._submit_again,
            )
        except BaseException as raised:  # no memory is left, or a queue of a user's class has failed
            if ends_the_program(raised):
                raise
            log.exception("%s: no dead letter could be made of %s", self._name, result.task_id)

    def _submit_again(self, letter: Any) -> Any:
        pool = self._pool()
        if pool is None:
            raise PoolClosed(f"the pool {self._name!r} is no more: say where the dead letter goes, replay(..., to=...)")
        call = letter.payload
        if type(call) is not FailedCall:
            raise TypeError(
                "the payload of this letter is no FailedCall any more: say where it goes, replay(..., to=...)"
            )
        return pool.submit_again(call, letter.id)


def _check(given: Any) -> None:
    if not callable(getattr(given, "add_nowait", None)):
        raise TypeError(f"dead_letters={safe_repr(given)}: give a DeadLetterQueue")
    if getattr(given, "is_view", False):
        raise TypeError(
            "dead_letters shows those of a task store or of actors, and keeps none: give a DeadLetterQueue()"
        )


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "failed"
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (Rejected, "rejected"),
        (TaskTimedOut, "timeouts"),
        (TaskQuarantined, "quarantined"),
        (WorkerDied, "crashes"),
    )
    return next((reason for kind, reason in kinds if is_a(error, kind)), "errors")


def report_failure(pool: str, result: TaskResult[Any], task_type: str, retries: int) -> None:
    """Log a failure with its traceback. Details for programs are attributes of the log record.

    Failures of the same type of task with the same type of exception are counted together, see `cuelight._log`.
    """
    error = result.error
    assert error is not None  # noqa: S101 - the caller looked
    log.warning(
        "%s: the task %s (%s, %s) failed after %d retries: %s",
        pool,
        result.task_name,
        task_type,
        result.task_id,
        retries,
        describe_error(error, 500),
        error=error,
        kind=("task failed", pool, task_type, type_name(error)),
        extra={
            "pool": pool,
            "task_id": result.task_id,
            "task_name": result.task_name,
            "task_type": task_type,
            "worker_id": result.worker_id,
            "retries": retries,
            "attempt": retries + 1,
        },
    )
