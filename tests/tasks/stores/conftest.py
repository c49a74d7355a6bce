"""Each test of the contract runs with every store, on every loop, on a clock that is moved by hand."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuelight.tasks import Store
from helpers.stores import STORES, Driver, HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[Store]:
    store = STORES[request.param](tmp_path, clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def driver(store: Store, clock: HandClock) -> Driver:
    return Driver(store, clock)
