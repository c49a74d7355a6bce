"""Pools: supervised workers behind one handle; async functions, threads and processes."""

from cuelight.pools._async_pool import AsyncWorkerPool
from cuelight.pools._attempts import Kind
from cuelight.pools._executor import Executor, Outcome
from cuelight.pools._map import Map, MapStream, Results
from cuelight.pools._process_link import RemoteTraceback
from cuelight.pools._processes import ProcessExecutor
from cuelight.pools._progress import Progress
from cuelight.pools._results import PoolStats, TaskMetrics, TaskResult, TaskStatus
from cuelight.pools._submission import Submission
from cuelight.pools._threads import ThreadExecutor
from cuelight.pools._worker_pool import ReturnWhen, WorkerPool, WorkerPoolConfig

__all__ = [
    "AsyncWorkerPool",
    "Executor",
    "Kind",
    "Map",
    "MapStream",
    "Outcome",
    "PoolStats",
    "ProcessExecutor",
    "Progress",
    "RemoteTraceback",
    "Results",
    "ReturnWhen",
    "Submission",
    "TaskMetrics",
    "TaskResult",
    "TaskStatus",
    "ThreadExecutor",
    "WorkerPool",
    "WorkerPoolConfig",
]
