"""What a pool keeps of tasks that have failed for good: dead letters.

The queue of dead letters lives in the package of tasks, above this one. That package gives the way to make one
(`provide_dead_letters`), so a pool has one of its own without knowing more of it than `DeadLetterSink`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import (
    PoolClosed,
    Rejected,
    TaskQuarantined,
    TaskTimedOut,
    WorkerDied,
    ends_the_program,
)
from cuelight.pools._failures import is_a

if TYPE_CHECKING:
    from cuelight.pools._results import TaskResult
    from cuelight.tasks import DeadLetterQueue as DeadLetterQueue  # noqa: PLC0414 - for the modules beside this one

__all__ = ["DeadLetterBox", "DeadLetterSink", "FailedCall", "Pool", "provide_dead_letters"]

log = get_log("cuelight.pools")


class FailedCall(msgspec.Struct, frozen=True):
    """A task of a pool that has failed for good: the payload of its dead letter.

    Attributes:
        function: what was called.
        args: its arguments; of a map the item.
        kwargs: its keyword arguments.
        name: the name of the task.
        priority: the smaller go first.
        timeout: seconds that an attempt may take; None for no limit. Of a `WorkerPool` its config counts.
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


class DeadLetterSink(Protocol):
    """Where dead letters go: a `DeadLetterQueue` that keeps them in memory."""

    def add_nowait(
        self,
        payload: Any = None,
        *,
        error: BaseException | str | None = None,
        reason: str = "failed",
        task_type: str = "",
        source: str = "",
        letter_id: str = "",
        way_back: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Keep a letter. From any thread; does not wait."""
        ...


class Pool(Protocol):
    """What a dead letter knows of the pool that it came from."""

    name: str

    def submit_again(self, call: FailedCall, task_id: str) -> Any:
        """Give the pool a task that has failed. What this returns is awaited if it can be."""
        ...


_make: list[Callable[[], DeadLetterSink]] = []


def provide_dead_letters(make: Callable[[], DeadLetterSink]) -> None:
    """Have pools make their queues of dead letters so."""
    _make[:] = [make]


class DeadLetterBox:
    """The dead letters of one pool. The queue is made with the first letter, or when somebody asks for it."""

    def __init__(self, pool: Pool, given: DeadLetterSink | None) -> None:
        """Set it up.

        Args:
            pool: a letter holds it weakly, so that a pool that was dropped can go.
            given: a queue that was made elsewhere, perhaps for several pools.

        Raises:
            TypeError: that is no queue of dead letters that takes any.
        """
        if given is not None:
            _check(given)
        self._queue: dict[str, Any] = {} if given is None else {"queue": given}
        self._pool = weakref.ref(pool)
        self._name = pool.name

    @property
    def queue(self) -> DeadLetterQueue:
        """The queue."""
        found = self._queue.get("queue")
        # One step, whichever threads ask.
        queue: DeadLetterQueue = self._queue.setdefault("queue", _make[0]()) if found is None else found
        return queue

    def add(self, call: FailedCall, result: TaskResult[Any], task_type: str) -> None:
        """Keep a task that has failed for good. Never raises, but for what ends programs."""
        error = result.error
        try:
            sink: Any = self.queue
            sink.add_nowait(
                call,
                error=error,
                reason=_reason(error),
                task_type=task_type,
                source=result.worker_id or self._name,
                letter_id=result.task_id,
                way_back=self._submit_again,
            )
        except BaseException as raised:  # for want of memory; or the queue was given, and is of a class of users
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
