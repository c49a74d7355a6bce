"""Tasks: a durable queue with workers, a scheduler, dead letters and interchangeable stores."""

from cuelight._dead_letters._attempt import Attempt, Counts
from cuelight._dead_letters._entry import DeadLetterEntry, ReplayReport
from cuelight._dead_letters._queue import BlockingDeadLetterQueue, DeadLetterQueue
from cuelight._dead_letters._queue import provide_store_letters as _provide_store_letters
from cuelight.tasks._context import TaskContext, current_task
from cuelight.tasks._functions._function import (
    AsyncTaskFunction,
    PlainTaskFunction,
    SendOptions,
    TaskFunction,
    TaskOptions,
    task,
)
from cuelight.tasks._queue._base import WhenFull
from cuelight.tasks._queue._blocking import BlockingTaskHandle, BlockingTaskQueue
from cuelight.tasks._queue._queue import TaskQueue
from cuelight.tasks._queue._schedules import Cron, Every, ScheduleChanges
from cuelight.tasks._queue._task_handle import TaskHandle
from cuelight.tasks._scheduler import (
    Assignments,
    AssignStrategy,
    BlockingTaskScheduler,
    SchedulingStrategy,
    TaskScheduler,
    WorkerInfo,
)
from cuelight.tasks._stores._letters import StoreLetters as _StoreLetters
from cuelight.tasks._stores._memory import MemoryStore
from cuelight.tasks._stores._protocol import (
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
from cuelight.tasks._stores._sqlite._store import SQLiteStore
from cuelight.tasks._task import Limit, QueueEntry, Record, Task, TaskPriority
from cuelight.tasks._worker._options import WorkerStats
from cuelight.tasks._worker._worker import TaskWorker

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

_provide_store_letters(_StoreLetters)
