"""Tasks: a durable queue, its workers, its scheduler and its dead letters, over one store interface."""

from cuelight.tasks._store import (
    Added,
    Beat,
    Bound,
    Claim,
    Exchange,
    Finish,
    Lease,
    Query,
    Record,
    Schedule,
    Size,
    Snapshot,
    Store,
)
from cuelight.tasks._task import Attempt, Counts, Limit, QueueEntry, Task, TaskPriority

__all__ = [
    "Added",
    "Attempt",
    "Beat",
    "Bound",
    "Claim",
    "Counts",
    "Exchange",
    "Finish",
    "Lease",
    "Limit",
    "Query",
    "QueueEntry",
    "Record",
    "Schedule",
    "Size",
    "Snapshot",
    "Store",
    "Task",
    "TaskPriority",
]
