"""Which worker gets a task: one function for each strategy.

To add one, write such a function here and give it a name in `STRATEGIES`. It gets the workers that are eligible, in
the order of their identifiers and at least one, the task, and what a scheduler remembers; it returns the identifier of
one of those workers. It is pure: it looks at nothing else and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from cuelight.tasks._task import Task

__all__ = [
    "STRATEGIES",
    "Assignments",
    "SchedulingStrategy",
    "WorkerInfo",
    "affinity",
    "is_capable",
    "least_loaded",
    "round_robin",
    "AssignStrategy",
]


class SchedulingStrategy(StrEnum):
    """Who gets the next task.

    Attributes:
        ROUND_ROBIN: the eligible workers in turn.
        LEAST_LOADED: the one with the fewest tasks.
        AFFINITY: the worker that the task's type was given to, or that its key belongs to.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    AFFINITY = "affinity"


@dataclass(slots=True)
class WorkerInfo:
    """A worker, as a scheduler sees it.

    Attributes:
        worker_id: its identity.
        capabilities: the task types that it takes; none for all types.
        max_concurrent: tasks that it may have at once.
        current_load: tasks that it has.
    """

    worker_id: str
    capabilities: list[str] = field(default_factory=list[str])
    max_concurrent: int = 10
    current_load: int = 0


class Assignments(NamedTuple):
    """What a scheduler remembers, for strategies.

    Attributes:
        last: the worker that got the last task; "" for none yet.
        preferred: the workers that task types were given to, by type.
        capable: all workers that take such a task, also those that are full; in the order of their identifiers.
        key: of this task: tasks with one key belong together; "" for none.
    """

    last: str
    preferred: Mapping[str, str]
    capable: Sequence[WorkerInfo]
    key: str


AssignStrategy: TypeAlias = Callable[[Sequence[WorkerInfo], Task, Assignments], str]
"""`(eligible, task, state)` to the identifier of one of the eligible."""


def is_capable(worker: WorkerInfo, task: Task) -> bool:
    """Whether a worker takes tasks of this type."""
    return not worker.capabilities or task.task_type in worker.capabilities


def round_robin(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:  # noqa: ARG001
    """The one after the last, in the order of identifiers. It need not be there any more to have one after it."""
    return next((worker.worker_id for worker in eligible if worker.worker_id > state.last), eligible[0].worker_id)


def least_loaded(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:  # noqa: ARG001
    """The one with the fewest tasks; among equals the first."""
    return min(eligible, key=lambda worker: worker.current_load).worker_id


def affinity(eligible: Sequence[WorkerInfo], task: Task, state: Assignments) -> str:
    """The worker that the type was given to, else the one that the key belongs to; the least loaded if that is full.

    Keys belong to workers by rendezvous hashing: the same in each process, and a worker that comes or goes moves only
    its own share of the keys.
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
    from hashlib import blake2b  # noqa: PLC0415 - loads OpenSSL, and few need it

    return blake2b(f"{len(worker_id)}:{worker_id}{key}".encode(errors="surrogatepass"), digest_size=8).digest()


STRATEGIES: Final[Mapping[SchedulingStrategy, AssignStrategy]] = {
    SchedulingStrategy.ROUND_ROBIN: round_robin,
    SchedulingStrategy.LEAST_LOADED: least_loaded,
    SchedulingStrategy.AFFINITY: affinity,
}
