"""Tasks: a durable queue, its workers, its scheduler and its dead letters, over one store interface."""

from cuelight.tasks._blocking_dead_letters import BlockingDeadLetterQueue
from cuelight.tasks._dead_letter_entry import DeadLetterEntry, ReplayReport
from cuelight.tasks._dead_letter_queue import DeadLetterQueue
from cuelight.tasks._memory import MemoryStore
from cuelight.tasks._scheduler import BlockingTaskScheduler, TaskScheduler
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
from cuelight.tasks._strategies import Assignments, AssignStrategy, SchedulingStrategy, WorkerInfo
from cuelight.tasks._task import Attempt, Counts, Limit, QueueEntry, Task, TaskPriority

__all__ = [
    "Added",
    "AssignStrategy",
    "Assignments",
    "Attempt",
    "Beat",
    "BlockingDeadLetterQueue",
    "BlockingTaskScheduler",
    "Bound",
    "Claim",
    "Counts",
    "DeadLetterEntry",
    "DeadLetterQueue",
    "Exchange",
    "Finish",
    "Lease",
    "Limit",
    "MemoryStore",
    "Query",
    "QueueEntry",
    "Record",
    "ReplayReport",
    "Schedule",
    "SchedulingStrategy",
    "Size",
    "Snapshot",
    "Store",
    "Task",
    "TaskPriority",
    "TaskScheduler",
    "WorkerInfo",
]
