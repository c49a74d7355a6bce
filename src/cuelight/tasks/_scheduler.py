"""Assignment of tasks to workers: the workers, their capabilities and loads, and the strategies.

A scheduler is a table with a lock. No method waits, and nothing runs in the background. It therefore needs no actor and
no block, and can be used from any event loop. Invariants, tested in `tests/tasks/scheduler/test_scheduler_model.py`:

1. No task is assigned to a worker that already has `max_concurrent` tasks.
2. No task is assigned to a worker that is not capable of its type.
3. A task is assigned as long as a worker is eligible.
4. A worker's load is the load at its registration, plus later assignments, minus reported completions; never below
   zero.
5. Among workers that stay eligible, the numbers of tasks assigned by round robin differ by at most one.
6. A strategy is a pure function. To add one, write it here and give it a name in `STRATEGIES`.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.tasks._task import Task

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.actors import Exit, Ref


class SchedulingStrategy(StrEnum):
    """How a `TaskScheduler` chooses the worker for the next task.

    Attributes:
        ROUND_ROBIN: the eligible workers in turn.
        LEAST_LOADED: the eligible worker with the fewest tasks.
        AFFINITY: the worker to which the task's type or key is assigned.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    AFFINITY = "affinity"


@dataclass(slots=True)
class WorkerInfo:
    """A worker of a `TaskScheduler`.

    Attributes:
        worker_id: the identifier.
        capabilities: the task types that the worker accepts; empty for all types.
        max_concurrent: the maximum number of tasks that it may have at the same time.
        current_load: the number of tasks that it has.
    """

    worker_id: str
    capabilities: list[str] = field(default_factory=list[str])
    max_concurrent: int = 10
    current_load: int = 0


class Assignments(NamedTuple):
    """The state of a scheduler, for strategies.

    Attributes:
        last: the worker that got the last task; "" before the first task.
        preferred: the workers to which task types were assigned, by type.
        capable: all workers that accept the task's type, including full ones; sorted by identifier.
        key: the key of the task: tasks with the same key belong together; "" for none.
    """

    last: str
    preferred: Mapping[str, str]
    capable: Sequence[WorkerInfo]
    key: str


AssignStrategy: TypeAlias = Callable[[Sequence[WorkerInfo], Task, Assignments], str]
"""A pure function `(eligible, task, state)` that returns the identifier of an eligible worker.

There is at least one eligible worker, and they are sorted by identifier.
"""


def is_capable(worker: WorkerInfo, task: Task) -> bool:
    """Whether a worker accepts tasks of this type."""
    return not worker.capabilities or task.task_type in worker.capabilities


def round_robin(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:  # noqa: ARG001
    """The next worker after the last one, in the order of identifiers. The last one need not be registered any more."""
    return next((worker.worker_id for worker in eligible if worker.worker_id > state.last), eligible[0].worker_id)


def least_loaded(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:  # noqa: ARG001
    """The worker with the fewest tasks; the first one of several."""
    return min(eligible, key=lambda worker: worker.current_load).worker_id


def affinity(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:
    """The worker of the task's type, or else the worker of its key; if that one is full, the least loaded worker.

    Keys are assigned by rendezvous hashing: the result is the same in each process, and adding or removing a worker
    moves only its own share of the keys.
    """
    wanted = state.preferred.get(task.task_type, "")
    if not any(worker.worker_id == wanted for worker in state.capable) and state.key:
        wanted = max(
            state.capable, key=lambda worker: (_weight(worker.worker_id, state.key), worker.worker_id)
        ).worker_id
    if any(worker.worker_id == wanted for worker in eligible):
        return wanted
    return least_loaded(eligible, task, state)


def _weight(worker_id: str, key: str) -> bytes:
    from hashlib import blake2b  # noqa: PLC0415 - loads OpenSSL, and is rarely needed

    return blake2b(f"{len(worker_id)}:{worker_id}{key}".encode(errors="surrogatepass"), digest_size=8).digest()


STRATEGIES: Final[Mapping[SchedulingStrategy, AssignStrategy]] = {
    SchedulingStrategy.ROUND_ROBIN: round_robin,
    SchedulingStrategy.LEAST_LOADED: least_loaded,
    SchedulingStrategy.AFFINITY: affinity,
}


log = get_log("cuelight.tasks")


class TaskScheduler:
    """Assigns tasks to workers: `scheduler = TaskScheduler(strategy=SchedulingStrategy.LEAST_LOADED)`.

    It only chooses a worker: the caller sends the task there, and reports when it is done. A worker is eligible for a
    task if it is capable of the task's type and has fewer than `max_concurrent` tasks.

    The methods are async, but not checkpoints: none of them waits. In `with TaskScheduler() as scheduler:`, they are
    synchronous, and may be called from any thread. A block is optional; the end of an async block stops watching the
    actors of registered workers.
    """

    def __init__(
        self,
        strategy: SchedulingStrategy | str | AssignStrategy = SchedulingStrategy.ROUND_ROBIN,
        *,
        key: Callable[[Task], str | None] = lambda task: task.unique,
    ) -> None:
        """Create a scheduler without workers.

        Args:
            strategy: a `SchedulingStrategy` or its name, or a function with the signature of the strategies in
                `_scheduler.py`.
            key: for affinity: tasks with the same key are assigned to the same worker, unless `set_affinity` was called
                for their type. By default, their `unique` key.

        Raises:
            ValueError: there is no such strategy.
        """
        self._table = _WorkerTable(strategy, key)

    async def register_worker(
        self,
        worker: WorkerInfo | str,
        capabilities: Sequence[str] | None = None,
        max_concurrent: int = 10,
        *,
        ref: Ref[Any] | None = None,
    ) -> None:
        """Add or replace a worker. A known worker keeps its load unless a `WorkerInfo` is passed. Not a checkpoint.

        Args:
            worker: the identifier, or a `WorkerInfo`, in which the scheduler then stores the load.
            capabilities: the task types that the worker accepts; None or empty for all.
            max_concurrent: the maximum number of tasks that the worker may have at the same time.
            ref: the actor of the worker, which must live in the running event loop. When it ends permanently, the
                worker is unregistered.

        Raises:
            ValueError: a value is invalid, or the actor has ended.
            TypeError: a value has the wrong type.
        """
        self._table.register(
            _described(worker, capabilities, max_concurrent), ref, fresh=isinstance(worker, WorkerInfo)
        )

    async def unregister_worker(self, worker_id: str) -> bool:
        """Remove a worker and its load. Return False if it is unknown. Not a checkpoint."""
        return self._table.unregister(worker_id)

    async def set_affinity(self, task_type: str, worker_id: str) -> None:
        """Assign a task type to a worker, which may be registered later. Only used by `AFFINITY`. Not a checkpoint.

        Args:
            task_type: the type.
            worker_id: the worker for tasks of this type; "" removes the assignment.
        """
        self._table.set_preferred(task_type, worker_id)

    async def assign(self, task: Task) -> str:
        """Choose a worker for a task and increment its load. Not a checkpoint.

        Returns:
            The identifier of the worker, or "" if no worker is eligible now.

        Raises:
            ValueError: a user-defined strategy returned a worker that is not eligible.
        """
        return self._table.assign(task)

    async def report_completion(self, worker_id: str) -> bool:
        """Decrement the load of a worker that is done with a task, successfully or not. Not a checkpoint.

        Returns:
            False if the worker is unknown or has no tasks.
        """
        return self._table.complete(worker_id)

    async def workers(self) -> list[WorkerInfo]:
        """Return copies of all workers, sorted by identifier. Not a checkpoint."""
        return self._table.snapshot()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.end_watches()

    def __enter__(self) -> BlockingTaskScheduler:
        return BlockingTaskScheduler(self._table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class BlockingTaskScheduler:
    """A scheduler for blocking code, made by `with TaskScheduler() as scheduler:`. Usable from any thread."""

    def __init__(self, table: _WorkerTable) -> None:
        self._table = table

    def register_worker(
        self, worker: WorkerInfo | str, capabilities: Sequence[str] | None = None, max_concurrent: int = 10
    ) -> None:
        """Blocking version of `TaskScheduler.register_worker`, without `ref`, which requires the actor's event loop."""
        self._table.register(_described(worker, capabilities, max_concurrent), fresh=isinstance(worker, WorkerInfo))

    def unregister_worker(self, worker_id: str) -> bool:
        """Blocking version of `TaskScheduler.unregister_worker`."""
        return self._table.unregister(worker_id)

    def set_affinity(self, task_type: str, worker_id: str) -> None:
        """Blocking version of `TaskScheduler.set_affinity`."""
        self._table.set_preferred(task_type, worker_id)

    def assign(self, task: Task) -> str:
        """Blocking version of `TaskScheduler.assign`."""
        return self._table.assign(task)

    def report_completion(self, worker_id: str) -> bool:
        """Blocking version of `TaskScheduler.report_completion`."""
        return self._table.complete(worker_id)

    def workers(self) -> list[WorkerInfo]:
        """Blocking version of `TaskScheduler.workers`."""
        return self._table.snapshot()


class _WorkerTable:
    """The workers and their loads. Each method is one step under the lock."""

    def __init__(self, strategy: SchedulingStrategy | str | AssignStrategy, key: Callable[[Task], str | None]) -> None:
        self._choose = strategy if callable(strategy) else _named(strategy)
        self._key = key
        self._lock = RLock()  # reentrant, because a strategy may call `workers`
        self._workers: dict[str, WorkerInfo] = {}
        self._order: list[str] = []  # the identifiers, sorted
        self._preferred: dict[str, str] = {}
        self._watches: dict[str, _WorkerWatch] = {}
        self._last = ""

    def register(self, info: WorkerInfo, ref: Ref[Any] | None = None, *, fresh: bool) -> None:
        worker_id = info.worker_id
        watch = None if ref is None else _WorkerWatch(self, worker_id, ref)
        with self._lock:
            known = self._workers.get(worker_id)
            if known is None:
                insort(self._order, worker_id)
            elif not fresh:
                info.current_load = known.current_load
            self._workers[worker_id] = info
            former = self._watches.pop(worker_id, None)
            if watch is not None:
                self._watches[worker_id] = watch
        if former is not None:
            former.end()

    def unregister(self, worker_id: str, only: _WorkerWatch | None = None) -> bool:
        """Remove a worker. With `only`, only if it is still watched by that watch."""
        with self._lock:
            if worker_id not in self._workers or (only is not None and self._watches.get(worker_id) is not only):
                return False
            del self._workers[worker_id]
            del self._order[bisect_left(self._order, worker_id)]
            watch = self._watches.pop(worker_id, None)
        if watch is not None:
            watch.end()
        return True

    def set_preferred(self, task_type: str, worker_id: str) -> None:
        with self._lock:
            if worker_id:
                self._preferred[task_type] = worker_id
            else:
                self._preferred.pop(task_type, None)

    def assign(self, task: Task) -> str:
        key = self._key(task) or ""
        with self._lock:
            capable = [worker for name in self._order if is_capable(worker := self._workers[name], task)]
            eligible = [worker for worker in capable if worker.current_load < worker.max_concurrent]
            if not eligible:
                return ""
            chosen = self._choose(eligible, task, Assignments(self._last, self._preferred, capable, key))
            if all(worker.worker_id != chosen for worker in eligible):
                names = ", ".join(worker.worker_id for worker in eligible)
                raise ValueError(
                    f"the strategy {safe_repr(self._choose)} returned {safe_repr(chosen)}: return one of {names}"
                )
            self._workers[chosen].current_load += 1
            self._last = chosen
            return chosen

    def complete(self, worker_id: str) -> bool:
        with self._lock:
            worker = self._workers.get(worker_id)
            if worker is None or worker.current_load < 1:
                return False
            worker.current_load -= 1
            return True

    def snapshot(self) -> list[WorkerInfo]:
        with self._lock:
            return [
                dataclasses.replace(worker, capabilities=list(worker.capabilities))
                for worker in (self._workers[name] for name in self._order)
            ]

    def end_watches(self) -> None:
        with self._lock:
            watches = list(self._watches.values())
            self._watches.clear()
        for watch in watches:
            watch.end()


class _WorkerWatch:
    """Unregisters a worker when its actor ends permanently."""

    def __init__(self, table: _WorkerTable, worker_id: str, ref: Ref[Any]) -> None:
        if not ref.alive:
            raise ValueError(f"ref={safe_repr(ref)}: this actor has ended: register a worker with a live actor")
        self._table, self._worker_id = table, worker_id
        self._cell, self._thread = ref._cell, get_ident()
        self._cell.ensure_extras().call_when_ended(self._ended)

    def _ended(self, exit_: Exit) -> None:
        if self._table.unregister(self._worker_id, only=self):
            log.info("the worker %s %s and gets no more tasks", self._worker_id, exit_.describe())

    def end(self) -> None:
        """Stop watching. May be called from any thread; the actor's callbacks may only be changed in its own thread."""
        if get_ident() == self._thread:
            self._withdraw()
        else:
            with suppress(RuntimeError):  # the actor has ended with its loop
                self._cell.runtime.call_threadsafe(self._withdraw)

    def _withdraw(self) -> None:
        extras = self._cell.extras
        if extras is not None and self._ended in extras.when_ended and not self._cell.dead:
            extras.when_ended.pop(self._ended, None)


def _named(strategy: str) -> AssignStrategy:
    try:
        return STRATEGIES[SchedulingStrategy(strategy)]
    except ValueError:
        names = ", ".join(repr(str(name)) for name in SchedulingStrategy)
        raise ValueError(f"strategy={safe_repr(strategy)}: give a SchedulingStrategy, {names} or a function") from None


def _described(worker: WorkerInfo | str, capabilities: Sequence[str] | None, max_concurrent: int) -> WorkerInfo:
    """The worker as a checked `WorkerInfo`."""
    if not isinstance(worker, WorkerInfo):
        # Not converted before the check: list("gpu") would be three capabilities.
        given: Any = [] if capabilities is None else capabilities
        worker = WorkerInfo(worker, given, max_concurrent)
    elif capabilities is not None or max_concurrent != 10:
        raise ValueError(
            f"register_worker({safe_repr(worker)}, ...): set capabilities and max_concurrent in the WorkerInfo"
        )
    _check(worker)
    worker.capabilities = list(worker.capabilities)
    return worker


def _check(worker: WorkerInfo) -> None:
    # Untyped callers may pass values of any type.
    name: Any = worker.worker_id
    abilities: Any = worker.capabilities
    numbers: dict[str, tuple[Any, int]] = {
        "max_concurrent": (worker.max_concurrent, 1),
        "current_load": (worker.current_load, 0),
    }
    if not isinstance(name, str):
        raise TypeError(f"worker_id={safe_repr(name)}: give a string, or a WorkerInfo")
    if not name:
        raise ValueError("worker_id='': give it some characters, because '' means that no worker is eligible")
    if abilities.__class__ not in {list, tuple, set, frozenset} or not all(isinstance(one, str) for one in abilities):
        raise TypeError(
            f"capabilities={safe_repr(abilities)} of {safe_repr(name)}: give a list of task types, such as ['resize']"
        )
    for what, (number, least) in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{what}={safe_repr(number)} of {safe_repr(name)}: give a whole number")
        if number < least:
            raise ValueError(f"{what}={safe_repr(number)} of {safe_repr(name)}: give {least} or more")
