"""Queues are tested over each store."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cuelight.tasks import MemoryStore, SQLiteStore, Store, TaskQueue

MakeStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes a store. Stores of one test that are in a file share it."""
    if request.param == "memory":
        return MemoryStore
    # The disk is none of these tests' business, and syncing it takes most of the time.
    return lambda: SQLiteStore(tmp_path / "tasks.db", synchronous="OFF")


@pytest.fixture
async def queue(make_store: MakeStore) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(make_store()) as queue:
        yield queue
