"""The programs of the documents that locks started from, unchanged but for the import."""

from __future__ import annotations

from typing import Any

import pytest

from cuelight import coordination
from cuelight.coordination import BaseLock, BaseSemaphore, LocalLock, LocalSemaphore

BASIC = """
from cuelight.coordination import LocalLock

lock = LocalLock("my_resource")

with lock:
    # Critical section
    do_exclusive_work()
"""

MANAGER = """
from cuelight.coordination import LockManager

manager = LockManager()

# Get or create a lock
lock = manager.get_lock("resource_a")

with lock:
    process_resource()

# Check lock status
stats = manager.stats
print(f"Active locks: {stats['active']}")
"""

READ_WRITE = """
from cuelight.coordination import ReadWriteLock

rwlock = ReadWriteLock()

# Multiple readers allowed
with rwlock.read():
    data = read_shared_data()

# Single writer, exclusive
with rwlock.write():
    update_shared_data()
"""

SEMAPHORE = """
from cuelight.coordination import LocalSemaphore

# Limit concurrent access to 5
semaphore = LocalSemaphore(5)

with semaphore:
    # At most 5 threads here
    access_limited_resource()
"""

ASYNC_MANAGER = """
from cuelight.coordination import LockManager

async def edit():
    manager = LockManager()
    async with manager.acquire("file_edit:main.py"):
        # Exclusive access to resource
        pass
    return manager
"""

MAX_CONCURRENT = """
from cuelight.coordination import Semaphore

sem = Semaphore(max_concurrent=3)
"""


def _run(program: str, **given: Any) -> dict[str, Any]:
    names: dict[str, Any] = given
    exec(compile(program, "document", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("program", "call", "state"),
    [(BASIC, "do_exclusive_work", "lock"), (SEMAPHORE, "access_limited_resource", "semaphore")],
)
def test_locks_and_semaphores(program: str, call: str, state: str) -> None:
    seen: list[Any] = []
    names: dict[str, Any] = {}

    def work() -> None:
        seen.append(names[state].statistics().held)

    names[call] = work
    exec(compile(program, "document", "exec"), names)
    assert seen == [1]
    assert names[state].statistics().held == 0


def test_the_lock_manager(capsys: pytest.CaptureFixture[str]) -> None:
    _run(MANAGER, process_resource=lambda: None)
    assert capsys.readouterr().out == "Active locks: 0\n"


def test_the_read_write_lock() -> None:
    written: list[str] = []
    names = _run(READ_WRITE, read_shared_data=lambda: "data", update_shared_data=lambda: written.append("x"))
    assert names["data"] == "data"
    assert written == ["x"]


async def test_the_lock_manager_in_a_loop() -> None:
    manager = await _run(ASYNC_MANAGER)["edit"]()
    assert manager.stats["active"] == 0


def test_the_semaphore_by_its_limit() -> None:
    assert _run(MAX_CONCURRENT)["sem"].capacity == 3


def test_the_base_classes_are_what_the_others_are() -> None:
    assert issubclass(LocalLock, BaseLock)
    assert issubclass(LocalSemaphore, BaseSemaphore)
    assert {"BaseLock", "BaseSemaphore", "LockManager", "ReadWriteLock", "Semaphore"} <= set(coordination.__all__)
