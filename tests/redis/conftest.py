"""What tests of Redis share: they run against a real server, on asyncio and on trio."""

import pytest

from helpers import BACKENDS, Backend

LOOPS = ("asyncio", "trio")


@pytest.fixture(params=[BACKENDS[name] for name in LOOPS], ids=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """The event loop of a test: both, but not each of their forms, since a server is what takes the time."""
    backend: Backend = request.param
    return backend


@pytest.fixture(params=[BACKENDS[name] for name in LOOPS], ids=LOOPS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """The same for a property test."""
    chosen: Backend = request.param
    return chosen
