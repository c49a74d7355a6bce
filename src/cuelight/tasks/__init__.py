"""Tasks: a durable queue with workers, a scheduler, dead letters and interchangeable stores."""

from cuelight.tasks._blocking_dead_letters import BlockingDeadLetterQueue
from cuelight.tasks._blocking_queue import BlockingTaskHandle, BlockingTaskQueue
from cuelight.tasks._context import TaskContext, current_task
from cuelight.tasks._dead_letter_entry import DeadLetterEntry, ReplayReport
from cuelight.tasks._dead_letter_queue import DeadLetterQueue
from cuelight.tasks._function import AsyncTaskFunction, PlainTaskFunction, SendOptions, TaskFunction, TaskOptions, task
from cuelight.tasks._memory import MemoryStore
from cuelight.tasks._options import WorkerStats
from cuelight.tasks._queue import TaskQueue
from cuelight.tasks._queue_base import WhenFull
from cuelight.tasks._record import Record
from cuelight.tasks._scheduler import BlockingTaskScheduler, TaskScheduler
from cuelight.tasks._schedules import Cron, Every, ScheduleChanges
from cuelight.tasks._sqlite import SQLiteStore
from cuelight.tasks._store import (
    Added,
    Beat,
    Bound,
    Claim,
    Exchange,
    Finish,
    Lease,
    Query,
    Schedule,
    Size,
    Snapshot,
    Store,
)
from cuelight.tasks._strategies import Assignments, AssignStrategy, SchedulingStrategy, WorkerInfo
from cuelight.tasks._task import Attempt, Counts, Limit, QueueEntry, Task, TaskPriority
from cuelight.tasks._task_handle import TaskHandle
from cuelight.tasks._worker import TaskWorker

__all__ = [
    "Added",
    "AssignStrategy",
    "Assignments",
    "AsyncTaskFunction",
    "Attempt",
    "Beat",
    "BlockingDeadLetterQueue",
    "BlockingTaskHandle",
    "BlockingTaskQueue",
    "BlockingTaskScheduler",
    "Bound",
    "Claim",
    "Counts",
    "Cron",
    "DeadLetterEntry",
    "DeadLetterQueue",
    "Every",
    "Exchange",
    "Finish",
    "Lease",
    "Limit",
    "MemoryStore",
    "PlainTaskFunction",
    "Query",
    "QueueEntry",
    "Record",
    "ReplayReport",
    "SQLiteStore",
    "Schedule",
    "ScheduleChanges",
    "SchedulingStrategy",
    "SendOptions",
    "Size",
    "Snapshot",
    "Store",
    "Task",
    "TaskContext",
    "TaskFunction",
    "TaskHandle",
    "TaskOptions",
    "TaskPriority",
    "TaskQueue",
    "TaskScheduler",
    "TaskWorker",
    "WhenFull",
    "WorkerInfo",
    "WorkerStats",
    "current_task",
    "task",
]
