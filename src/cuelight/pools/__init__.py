"""Pools: supervised workers behind one handle; async functions, threads and processes."""

from cuelight.pools._executor import Executor, Outcome
from cuelight.pools._process_link import RemoteTraceback
from cuelight.pools._processes import ProcessExecutor
from cuelight.pools._results import PoolStats, TaskMetrics, TaskResult, TaskStatus
from cuelight.pools._threads import ThreadExecutor

__all__ = [
    "Executor",
    "Outcome",
    "PoolStats",
    "ProcessExecutor",
    "RemoteTraceback",
    "TaskMetrics",
    "TaskResult",
    "TaskStatus",
    "ThreadExecutor",
]
