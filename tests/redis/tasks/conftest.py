"""A store over Redis on a clock that is moved by hand, with keys of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from cuelight.redis import RedisClient, RedisStore
from helpers.redis_servers import shared_server
from helpers.stores import Driver, HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def prefix() -> str:
    """No other test has keys that begin like this."""
    return uuid.uuid4().hex


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    async with RedisClient(shared_server().url) as client:
        yield client


@pytest.fixture
async def store(client: RedisClient, prefix: str, clock: HandClock) -> AsyncIterator[RedisStore]:
    store = RedisStore(client, prefix=prefix, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def desk(store: RedisStore, clock: HandClock) -> Driver:
    return Driver(store, clock)
