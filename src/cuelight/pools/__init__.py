"""Pools: supervised workers behind one handle, for async functions, threads and processes."""

from cuelight.pools._actor_pool import ActorPool, ActorPoolStats
from cuelight.pools._async_pool import AsyncWorkerPool
from cuelight.pools._dead_letters import FailedCall
from cuelight.pools._functions import Kind
from cuelight.pools._maps._handle import Map, MapStream, Results
from cuelight.pools._options import WorkerPoolConfig
from cuelight.pools._processes._executor import ProcessExecutor
from cuelight.pools._processes._start import freeze_support
from cuelight.pools._processes._worker_process import RemoteTraceback
from cuelight.pools._results import PoolStats, Progress, TaskMetrics, TaskResult, TaskStatus
from cuelight.pools._routing import Member, Routing, broadcast, by_key, least_loaded, may_wait, pull, round_robin
from cuelight.pools._submission import Submission
from cuelight.pools._threads._executor import Executor, Outcome, ThreadExecutor
from cuelight.pools._worker_pool import ReturnWhen, WorkerPool

__all__ = [
    "ActorPool",
    "ActorPoolStats",
    "AsyncWorkerPool",
    "Executor",
    "FailedCall",
    "Kind",
    "Map",
    "MapStream",
    "Member",
    "Outcome",
    "PoolStats",
    "ProcessExecutor",
    "Progress",
    "RemoteTraceback",
    "Results",
    "ReturnWhen",
    "Routing",
    "Submission",
    "TaskMetrics",
    "TaskResult",
    "TaskStatus",
    "ThreadExecutor",
    "WorkerPool",
    "WorkerPoolConfig",
    "broadcast",
    "by_key",
    "freeze_support",
    "least_loaded",
    "may_wait",
    "pull",
    "round_robin",
]
