"""What every test shares: the back ends it runs on, and how long hypothesis looks."""

import os
import re
import zlib

import pytest
from hypothesis import settings

from cuelight import _log
from helpers import BACKENDS, Backend

STRESS = os.environ.get("CUELIGHT_STRESS") == "1"
GATE = os.environ.get("CUELIGHT_GATE") == "1"

LOOP = re.compile(r"(?<=[\[-])(asyncio-debug|asyncio|uvloop|trio)(?=[\]-])")

# Reproducible in the gate: the same examples each time, and no deadline on a machine that is shared.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, database=None)
settings.register_profile("stress", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("stress" if STRESS else "ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the gate (`make test`), run each test on one or two of its loops. Any other run uses all of them.

    A test for asyncio and trio runs on one of the two, half of them on each. A test that is also for uvloop and for the
    debug mode of asyncio runs on trio and on one of the others.
    """
    if not GATE:
        return
    alike: dict[str, list[pytest.Item]] = {}
    for item in items:
        alike.setdefault(LOOP.sub("*", item.nodeid, count=1), []).append(item)
    kept: set[pytest.Item] = set()
    for name, group in alike.items():
        at = zlib.crc32(name.encode())
        if len(group) == 2:
            kept.add(group[at % 2])
        else:
            kept.update(group[-1:])
            kept.update(group[:-1][at % (len(group) - 1) :][:1] if len(group) > 1 else ())
    left_out = [item for item in items if item not in kept]
    if left_out:
        items[:] = [item for item in items if item in kept]
        config.hook.pytest_deselected(items=left_out)


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
