"""What every test shares: the back ends it runs on, and how long hypothesis looks."""

import os

import pytest
from hypothesis import settings

from cuelight import _log
from helpers import BACKENDS, Backend

STRESS = os.environ.get("CUELIGHT_STRESS") == "1"

# Reproducible in the gate: the same examples each time, and no deadline on a machine that is shared.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, database=None)
settings.register_profile("stress", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("stress" if STRESS else "ci")


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """The event loop of a test: every `async def test_...` runs on each of them."""
    backend: Backend = request.param
    return backend


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """The same for a property test: a plain function that calls `run_on(backend, ...)` for each example."""
    chosen: Backend = request.param
    return chosen


@pytest.fixture(autouse=True)
def _count_log_records_anew() -> None:
    """Each test sees its first records whole, whatever other tests have logged."""
    for log in _log._logs.values():
        log.reset()


@pytest.fixture(scope="session")
def stress() -> bool:
    """Whether this is the long run, `make stress`."""
    return STRESS


def pytest_report_header() -> str:
    return f"hypothesis profile: {'stress' if STRESS else 'ci'}"
