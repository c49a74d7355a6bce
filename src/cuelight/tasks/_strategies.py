"""The strategies that choose a worker for a task.

To add one, write a function here and give it a name in `STRATEGIES`. The function gets the eligible workers (at least
one, sorted by identifier), the task, and the state of the scheduler. It returns the identifier of one of those workers.
It must be pure: it uses no other data and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from cuelight.tasks._task import Task


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
"""A function `(eligible, task, state)` that returns the identifier of an eligible worker."""


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
