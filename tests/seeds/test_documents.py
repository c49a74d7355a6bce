"""The programs of the documents that the project started from, unchanged but for the import.

What they leave to the reader (a document, a function that calls a service) is given to them; what they print is looked
at.
"""

import ast
import inspect
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest

from cuelight import (
    AsyncSlidingWindow,
    AsyncTokenBucket,
    BaseLock,
    BaseSemaphore,
    LocalLock,
    LocalSemaphore,
    RateLimitConfig,
    Semaphore,
)
from cuelight.errors import LockHeld
from cuelight.redis import RedisClient, RedisLock
from helpers.redis_servers import server_at_the_usual_port

BASIC = """
from cuelight import WorkerPool, WorkerPoolConfig

# Create configuration
config = WorkerPoolConfig(
    max_workers=50,           # Maximum concurrent workers
    max_retries=3,            # Retry failed tasks up to 3 times
    task_timeout_seconds=180, # 3 minutes per task
    backoff_base_seconds=1.0, # Start with 1s backoff
    backoff_max_seconds=60.0, # Cap backoff at 60s
)

# Create pool (or use context manager)
with WorkerPool(config) as pool:
    # Submit tasks
    def my_task(x):
        return x * 2

    task_id = pool.submit_task(
        task_name="double_5",
        task_fn=my_task,
        args=(5,)
    )

    # Get individual result
    result = pool.get_task_result(task_id)
    print(f"Result: {result.result}")  # Output: Result: 10
"""

ORCHESTRATOR = """
from cuelight import WorkerPool, WorkerPoolConfig

def process_all_micro_questions(preprocessed_doc):
    \"\"\"Process all 300 micro questions using WorkerPool.\"\"\"

    # Configure pool
    config = WorkerPoolConfig(max_workers=50, max_retries=3)

    with WorkerPool(config) as pool:
        # Submit all 300 questions
        for q_num in range(1, 301):
            pool.submit_task(
                task_name=f"Q{q_num:03d}",
                task_fn=process_micro_question,
                args=(q_num, preprocessed_doc)
            )

        # Wait for all tasks to complete
        results = pool.wait_for_all(timeout=1800)  # 30 min timeout

        # Process results
        successful = [r for r in results if r.success]
        failed = [r for r in results if not r.success]

        print(f"Success rate: {len(successful)/len(results)*100:.1f}%")

        return results
"""

RETRY = """
from cuelight import WorkerPool, WorkerPoolConfig

config = WorkerPoolConfig(
    max_workers=10,
    max_retries=3,
    backoff_base_seconds=2.0,  # Exponential: 2s, 4s, 8s, ...
    backoff_max_seconds=30.0   # Cap at 30s
)

with WorkerPool(config) as pool:
    def flaky_task():
        # This might fail occasionally
        return call_external_api()

    task_id = pool.submit_task("api_call", flaky_task)
    result = pool.get_task_result(task_id)

    if result.success:
        print(f"Success after {result.metrics.retries_used} retries")
    else:
        print(f"Failed after {result.metrics.retries_used} retries: {result.error}")
"""

ABORT = """
from cuelight import WorkerPool, WorkerPoolConfig

config = WorkerPoolConfig(max_workers=5)

with WorkerPool(config) as pool:
    # Submit many tasks
    for i in range(100):
        pool.submit_task(f"task_{i}", slow_task, args=(i,))

    # Something went wrong, abort pending tasks
    cancelled = pool.abort_pending_tasks()
    print(f"Cancelled {cancelled} pending tasks")
"""

METRICS = """
from cuelight import WorkerPool

with WorkerPool() as pool:
    # Submit and execute tasks...
    results = pool.wait_for_all()

    # Get summary metrics
    summary = pool.get_summary_metrics()
    print(f"Completed: {summary['completed']}")
    print(f"Failed: {summary['failed']}")
    print(f"Average time: {summary['avg_execution_time_ms']:.2f}ms")
    print(f"Total retries: {summary['total_retries']}")

    # Get detailed per-task metrics
    all_metrics = pool.get_metrics()
    for task_id, metrics in all_metrics.items():
        print(f"{metrics.task_name}: {metrics.status} in {metrics.execution_time_ms:.2f}ms")
"""

ASYNC_POOL = """
from cuelight import AsyncWorkerPool, PoolStats, TaskResult

pool = AsyncWorkerPool(max_workers=4)
results: list[TaskResult] = await pool.map(analyze_files, file_list)
stats: PoolStats = pool.stats()
"""

SEMAPHORE_AND_DEAD_LETTERS = """
from cuelight import Semaphore, DeadLetterQueue

sem = Semaphore(max_concurrent=3)
dlq = DeadLetterQueue()
# Failed tasks automatically routed to DLQ for retry/investigation
"""

LOCK = """
from cuelight import LocalLock

lock = LocalLock("my_resource")

with lock:
    # Critical section
    do_exclusive_work()
"""

LOCK_MANAGER = """
from cuelight import LockManager

manager = LockManager()

# Get or create a lock
lock = manager.get_lock("resource_a")

with lock:
    process_resource()

# Check lock status
stats = manager.stats
print(f"Active locks: {stats['active']}")
"""

READ_WRITE_LOCK = """
from cuelight import ReadWriteLock

rwlock = ReadWriteLock()

# Multiple readers allowed
with rwlock.read():
    data = read_shared_data()

# Single writer, exclusive
with rwlock.write():
    update_shared_data()
"""

SEMAPHORE = """
from cuelight import LocalSemaphore

# Limit concurrent access to 5
semaphore = LocalSemaphore(5)

with semaphore:
    # At most 5 threads here
    access_limited_resource()
"""

ASYNC_LOCK_MANAGER = """
from cuelight import LockManager

manager = LockManager()
async with manager.acquire("file_edit:main.py"):
    # Exclusive access to resource
    pass
"""

REDIS_LOCK = """
from cuelight import RedisLock

# Distributed lock across processes/servers
lock = RedisLock("shared_resource", redis_url="redis://localhost:6379")

with lock:
    # Only one process can execute this
    update_shared_state()
"""

DISTRIBUTED_LOCK_MANAGER = """
from cuelight import DistributedLock, LockManager

manager = LockManager()
async with manager.acquire("file_edit:main.py"):
    # Exclusive access to resource
    pass
"""


def run(program: str, **given: Any) -> dict[str, Any]:
    """Run a program; what it defined."""
    names = dict(given)
    run_in(names, program)
    return names


def run_in(names: dict[str, Any], program: str) -> None:
    """Run a program with these names, so that functions among them can see what it defines."""
    exec(compile(program, "<document>", "exec"), names)


async def run_async(program: str, **given: Any) -> dict[str, Any]:
    """Run a program that awaits at its top level, as documents do."""
    names = dict(given)
    code = compile(program, "<document>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running: Awaitable[None] | None = eval(code, names)
    if inspect.isawaitable(running):
        await running
    return names


def test_the_basic_example(capsys: pytest.CaptureFixture[str]) -> None:
    run(BASIC)
    assert capsys.readouterr().out == "Result: 10\n"


def test_the_orchestrator_asks_all_micro_questions(capsys: pytest.CaptureFixture[str]) -> None:
    def process_micro_question(number: int, document: str) -> str:
        return f"{document} {number}"

    names = run(ORCHESTRATOR, process_micro_question=process_micro_question)
    results = names["process_all_micro_questions"]("a document")
    assert [result.result for result in results] == [f"a document {number}" for number in range(1, 301)]
    assert [result.task_name for result in results][:2] == ["Q001", "Q002"]
    assert capsys.readouterr().out == "Success rate: 100.0%\n"


def fails_first(times: int) -> Callable[[], str]:
    """A service that is down at first."""
    left = times

    def call_external_api() -> str:
        nonlocal left
        if left:
            left -= 1
            raise ConnectionError("the service is down")
        return "an answer"

    return call_external_api


def quickly(program: str) -> str:
    """The same program, with back-offs of milliseconds instead of seconds: nobody wants to wait in a test."""
    return re.sub(r"backoff_(base|max)_seconds=[\d.]+", r"backoff_\1_seconds=0.001", program)


@pytest.mark.parametrize(
    ("failures", "said"),
    [(2, "Success after 2 retries\n"), (9, "Failed after 3 retries: the service is down\n")],
)
def test_failures_are_tried_again(failures: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(quickly(RETRY), call_external_api=fails_first(failures))
    assert capsys.readouterr().out == said


def test_a_task_that_succeeds_at_once_needs_no_changed_program(capsys: pytest.CaptureFixture[str]) -> None:
    run(RETRY, call_external_api=fails_first(0))
    assert capsys.readouterr().out == "Success after 0 retries\n"


def test_pending_tasks_are_aborted(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[int] = []

    def slow_task(number: int) -> None:
        time.sleep(0.05)
        ran.append(number)

    run(ABORT, slow_task=slow_task)
    cancelled = int(capsys.readouterr().out.split()[1])
    assert cancelled + len(ran) == 100
    assert 90 <= cancelled <= 100  # five workers had begun


def test_metrics_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    run(METRICS)
    assert capsys.readouterr().out == "Completed: 0\nFailed: 0\nAverage time: 0.00ms\nTotal retries: 0\n"
    run(METRICS.replace("# Submit and execute tasks...", 'pool.submit_task("answer", lambda: 42)'))
    said = capsys.readouterr().out
    assert said.startswith("Completed: 1\nFailed: 0\n")
    assert re.search(r"^answer: completed in \d+\.\d\dms$", said, re.MULTILINE)


async def test_files_are_analyzed_by_an_async_pool() -> None:
    async def analyze_files(name: str) -> int:
        return len(name)

    names = await run_async(ASYNC_POOL, analyze_files=analyze_files, file_list=["a.py", "bc.py"])
    assert [result.result for result in names["results"]] == [4, 5]
    assert (names["stats"].submitted, names["stats"].completed, names["stats"].failed) == (2, 2, 0)


async def test_a_semaphore_and_a_dead_letter_queue_are_there() -> None:
    names = await run_async(SEMAPHORE_AND_DEAD_LETTERS)
    assert names["sem"].capacity == 3
    assert await names["dlq"].count() == 0


@pytest.mark.parametrize(
    ("program", "call", "thing"),
    [(LOCK, "do_exclusive_work", "lock"), (SEMAPHORE, "access_limited_resource", "semaphore")],
)
def test_a_lock_and_a_semaphore_are_held_in_their_block(program: str, call: str, thing: str) -> None:
    held: list[int] = []
    names: dict[str, Any] = {}
    names[call] = lambda: held.append(names[thing].statistics().held)
    run_in(names, program)
    assert held == [1]
    assert names[thing].statistics().held == 0


def test_a_lock_manager_says_how_many_locks_are_active(capsys: pytest.CaptureFixture[str]) -> None:
    active: list[int] = []
    names: dict[str, Any] = {}
    names["process_resource"] = lambda: active.append(names["manager"].stats["active"])
    run_in(names, LOCK_MANAGER)
    assert active == [1]
    assert capsys.readouterr().out == "Active locks: 0\n"


def test_a_read_write_lock_is_read_by_several_and_written_by_one() -> None:
    seen: list[tuple[int, bool]] = []
    names: dict[str, Any] = {}

    def look() -> str:
        seen.append((names["rwlock"].readers, names["rwlock"].writing))
        return "data"

    names |= {"read_shared_data": look, "update_shared_data": look}
    run_in(names, READ_WRITE_LOCK)
    assert names["data"] == "data"
    assert seen == [(1, False), (0, True)]


async def test_a_lock_manager_is_used_in_a_loop() -> None:
    names = await run_async(ASYNC_LOCK_MANAGER.replace("    pass", "    active = manager.stats['active']"))
    assert (names["active"], names["manager"].stats["active"]) == (1, 0)
    await run_async(ASYNC_LOCK_MANAGER)


async def test_a_distributed_lock_is_there_beside_the_manager() -> None:
    names = await run_async(DISTRIBUTED_LOCK_MANAGER)
    assert names["DistributedLock"] is RedisLock


def test_a_redis_lock_excludes_whoever_means_the_same_server() -> None:
    refused: list[str] = []
    names: dict[str, Any] = {}

    def update_shared_state() -> None:
        with pytest.raises(LockHeld) as error:
            RedisLock("shared_resource", server=client).acquire_nowait()
        refused.append(str(error.value))

    names["update_shared_state"] = update_shared_state
    with server_at_the_usual_port() as url, closing(RedisClient(url)) as client:
        run_in(names, REDIS_LOCK)
        with RedisLock("shared_resource", server=client).hold(timeout=0):  # it was given back
            pass
    assert len(refused) == 1


def test_the_base_classes_are_what_the_others_are() -> None:
    assert issubclass(LocalLock, BaseLock)
    assert issubclass(LocalSemaphore, BaseSemaphore)
    assert Semaphore is LocalSemaphore


async def test_limiters_are_made_and_used_as_described() -> None:
    config = RateLimitConfig(max_requests=2, window_seconds=3600, burst_size=2)
    for limiter in (AsyncTokenBucket(config), AsyncTokenBucket(rate=0.001, capacity=2), AsyncSlidingWindow(config)):
        await limiter.acquire()
        await limiter.acquire()
        assert not limiter.try_acquire().allowed
