"""Queues are tested over each store."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cuelight.redis._tasks import RedisStore
from cuelight.tasks import MemoryStore, SQLiteStore, Store, TaskQueue
from helpers.redis_servers import shared_server

MakeStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes a store. Stores of one test that are in a file, or on a server, share it."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "redis":
        return lambda: RedisStore(shared_server().url, str(tmp_path))
    # The disk is none of these tests' business, and syncing it takes most of the time.
    return lambda: SQLiteStore(tmp_path / "tasks.db", synchronous="OFF")


@pytest.fixture
async def queue(make_store: MakeStore) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(make_store()) as queue:
        yield queue
