"""Pools: supervised workers behind one handle; async functions, threads and processes."""

from cuelight.pools._executor import Executor, Outcome
from cuelight.pools._results import PoolStats, TaskMetrics, TaskResult, TaskStatus

__all__ = ["Executor", "Outcome", "PoolStats", "TaskMetrics", "TaskResult", "TaskStatus"]
